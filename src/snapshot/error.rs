//! Why a snapshot cannot be written or read, each with what to do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::header::VERSION;
use super::id::Id;

/// Why a snapshot cannot be written or read.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// A system call on a file or folder failed.
    #[error("cannot {what} {}: {reason}", path.display())]
    Io {
        /// The action, as in "cannot open".
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The error of the system call.
        reason: io::Error,
    },
    /// The folder has no snapshot.
    #[error("{} has no file `state`: name the folder of a snapshot of hull's", dir.display())]
    Missing {
        /// The folder of the snapshot.
        dir: PathBuf,
    },
    /// The file is not a snapshot of hull's.
    #[error("{} is not a snapshot of hull's; name another folder", path.display())]
    Foreign {
        /// The file in question.
        path: PathBuf,
    },
    /// A later version of hull wrote it.
    #[error(
        "{} has the snapshot format {version}, this hull knows {VERSION}: use the hull that made it, \
         or a newer one",
        path.display()
    )]
    Newer {
        /// The file in question.
        path: PathBuf,
        /// The version of its format.
        version: u32,
    },
    /// An earlier version of hull wrote it.
    #[error(
        "{} has the snapshot format {version}, this hull knows {VERSION}: use the hull that made it, \
         or take a new snapshot",
        path.display()
    )]
    Older {
        /// The file in question.
        path: PathBuf,
        /// The version of its format.
        version: u32,
    },
    /// The file ends early.
    #[error("{} is cut off: copy it again, or take a new snapshot", path.display())]
    Truncated {
        /// The file in question.
        path: PathBuf,
    },
    /// The content of the file has changed.
    #[error("{} is damaged ({part}): copy it again, or take a new snapshot", path.display())]
    Damaged {
        /// The file in question.
        path: PathBuf,
        /// The damaged part, and how if that is known.
        part: String,
    },
    /// The file of guest memory is missing.
    #[error("{} is missing, which belongs to the snapshot: copy it, too", path.display())]
    MemoryMissing {
        /// The file in question.
        path: PathBuf,
    },
    /// The file of guest memory has another size.
    #[error(
        "{} has {found} bytes instead of {expected}: copy it again, or take a new snapshot",
        path.display()
    )]
    MemorySize {
        /// The file in question.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The size that `state` has recorded.
        expected: u64,
    },
    /// The snapshot is a diff, which cannot be restored by itself.
    #[error(
        "{} is a diff to the snapshot {parent}: merge both first (hull snapshot merge)",
        dir.display()
    )]
    Diff {
        /// The folder of the snapshot.
        dir: PathBuf,
        /// The snapshot to which it is a diff.
        parent: Id,
    },
    /// The snapshot before it is not its parent.
    #[error(
        "{} is not a diff to the snapshot {before}, which is named before it: name the snapshots in the \
         order in which they were taken",
        dir.display()
    )]
    Order {
        /// The folder of the snapshot.
        dir: PathBuf,
        /// The snapshot before it.
        before: Id,
    },
    /// The folder is another user's.
    #[error(
        "{} belongs to user {owner}, who could replace the snapshot while it is written: name a folder of \
         your own",
        dir.display()
    )]
    NotOwn {
        /// The folder of the snapshot.
        dir: PathBuf,
        /// The user's number.
        owner: u32,
    },
    /// Another process is writing a snapshot to the folder.
    #[error("another hull is writing a snapshot to {}: wait for it, or name another folder", dir.display())]
    Busy {
        /// The folder of the snapshot.
        dir: PathBuf,
    },
    /// The state is larger than a reader accepts.
    #[error("the state of this machine is too large for a snapshot ({what})")]
    TooLarge {
        /// The count or size that is too large.
        what: String,
    },
}

/// Make an [`SnapshotError::Io`] from the error of a system call.
pub(super) fn failed<E: Into<io::Error>>(
    what: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> SnapshotError {
    move |reason| SnapshotError::Io {
        what,
        path: path.into(),
        reason: reason.into(),
    }
}
