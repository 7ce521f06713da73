//! Why a file describes no application, or one is not started.

use std::path::PathBuf;

use thiserror::Error;

/// What is wrong in a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {reason}")]
pub struct FileError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl FileError {
    /// What is wrong at `line`.
    pub fn at(line: usize, reason: impl Into<String>) -> Self {
        Self {
            line: line.max(1),
            reason: reason.into(),
        }
    }
}

/// A file cannot be used.
#[derive(Debug, Error)]
pub enum ComposeError {
    /// There is none.
    #[error(
        "no file here: compose.yaml, compose.yml, docker-compose.yaml and docker-compose.yml are looked for; name one"
    )]
    NoFile,
    /// It cannot be read.
    #[error("{}: {reason}", path.display())]
    Read {
        /// Path of the compose file, as the user wrote it.
        path: PathBuf,
        /// The reason of the host or the reader.
        reason: String,
    },
    /// Something in it is wrong.
    #[error("{}: {error}", path.display())]
    File {
        /// Path of the compose file, as the user wrote it.
        path: PathBuf,
        /// What, with its line.
        error: FileError,
    },
    /// Another hull changes the same application.
    #[error("{}: another hull up or hull down is at work on this file; wait for it", path.display())]
    Busy {
        /// Path of the compose file, as the user wrote it.
        path: PathBuf,
    },
}
