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

mod error;
mod header;
mod id;
mod memo;
mod merge;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use crate::memory::file::MemoryFile;
pub use error::SnapshotError;
pub use header::{Tag, VERSION};
pub use id::Id;
pub use merge::merge;
pub use read::{Snapshot, open, open_layer};
pub use write::Writer;
