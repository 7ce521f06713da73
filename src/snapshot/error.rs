//! Why a snapshot cannot be written or read, each with what to do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::header::VERSION;
use super::id::Id;

/// A snapshot cannot be written, or not be read.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// A system call failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was to be done.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// There is none.
    #[error("{} has no file `state`: name the folder of a snapshot of hull's", dir.display())]
    Missing {
        /// The folder.
        dir: PathBuf,
    },
    /// Something else is there.
    #[error("{} is no snapshot of hull's; name another folder", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Of a later hull.
    #[error(
        "{} has the snapshot format {version}, this hull knows {VERSION}: use the hull that made it, \
         or a newer one",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
    /// Of an earlier hull.
    #[error(
        "{} has the snapshot format {version}, this hull knows {VERSION}: use the hull that made it, \
         or take a new snapshot",
        path.display()
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
    /// The file ends early.
    #[error("{} is cut off: copy it again, or take a new snapshot", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what was written.
    #[error("{} is damaged ({part}): copy it again, or take a new snapshot", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which part, and how if that is known.
        part: String,
    },
    /// The memory is not there.
    #[error("{} is missing, without which its snapshot is nothing: copy it, too", path.display())]
    MemoryMissing {
        /// The file.
        path: PathBuf,
    },
    /// The memory is another, or not all.
    #[error(
        "{} has {found} bytes instead of {expected}: copy it again, or take a new snapshot",
        path.display()
    )]
    MemorySize {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        found: u64,
        /// As `state` says.
        expected: u64,
    },
    /// There is only what changed since another one.
    #[error(
        "{} is a diff to the snapshot {parent}: merge both first (hull snapshot merge)",
        dir.display()
    )]
    Diff {
        /// The folder.
        dir: PathBuf,
        /// To which it is one.
        parent: Id,
    },
    /// Merged with something else than its parent.
    #[error(
        "{} is no diff to the snapshot {before}, which comes before it: name the snapshots in the \
         order in which they were taken",
        dir.display()
    )]
    Order {
        /// The folder.
        dir: PathBuf,
        /// The snapshot before it.
        before: Id,
    },
    /// Somebody else writes there.
    #[error("another hull is writing a snapshot to {}: wait for it, or name another folder", dir.display())]
    Busy {
        /// The folder.
        dir: PathBuf,
    },
    /// More than a reader would take.
    #[error("the state of this machine is too large for a snapshot ({what})")]
    TooLarge {
        /// What is.
        what: String,
    },
}

/// Makes an [`SnapshotError::Io`] of what failed.
pub(super) fn failed<E: Into<io::Error>>(
    what: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> SnapshotError {
    move |source| SnapshotError::Io {
        what,
        path: path.into(),
        source: source.into(),
    }
}
