//! Disks of the host, behind the virtio block device: [`Disk`] is an image that was opened and
//! locked, [`Worker`] the thread that serves a guest's requests on it.
//!
//! The front end is `devices::virtio::block`; `vmm` ties the two together.

mod raw;
mod worker;

use std::fs::{File, FileType};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use thiserror::Error;

pub use crate::devices::virtio::block::NAME_MOST;
use crate::devices::virtio::block::{Geometry, SECTOR};

pub use worker::{Requests, Worker};

/// When what the guest wrote and flushed is safe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// When a flush has been answered it is on the host's disk.
    #[default]
    Writeback,
    /// Never: flushes are answered and nothing else. For disks that nobody needs afterwards.
    Unsafe,
}

/// What is behind a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An image, or a block device.
    Image(PathBuf),
    /// So many bytes of zeroes, a multiple of 512, in a file without a name: gone when hull is.
    Scratch(u64),
}

/// A disk as the user asked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What is behind it.
    pub source: Source,
    /// The guest may not write.
    pub read_only: bool,
    /// The serial number that the guest sees, 20 bytes at most.
    pub name: String,
    /// When writes are safe.
    pub cache: Cache,
}

/// A disk cannot be had.
#[derive(Debug, Error)]
pub enum DiskError {
    /// No such file, or no right to it.
    #[error("disk {path}: {reason}{hint}")]
    Open {
        /// The image.
        path: PathBuf,
        /// Why not.
        reason: io::Error,
        /// What else to try.
        hint: &'static str,
    },
    /// A directory, a terminal.
    #[error("disk {path}: neither a file nor a block device")]
    NotADisk {
        /// What was named.
        path: PathBuf,
    },
    /// Another machine has it.
    #[error(
        "disk {path}: another machine uses it{how}; give each machine an image of its own, or \
         each of them this one with ,ro"
    )]
    InUse {
        /// The image.
        path: PathBuf,
        /// And for what.
        how: &'static str,
    },
    /// Nothing in it, or half a sector.
    #[error(
        "disk {path}: {bytes} bytes, which are no whole number of 512-byte sectors; \
         `truncate -s %512 {path}` adds what is missing"
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// An empty file.
    #[error("disk {path}: the file is empty; `truncate -s 1G {path}` makes a disk of it")]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// An image in a format that hull does not read.
    #[error(
        "disk {path}: a {format} image, which hull does not read; if you made it, `qemu-img convert \
         -O raw {path} {path}.raw` makes a raw one, but do not do so with a disk that a guest wrote: \
         it may have put the header there to have a file of the host copied"
    )]
    Format {
        /// The image.
        path: PathBuf,
        /// What it is.
        format: &'static str,
    },
    /// No thread could be had.
    #[error("cannot start a disk's thread ({0}); raise the limit of processes (ulimit -u)")]
    Thread(io::Error),
}

/// An image, open and locked for as long as this lives: shared by readers, or for one writer.
#[derive(Debug)]
pub struct Disk {
    file: File,
    cache: Cache,
    /// What the guest is told.
    pub geometry: Geometry,
}

impl Disk {
    /// Open and lock the image, or make the file.
    ///
    /// # Errors
    /// It is no disk, cannot be opened or made, or another machine uses it.
    pub fn open(config: &Config) -> Result<Self, DiskError> {
        let (file, bytes) = match &config.source {
            Source::Image(path) => open_image(path, config.read_only)?,
            Source::Scratch(bytes) => (scratch(*bytes)?, *bytes),
        };
        Ok(Self {
            file,
            cache: config.cache,
            geometry: Geometry {
                sectors: bytes / SECTOR,
                read_only: config.read_only,
                name: config.name.clone(),
            },
        })
    }
}

/// The image and its size.
fn open_image(image: &Path, read_only: bool) -> Result<(File, u64), DiskError> {
    let path = || image.to_path_buf();
    let fault = |reason: io::Error| DiskError::Open {
        hint: match reason.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
                "; with ,ro it need only be readable"
            }
            _ => "",
        },
        path: path(),
        reason,
    };
    // Nonblocking: a FIFO that nobody writes would hold up the open itself.
    let mut options = File::options();
    options.read(true).write(!read_only);
    options.custom_flags(OFlags::NONBLOCK.bits() as i32);
    let file = options.open(image).map_err(fault)?;
    let metadata = file.metadata().map_err(fault)?;
    if !is_disk(metadata.file_type()) {
        return Err(DiskError::NotADisk { path: path() });
    }
    lock(&file, image, read_only)?;
    let bytes = raw::size(&file).map_err(fault)?;
    if bytes == 0 {
        return Err(DiskError::Empty { path: path() });
    }
    if let Some(format) = raw::foreign_format(&file) {
        return Err(DiskError::Format {
            path: path(),
            format,
        });
    }
    if !bytes.is_multiple_of(SECTOR) {
        return Err(DiskError::Size {
            path: path(),
            bytes,
        });
    }
    Ok((file, bytes))
}

/// A file without a name in the folder for temporary files.
fn scratch(bytes: u64) -> Result<File, DiskError> {
    let folder = std::env::temp_dir();
    let made = tempfile::tempfile_in(&folder).and_then(|file| {
        file.set_len(bytes)?;
        Ok(file)
    });
    made.map_err(|reason| DiskError::Open {
        path: folder,
        reason,
        hint: "; TMPDIR names another folder for scratch disks",
    })
}

fn is_disk(kind: FileType) -> bool {
    kind.is_file() || kind.is_block_device()
}

/// A lock of the file (flock(2)), which goes with the descriptor, however hull ends.
fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), DiskError> {
    let (operation, how) = match read_only {
        true => (FlockOperation::NonBlockingLockShared, " and writes to it"),
        false => (FlockOperation::NonBlockingLockExclusive, ""),
    };
    flock(file, operation).map_err(|errno| match errno {
        Errno::WOULDBLOCK => DiskError::InUse {
            path: path.into(),
            how,
        },
        errno => DiskError::Open {
            path: path.into(),
            reason: errno.into(),
            hint: "; it cannot be locked",
        },
    })
}

/// The serial number of a disk that the user gave none: the image's file name, without its ending.
pub fn default_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let printable = stem.chars().filter(char::is_ascii_graphic);
    printable.take(NAME_MOST).collect()
}
