//! What came of a bench: plain data, as `--json` has it and `--compare` reads it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Topic;
use crate::compare::figure::Figure;
use crate::compare::measure::host::Host;

/// Of the JSON. Raised when a reader of the old one would misunderstand the new one.
pub const FORMAT: u32 = 1;

/// All figures of one topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// What was measured.
    pub topic: Topic,
    /// The command that printed it.
    pub command: Vec<String>,
    /// Where, when, and by which hull.
    pub host: Host,
    /// How.
    pub settings: Settings,
    /// What starts and stops a clock, what is counted.
    pub method: String,
    /// Who took part, in the order of the cells, and who did not.
    pub subjects: Vec<Participant>,
    /// What speaks against believing it; shown in every output.
    pub warnings: Vec<String>,
    /// What was measured, with every sample.
    pub figures: Vec<Figure>,
}

/// What was asked for: by the same settings it can be measured again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// How often each subject was measured.
    pub runs: usize,
    /// Seconds that one process had.
    pub timeout: u64,
    /// Who took turns with hull.
    pub rivals: Vec<Rival>,
    /// hull's kernel for those that boot bzImages alone.
    pub bzimage: Option<PathBuf>,
}

/// A program that takes turns with hull.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rival {
    /// One of [`super::RIVALS`].
    pub name: String,
    /// Where it is.
    pub program: PathBuf,
}

/// A subject, in or out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Participant {
    /// As the cells of the figures have it.
    pub name: String,
    /// Where it is.
    pub program: PathBuf,
    /// What it says its version is.
    pub version: Option<String>,
    /// What a reader has to know of how it was run.
    pub caveats: Vec<String>,
    /// Why it has no figures.
    pub left_out: Option<String>,
}

/// Why there is no report in a file.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else is in it.
    #[error("{}: not a report of hull bench; take one that its --json wrote", path.display())]
    Damaged {
        /// Its path.
        path: PathBuf,
        /// Where it does not fit.
        source: serde_json::Error,
    },
    /// A later hull wrote it.
    #[error(
        "{}: its format is {format}, and this hull reads {FORMAT}; use the hull that wrote it, or a later one",
        path.display()
    )]
    Format {
        /// Its path.
        path: PathBuf,
        /// What stands there.
        format: u32,
    },
}

impl Report {
    /// What `--json` wrote to `path`.
    ///
    /// # Errors
    /// It cannot be read, is something else, or of another format.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let at = || path.to_path_buf();
        let text = fs::read(path).map_err(|source| ReadError::Read { path: at(), source })?;
        let damaged = |source| ReadError::Damaged { path: at(), source };
        let head: Head = serde_json::from_slice(&text).map_err(damaged)?;
        match head.format {
            FORMAT => serde_json::from_slice(&text).map_err(damaged),
            format => Err(ReadError::Format { path: at(), format }),
        }
    }

    /// Those that have figures.
    pub fn columns(&self) -> impl Iterator<Item = &Participant> {
        self.subjects.iter().filter(|one| one.left_out.is_none())
    }
}
