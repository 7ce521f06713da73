//! What verdicts share: the sides of a comparison, and the best subject of each.

use super::session::Subjects;
use crate::compare::figure::{Better, Cell, Figure};
use crate::compare::report::comparison::Verdict;
use crate::compare::statistics::Ratio;
use crate::compare::subject::Kind;

#[derive(Clone, Debug)]
pub struct Side {
    pub name: String,
    pub kind: Kind,
}

pub fn sides(turns: &Subjects) -> Vec<Side> {
    let taking_part = turns.all().filter(|(_, _, left_out)| left_out.is_none());
    taking_part
        .map(|(name, subject, _)| Side {
            name: name.into(),
            kind: subject.about().kind,
        })
        .collect()
}

impl From<Result<Verdict, String>> for Verdict {
    /// The error is why this run neither supports nor contradicts the claims.
    fn from(verdict: Result<Verdict, String>) -> Self {
        verdict.unwrap_or_else(|why| Self {
            text: format!("This run cannot tell: {why}."),
            contradicts: false,
        })
    }
}

/// One side or both are missing, or not enough of them were measured: `measured` continues "not enough".
pub fn missing(sides: &[Side], measured: &str) -> String {
    let has = |kind| sides.iter().any(|side| side.kind == kind);
    match (has(Kind::Container), has(Kind::Machine)) {
        (true, true) => format!("not enough {measured}"),
        (false, false) => "neither a container nor a virtual machine was measured".into(),
        (false, true) => "no container was measured".into(),
        (true, false) => "no virtual machine was measured".into(),
    }
}

/// The cells of the best container and the best machine by their medians.
pub fn best_of_sides<'a>(
    figure: &'a Figure,
    sides: &[Side],
) -> Result<(&'a Cell, &'a Cell), String> {
    let best = |kind| {
        let on_side = |cell: &&Cell| {
            let mut sides = sides.iter();
            sides.any(|side| side.kind == kind && side.name == cell.subject)
        };
        let scored = figure.cells.iter().filter(on_side).filter_map(|cell| {
            let median = cell.median()?;
            let score = if figure.better == Better::More {
                -median
            } else {
                median
            };
            Some((score, cell))
        });
        let best = scored.min_by(|(one, _), (other, _)| one.total_cmp(other));
        best.map(|(_, cell)| cell)
    };
    match (best(Kind::Container), best(Kind::Machine)) {
        (Some(container), Some(machine)) => Ok((container, machine)),
        (None, None) => Err(missing(&[], "")),
        (None, _) => Err("no container was measured".into()),
        (_, None) => Err("no virtual machine was measured".into()),
    }
}

/// Subjects with a number, in ascending order.
pub type Ranking<'a> = Vec<(&'a str, f64)>;

/// The subjects of a side for which `number` has one.
pub fn ranked(sides: &[Side], kind: Kind, number: impl Fn(&str) -> Option<f64>) -> Ranking<'_> {
    let on_side = sides.iter().filter(|side| side.kind == kind);
    let ranked = on_side.filter_map(|side| Some((side.name.as_str(), number(&side.name)?)));
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort_by(|(_, one), (_, other)| one.total_cmp(other));
    ranked
}

/// "3.10 (95 %: 2.90 to 3.30)"; from single samples "3.10".
pub fn ratio(ratio: &Ratio) -> String {
    if ratio.low == ratio.high {
        format!("{:.2}", ratio.ratio)
    } else {
        ratio.to_string()
    }
}

pub fn agreement(agrees: bool) -> &'static str {
    if agrees { "agrees with" } else { "contradicts" }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::compare::figure::Unit;

    pub fn sides() -> Vec<Side> {
        let side = |(name, kind): (&str, _)| Side {
            name: name.into(),
            kind,
        };
        let sides = [
            ("process", Kind::Process),
            ("runc", Kind::Container),
            ("crun", Kind::Container),
            ("hull-warm", Kind::Machine),
            ("hull-cold", Kind::Machine),
        ];
        sides.map(side).to_vec()
    }

    #[test]
    fn the_best_cell_of_a_side_has_samples() {
        let cells: &[(&str, &[f64])] = &[
            ("process", &[1.0]),
            ("runc", &[3.0]),
            ("crun", &[2.0]),
            ("hull-warm", &[]),
            ("hull-cold", &[9.0]),
        ];
        let best = |better| {
            let figure = Figure::of_samples(Unit::Count, better, cells);
            let best = best_of_sides(&figure, &sides());
            best.map(|(container, machine)| (container.subject.clone(), machine.subject.clone()))
        };
        let names = |container: &str| Ok((container.to_owned(), "hull-cold".to_owned()));
        assert_eq!(best(Better::Less), names("crun"));
        assert_eq!(best(Better::More), names("runc"));
    }
}
