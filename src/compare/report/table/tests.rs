use super::super::testing::{report, report_of};
use super::*;
use crate::compare::figure::Cell;
use proptest::prelude::*;

/// `text` without SGR sequences.
fn plain(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        all + part.split_once('m').expect("a sequence ends").1
    })
}

/// The report with another number of subjects.
fn report_with(subjects: usize) -> Report {
    let mut report = report();
    let name = |at: usize| format!("subject-{at}");
    let model = report.subjects[1].clone();
    report.subjects.retain(|one| !one.takes_part());
    report.subjects.extend((0..subjects).map(|at| {
        let mut one = model.clone();
        one.name = name(at);
        one
    }));
    for figure in report.rows.iter_mut().flat_map(|row| &mut row.figures) {
        let model: Cell = figure.cells[1].clone();
        let cells = (0..subjects).map(|at| model.clone().of(&name(at)));
        figure.cells = cells.collect();
    }
    report
}

#[test]
fn a_row_has_claim_figures_verdict_and_method() {
    let text = render(&report(), 120, false);
    for part in [
        "  date      2026-11-01T12:00:00Z\n",
        "  host      AMD EPYC 7B13, 2 CPUs, 8.00 GiB, Linux 6.12.9-amd64\n",
        "  KVM       hardware, SVM, itself under KVM\n",
        "\nSTARTUP TIME\n  Claimed: virtual machine: slow, minutes; container: fast, seconds.\n",
        "echo, exec to first output",
        "49.0 ms (24.5x)",
        "Contradicts the standard answer: A virtual machine that goes on from a template",
        "How: How startup time was measured",
        "Measured: As they say: of 4 probes",
        "~3,400",
        "\nLEFT OUT\n  docker: it cannot connect to the Docker daemon\n",
        "\nwarning: this machine is itself a virtual machine",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    let notes = text.matches("] it sees 212 processes").count();
    assert_eq!(notes, 1, "equal notes stand once:\n{text}");
}

#[test]
fn columns_are_aligned() {
    let text = render(&report(), 120, false);
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| *line == "FOOTPRINT");
    let at = at.expect("the row");
    let (head, figures) = (lines[at + 3], lines[at + 4]);
    for (subject, bytes) in [("process", "977 KiB"), ("firecracker", "11.4 MiB (12.0x)")] {
        let end = |line: &str, part: &str| line.find(part).map(|start| start + part.len());
        assert_eq!(end(head, subject), end(figures, bytes), "{head}\n{figures}");
    }
}

#[test]
fn twelve_subjects_are_shown_in_80_columns() {
    let report = report_with(12);
    let text = render(&report, 80, false);
    for row in &report.rows {
        let (_, shown) = text.split_once(&row.name.to_uppercase()).expect("the row");
        let (shown, _) = shown.split_once("How: ").expect("its method");
        for subject in report.columns() {
            assert!(shown.contains(&subject.name), "{}: {text}", row.name);
        }
    }
}

#[test]
fn colours_change_nothing_else() {
    let (with, without) = (render(&report(), 100, true), render(&report(), 100, false));
    assert!(with.contains("\x1b[32mpass\x1b[0m") && with.contains("\x1b[31mfail"));
    assert_eq!(plain(&with), without);
}

proptest! {
    // Each case renders a whole report.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_line_is_wider_than_asked(width in 40_usize..200, subjects in 1_usize..14) {
        let text = render(&report_with(subjects), width, false);
        for line in text.lines() {
            prop_assert!(line.chars().count() <= width, "{width}: {line:?}");
        }
    }

    #[test]
    fn hostile_texts_have_no_control_characters(text in any::<String>()) {
        let shown = render(&report_of(&text), 80, false);
        prop_assert!(!shown.contains(|c: char| c.is_control() && c != '\n'));
    }
}
