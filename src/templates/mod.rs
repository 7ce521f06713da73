//! Templates: snapshots of machines that have booted, kept so that later runs need not boot.
//!
//! ```text
//!  ${XDG_CACHE_HOME:-$HOME/.cache}/hull/templates/    0700; HULL_CACHE names another folder
//!    lock           locked (flock) while folders come and go
//!    KEY/           0700, KEY is 32 hexadecimal digits
//!      lock         locked by who builds it
//!      about        what it is, JSON
//!      memory-ID    ┐ the snapshot; its last-used time is the time of `state`
//!      state        ┘
//! ```
//! [`Key`] is a hash of all that a template depends on. It counts from the moment that its `state`
//! is there, which the snapshot's writer puts there last. Who restores takes no lock: files that are
//! open stay, and a template that is removed before is as good as one that never was. Who builds
//! holds the lock of its folder, which no reuse of a process id can feign, so that what a killed
//! builder left is known and cleared away. Folders are made, taken and removed with the outer lock
//! held alone, hence nobody locks what another is removing.
//!
//! Nothing here is worth a failure of its own: where there is no cache, hull boots.

mod folder;
mod key;
mod place;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use folder::{Building, Cache};
pub use key::{Key, KeyBuilder};

/// What is written down of a template, for who lists them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The kernel's file, or a word for the one inside hull.
    pub kernel: String,
    /// vCPUs.
    pub cpus: u8,
    /// Guest memory.
    pub memory_bytes: u64,
    /// hull's version.
    pub version: String,
    /// When it was made, in seconds of Unix time.
    pub created: u64,
}

/// A template, as it lies in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub key: Key,
    /// What was written down, if that can be read.
    pub about: Option<About>,
    /// What it takes of the disk.
    pub bytes: u64,
    /// When it was made or last restored.
    pub last_used: SystemTime,
}

/// There is no cache, or it does not do as asked.
#[derive(Debug, Error)]
pub enum CacheError {
    /// The user wants none.
    #[error("there is no cache of templates: {variable}={value} turns it off; unset it")]
    Off {
        /// The environment variable.
        variable: &'static str,
        /// What it says.
        value: String,
    },
    /// Nobody says where.
    #[error(
        "there is no place for templates: none of HULL_CACHE, XDG_CACHE_HOME and HOME is an absolute \
         path; set HULL_CACHE to a folder of yours"
    )]
    NoHome,
    /// The limit is no size.
    #[error(
        "HULL_CACHE_SIZE={value}: not a size; write bytes, or a number with K, M, G or T; 0 is no cache"
    )]
    Size {
        /// What it says.
        value: String,
    },
    /// The folder cannot be used.
    #[error("templates cannot be kept in {}: {error}; set HULL_CACHE to a folder of yours", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Somebody is at it.
    #[error("template {key} is just being made; try again when that hull has made it")]
    Busy {
        /// Which.
        key: Key,
    },
    /// It stays.
    #[error("cannot remove {}: {error}", path.display())]
    Remove {
        /// Its folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}
