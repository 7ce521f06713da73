//! Who stands where, for a verdict: containers on one side, machines on the other.

use crate::compare::report::Verdict;
use crate::compare::run::Turns;
use crate::subjects::Kind;

/// The names that take part, with their kinds.
pub struct Side(Vec<(String, Kind)>);

/// Of those that take part.
pub fn of(turns: &Turns) -> Side {
    let entrants = turns.entrants().into_iter();
    Side(
        entrants
            .map(|index| (turns.name(index), turns.kind(index)))
            .collect(),
    )
}

impl Side {
    /// With these.
    #[cfg(test)]
    pub fn new<'a>(subjects: impl IntoIterator<Item = (&'a str, Kind)>) -> Self {
        let owned = subjects.into_iter().map(|(name, kind)| (name.into(), kind));
        Self(owned.collect())
    }

    /// The name of the plain process, if it takes part.
    pub fn process(&self) -> Option<&str> {
        self.0
            .iter()
            .map(|(name, _)| name.as_str())
            .find(|name| *name == "process")
    }

    /// The containers of which `figure` has a number, least first.
    pub fn containers(&self, figure: impl Fn(&str) -> Option<f64>) -> Vec<(&str, f64)> {
        self.sorted(Kind::Container, figure)
    }

    /// The machines of which `figure` has a number, least first.
    pub fn machines(&self, figure: impl Fn(&str) -> Option<f64>) -> Vec<(&str, f64)> {
        self.sorted(Kind::Machine, figure)
    }

    fn sorted(&self, kind: Kind, figure: impl Fn(&str) -> Option<f64>) -> Vec<(&str, f64)> {
        let of_kind = self.0.iter().filter(|(_, its)| *its == kind);
        let with = of_kind.filter_map(|(name, _)| Some((name.as_str(), figure(name)?)));
        let mut with: Vec<_> = with.collect();
        with.sort_by(|(_, one), (_, other)| one.total_cmp(other));
        with
    }

    /// One of the two sides is not there, or nothing is known of it.
    pub fn cannot_tell(&self, what: &str) -> Verdict {
        let has = |kind| self.0.iter().any(|(_, its)| *its == kind);
        let text = match (has(Kind::Container), has(Kind::Machine)) {
            (false, false) => "Cannot tell: neither a container nor a machine took part.".into(),
            (true, false) => "Cannot tell: no virtual machine took part.".into(),
            (false, true) => "Cannot tell: no container took part.".into(),
            (true, true) => format!("Cannot tell: not enough {what}."),
        };
        Verdict {
            text,
            contradicts: false,
        }
    }
}
