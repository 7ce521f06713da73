//! Templates: snapshots of machines that have booted, kept so that later runs need not boot.
//!
//! ```text
//!  ${XDG_CACHE_HOME:-$HOME/.cache}/hull/templates/    0700; HULL_CACHE names another folder
//!    lock           locked (flock) while folders come and go
//!    guest-ID       the guest of the program with this build id, unpacked
//!    guest-ID.is    which boot of the host wrote it, and its identity then
//!    KEY/           0700, KEY is 32 hexadecimal digits
//!      lock         locked by the hull that builds it
//!      about        what it is, JSON
//!      unsynced     the host's boot, until the snapshot is on the disk
//!      memory-ID    ┐ the snapshot; its last-used time is the time of `state`
//!      state        │
//!      written      ┘
//! ```
//! [`Key`] is a hash of all that a template depends on. A template exists once its `state` does, which
//! the snapshot's writer renames into place last. A restore takes no lock: open files stay, and a
//! template that was removed before the open counts as missing. A builder holds the lock of its
//! folder; if the lock of a folder without `state` is free, its builder was killed and the folder is
//! removed. Folders are made, taken and removed only with the outer lock held, so that no process
//! locks a folder that another one is removing.
//!
//! No failure here fails a run: without a cache, hull boots.

mod about;
mod error;
mod folder;
mod key;
pub mod place;
#[cfg(test)]
mod tests;
mod unpacked;

pub use about::{About, Listed};
pub use error::CacheError;
pub use folder::{Building, Cache};
pub use key::{Key, KeyBuilder};
