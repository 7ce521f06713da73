//! One finding.

use serde::Serialize;

/// What a finding means for guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing is missing or slow.
    Ok,
    /// Guests run; something is slower or missing.
    Warn,
    /// Guests do not run.
    Fail,
}

/// One line of the table.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was looked at, at most 12 characters.
    pub name: &'static str,
    /// What the finding means.
    pub status: Status,
    /// What was found, in a few words.
    pub finding: String,
    /// What to do, or what hull does about it; nothing where all is well.
    pub remedy: Option<String>,
}

impl Check {
    /// Nothing is missing or slow.
    pub fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            finding: finding.into(),
            remedy: None,
        }
    }

    /// Guests run, and `remedy` makes it better.
    pub fn warn(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Status::Warn,
            remedy: Some(remedy.into()),
            ..Self::ok(name, finding)
        }
    }

    /// No guest runs before `remedy`.
    pub fn fail(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Status::Fail,
            ..Self::warn(name, finding, remedy)
        }
    }
}
