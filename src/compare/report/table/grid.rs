//! Cells in aligned columns, of which a line may be too narrow for all.

/// Characters between two columns.
const GAP: usize = 2;

/// What stands in a cell.
#[derive(Clone, Debug, Default)]
pub struct Text {
    pub text: String,
    /// The colour, as SGR (ECMA-48, 8.3.117) has it; none if empty.
    pub paint: &'static str,
    /// Read from the left. Numbers end where those above them do.
    pub prose: bool,
}

/// A table with names above its columns and before its lines.
#[derive(Clone, Debug, Default)]
pub struct Grid {
    pub columns: Vec<String>,
    pub lines: Vec<String>,
    /// By line, then by column.
    pub cells: Vec<Vec<Text>>,
    /// Most characters of a line's name; longer ones go on below.
    pub name: usize,
    /// The same of a cell.
    pub cell: usize,
}

impl Grid {
    /// Its columns as lines.
    pub fn turned(&self) -> Self {
        let column = |at: usize| self.cells.iter().map(|line| line[at].clone()).collect();
        Self {
            columns: self.lines.clone(),
            lines: self.columns.clone(),
            cells: (0..self.columns.len()).map(column).collect(),
            ..*self
        }
    }

    /// With cells of no more than so many characters.
    pub fn with(&self, cell: usize) -> Self {
        Self {
            cell,
            ..self.clone()
        }
    }

    /// In parts of so many columns as have room.
    pub fn blocks(&self, room: usize) -> Vec<Self> {
        let mut blocks = Vec::new();
        let mut start = 0;
        let mut used = self.name_width();
        for at in 0..self.columns.len() {
            let wide = GAP + self.width(at);
            if used + wide > room && at > start {
                blocks.push(self.part(start, at));
                (start, used) = (at, self.name_width());
            }
            used += wide;
        }
        if start < self.columns.len() {
            blocks.push(self.part(start, self.columns.len()));
        }
        blocks
    }

    fn part(&self, start: usize, end: usize) -> Self {
        Self {
            columns: self.columns[start..end].to_vec(),
            lines: self.lines.clone(),
            cells: self
                .cells
                .iter()
                .map(|line| line[start..end].to_vec())
                .collect(),
            ..*self
        }
    }

    fn name_width(&self) -> usize {
        self.lines
            .iter()
            .map(|name| longest(&wrap(name, self.name)))
            .max()
            .unwrap_or(0)
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.cells.iter().map(|line| &line[column].text);
        let all = cells.chain([&self.columns[column]]);
        all.map(|text| longest(&wrap(text, self.cell)))
            .max()
            .unwrap_or(0)
    }

    /// Its lines as they are printed.
    pub fn lines(&self, coloured: bool) -> Vec<String> {
        let mut widths = vec![self.name_width()];
        widths.extend((0..self.columns.len()).map(|column| self.width(column)));
        let prose = |column: usize| self.cells.iter().all(|line| line[column].prose);
        let heads = self.columns.iter().enumerate().map(|(column, name)| Text {
            text: name.clone(),
            paint: "1",
            prose: prose(column),
        });
        let head: Vec<Text> = [Text::default()].into_iter().chain(heads).collect();
        let mut printed = self.line(&head, &widths, coloured);
        for (name, cells) in self.lines.iter().zip(&self.cells) {
            let name = Text {
                text: name.clone(),
                paint: "",
                prose: true,
            };
            let line: Vec<Text> = [name].into_iter().chain(cells.iter().cloned()).collect();
            printed.extend(self.line(&line, &widths, coloured));
        }
        printed
    }

    /// A line of the table, which is as many on the screen as its longest cell has.
    fn line(&self, cells: &[Text], widths: &[usize], coloured: bool) -> Vec<String> {
        let limit = |at: usize| if at == 0 { self.name } else { self.cell };
        let wrapped = cells
            .iter()
            .enumerate()
            .map(|(at, cell)| wrap(&cell.text, limit(at)));
        let wrapped: Vec<Vec<String>> = wrapped.collect();
        let height = wrapped.iter().map(Vec::len).max().unwrap_or(0);
        let screen_line = |number: usize| {
            let mut line = String::new();
            for ((cell, parts), width) in cells.iter().zip(&wrapped).zip(widths) {
                let part = parts.get(number).map_or("", String::as_str);
                let pad = " ".repeat(width - part.chars().count());
                let part = painted(part, cell.paint, coloured);
                line += &match cell.prose {
                    true => format!("{part}{pad}"),
                    false => format!("{pad}{part}"),
                };
                line += &" ".repeat(GAP);
            }
            line.trim_end().to_owned()
        };
        (0..height).map(screen_line).collect()
    }
}

/// In that colour, if there are any.
pub fn painted(text: &str, paint: &str, coloured: bool) -> String {
    match coloured && !paint.is_empty() && !text.is_empty() {
        true => format!("\x1b[{paint}m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

fn longest(lines: &[String]) -> usize {
    lines
        .iter()
        .map(|line| line.chars().count())
        .max()
        .unwrap_or(0)
}

/// `text` in lines of no more than `width` characters, which is above 0: between words, where there are
/// any. No lines for no text.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut room = 0;
    for word in text.split_whitespace() {
        let long = word.chars().count();
        match lines.last_mut() {
            Some(line) if long < room => {
                line.push(' ');
                line.push_str(word);
                room -= long + 1;
            }
            _ => {
                let characters: Vec<char> = word.chars().collect();
                let pieces = characters.chunks(width).map(|piece| piece.iter().collect());
                lines.extend(pieces);
                room = width - lines.last().map_or(0, |line| line.chars().count());
            }
        }
    }
    lines
}
