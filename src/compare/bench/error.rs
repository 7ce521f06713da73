//! Why there is no report, or no sample of a turn.

use std::io;

use thiserror::Error;

use crate::compare::measure::error::RunError;
use crate::compare::report::bench::RIVALS;
use crate::compare::subject::{LeftOut, StageError};

#[derive(Debug, Error)]
pub enum BenchError {
    #[error("{0}: unknown; the known names are {names}", names = RIVALS.join(", "))]
    UnknownRival(String),
    #[error("this hull cannot measure `{0}`")]
    UnknownTopic(String),
    #[error("{0}: given twice; compare one after the other")]
    GivenTwice(String),
    #[error(
        "--steady: the clock of this machine does not count instructions: run it in a lab that does, such as \
         `tests/lab/run --steady hull bench ...` in hull's source, or without --steady"
    )]
    NotSteady,
    #[error("cannot find the file of this program: {0}")]
    OwnPath(io::Error),
    #[error("nothing could be measured: {0}")]
    Nothing(String),
    #[error("stopped; nothing is left behind, and no figure is kept")]
    Stopped,
    #[error("it {0}")]
    Run(#[from] RunError),
    #[error(transparent)]
    LeftOut(#[from] LeftOut),
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("cannot measure it: {0}")]
    Io(#[from] io::Error),
    /// It does not have what is measured, or did something unexpected.
    #[error("{0}")]
    Other(String),
}
