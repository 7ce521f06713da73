//! A comparison as text for a terminal.

use super::comparison::{Report, Row};
use super::grid::{Grid, Text, painted, wrap};
use super::words::{self, CONTRADICTS, Shown, clean};
use crate::compare::figure::Figure;

/// A narrower terminal gets lines of this width.
const MIN_WIDTH: usize = 40;
const INDENT: usize = 2;
/// The widths of cells that are tried, widest first: a narrower table is better than one in more blocks.
const CELL_WIDTHS: [usize; 3] = [30, 20, 16];
const MAX_NAME: usize = 28;
const HEAD_NAME: usize = 10;

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

/// The whole report, in lines of at most `width` characters.
pub fn render(report: &Report, width: usize, coloured: bool) -> String {
    let mut sheet = Sheet {
        text: String::new(),
        width: width.max(MIN_WIDTH),
        coloured,
    };
    head(&mut sheet, report);
    for row in &report.rows {
        show(&mut sheet, report, row);
    }
    left_out(&mut sheet, report);
    if !report.warnings.is_empty() {
        sheet.blank();
    }
    for warning in &report.warnings {
        sheet.paragraph(0, &format!("warning: {}", clean(warning)), YELLOW);
    }
    sheet.text
}

fn head(sheet: &mut Sheet, report: &Report) {
    sheet.paragraph(0, "Process, container, virtual machine: measured", BOLD);
    for (name, text) in words::conditions(report) {
        sheet.entry(name, &text, "");
    }
    sheet.entry("command", &words::command_line(&report.command), "");
    for workload in &report.workloads {
        let text = words::command_line(&workload.words);
        sheet.entry(&clean(&workload.name), &text, "");
    }
    for one in report.columns() {
        for caveat in &one.caveats {
            let caveat = format!("{}: {}", clean(&one.name), clean(caveat));
            sheet.entry("", &caveat, DIM);
        }
    }
}

fn show(sheet: &mut Sheet, report: &Report, row: &Row) {
    sheet.blank();
    sheet.paragraph(0, &clean(&row.name).to_uppercase(), BOLD);
    let (machine, container) = (clean(&row.claim_machine), clean(&row.claim_container));
    let claim = format!("Claimed: virtual machine: {machine}; container: {container}.");
    sheet.paragraph(INDENT, &claim, DIM);
    let mut notes = Vec::new();
    let blocks = blocks(report, row, sheet.width - INDENT, &mut notes);
    sheet.blank();
    for block in blocks {
        for line in block.lines(sheet.coloured) {
            sheet.line(INDENT, &line);
        }
        sheet.blank();
    }
    for (number, note) in notes.iter().enumerate() {
        sheet.paragraph(INDENT, &format!("[{}] {note}", number + 1), DIM);
    }
    let (mark, paint) = if row.verdict.contradicts {
        (CONTRADICTS, YELLOW)
    } else {
        ("Measured", "")
    };
    let verdict = format!("{mark}: {}", clean(&row.verdict.text));
    sheet.paragraph(INDENT, &verdict, paint);
    sheet.paragraph(INDENT, &format!("How: {}", clean(&row.method)), DIM);
}

/// The figures of a row by subjects, or transposed, in the layout with the fewest blocks.
fn blocks(report: &Report, row: &Row, width: usize, notes: &mut Vec<String>) -> Vec<Grid> {
    let names: Vec<&str> = report.columns().map(|one| one.name.as_str()).collect();
    let heads = names.iter().map(|name| Text::prose(clean(name)));
    let mut rows = vec![[Text::default()].into_iter().chain(heads).collect()];
    let mut line = |figure: &Figure| -> Vec<Text> {
        let cells = names
            .iter()
            .map(|name| text(words::shown(figure, name), notes));
        let name = Text::prose(clean(&figure.name));
        [name].into_iter().chain(cells).collect()
    };
    rows.extend(row.figures.iter().map(&mut line));
    let grid = Grid::new(rows);
    let transposed = grid.transposed();
    // At the smallest width, a name and a cell fit side by side.
    let half = width / 2 - 1;
    let layouts = CELL_WIDTHS.iter().flat_map(|cell| {
        let limits = (MAX_NAME.min(half), (*cell).min(half));
        [&grid, &transposed].map(|grid| grid.with_limits(limits.0, limits.1).blocks(width))
    });
    layouts.min_by_key(Vec::len).unwrap_or_default()
}

fn text(cell: Shown, notes: &mut Vec<String>) -> Text {
    let mut text = cell.with_ratio();
    for note in cell.notes {
        text += &format!(" [{}]", words::note_number(notes, note));
    }
    Text {
        text,
        paint: match cell.passed {
            Some(true) => GREEN,
            Some(false) => RED,
            None => "",
        },
        prose: cell.prose,
    }
}

fn left_out(sheet: &mut Sheet, report: &Report) {
    let left_out = report.subjects.iter().filter_map(|one| {
        let reason = one.left_out.as_deref()?;
        Some(format!("{}: {}", clean(&one.name), clean(reason)))
    });
    let left_out: Vec<String> = left_out.collect();
    if left_out.is_empty() {
        return;
    }
    sheet.blank();
    sheet.paragraph(0, "LEFT OUT", BOLD);
    for line in left_out {
        sheet.paragraph(INDENT, &line, "");
    }
}

struct Sheet {
    text: String,
    width: usize,
    coloured: bool,
}

impl Sheet {
    fn line(&mut self, indent: usize, line: &str) {
        self.text += format!("{:indent$}{line}", "").trim_end();
        self.text.push('\n');
    }

    fn blank(&mut self) {
        if !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    fn paragraph(&mut self, indent: usize, text: &str, paint: &str) {
        for line in wrap(text, self.width - indent) {
            self.line(indent, &painted(&line, paint, self.coloured));
        }
    }

    fn entry(&mut self, name: &str, text: &str, paint: &str) {
        let names = wrap(name, HEAD_NAME - 1);
        let lines = wrap(text, self.width - INDENT - HEAD_NAME);
        for number in 0..names.len().max(lines.len()) {
            let name = names.get(number).map_or("", String::as_str);
            let line = lines.get(number).map_or("", String::as_str);
            let line = painted(line, paint, self.coloured);
            self.line(INDENT, &format!("{name:<HEAD_NAME$}{line}"));
        }
    }
}

#[cfg(test)]
mod tests;
