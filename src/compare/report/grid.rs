//! A table of texts in aligned columns, in blocks if it is too wide.

use textwrap::{Options, WordSplitter};

const GAP: usize = 2;
const BOLD: &str = "1";

#[derive(Clone, Debug, Default)]
pub struct Text {
    pub text: String,
    /// SGR parameters (ECMA-48, 8.3.117), or nothing.
    pub paint: &'static str,
    /// Aligned to the left, as opposed to numbers.
    pub prose: bool,
}

impl Text {
    pub fn prose(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            paint: "",
            prose: true,
        }
    }

    pub fn number(text: impl Into<String>) -> Self {
        Self {
            prose: false,
            ..Self::prose(text)
        }
    }
}

/// A table. The first row and the first column have the heads.
#[derive(Clone, Debug)]
pub struct Grid {
    rows: Vec<Vec<Text>>,
    max_name: usize,
    max_cell: usize,
}

impl Grid {
    /// A table without limits of width. All rows have the same number of cells.
    pub fn new(rows: Vec<Vec<Text>>) -> Self {
        Self {
            rows,
            max_name: usize::MAX,
            max_cell: usize::MAX,
        }
    }

    /// Wraps cells that are wider.
    pub fn with_limits(&self, max_name: usize, max_cell: usize) -> Self {
        Self {
            rows: self.rows.clone(),
            max_name,
            max_cell,
        }
    }

    pub fn transposed(&self) -> Self {
        let column = |at: usize| self.rows.iter().map(|row| row[at].clone()).collect();
        Self {
            rows: (0..self.columns()).map(column).collect(),
            ..*self
        }
    }

    /// The blocks of as many columns as fit into `width`, each with the first column.
    pub fn blocks(&self, width: usize) -> Vec<Self> {
        let mut blocks = Vec::new();
        let mut start = 1;
        let mut used = self.width(0);
        for column in 1..self.columns() {
            let wide = GAP + self.width(column);
            if used + wide > width && column > start {
                blocks.push(self.block(start, column));
                (start, used) = (column, self.width(0));
            }
            used += wide;
        }
        if start < self.columns() {
            blocks.push(self.block(start, self.columns()));
        }
        blocks
    }

    fn block(&self, start: usize, end: usize) -> Self {
        let cells = |row: &Vec<Text>| [&row[..1], &row[start..end]].concat();
        Self {
            rows: self.rows.iter().map(cells).collect(),
            ..*self
        }
    }

    fn columns(&self) -> usize {
        self.rows.first().map_or(0, Vec::len)
    }

    fn wrapped(&self, column: usize, cell: &Text) -> Vec<String> {
        let limits = [self.max_name, self.max_cell];
        wrap(&cell.text, limits[usize::from(column > 0)])
    }

    fn width(&self, column: usize) -> usize {
        let lines = self
            .rows
            .iter()
            .flat_map(|row| self.wrapped(column, &row[column]));
        lines.map(|line| line.chars().count()).max().unwrap_or(0)
    }

    pub fn lines(&self, coloured: bool) -> Vec<String> {
        let columns = 0..self.columns();
        let widths: Vec<usize> = columns.clone().map(|column| self.width(column)).collect();
        let is_prose =
            |column: usize| column == 0 || self.rows[1..].iter().all(|row| row[column].prose);
        let prose: Vec<bool> = columns.map(is_prose).collect();
        let mut lines = Vec::new();
        for (number, row) in self.rows.iter().enumerate() {
            let wrapped = row.iter().enumerate();
            let wrapped: Vec<_> = wrapped.map(|(at, cell)| self.wrapped(at, cell)).collect();
            for part in 0..wrapped.iter().map(Vec::len).max().unwrap_or(0) {
                let mut line = String::new();
                for (column, cell) in row.iter().enumerate() {
                    let text = wrapped[column].get(part).map_or("", String::as_str);
                    let pad = " ".repeat(widths[column] - text.chars().count());
                    let is_head = number == 0 || column == 0;
                    let left = if is_head { prose[column] } else { cell.prose };
                    let text = painted(text, if number == 0 { BOLD } else { cell.paint }, coloured);
                    line += &if left { text + &pad } else { pad + &text };
                    line += &" ".repeat(GAP);
                }
                lines.push(line.trim_end().to_owned());
            }
        }
        lines
    }
}

pub fn painted(text: &str, paint: &str, coloured: bool) -> String {
    if coloured && !paint.is_empty() && !text.is_empty() {
        format!("\x1b[{paint}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// The lines of `text`, none of which is wider than `width`. Only words that are wider themselves are broken.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let options = Options::new(width).word_splitter(WordSplitter::NoHyphenation);
    let lines = textwrap::wrap(text, options);
    lines.into_iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_wrapped() {
        let row = |[name, number, text]: [&str; 3]| {
            vec![Text::prose(name), Text::number(number), Text::prose(text)]
        };
        let grid = Grid::new(vec![
            row(["", "n", "t"]),
            row(["a", "1", "x y"]),
            row(["bcd", "22", ""]),
        ]);
        assert_eq!(grid.lines(false), ["      n  t", "a     1  x y", "bcd  22"]);
        let narrow = grid.with_limits(3, 2);
        assert_eq!(
            narrow.lines(false),
            ["      n  t", "a     1  x", "         y", "bcd  22"]
        );
        assert_eq!(narrow.blocks(7).len(), 2);
        assert_eq!(
            grid.transposed().lines(false),
            ["     a  bcd", "n    1   22", "t  x y"]
        );
    }

    #[test]
    fn only_long_words_are_broken() {
        assert_eq!(wrap("ab cd efghijk l", 5), ["ab cd", "efghi", "jk l"]);
        assert_eq!(wrap("a hull-warm", 8), ["a", "hull-war", "m"]);
    }
}
