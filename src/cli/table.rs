//! Aligned columns of text.

use std::time::Duration;

use super::output::wrapped;

/// Most characters of a line.
const WIDTH: usize = 100;
/// Characters between two columns.
const GAP: usize = 2;

/// Rows of cells; the columns are as wide as their widest cell. The last cell of a row goes on in
/// the lines below where it is too long, between two of its words.
#[derive(Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    /// No rows yet, and so many spaces before each.
    pub fn indented(indent: usize) -> Self {
        Self {
            rows: Vec::new(),
            indent,
        }
    }

    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }

    /// The lines, each ended by a newline.
    pub fn draw(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let inner = self.rows.iter().filter(|row| column + 1 < row.len());
            let cells = inner.filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            let Some((last, inner)) = row.split_last() else {
                text.push('\n');
                continue;
            };
            for (cell, width) in inner.iter().zip(&widths) {
                line += &format!("{cell:<wide$}", wide = width + GAP);
            }
            let start = line.chars().count();
            for (index, part) in wrapped(last, WIDTH.saturating_sub(start))
                .iter()
                .enumerate()
            {
                if index > 0 {
                    line = " ".repeat(start);
                }
                text += (line.clone() + part).trim_end();
                text.push('\n');
            }
        }
        text
    }
}

/// `1 request`, `2 requests`.
pub fn count(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        _ => format!("{number} {what}s"),
    }
}

/// How long ago something was.
pub fn ago(age: Duration) -> String {
    match age.as_secs() {
        0 => "just now".into(),
        seconds => duration(seconds) + " ago",
    }
}

/// A time in its largest unit, without the rest: `2 hours`.
pub fn duration(seconds: u64) -> String {
    let (length, unit) = match seconds {
        0..60 => (1, "second"),
        60..3_600 => (60, "minute"),
        3_600..86_400 => (3_600, "hour"),
        _ => (86_400, "day"),
    };
    count(seconds / length, unit)
}
