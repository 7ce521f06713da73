//! What verdicts have in common: the best of each side, and how to say it.

use crate::compare::report::Verdict;
use crate::measure::figure::{Better, Cell, Figure};
use crate::measure::statistics::Ratio;
use crate::subjects::Kind;

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
