//! What a hostile workload can see and reach, tried.
//!
//! [`inside`] is what the workload tries; [`outside`] is read of the process that the host's kernel knows
//! it by. Each probe passes if the host is not seen or reached.

mod inside;
mod outside;

use super::sides::{Side, cannot_tell, ranked};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::report::saved::{Row, Verdict};
use crate::compare::subject::Kind;
use crate::compare::turns::Turns;

/// What came of one probe of one subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The host was not seen or reached; in a few words.
    Passed(String),
    /// It was.
    Failed(String),
    /// It says something, but neither.
    Told(String),
    /// It could not be tried.
    Untried(String),
}

/// A probe's name, and what came of it.
type Probe = (&'static str, Outcome);

/// In the report.
pub const NAME: &str = "isolation";

/// Try everything with each subject.
pub fn measure(turns: &mut Turns) -> Row {
    let entrants = turns.entrants();
    let mut tried: Vec<(String, Vec<Probe>)> = Vec::new();
    for (done, index) in entrants.iter().copied().enumerate() {
        turns.step(2 * done, 2 * entrants.len(), index, "probes inside");
        let mut probes = inside::probe(turns, index);
        turns.step(
            2 * done + 1,
            2 * entrants.len(),
            index,
            "probes from outside",
        );
        probes.extend(outside::probe(turns, index));
        tried.push((turns.name(index), probes));
    }
    let sides = turns.sides();
    let passed = |probes: &[Probe]| {
        let passed = |probe: &&Probe| matches!(probe.1, Outcome::Passed(_));
        probes.iter().filter(passed).count() as f64
    };
    let counts = tried
        .iter()
        .map(|(subject, probes)| (subject.as_str(), vec![passed(probes)]));
    let mut count = Figure::of_samples(
        "probes that did not reach the host",
        Unit::Count,
        Better::More,
        counts,
    );
    for (cell, (_, probes)) in count.cells.iter_mut().zip(&tried) {
        let untried = |probe: &&Probe| matches!(probe.1, Outcome::Untried(_));
        let untried = probes.iter().filter(untried).count();
        cell.note = (untried > 0).then(|| format!("{untried} could not be tried"));
    }
    let mut figures = vec![count];
    figures.extend(each(&tried));
    Row {
        name: NAME.into(),
        claim_machine: "strong, by hardware".into(),
        claim_container: "moderate, by process".into(),
        method: "A workload tries what a hostile one would try first, by the shell and by applets of \
                 busybox, as root inside; nothing is exploited. A probe passes if the host was not seen \
                 or reached, and fails if it was: the kernel by its version; a process by its number and \
                 start time; a file outside of the image by its path; a port of the host's loopback by \
                 connecting; entries of /proc/sys by opening them for writing; memory by taking 256 MiB. \
                 What reaches the host's kernel is seen by ptrace: the workload makes a system call that \
                 hardly any program makes (ioprio_get). Capabilities, namespaces, the seccomp \
                 filter and the limits are read from /proc and the control groups, of the process that \
                 the workload is for the host's kernel: of a virtual machine, its monitor. hull runs as \
                 the user who started it, here with the rights that the capabilities show."
            .into(),
        verdict: verdict(&figures, &sides),
        figures,
    }
}

/// A figure for each probe, in the order of the first subject's.
fn each(tried: &[(String, Vec<Probe>)]) -> Vec<Figure> {
    let names = tried.first().map_or(Vec::new(), |(_, probes)| {
        probes.iter().map(|(name, _)| *name).collect()
    });
    let figure = |name: &str| Figure {
        name: name.into(),
        unit: Unit::Text,
        better: Better::Neither,
        cells: tried
            .iter()
            .map(|(subject, probes)| {
                let outcome = probes
                    .iter()
                    .find(|probe| probe.0 == name)
                    .map(|probe| &probe.1);
                cell(subject, outcome)
            })
            .collect(),
    };
    names.into_iter().map(figure).collect()
}

fn cell(subject: &str, outcome: Option<&Outcome>) -> Cell {
    let with = |text: &str, passed| Cell {
        passed,
        ..Cell::text(subject, text)
    };
    match outcome {
        Some(Outcome::Passed(text)) => with(text, Some(true)),
        Some(Outcome::Failed(text)) => with(text, Some(false)),
        Some(Outcome::Told(text)) => with(text, None),
        Some(Outcome::Untried(why)) => Cell::missing(subject, why.as_str()),
        None => Cell::missing(subject, "not tried"),
    }
}

fn verdict(figures: &[Figure], sides: &[Side]) -> Verdict {
    // Of the probes that could be tried with everyone: who was asked less has not reached less.
    let asked = |side: &&Side, figure: &Figure| {
        figure
            .cell(&side.name)
            .is_some_and(|cell| cell.passed.is_some())
    };
    let judged = |side: &&Side| side.kind != Kind::Process;
    let common = figures[1..].iter().filter(|figure| {
        let mut sides = sides.iter().filter(judged);
        sides.all(|side| asked(&side, figure))
    });
    let common: Vec<&Figure> = common.collect();
    let open = |subject: &str| {
        let cells = common.iter().filter(|figure| {
            figure
                .cell(subject)
                .is_some_and(|cell| cell.passed == Some(false))
        });
        cells.map(|figure| figure.name.as_str()).collect::<Vec<_>>()
    };
    let failed = |subject: &str| Some(open(subject).len() as f64);
    let containers = ranked(sides, Kind::Container, failed);
    let machines = ranked(sides, Kind::Machine, failed);
    let (Some((container, doors)), Some((machine, leaks))) = (containers.first(), machines.last())
    else {
        return cannot_tell(sides, "probes were tried");
    };
    if common.is_empty() {
        return cannot_tell(sides, "probes were tried with all");
    }
    let stronger = leaks < doors;
    let of = |name: &str| match open(name) {
        open if open.is_empty() => format!("{name} reached the host by none"),
        open => format!("{name} by {} ({})", open.len(), open.join("; ")),
    };
    Verdict {
        text: format!(
            "{}of {} probes that were tried with all, the most open machine, {}; the tightest container, \
             {}. Probes find what is open, not what is safe: a monitor's own faults are not in them.",
            if stronger { "As they say: " } else { "" },
            common.len(),
            of(machine),
            of(container),
        ),
        contradicts: !stronger,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::rows::sides;

    fn told(container: [bool; 2], machine: [bool; 2]) -> Verdict {
        let sides = sides::of([("crun", Kind::Container), ("hull-warm", Kind::Machine)]);
        let outcome = |passed| match passed {
            true => Outcome::Passed("no".into()),
            false => Outcome::Failed("yes".into()),
        };
        let probes = |[first, second]: [bool; 2]| {
            vec![("first", outcome(first)), ("second", outcome(second))]
        };
        let tried = vec![
            ("crun".to_owned(), probes(container)),
            ("hull-warm".to_owned(), probes(machine)),
        ];
        let mut figures = vec![Figure::of_samples(
            "x",
            Unit::Count,
            Better::More,
            [("crun", vec![1.0])],
        )];
        figures.extend(each(&tried));
        verdict(&figures, &sides)
    }

    #[test]
    fn fewer_open_doors_are_stronger() {
        let agrees = told([true, false], [true, true]);
        assert!(!agrees.contradicts);
        assert!(agrees.text.contains("crun by 1 (second)"), "{agrees:?}");
        assert!(told([true, true], [true, false]).contradicts);
        assert!(
            told([true, true], [true, true]).contradicts,
            "no stronger is not as said"
        );
    }
}
