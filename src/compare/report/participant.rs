//! A subject in a report.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::compare::subject::{Kind, Part};

/// `hull compare` writes the side and the files of a subject, `hull bench` its program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Participant {
    /// As in the cells of the figures.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// As the program prints it.
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<Part>>,
    /// What a reader must know about how it was run.
    pub caveats: Vec<String>,
    pub left_out: Option<String>,
}

impl Participant {
    pub fn takes_part(&self) -> bool {
        self.left_out.is_none()
    }
}
