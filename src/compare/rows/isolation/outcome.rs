//! The outcome of a probe.

use crate::compare::figure::Cell;

/// Each has a short text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The host was neither seen nor reached.
    Passed(String),
    Failed(String),
    /// The probe reads a property that neither passes nor fails.
    Told(String),
    /// The probe could not be tried.
    Untried(String),
}

/// A probe's name and its outcome.
pub type Probe = (&'static str, Outcome);

impl Outcome {
    /// A yes-or-no probe that fails with "yes".
    pub fn reached(reached: bool) -> Self {
        Self::with(reached, "yes", "no")
    }

    pub fn with(reached: bool, yes: impl Into<String>, no: impl Into<String>) -> Self {
        if reached {
            Self::Failed(yes.into())
        } else {
            Self::Passed(no.into())
        }
    }

    pub fn cell(&self) -> Cell {
        match self {
            Self::Passed(text) => Cell::probe(true, text),
            Self::Failed(text) => Cell::probe(false, text),
            Self::Told(text) => Cell::text(text),
            Self::Untried(why) => Cell::missing(why),
        }
    }
}
