//! Folders of the host behind the virtio file system device: [`Share`] is one that was opened and
//! judged, [`start`] starts the thread that serves a guest's FUSE messages on it.
//!
//! The front end is `devices::virtio::fs`; `vmm` ties the two together. What keeps a guest inside
//! its folder, from the inside out:
//! 1. The guest names files by inode and single name; `confined` refuses `..`, device nodes and,
//!    for `ro`, all that changes something. Symbolic links are the guest's to follow, never ours.
//! 2. The crate fuse-backend-rs holds each inode by an O_PATH descriptor, so that what the host
//!    renames meanwhile leads nowhere else, and opens regular files and directories alone.
//! 3. The thread is under Landlock and without capabilities beyond files (`sandbox`).

pub mod config;
mod confined;
mod service;
#[cfg(test)]
mod tests;
mod worker;

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use thiserror::Error;

pub use crate::devices::virtio::fs::TAG_MOST;
use crate::sandbox::SandboxError;
pub use config::Config;

pub use worker::{Served, start};

/// A share cannot be had.
#[derive(Debug, Error)]
pub enum ShareError {
    /// No such folder, or no right to it.
    #[error("{}: {reason}; name a folder that is there and that you may read", path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// Why not.
        reason: io::Error,
    },
    /// A file, say.
    #[error("{}: not a folder; share the folder that it is in", path.display())]
    NotAFolder {
        /// What was named.
        path: PathBuf,
    },
    /// All of the host.
    #[error(
        "{}: that is / and with it the whole host; share a folder in it",
        path.display()
    )]
    Root {
        /// What was named.
        path: PathBuf,
    },
    /// No /proc, most likely.
    #[error("{}: cannot be served ({reason}); /proc must be mounted", path.display())]
    Serve {
        /// The folder.
        path: PathBuf,
        /// Why not.
        reason: io::Error,
    },
    /// The thread could not be confined.
    #[error("{}: {reason}", path.display())]
    Confine {
        /// The folder.
        path: PathBuf,
        /// Why not.
        reason: SandboxError,
    },
    /// No thread, or no descriptor for it.
    #[error(
        "cannot start a thread ({0}); raise the limits of processes and of open files \
         (ulimit -u, ulimit -n)"
    )]
    Thread(io::Error),
}

/// A folder that can be shared.
pub struct Share {
    folder: File,
    path: PathBuf,
    /// The guest may not change anything.
    pub read_only: bool,
    /// By which the guest mounts it.
    pub tag: String,
}

impl Share {
    /// Open the folder: what is renamed afterwards does not matter.
    ///
    /// # Errors
    /// It is missing, no folder, `/`, or not to be read.
    pub fn open(config: &Config) -> Result<Self, ShareError> {
        let path = config.folder.clone();
        // Nonblocking: a FIFO that nobody writes would hold up the open itself.
        let flags = OFlags::NONBLOCK | OFlags::DIRECTORY;
        let opened = File::options()
            .read(true)
            .custom_flags(flags.bits() as i32)
            .open(&path);
        let folder = match opened {
            Ok(folder) => folder,
            Err(reason) if reason.kind() == io::ErrorKind::NotADirectory && path.exists() => {
                return Err(ShareError::NotAFolder { path });
            }
            Err(reason) => return Err(ShareError::Open { path, reason }),
        };
        match is_root(&folder) {
            Ok(false) => {}
            Ok(true) => return Err(ShareError::Root { path }),
            Err(reason) => return Err(ShareError::Open { path, reason }),
        }
        Ok(Self {
            folder,
            path,
            read_only: config.read_only,
            tag: config.tag.clone(),
        })
    }
}

/// Whether it is the root directory, whatever its name.
fn is_root(folder: &File) -> io::Result<bool> {
    let (root, this) = (Path::new("/").metadata()?, folder.metadata()?);
    Ok((root.dev(), root.ino()) == (this.dev(), this.ino()))
}
