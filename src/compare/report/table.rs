//! A report for a terminal.

use super::saved::{Report, Row};
use super::words::{self, Shown, clean};
use crate::compare::figure::Figure;

mod grid;

use grid::{Grid, Text, wrap};

/// What is shown on a narrower terminal is as wide as this.
const NARROWEST: usize = 40;
/// In which a figure's table stands below the row's name.
const INDENT: usize = 2;
/// Most characters of the line of a cell, widest first: a narrower table is better than one that is cut
/// into blocks, up to a point.
const CELLS: [usize; 3] = [30, 20, 16];
/// Most characters of the line of a figure's name.
const NAME: usize = 28;

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

/// All of `report`, in lines of no more than `width` characters, or 40 if that is less.
pub fn render(report: &Report, width: usize, coloured: bool) -> String {
    let mut sheet = Sheet {
        text: String::new(),
        width: width.max(NARROWEST),
        coloured,
    };
    head(&mut sheet, report);
    for row in &report.rows {
        show(&mut sheet, report, row);
    }
    subjects(&mut sheet, report);
    warnings(&mut sheet, report);
    sheet.text
}

fn head(sheet: &mut Sheet, report: &Report) {
    sheet.paragraph(0, "Process, container, virtual machine: measured", BOLD);
    for (name, text) in [
        ("date", clean(&report.host.date)),
        ("host", words::machine(report)),
        ("KVM", words::kvm(report)),
        ("hull", clean(&report.host.hull)),
        ("runs", report.runs.to_string()),
        ("command", words::command_line(&report.command)),
    ] {
        sheet.entry(name, &text, "");
    }
    for workload in &report.workloads {
        let text = words::command_line(&workload.words);
        sheet.entry(&clean(&workload.name), &text, "");
    }
    let caveats = report.columns().flat_map(|one| {
        let name = clean(&one.name);
        one.caveats
            .iter()
            .map(move |caveat| format!("{name}: {}", clean(caveat)))
    });
    for caveat in caveats {
        sheet.entry("", &caveat, DIM);
    }
}

fn show(sheet: &mut Sheet, report: &Report, row: &Row) {
    sheet.blank();
    sheet.paragraph(0, &clean(&row.name).to_uppercase(), BOLD);
    let (machine, container) = (clean(&row.claim_machine), clean(&row.claim_container));
    let claim = format!("They say: virtual machine: {machine}; container: {container}.");
    sheet.paragraph(INDENT, &claim, DIM);
    let mut notes = Vec::new();
    let grid = grid(report, row, sheet.width - INDENT, &mut notes);
    sheet.blank();
    for block in grid {
        for line in block.lines(sheet.coloured) {
            sheet.line(INDENT, &line);
        }
        sheet.blank();
    }
    for (number, note) in notes.iter().enumerate() {
        sheet.paragraph(INDENT, &format!("[{}] {note}", number + 1), DIM);
    }
    let (mark, paint) = match row.verdict.contradicts {
        true => ("Against the standard answer: ", YELLOW),
        false => ("Measured: ", ""),
    };
    sheet.paragraph(
        INDENT,
        &format!("{mark}{}", clean(&row.verdict.text)),
        paint,
    );
    sheet.paragraph(INDENT, &format!("How: {}", clean(&row.method)), DIM);
}

/// The figures of a row by subjects, or turned, in blocks that fit in `room`.
fn grid(report: &Report, row: &Row, room: usize, notes: &mut Vec<String>) -> Vec<Grid> {
    let names: Vec<String> = report.columns().map(|one| one.name.clone()).collect();
    let shown = |figure: &Figure| -> Vec<Text> {
        let cells = names.iter().map(|name| words::shown(figure, name));
        cells.map(|cell| text(cell, notes)).collect()
    };
    let cells: Vec<Vec<Text>> = row.figures.iter().map(shown).collect();
    let upright = Grid {
        columns: names.iter().map(|name| clean(name)).collect(),
        lines: row
            .figures
            .iter()
            .map(|figure| clean(&figure.name))
            .collect(),
        cells,
        name: NAME.min(room / 2 - 1),
        cell: 0,
    };
    let turned = upright.turned();
    // Half of the narrowest room, less the gap, is left for a column.
    let most = room / 2 - 1;
    let tries = CELLS.map(|cell| cell.min(most));
    let all = tries
        .iter()
        .flat_map(|cell| [upright.with(*cell), turned.with(*cell)]);
    let blocks = all.map(|grid| grid.blocks(room));
    // Of those in as few blocks, the first: upright before turned, wide before narrow.
    blocks.min_by_key(Vec::len).unwrap_or_default()
}

fn text(cell: Shown, notes: &mut Vec<String>) -> Text {
    let paint = match cell.passed {
        Some(true) => GREEN,
        Some(false) => RED,
        None => "",
    };
    let mut text = cell.value;
    if let Some(ratio) = cell.ratio {
        text += &format!(" ({ratio})");
    }
    for note in cell.notes {
        let known = notes.iter().position(|one| *one == note);
        let number = known.unwrap_or_else(|| {
            notes.push(note);
            notes.len() - 1
        });
        text += &format!(" [{}]", number + 1);
    }
    Text {
        text,
        paint,
        prose: cell.prose,
    }
}

fn subjects(sheet: &mut Sheet, report: &Report) {
    let out: Vec<_> = report
        .subjects
        .iter()
        .filter(|one| one.left_out.is_some())
        .collect();
    if out.is_empty() {
        return;
    }
    sheet.blank();
    sheet.paragraph(0, "LEFT OUT", BOLD);
    for one in out {
        let why = one.left_out.as_deref().map(clean).unwrap_or_default();
        sheet.paragraph(INDENT, &format!("{}: {why}", clean(&one.name)), "");
    }
}

fn warnings(sheet: &mut Sheet, report: &Report) {
    if report.warnings.is_empty() {
        return;
    }
    sheet.blank();
    for warning in &report.warnings {
        sheet.paragraph(0, &format!("warning: {}", clean(warning)), YELLOW);
    }
}

/// What is written so far.
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

    /// One blank line, whatever is above it.
    fn blank(&mut self) {
        if !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    fn paragraph(&mut self, indent: usize, text: &str, paint: &str) {
        for line in wrap(text, self.width - indent) {
            self.line(indent, &grid::painted(&line, paint, self.coloured));
        }
    }

    /// A name, and what belongs to it beside it.
    fn entry(&mut self, name: &str, text: &str, paint: &str) {
        const ROOM: usize = 10;
        let at = INDENT + ROOM;
        let names = wrap(name, ROOM - 1);
        let lines = wrap(text, self.width - at);
        for number in 0..names.len().max(lines.len()) {
            let name = names.get(number).map_or("", String::as_str);
            let line = lines.get(number).map_or("", String::as_str);
            let line = grid::painted(line, paint, self.coloured);
            self.line(INDENT, &format!("{name:<ROOM$}{line}"));
        }
    }
}

#[cfg(test)]
mod tests;
