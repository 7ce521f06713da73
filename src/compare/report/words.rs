//! What all formats of a comparison share: cells, headlines and hosts in words.

use super::comparison::{Report, Row};
use super::participant::Participant;
use super::quantity::{digits, value};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::measure::host::Host;
use crate::compare::subject::Kind;

/// Stands in an empty cell.
pub const NOTHING: &str = "-";
/// Precedes a verdict that contradicts the standard answer.
pub const CONTRADICTS: &str = "Contradicts the standard answer";
/// A probe's text up to this length stands in the cell, a longer one below the table.
const MAX_PROBE_TEXT: usize = 16;
/// With this many probes, a row's headline is the number that passed.
const MANY_PROBES: usize = 4;

#[derive(Debug, Default, PartialEq)]
pub struct Shown {
    /// The median with its unit, "pass" or "fail", a text, or [`NOTHING`].
    pub value: String,
    /// "24.5x"; only if the ratio's range excludes 1.
    pub ratio: Option<String>,
    pub notes: Vec<String>,
    pub passed: Option<bool>,
    /// Whether the value is a text, which is aligned to the left.
    pub prose: bool,
}

impl Shown {
    /// In the form "49.0 ms (24.5x)".
    pub fn with_ratio(&self) -> String {
        match &self.ratio {
            Some(ratio) => format!("{} ({ratio})", self.value),
            None => self.value.clone(),
        }
    }
}

pub fn shown(figure: &Figure, subject: &str) -> Shown {
    let empty = Cell::default();
    let cell = figure.cell(subject).unwrap_or(&empty);
    let number = number(figure.unit, cell);
    let text = cell.text.as_deref().map(clean);
    let prose = number.is_none() && cell.passed.is_none() && text.is_some();
    let is_short = |text: &str| !text.is_empty() && text.chars().count() <= MAX_PROBE_TEXT;
    let (value, below) = match (cell.passed, number) {
        (Some(passed), _) => match text {
            Some(text) if is_short(&text) => (Some(format!("{}: {text}", outcome(passed))), None),
            text => (Some(outcome(passed).into()), text),
        },
        (None, Some(number)) => (Some(number), text),
        (None, None) => (text, None),
    };
    let notes = below.into_iter().chain(cell.note.as_deref().map(clean));
    Shown {
        value: value.unwrap_or_else(|| NOTHING.into()),
        ratio: ratio(cell),
        notes: notes.collect(),
        passed: cell.passed,
        prose,
    }
}

pub fn outcome(passed: bool) -> &'static str {
    if passed { "pass" } else { "fail" }
}

/// The median with its unit, after a mark if it was extrapolated.
fn number(unit: Unit, cell: &Cell) -> Option<String> {
    let median = cell.median()?;
    let mark = if cell.extrapolated { "~" } else { "" };
    Some(format!("{mark}{}", value(unit, median)))
}

/// Omits a ratio of 0, which says no more than the value.
fn ratio(cell: &Cell) -> Option<String> {
    let ratio = cell.ratio?;
    (ratio.is_real() && ratio.ratio != 0.0).then(|| format!("{}x", digits(ratio.ratio)))
}

/// The number of `note` among the notes of a table, from 1. Equal notes have one number.
pub fn note_number(notes: &mut Vec<String>, note: String) -> usize {
    let known = notes.iter().position(|one| *one == note);
    1 + known.unwrap_or_else(|| {
        notes.push(note);
        notes.len() - 1
    })
}

fn probes(row: &Row, subject: &str) -> Option<(usize, usize)> {
    let cells = row.figures.iter().filter_map(|figure| figure.cell(subject));
    let outcomes: Vec<bool> = cells.filter_map(|cell| cell.passed).collect();
    let passed = outcomes.iter().filter(|passed| **passed).count();
    (!outcomes.is_empty()).then_some((passed, outcomes.len()))
}

fn is_probed(row: &Row) -> bool {
    let is_probe = |figure: &&Figure| figure.cells.iter().any(|cell| cell.passed.is_some());
    let probes = row.figures.iter().filter(is_probe).count();
    probes >= MANY_PROBES && probes * 2 > row.figures.len()
}

/// The value of `subject` where a row has one line: the first figure, or how many probes passed.
pub fn headline(row: &Row, subject: &str) -> String {
    match (is_probed(row), probes(row, subject), row.figures.first()) {
        (true, Some((passed, of)), _) => format!("{passed} of {of} pass"),
        (false, _, Some(figure)) => shown(figure, subject).value,
        _ => NOTHING.into(),
    }
}

pub fn headline_name(row: &Row) -> String {
    match row.figures.first() {
        _ if is_probed(row) => "probes of the host".into(),
        Some(figure) => clean(&figure.name),
        None => "not measured".into(),
    }
}

/// The subject of a side with the best headline; the first one if no direction is better.
pub fn best<'a>(report: &'a Report, row: &Row, kind: Kind) -> Option<&'a Participant> {
    let figure = row.figures.first()?;
    let score = |name: &str| {
        let median = figure.median(name);
        match (is_probed(row), figure.better) {
            (true, _) => probes(row, name).map(|(passed, _)| -(passed as f64)),
            (false, Better::Less) => median,
            (false, Better::More) => median.map(|median| -median),
            (false, Better::Neither) => figure.cell(name).map(|_| 0.0),
        }
    };
    let scored = report
        .side(kind)
        .filter_map(|one| Some((score(&one.name)?, one)));
    let least = scored.min_by(|one, other| one.0.total_cmp(&other.0));
    least.map(|(_, one)| one)
}

/// The class of a subject's side on a page.
pub fn class(kind: Option<Kind>) -> &'static str {
    match kind {
        Some(Kind::Container) => "container",
        Some(Kind::Machine) => "machine",
        _ => "process",
    }
}

/// The conditions under which a report was made, by name.
pub fn conditions(report: &Report) -> [(&'static str, String); 5] {
    [
        ("date", clean(&report.host.date)),
        ("host", machine(&report.host)),
        ("KVM", kvm(&report.host)),
        ("hull", clean(&report.host.hull)),
        ("runs", report.runs.to_string()),
    ]
}

pub fn side(kind: Option<Kind>) -> &'static str {
    match kind {
        Some(Kind::Process) => "process",
        Some(Kind::Container) => "container",
        Some(Kind::Machine) => "virtual machine",
        None => NOTHING,
    }
}

pub fn machine(host: &Host) -> String {
    let cpus = match host.cpus {
        1 => "1 CPU".into(),
        cpus => format!("{cpus} CPUs"),
    };
    let memory = value(Unit::Bytes, host.memory as f64);
    clean(&format!(
        "{}, {cpus}, {memory}, Linux {}",
        host.processor, host.kernel
    ))
}

/// The host's KVM, and the hypervisor under the host.
pub fn kvm(host: &Host) -> String {
    let kvm = host.kvm.as_deref().unwrap_or("none");
    let under = match (&host.hypervisor, host.emulated) {
        (Some(name), true) => format!(", on a processor emulated by {name}"),
        (Some(name), false) => format!(", itself under {name}"),
        (None, _) => String::new(),
    };
    clean(&format!("{kvm}{under}"))
}

pub fn runs(runs: usize) -> String {
    match runs {
        1 => "one run".into(),
        runs => format!("{runs} runs"),
    }
}

/// The words of a command, quoted for a shell.
pub fn command_line(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=/.,:+@%".contains(c);
    let quoted = words.iter().map(|word| {
        let word = clean(word);
        if !word.is_empty() && word.chars().all(plain) {
            word
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// `text`, which comes from programs and guests, on one line, without control characters and without
/// characters that change the direction of writing.
pub fn clean(text: &str) -> String {
    let is_control = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let one_line = text
        .chars()
        .map(|c| if c.is_whitespace() { ' ' } else { c });
    let shown: String = one_line.filter(|c| !is_control(*c)).collect();
    shown.trim().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::statistics::{Ratio, Summary};
    use proptest::prelude::*;

    #[test]
    fn a_short_text_of_a_probe_stands_in_its_cell() {
        let figure = |text: &str| Figure::of_texts("kernel", vec![Cell::probe(true, text).of("a")]);
        assert_eq!(shown(&figure("its own"), "a").value, "pass: its own");
        let long = shown(&figure("6.12.0 #1 SMP PREEMPT"), "a");
        assert_eq!((long.value.as_str(), long.notes.len()), ("pass", 1));
    }

    #[test]
    fn a_ratio_that_may_be_chance_is_not_shown() {
        let cell = |low: f64| Cell {
            summary: Summary::of(&[3.0]),
            ratio: Some(Ratio {
                ratio: 1.5,
                low,
                high: 2.0,
            }),
            ..Cell::default()
        };
        assert_eq!(ratio(&cell(1.1)).as_deref(), Some("1.50x"));
        assert_eq!(ratio(&cell(0.9)), None);
    }

    #[test]
    fn a_command_line_can_be_pasted_into_a_shell() {
        let words = ["hull", "compare", "--", "sh", "-c", "echo 'a'; b", ""].map(String::from);
        let line = command_line(&words);
        assert_eq!(line, r"hull compare -- sh -c 'echo '\''a'\''; b' ''");
    }

    proptest! {
        #[test]
        fn clean_text_has_no_control_characters(text in any::<String>()) {
            let text = clean(&text);
            prop_assert!(!text.contains(char::is_control));
            let turns = text.contains(['\u{202e}', '\u{2066}', '\u{200b}']);
            prop_assert!(!turns, "{text:?}");
        }
    }
}
