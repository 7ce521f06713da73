//! Figures and changes of figures as aligned text.

use crate::compare::bench::report::Report;
use crate::compare::figure::{Cell, Figure, Unit};
use crate::compare::report::change::{Change, Changes, Verdict};

/// Most characters of a line of prose.
const WIDTH: usize = 100;
/// Between two columns.
const GAP: &str = "  ";

/// A report, as it is printed.
pub fn report_text(report: &Report) -> String {
    let runs = match report.settings.runs {
        1 => "1 run".to_string(),
        runs => format!("{runs} runs"),
    };
    let head = format!(
        "hull bench {}: {runs} of each, in turns",
        report.topic.name()
    );
    let mut rows = vec![words([
        "figure",
        "unit",
        "subject",
        "median",
        "quartiles",
        "ratio (95 %)",
    ])];
    for figure in &report.figures {
        let cells = figure.cells.iter().filter(|cell| cell.summary.is_some());
        for (index, cell) in cells.enumerate() {
            rows.push(figure_row(figure, cell, index == 0));
        }
    }
    let mut notes = Vec::new();
    for one in &report.subjects {
        let version = one.version.as_ref();
        let version = version.map(|version| format!("{}: {version}", one.name));
        notes.extend(version);
        let reason = one.left_out.as_ref();
        notes.extend(reason.map(|reason| format!("{} is left out: {reason}", one.name)));
    }
    notes.extend(caveats(report));
    let failed = report.figures.iter().flat_map(|figure| &figure.cells);
    let failed = failed.filter(|cell| cell.summary.is_some());
    for cell in failed {
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
    let tail = warnings_and_notes(&report.warnings, &notes);
    format!("{head}\n\n{}\n{tail}", aligned(&rows, &[3, 4]))
}

/// Each caveat once, with all whom it is about.
fn caveats(report: &Report) -> Vec<String> {
    let mut told: Vec<(&str, Vec<&str>)> = Vec::new();
    for one in &report.subjects {
        for caveat in &one.caveats {
            match told.iter_mut().find(|(text, _)| text == caveat) {
                Some((_, names)) => names.push(&one.name),
                None => told.push((caveat, vec![&one.name])),
            }
        }
    }
    let line = |(text, names): (&str, Vec<&str>)| format!("{}: {text}", names.join(", "));
    told.into_iter().map(line).collect()
}

/// What has changed, as it is printed.
pub fn changes_text(changes: &Changes) -> String {
    let topic = changes.new.topic.name();
    let (old, new) = (&changes.old.host.date, &changes.new.host.date);
    let head = format!("hull bench {topic}: from {old} to {new}");
    let mut rows = vec![words([
        "figure",
        "unit",
        "subject",
        "old",
        "new",
        "new / old (95 %)",
        "",
    ])];
    rows.extend(changes.changes.iter().map(change_row));
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
    let tail = warnings_and_notes(&changes.warnings, &[sum]);
    format!("{head}\n\n{}\n{tail}", aligned(&rows, &[3, 4]))
}

fn figure_row(figure: &Figure, cell: &Cell, first: bool) -> Vec<String> {
    let (name, unit) = match first {
        true => (figure.name.as_str(), label(figure.unit)),
        false => ("", ""),
    };
    let number = |value: f64| number(figure.unit, value);
    let summary = cell.summary.as_ref();
    let ratio = cell
        .ratio
        .map(|ratio| format!("{:.2} ({:.2} to {:.2})", ratio.ratio, ratio.low, ratio.high));
    vec![
        name.into(),
        unit.into(),
        cell.subject.clone(),
        summary.map_or(String::new(), |of| number(of.median)),
        summary.map_or(String::new(), |of| {
            format!("{} .. {}", number(of.quartile_1), number(of.quartile_3))
        }),
        ratio.unwrap_or_default(),
    ]
}

fn change_row(change: &Change) -> Vec<String> {
    let verdict = match change.verdict {
        Verdict::Improved => "improved",
        Verdict::Worse => "worse",
        Verdict::NotReal => "not real",
        Verdict::Unknown => "unknown",
    };
    let ratio = change
        .ratio
        .map(|ratio| format!("{:.2} ({:.2} to {:.2})", ratio.ratio, ratio.low, ratio.high));
    vec![
        change.figure.clone(),
        label(change.unit).into(),
        change.subject.clone(),
        number(change.unit, change.old),
        number(change.unit, change.new),
        ratio.unwrap_or_default(),
        verdict.into(),
    ]
}

/// In what a unit's figures are printed.
fn label(unit: Unit) -> &'static str {
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

/// With three digits or more.
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

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(String::from).into()
}

/// Columns as wide as their widest cell; those in `right` have their cells at the right.
fn aligned(rows: &[Vec<String>], right: &[usize]) -> String {
    let wide = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = wide(column);
            line += &match right.contains(&column) {
                true => format!("{cell:>width$}{GAP}"),
                false => format!("{cell:<width$}{GAP}"),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn warnings_and_notes(warnings: &[String], notes: &[String]) -> String {
    let warnings = warnings.iter().map(|warning| format!("warning: {warning}"));
    let mut text = String::new();
    for line in warnings.chain(notes.iter().cloned()) {
        text += &wrapped(&line);
    }
    text
}

/// In lines; those behind the first are indented.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut used = 0;
    for word in text.split_whitespace() {
        let long = word.chars().count();
        if used > 0 && used + 1 + long > WIDTH {
            lines += "\n  ";
            used = 2;
        } else if used > 0 {
            lines.push(' ');
            used += 1;
        }
        lines += word;
        used += long;
    }
    lines + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_in_the_unit_of_their_label() {
        assert_eq!(number(Unit::Milliseconds, 1.234), "1.23");
        assert_eq!(number(Unit::Microseconds, 12.34), "12.3");
        assert_eq!(number(Unit::Milliseconds, 9260.4), "9260");
        assert_eq!(number(Unit::Bytes, 2048.0), "2.00");
        assert_eq!(number(Unit::BytesPerSecond, f64::from(3 << 20)), "3.00");
    }

    #[test]
    fn columns_are_aligned_and_long_lines_wrapped() {
        let rows = [words(["a", "1", "x"]), words(["bcd", "22", ""])];
        assert_eq!(aligned(&rows, &[1]), "a     1  x\nbcd  22\n");
        let text = wrapped(&"word ".repeat(30));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].len() <= WIDTH && lines[1].starts_with("  word"));
    }
}
