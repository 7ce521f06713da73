//! A machine on disk: a folder with a file of state and a file of guest memory.
//!
//! ```text
//!  DIR/                  0700
//!    state               "HULLSNAP"                          8 bytes
//!                        format version                      4   all numbers little endian
//!                        count of sections                   4
//!                        of each section: tag                4 ┐
//!                                         length             8 │ the table
//!                                         CRC-32 of payload  4 ┘
//!                        CRC-32 of all that is above         4
//!                        payloads, in the table's order, without gaps; the file ends with the last
//!    memory-ID           guest memory, region behind region; a hole where nothing is
//!
//!  section "MEMO" (by postcard, as are the others): this snapshot's id, which is the ID in the
//!  file's name as 32 hexadecimal digits; the id of the snapshot that it is a diff to, if it is one;
//!  the regions: GPA, bytes; the extents with content: pages between, pages; CRC-32 of all extents.
//!
//!  guest memory   0 ──────────── 3 GiB     4 GiB ───────
//!                 │   region 0   │  hole   │  region 1  │
//!  memory-ID      │   region 0   │  region 1  │        offset = bytes of the regions before
//! ```
//!
//! `state` is what makes a snapshot: a [`Writer`] puts all beside it (`memory-ID`, `state.tmp`) and
//! renames `state.tmp` over it at the end; then it removes what the old one used. Killed at any
//! moment it leaves the old snapshot whole, or the new one; what else lies about, the next writer
//! removes. One writer at a time: it holds a lock (flock(2)) on DIR.
//!
//! A reader ([`open`]) trusts nothing of what it reads. The version is [`VERSION`], which grows with
//! every change to the format *or to any payload*; other versions are refused by name. What the
//! payloads mean is known to who makes them; only "MEMO" is of this module.

mod header;
mod memo;
mod merge;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use crate::memory::file::MemoryFile;
pub use header::{Tag, VERSION};
pub use merge::merge;
pub use read::{Snapshot, open, open_layer};
pub use write::Writer;

/// Names one snapshot, at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(pub [u8; 16]);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

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
fn failed<E: Into<io::Error>>(
    what: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> SnapshotError {
    move |source| SnapshotError::Io {
        what,
        path: path.into(),
        source: source.into(),
    }
}
