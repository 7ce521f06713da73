//! Reports of `hull bench`, and changes between them, as text.

use super::bench::Report;
use super::change::{Change, Changes, Verdict};
use super::grid::{Grid, Text, wrap};
use crate::compare::figure::{Cell, Figure, Unit};
use crate::compare::statistics::Ratio;

const MAX_WIDTH: usize = 100;

pub fn report_text(report: &Report) -> String {
    let runs = match report.settings.runs {
        1 => "1 run".to_string(),
        runs => format!("{runs} runs"),
    };
    let topic = &report.topic;
    let head = format!("hull bench {topic}: {runs} of each, in turns");
    let heads = [
        "figure",
        "unit",
        "subject",
        "median",
        "quartiles",
        "ratio (95 %)",
    ];
    let mut rows = Vec::new();
    for figure in &report.figures {
        let cells = figure.cells.iter().filter(|cell| cell.summary.is_some());
        rows.extend(
            cells
                .enumerate()
                .map(|(at, cell)| figure_cells(figure, cell, at == 0)),
        );
    }
    sheet(&head, heads, rows, &report.warnings, &notes(report))
}

/// Versions, reasons of those left out, caveats, failed runs, conditions and method.
fn notes(report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    for one in &report.subjects {
        let version = one.version.as_ref();
        notes.extend(version.map(|version| format!("{}: {version}", one.name)));
        let reason = one.left_out.as_ref();
        notes.extend(reason.map(|reason| format!("{} is left out: {reason}", one.name)));
    }
    notes.extend(caveats(report));
    let cells = report.figures.iter().flat_map(|figure| &figure.cells);
    for cell in cells.filter(|cell| cell.summary.is_some()) {
        let note = cell
            .note
            .as_ref()
            .map(|note| format!("{}: {note}", cell.subject));
        notes.extend(note.filter(|note| !notes.contains(note)));
    }
    let host = &report.host;
    let kvm = host.kvm.as_deref().unwrap_or("none");
    notes.push(format!(
        "{}; {} of {}, Linux {}; KVM: {kvm}",
        host.date, host.cpus, host.processor, host.kernel
    ));
    notes.push(report.method.clone());
    notes
}

fn caveats(report: &Report) -> Vec<String> {
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for one in &report.subjects {
        for caveat in &one.caveats {
            match all.iter_mut().find(|(text, _)| text == caveat) {
                Some((_, names)) => names.push(&one.name),
                None => all.push((caveat, vec![&one.name])),
            }
        }
    }
    let line = |(text, names): (&str, Vec<&str>)| format!("{}: {text}", names.join(", "));
    all.into_iter().map(line).collect()
}

pub fn changes_text(changes: &Changes) -> String {
    let topic = &changes.new.topic;
    let (old, new) = (&changes.old.host.date, &changes.new.host.date);
    let head = format!("hull bench {topic}: from {old} to {new}");
    let heads = [
        "figure",
        "unit",
        "subject",
        "old",
        "new",
        "new / old (95 %)",
        "",
    ];
    let rows = changes.changes.iter().map(change_cells).collect();
    let count = |verdict| {
        let of_it = changes.changes.iter().filter(|one| one.verdict == verdict);
        of_it.count()
    };
    let sum = format!(
        "{} improved, {} worse, {} not real, {} unknown, of {} figures",
        count(Verdict::Improved),
        count(Verdict::Worse),
        count(Verdict::NotReal),
        count(Verdict::Unknown),
        changes.changes.len(),
    );
    sheet(&head, heads, rows, &changes.warnings, &[sum])
}

/// Name and unit stand only in the figure's first row.
fn figure_cells(figure: &Figure, cell: &Cell, is_first: bool) -> [String; 6] {
    let name = |text: &str| if is_first { text.into() } else { String::new() };
    let number = |value: f64| number(figure.unit, value);
    let summary = cell.summary.as_ref();
    let quartiles =
        summary.map(|of| format!("{} .. {}", number(of.quartile_1), number(of.quartile_3)));
    [
        name(&figure.name),
        name(unit_name(figure.unit)),
        cell.subject.clone(),
        summary.map_or(String::new(), |of| number(of.median)),
        quartiles.unwrap_or_default(),
        ratio(cell.ratio),
    ]
}

fn change_cells(change: &Change) -> [String; 7] {
    let verdict = match change.verdict {
        Verdict::Improved => "improved",
        Verdict::Worse => "worse",
        Verdict::NotReal => "not real",
        Verdict::Unknown => "unknown",
    };
    [
        change.figure.clone(),
        unit_name(change.unit).into(),
        change.subject.clone(),
        number(change.unit, change.old),
        number(change.unit, change.new),
        ratio(change.ratio),
        verdict.into(),
    ]
}

fn ratio(ratio: Option<Ratio>) -> String {
    ratio.map_or(String::new(), |Ratio { ratio, low, high }| {
        format!("{ratio:.2} ({low:.2} to {high:.2})")
    })
}

/// The unit of the numbers of [`number`].
fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Milliseconds => "ms",
        Unit::Microseconds => "us",
        Unit::Seconds => "s",
        Unit::Bytes => "KiB",
        Unit::BytesPerSecond => "MiB/s",
        Unit::PerSecond => "1/s",
        Unit::Count | Unit::Share | Unit::Text => "",
    }
}

fn number(unit: Unit, value: f64) -> String {
    let value = match unit {
        Unit::Bytes => value / 1024.0,
        Unit::BytesPerSecond => value / f64::from(1 << 20),
        _ => value,
    };
    match value.abs() {
        less if less < 10.0 => format!("{value:.2}"),
        less if less < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A table between its head and what is below it. Columns 3 and 4 have numbers.
fn sheet<const N: usize>(
    head: &str,
    heads: [&str; N],
    rows: Vec<[String; N]>,
    warnings: &[String],
    notes: &[String],
) -> String {
    let row = |cells: [String; N]| {
        let cell = |(column, text)| match column {
            3 | 4 => Text::number(text),
            _ => Text::prose(text),
        };
        cells.into_iter().enumerate().map(cell).collect()
    };
    let rows = [heads.map(String::from)].into_iter().chain(rows);
    let table = Grid::new(rows.map(row).collect()).lines(false).join("\n");
    format!("{head}\n\n{table}\n\n{}", below(warnings, notes))
}

/// Warnings and notes in lines; the second and later lines of each are indented.
fn below(warnings: &[String], notes: &[String]) -> String {
    let warnings = warnings.iter().map(|warning| format!("warning: {warning}"));
    let paragraphs = warnings.chain(notes.iter().cloned());
    let wrapped = paragraphs.map(|text| wrap(&text, MAX_WIDTH - 2).join("\n  ") + "\n");
    wrapped.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_in_their_unit() {
        assert_eq!(number(Unit::Milliseconds, 1.234), "1.23");
        assert_eq!(number(Unit::Microseconds, 12.34), "12.3");
        assert_eq!(number(Unit::Milliseconds, 9260.4), "9260");
        assert_eq!(number(Unit::Bytes, 2048.0), "2.00");
        assert_eq!(number(Unit::BytesPerSecond, f64::from(3 << 20)), "3.00");
    }

    #[test]
    fn long_lines_are_wrapped_and_indented() {
        let text = below(&["word ".repeat(30)], &[]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].len() <= MAX_WIDTH && lines[1].starts_with("  word"));
    }
}
