//! Why a folder cannot be shared.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::sandbox::SandboxError;

/// A folder cannot be shared.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The folder does not exist, or may not be read.
    #[error("{}: {reason}; name a folder that exists and that you may read", path.display())]
    Open {
        /// Path of the folder.
        path: PathBuf,
        /// The error of the host.
        reason: io::Error,
    },
    /// It is a file, for example.
    #[error("{}: not a folder; share the folder that contains it", path.display())]
    NotAFolder {
        /// The path that was given.
        path: PathBuf,
    },
    /// It is the root of the host's file system.
    #[error(
        "{}: this is /, the whole host; share a folder in it",
        path.display()
    )]
    Root {
        /// The path that was given.
        path: PathBuf,
    },
    /// Most likely /proc is not mounted.
    #[error("{}: cannot be served ({reason}); /proc must be mounted", path.display())]
    Serve {
        /// Path of the folder.
        path: PathBuf,
        /// The error of the host.
        reason: io::Error,
    },
    /// The process could not be confined.
    #[error("{}: {reason}", path.display())]
    Confine {
        /// Path of the folder.
        path: PathBuf,
        /// What it could not give up.
        reason: SandboxError,
    },
    /// What the process says that was to serve it.
    #[error("{0}")]
    Refused(String),
    /// The host has no process, memory or file descriptor left.
    #[error(
        "cannot start a process for a share ({0}); raise the limits of processes and of open files \
         (ulimit -u, ulimit -n)"
    )]
    Process(io::Error),
}
