//! A comparison as one table in Markdown, for a README.

use super::comparison::{Report, Row};
use super::participant::Participant;
use super::words::{self, CONTRADICTS, NOTHING, clean};
use crate::compare::subject::Kind;

/// A table with one line for each row, between the conditions and the warnings.
pub fn render(report: &Report) -> String {
    let heads = ["", "virtual machine, claimed", "container, claimed"];
    let mut heads: Vec<String> = heads.map(String::from).into();
    let names = |kind| report.side(kind).map(|one| escaped(&one.name));
    heads.extend(names(Kind::Process));
    heads.push("best container".into());
    heads.extend(names(Kind::Machine));
    heads.push("measured".into());
    let mut text = head(report) + "\n\n" + &line(&heads) + &line(&vec!["---".into(); heads.len()]);
    for row in &report.rows {
        text += &line(&cells(report, row));
    }
    let notes: Vec<String> = report.warnings.iter().map(|one| escaped(one)).collect();
    if !notes.is_empty() {
        text += &format!("\nWarnings: {}.\n", notes.join("; "));
    }
    text
}

fn head(report: &Report) -> String {
    let host = &report.host;
    format!(
        "{}: {}; KVM: {}; hull {}; {} of each, medians; `~` is extrapolated. {}",
        escaped(&host.date),
        escaped(&words::machine(host)),
        escaped(&words::kvm(host)),
        escaped(&host.hull),
        words::runs(report.runs),
        code(&words::command_line(&report.command)),
    )
}

fn cells(report: &Report, row: &Row) -> Vec<String> {
    let figure = |one: &Participant| escaped(&words::headline(row, &one.name));
    let name = escaped(&row.name);
    let of = escaped(&words::headline_name(row));
    let mut cells = vec![
        format!("**{name}**: {of}"),
        escaped(&row.claim_machine),
        escaped(&row.claim_container),
    ];
    cells.extend(report.side(Kind::Process).map(figure));
    let best = words::best(report, row, Kind::Container);
    let best = best.map(|one| format!("{} ({})", figure(one), escaped(&one.name)));
    cells.push(best.unwrap_or_else(|| NOTHING.into()));
    cells.extend(report.side(Kind::Machine).map(figure));
    let verdict = escaped(&row.verdict.text);
    cells.push(if row.verdict.contradicts {
        format!("**{CONTRADICTS}:** {verdict}")
    } else {
        verdict
    });
    cells
}

fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// `text` without any meaning in Markdown.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in clean(text).chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '\\' | '`' | '|' | '*' | '_' | '[' | ']' | '~' | '>' | '#' | '$' => {
                escaped.push('\\');
                escaped.push(c);
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// A code span, which ends at a run of as many backticks as it begins with (CommonMark 0.31, 6.1).
fn code(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let pad = if longest > 0 { " " } else { "" };
    format!("{fence}{pad}{text}{pad}{fence}")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{report, report_of};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_row_has_claims_figures_and_a_verdict() {
        let text = render(&report());
        for part in [
            "2026-11-01T12:00:00Z: AMD EPYC 7B13, 2 CPUs, 8.00 GiB, Linux 6.12.9-amd64; KVM: hardware, SVM",
            "`hull compare --runs 5 --json compare.json`\n\n|  | virtual machine, claimed |",
            "| process | best container | hull-warm | hull-cold | firecracker | measured |\n| --- |",
            "| **startup time**: echo, exec to first output byte | slow, minutes | fast, seconds | 2.00 ms | 20.0 ms (crun) | 20.5 ms | 150 ms | 190 ms | **Contradicts the standard answer:** A virtual",
            "| 0 of 4 pass | 1 of 4 pass (runc) | 4 of 4 pass |",
            "| \\~3,400 | \\~1,100 (crun) |",
            "\nWarnings: this machine is itself",
        ] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn a_code_span_can_contain_backticks() {
        assert_eq!(code("a"), "`a`");
        assert_eq!(code("a``b`"), "``` a``b` ```");
    }

    proptest! {
        // Each case renders a whole report.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_text_adds_cells_or_tags(text in any::<String>()) {
            let lines = |text: &str| -> Vec<usize> {
                let bars = |line: &str| line.replace("\\\\", "").replace("\\|", "").matches('|').count();
                let table = render(&report_of(text));
                prop_assert_tags(&table);
                table.lines().skip(2).map(bars).take(10).collect()
            };
            prop_assert_eq!(lines(&text), lines("x"));
        }
    }

    fn prop_assert_tags(table: &str) {
        let outside = table.lines().skip(1);
        assert!(
            outside.filter(|line| line.contains('<')).count() == 0,
            "{table}"
        );
    }
}
