//! What all presentations of a report share: figures in words, and who stands for a side.

use super::saved::{Participant, Report, Row};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::subject::Kind;

/// What a cell with nothing in it shows.
pub const NOTHING: &str = "-";

/// A cell, ready to be shown.
#[derive(Debug, Default, PartialEq)]
pub struct Shown {
    /// The median with its unit, "pass" or "fail", a text, or [`NOTHING`].
    pub value: String,
    /// "24.5x": only one that is no chance.
    pub ratio: Option<String>,
    /// What its reader has to know as well.
    pub notes: Vec<String>,
    /// As of the cell.
    pub passed: Option<bool>,
    /// Whether the value is a text, which is read from the left.
    pub prose: bool,
}

/// The cell of `subject`.
pub fn shown(figure: &Figure, subject: &str) -> Shown {
    let empty = Cell::default();
    let cell = figure.cell(subject).unwrap_or(&empty);
    let number = number(figure.unit, cell);
    let text = cell.text.as_deref().map(clean);
    let prose = number.is_none() && cell.passed.is_none() && text.is_some();
    let is_short = |text: &String| !text.is_empty() && text.chars().count() <= SHORT;
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

/// Of a probe.
pub fn outcome(passed: bool) -> &'static str {
    if passed { "pass" } else { "fail" }
}

/// The median with its unit, marked where it was computed from others.
fn number(unit: Unit, cell: &Cell) -> Option<String> {
    let median = cell.summary?.median;
    let mark = if cell.extrapolated { "~" } else { "" };
    Some(format!("{mark}{}", value(unit, median)))
}

/// To the first subject, if it is no chance, and says more than the value, which 0 times does not.
fn ratio(cell: &Cell) -> Option<String> {
    let ratio = cell
        .ratio
        .filter(|ratio| ratio.is_real() && ratio.ratio != 0.0)?;
    Some(format!("{}x", digits(ratio.ratio)))
}

/// How many probes of a row `subject` passed, and of how many; `None` if there are none.
pub fn probes(row: &Row, subject: &str) -> Option<(usize, usize)> {
    let cells = row.figures.iter().filter_map(|figure| figure.cell(subject));
    let outcomes: Vec<bool> = cells.filter_map(|cell| cell.passed).collect();
    let passed = outcomes.iter().filter(|passed| **passed).count();
    (!outcomes.is_empty()).then_some((passed, outcomes.len()))
}

/// A text of a probe that is no longer stands beside "pass" or "fail", not below the table.
const SHORT: usize = 16;
/// So many probes and more are shown in one line by how many of them passed.
const MANY: usize = 4;

/// Whether a row is shown in one line by how many of its probes passed: if most of its figures are probes,
/// and there are many.
pub fn is_probed(row: &Row) -> bool {
    let is_probe = |figure: &&Figure| figure.cells.iter().any(|cell| cell.passed.is_some());
    let probes = row.figures.iter().filter(is_probe).count();
    probes >= MANY && probes * 2 > row.figures.len()
}

/// What a row says of `subject` where it has one line: its first figure, or how many probes passed.
pub fn headline(row: &Row, subject: &str) -> String {
    match (is_probed(row), probes(row, subject), row.figures.first()) {
        (true, Some((passed, of)), _) => format!("{passed} of {of} pass"),
        (false, _, Some(figure)) => shown(figure, subject).value,
        _ => NOTHING.into(),
    }
}

/// What [`headline`] is of.
pub fn headline_name(row: &Row) -> String {
    match row.figures.first() {
        _ if is_probed(row) => "probes of the host".into(),
        Some(figure) => clean(&figure.name),
        None => "not measured".into(),
    }
}

/// Who of a side does best by a row's headline; the first of them where no way is better.
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
    let side = report.columns().filter(|one| one.kind == kind);
    let scored = side.filter_map(|one| Some((score(&one.name)?, one)));
    let least = scored.min_by(|one, other| one.0.total_cmp(&other.0));
    least.map(|(_, one)| one)
}

/// A side's name.
pub fn side(kind: Kind) -> &'static str {
    match kind {
        Kind::Process => "process",
        Kind::Container => "container",
        Kind::Machine => "virtual machine",
    }
}

/// Where, in a line: processor, memory, kernel.
pub fn machine(report: &Report) -> String {
    let host = &report.host;
    let cpus = match host.cpus {
        1 => "1 CPU".into(),
        cpus => format!("{cpus} CPUs"),
    };
    let memory = value(Unit::Bytes, host.memory as f64);
    let text = format!(
        "{}, {cpus}, {memory}, Linux {}",
        host.processor, host.kernel
    );
    clean(&text)
}

/// What KVM it has, and what is under it.
pub fn kvm(report: &Report) -> String {
    let host = &report.host;
    let kvm = host.kvm.as_deref().unwrap_or("none");
    let under = match (&host.hypervisor, host.emulated) {
        (Some(name), true) => format!(", on a processor emulated by {name}"),
        (Some(name), false) => format!(", itself under {name}"),
        (None, _) => String::new(),
    };
    clean(&format!("{kvm}{under}"))
}

/// Words as a shell takes them.
pub fn command_line(words: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=/.,:+@%".contains(c);
    let quoted = words.iter().map(|word| {
        let word = clean(word);
        match !word.is_empty() && word.chars().all(plain) {
            true => word,
            false => format!("'{}'", word.replace('\'', r"'\''")),
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// `text` on one line and without what steers a terminal or turns the direction of writing: it comes from
/// programs and guests.
pub fn clean(text: &str) -> String {
    let steers = |c: char| {
        let turns = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}');
        turns || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let one_line = text
        .chars()
        .map(|c| if c.is_whitespace() { ' ' } else { c });
    let shown: String = one_line
        .filter(|c| !c.is_control() && !steers(*c))
        .collect();
    shown.trim().into()
}

/// A number of that unit, fit for reading: three digits, in the unit that has fewest of them.
pub fn value(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Seconds => time(value),
        Unit::Milliseconds => time(value / 1e3),
        Unit::Microseconds => time(value / 1e6),
        Unit::Bytes => bytes(value),
        Unit::BytesPerSecond => format!("{}/s", bytes(value)),
        Unit::PerSecond => format!("{}/s", decimal(value)),
        Unit::Share if value == 0.0 => "0 %".into(),
        Unit::Share => format!("{} %", digits(value * 100.0)),
        Unit::Count | Unit::Text => count(value),
    }
}

/// From one number to another, with the unit once if it is the same.
pub fn range(unit: Unit, least: f64, most: f64) -> String {
    let (from, to) = (value(unit, least), value(unit, most));
    match (from.split_once(' '), to.split_once(' ')) {
        (Some((number, one)), Some((_, other))) if one == other => format!("{number} to {to}"),
        _ => format!("{from} to {to}"),
    }
}

/// [`value`] of a round number, without the digits that say nothing.
pub fn round(unit: Unit, number: f64) -> String {
    let text = value(unit, number);
    match text.split_once(' ') {
        Some((digits, name)) if digits.contains('.') && !digits.contains('e') => {
            let digits = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{digits} {name}")
        }
        _ => text,
    }
}

fn time(seconds: f64) -> String {
    scaled(
        seconds,
        1e3,
        &[(1e-9, "ns"), (1e-6, "us"), (1e-3, "ms"), (1.0, "s")],
    )
}

fn bytes(bytes: f64) -> String {
    const KIB: f64 = 1024.0;
    let units = [
        (KIB, "KiB"),
        (KIB.powi(2), "MiB"),
        (KIB.powi(3), "GiB"),
        (KIB.powi(4), "TiB"),
    ];
    match bytes.abs() < KIB {
        true => format!("{} B", count(bytes)),
        false => scaled(bytes, KIB, &units),
    }
}

fn decimal(value: f64) -> String {
    match value.abs() < 1e4 {
        true => count(value),
        false => scaled(
            value,
            1e3,
            &[(1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")],
        ),
    }
}

/// In the first of `units` of which it is less than `step`, or else the last.
fn scaled(value: f64, step: f64, units: &[(f64, &str)]) -> String {
    // What is rounded up to a whole step is one of the next unit.
    let fits = |size: &f64| value.abs() / size < step - 0.5;
    let found = units.iter().find(|(size, _)| value != 0.0 && fits(size));
    match found.or(units.last()) {
        Some((size, name)) if value != 0.0 => format!("{} {name}", digits(value / size)),
        Some((_, name)) => format!("0 {name}"),
        None => digits(value),
    }
}

/// A whole number with its thousands apart; of another, three digits.
fn count(value: f64) -> String {
    if value.fract() != 0.0 || value.abs() >= 1e15 {
        return digits(value);
    }
    let plain = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in plain.chars().enumerate() {
        if at > 0 && (plain.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    let sign = if value < 0.0 { "-" } else { "" };
    format!("{sign}{text}")
}

/// Three digits, and those before the point whole.
fn digits(value: f64) -> String {
    match value.abs() {
        value_abs if value_abs >= 99.95 => format!("{value:.0}"),
        value_abs if value_abs >= 9.995 => format!("{value:.1}"),
        value_abs if value_abs >= 0.01 || value_abs == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::statistics::{Ratio, Summary};
    use proptest::prelude::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        for (unit, number, text) in [
            (Unit::Milliseconds, 2.0, "2.00 ms"),
            (Unit::Milliseconds, 49.12, "49.1 ms"),
            (Unit::Milliseconds, 999.7, "1.00 s"),
            (Unit::Milliseconds, 9123.0, "9.12 s"),
            (Unit::Microseconds, 0.5, "500 ns"),
            (Unit::Seconds, 0.0, "0 s"),
            (Unit::Seconds, 4000.0, "4000 s"),
            (Unit::Bytes, 512.0, "512 B"),
            (Unit::Bytes, 1.5 * 1048576.0, "1.50 MiB"),
            (Unit::BytesPerSecond, 2048.0, "2.00 KiB/s"),
            (Unit::PerSecond, 1_234_567.0, "1.23 M/s"),
            (Unit::Count, 1_234_567.0, "1,234,567"),
            (Unit::Count, -12.0, "-12"),
            (Unit::Count, 2.5, "2.50"),
            (Unit::Share, 0.123, "12.3 %"),
        ] {
            assert_eq!(value(unit, number), text, "{unit:?} {number}");
        }
    }

    #[test]
    fn a_probe_has_its_text_beside_it_if_there_is_room() {
        let figure = |text: &str| Figure {
            name: "kernel".into(),
            unit: Unit::Text,
            better: Better::Neither,
            cells: vec![Cell {
                passed: Some(true),
                ..Cell::text("a", text)
            }],
        };
        assert_eq!(shown(&figure("its own"), "a").value, "pass: its own");
        let long = shown(&figure("6.12.0 #1 SMP PREEMPT"), "a");
        assert_eq!((long.value.as_str(), long.notes.len()), ("pass", 1));
    }

    #[test]
    fn a_range_has_its_unit_once() {
        assert_eq!(range(Unit::Milliseconds, 1.9, 2.25), "1.90 to 2.25 ms");
        assert_eq!(range(Unit::Milliseconds, 900.0, 2000.0), "900 ms to 2.00 s");
        assert_eq!(range(Unit::Count, 1.0, 2.0), "1 to 2");
        assert_eq!(round(Unit::Milliseconds, 10.0), "10 ms");
        assert_eq!(round(Unit::Milliseconds, 100.0), "100 ms");
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
    fn a_command_can_be_pasted_into_a_shell() {
        let words = ["hull", "compare", "--", "sh", "-c", "echo 'a'; b", ""].map(String::from);
        let line = command_line(&words);
        assert_eq!(line, r"hull compare -- sh -c 'echo '\''a'\''; b' ''");
    }

    proptest! {
        #[test]
        fn nothing_that_steers_is_left(text in any::<String>()) {
            let text = clean(&text);
            prop_assert!(!text.contains(char::is_control));
            let turns = text.contains(['\u{202e}', '\u{2066}', '\u{200b}']);
            prop_assert!(!turns, "{text:?}");
        }

        #[test]
        fn any_number_has_words(number in any::<f64>()) {
            for unit in [Unit::Seconds, Unit::Bytes, Unit::Count, Unit::PerSecond, Unit::Share] {
                prop_assert!(!value(unit, number).is_empty());
            }
        }
    }
}
