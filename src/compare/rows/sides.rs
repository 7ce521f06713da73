//! What verdicts have in common: the best of each side, and how to say it.

use crate::compare::figure::{Better, Cell, Figure};
use crate::compare::report::saved::Verdict;
use crate::compare::statistics::Ratio;
use crate::compare::subject::Kind;
use crate::config::size;

/// A subject that takes part, and where it stands.
#[derive(Clone, Debug)]
pub struct Side {
    /// Its name.
    pub name: String,
    /// Its side.
    pub kind: Kind,
}

/// The cell of the subject on that side whose median is best; `None` if nobody there has one.
pub fn best<'a>(figure: &'a Figure, sides: &[Side], kind: Kind) -> Option<&'a Cell> {
    let on_side = |cell: &&Cell| {
        let mut sides = sides.iter();
        sides.any(|side| side.kind == kind && side.name == cell.subject)
    };
    let median = |cell: &Cell| cell.summary.map_or(f64::NAN, |summary| summary.median);
    let cells = figure.cells.iter().filter(|cell| cell.summary.is_some());
    cells.filter(on_side).min_by(|one, other| {
        let order = median(one).total_cmp(&median(other));
        match figure.better {
            Better::More => order.reverse(),
            _ => order,
        }
    })
}

/// Those on that side of which `figure` has a number, least first.
pub fn ranked(
    sides: &[Side],
    kind: Kind,
    figure: impl Fn(&str) -> Option<f64>,
) -> Vec<(&str, f64)> {
    let on_side = sides.iter().filter(|side| side.kind == kind);
    let with = on_side.filter_map(|side| Some((side.name.as_str(), figure(&side.name)?)));
    let mut with: Vec<_> = with.collect();
    with.sort_by(|(_, one), (_, other)| one.total_cmp(other));
    with
}

/// Nothing is known of one side: it was not there, or not enough of it was `what`.
pub fn cannot_tell(sides: &[Side], what: &str) -> Verdict {
    let has = |kind| sides.iter().any(|side| side.kind == kind);
    match (has(Kind::Container), has(Kind::Machine)) {
        (true, true) => Verdict::unclear(&format!("not enough {what}")),
        (container, machine) => Verdict::one_sided(container, machine),
    }
}

/// Made up.
#[cfg(test)]
pub fn of<const N: usize>(sides: [(&str, Kind); N]) -> Vec<Side> {
    let owned = sides.map(|(name, kind)| Side {
        name: name.into(),
        kind,
    });
    owned.into()
}

/// "3.1 (95 %: 2.9 to 3.3)", and of single samples "3.1".
pub fn ratio(ratio: &Ratio) -> String {
    match ratio.low == ratio.high {
        true => format!("{:.2}", ratio.ratio),
        false => ratio.to_string(),
    }
}

/// Milliseconds, in the unit in which they are read.
pub fn seconds(milliseconds: f64) -> String {
    match milliseconds {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 120_000.0 => format!("{:.1} s", ms / 1e3),
        ms => format!("{:.1} minutes", ms / 60e3),
    }
}

impl Verdict {
    /// A side is missing: there is nothing to compare with.
    pub fn one_sided(container: bool, machine: bool) -> Self {
        Self::unclear(match (container, machine) {
            (false, false) => "neither a container nor a virtual machine was measured",
            (false, true) => "no container was measured",
            _ => "no virtual machine was measured",
        })
    }

    /// This run says nothing about the claims.
    pub fn unclear(why: &str) -> Self {
        Self {
            text: format!("This run cannot tell: {why}."),
            contradicts: false,
        }
    }
}

/// Bytes, in the unit in which they are read.
pub fn bytes(bytes: f64) -> String {
    size::show(bytes as u64)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::compare::figure::Unit;

    /// Of made-up samples.
    pub fn figure(name: &str, unit: Unit, better: Better, cells: &[(&str, &[f64])]) -> Figure {
        let cells = cells
            .iter()
            .map(|(subject, samples)| (*subject, samples.to_vec()));
        Figure::of_samples(name, unit, better, cells)
    }

    /// Those of made-up figures.
    pub fn sides() -> Vec<Side> {
        use Kind::{Container, Machine, Process};
        [
            ("process", Process),
            ("runc", Container),
            ("crun", Container),
            ("hull-warm", Machine),
            ("hull-cold", Machine),
        ]
        .map(|(name, kind)| Side {
            name: name.into(),
            kind,
        })
        .to_vec()
    }

    #[test]
    fn the_best_is_of_its_side_and_has_samples() {
        let cells: &[(&str, &[f64])] = &[
            ("process", &[1.0]),
            ("runc", &[3.0]),
            ("crun", &[2.0]),
            ("hull-warm", &[]),
        ];
        let best = |better, kind| {
            let figure = figure("it", Unit::Count, better, cells);
            best(&figure, &sides(), kind).map(|cell| cell.subject.clone())
        };
        assert_eq!(best(Better::Less, Kind::Container).as_deref(), Some("crun"));
        assert_eq!(best(Better::More, Kind::Container).as_deref(), Some("runc"));
        assert_eq!(best(Better::Less, Kind::Machine), None);
    }

    #[test]
    fn numbers_are_said_in_units_that_can_be_read() {
        assert_eq!(
            [1.25, 88.0, 2500.0, 180_000.0].map(seconds),
            ["1.2 ms", "88 ms", "2.5 s", "3.0 minutes"]
        );
        assert_eq!([2048.0, 3_670_016.0].map(bytes), ["2 KiB", "3.5 MiB"]);
    }
}
