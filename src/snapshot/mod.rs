//! A saved machine: a folder with a file of state and a file of guest memory.
//!
//! ```text
//!  DIR/                  0700
//!    state               "HULLSNAP"                          8 bytes
//!                        format version                      4   all numbers little endian
//!                        count of sections                   4
//!                        of each section: tag                4 ┐
//!                                         length             8 │ the table
//!                                         CRC-32 of payload  4 ┘
//!                        CRC-32 of everything above          4
//!                        payloads, in the table's order, without gaps; the file ends with the last
//!    memory-ID           guest memory, one region after the other, with holes for zeros
//!    written             optional: the pages that a guest writes first after a restore, which hull copies
//!                        in advance; as ranges in order: first page, pages, 4 bytes each
//!
//!  section "MEMO" (by postcard, as are the others): this snapshot's id, which is the ID in the
//!  file's name as 32 hexadecimal digits; the id of the parent, if this is a diff; the regions: GPA,
//!  bytes; the extents with content: pages between, pages; CRC-32 of all extents.
//!
//!  guest memory   0 ──────────── 3 GiB     4 GiB ───────
//!                 │   region 0   │  hole   │  region 1  │
//!  memory-ID      │   region 0   │  region 1  │        offset = bytes of the regions before
//! ```
//!
//! The file `state` decides which snapshot is valid: a [`Writer`] writes `memory-ID` and `state.tmp`,
//! renames `state.tmp` to `state`, and then removes the files of the old snapshot. If it is killed,
//! either the old or the new snapshot is complete; the next writer removes other files. Only one
//! writer is allowed at a time: it holds a lock (flock(2)) on DIR.
//!
//! A reader ([`open`]) checks everything that it reads. The version is [`VERSION`], which grows with
//! every change to the format *or to any payload*; other versions are refused. This module defines
//! only the payload "MEMO"; the callers define the others.

mod error;
mod header;
mod id;
mod memo;
mod merge;
mod read;
#[cfg(test)]
mod tests;
mod write;
mod written;

pub use crate::memory::file::MemoryFile;
pub use error::SnapshotError;
pub use header::{Tag, VERSION};
pub use id::Id;
pub use merge::merge;
pub use read::{Snapshot, open, open_layer};
pub use write::{Files, Folder, Writer};
pub use written::add_written;
