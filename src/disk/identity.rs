//! The identity of a disk, by which a restore recognizes it: a snapshot has no bytes of disks, and a
//! machine that resumes with other bytes under its file system's cache destroys them.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::config::{Cache, Config, Format, Source};
use super::error::DiskError;
use super::image::Image;

/// A file of a disk that is open.
pub(super) struct Opened {
    /// Absolute, from the name that the user gave.
    pub path: PathBuf,
    /// The same open file description as the image's.
    pub file: File,
}

/// Shared by the thread that serves a disk and by its [`Origin`].
pub(super) struct Shared {
    pub image: Box<dyn Image>,
    /// The guest has written to it, or tried to.
    pub written: bool,
}

/// A handle by which to identify a disk while it is being served.
#[derive(Clone)]
pub struct Origin {
    shared: Arc<Mutex<Shared>>,
    files: Arc<[Opened]>,
    cache: Cache,
    /// Without the parts that change: size and files.
    identity: Identity,
}

/// A disk as a snapshot records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Format of the image; `None` for a scratch disk.
    pub format: Option<Format>,
    /// The guest may not write.
    pub read_only: bool,
    /// The guest's writes go to a temporary image.
    pub overlay: bool,
    /// The image and its bases, the nearest first; empty for a scratch disk.
    pub files: Vec<FileIdentity>,
}

/// One file of a disk, as a snapshot records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Its absolute path.
    pub path: PathBuf,
    /// Size of the file in bytes; 0 for a block device.
    pub len: u64,
    /// Time of the last write in nanoseconds since 1970; `None` for a block device, which has none.
    pub modified_ns: Option<i64>,
    /// Device and inode. A copy has others and is accepted.
    pub inode: (u64, u64),
}

/// A disk is not the one that the machine had when it was saved. The text continues after the
/// disk's name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Changed {
    /// It was written to, so its bytes probably differ.
    #[error(
        "{path}: written to since the snapshot was taken, and the machine has cached what it held \
         then; put the image back as it was (`cp -p` keeps the time of a copy), or boot afresh"
    )]
    Written {
        /// Path of the image or of a base.
        path: PathBuf,
    },
    /// It has another size.
    #[error(
        "{path}: {now} bytes, and {then} when the snapshot was taken; put the image back as it was \
         (`cp -p` keeps the time of a copy), or boot afresh"
    )]
    Size {
        /// Path of the image or of a base.
        path: PathBuf,
        /// Bytes when the snapshot was taken.
        then: u64,
        /// Bytes that it has now.
        now: u64,
    },
    /// It is opened in another way.
    #[error("{path}: {now}, and {then} when the snapshot was taken; give the disk as it was then")]
    Kind {
        /// Path of the image.
        path: PathBuf,
        /// Format and mode when the snapshot was taken.
        then: String,
        /// Format and mode now.
        now: String,
    },
}

impl Opened {
    pub fn new(path: &Path, file: &File) -> Result<Self, DiskError> {
        let fault = |reason| DiskError::Open {
            path: path.into(),
            reason,
            hint: "",
        };
        Ok(Self {
            path: std::path::absolute(path).map_err(fault)?,
            file: file.try_clone().map_err(fault)?,
        })
    }

    fn identity(&self) -> Result<FileIdentity, DiskError> {
        let metadata = self.file.metadata().map_err(|reason| DiskError::Open {
            path: self.path.clone(),
            reason,
            hint: "",
        })?;
        let (is_file, len) = (metadata.is_file(), metadata.len());
        Ok(FileIdentity {
            path: self.path.clone(),
            len: if is_file { len } else { 0 },
            modified_ns: is_file.then(|| modified_ns(&metadata)),
            inode: (metadata.dev(), metadata.ino()),
        })
    }
}

fn modified_ns(metadata: &Metadata) -> i64 {
    let seconds = metadata.mtime().saturating_mul(1_000_000_000);
    seconds.saturating_add(metadata.mtime_nsec())
}

impl Origin {
    pub(super) fn new(
        config: &Config,
        shared: Arc<Mutex<Shared>>,
        format: Option<Format>,
        files: Vec<Opened>,
    ) -> Self {
        Self {
            shared,
            files: files.into(),
            cache: config.cache,
            identity: Identity {
                size: 0,
                format,
                read_only: config.read_only,
                overlay: config.overlay,
                files: Vec::new(),
            },
        }
    }

    /// The disk's identity now, after all that was written is on the host's disk (in the file, for
    /// [`Cache::Unsafe`]). Waits while requests are being served.
    ///
    /// # Errors
    /// The guest's writes are in a temporary file, or cannot be written to the disk.
    pub fn identity(&self) -> Result<Identity, DiskError> {
        let path = self.path();
        let fault = |reason| DiskError::Open {
            path: path.clone(),
            reason,
            hint: "",
        };
        let Ok(mut shared) = self.shared.lock() else {
            // The thread that served it has panicked.
            return Err(fault(std::io::Error::other("hull can no longer serve it")));
        };
        if shared.written {
            match self.files.first() {
                None => return Err(DiskError::ScratchKept),
                Some(_) if self.identity.overlay => {
                    let format = match self.identity.format {
                        Some(Format::Qcow2) => "qcow2",
                        _ => "raw",
                    };
                    return Err(DiskError::OverlayKept { format, path });
                }
                Some(image) => {
                    shared.image.write_back().map_err(fault)?;
                    if self.cache != Cache::Unsafe {
                        // By fsync, as for a snapshot's own files: the main thread's list has no fdatasync.
                        image.file.sync_all().map_err(fault)?;
                    }
                }
            }
        }
        let files = self.files.iter().map(Opened::identity);
        Ok(Identity {
            size: shared.image.size().map_err(fault)?,
            files: files.collect::<Result<_, _>>()?,
            ..self.identity.clone()
        })
    }

    fn path(&self) -> PathBuf {
        let first = self.files.first();
        first.map_or_else(|| Source::SCRATCH.into(), |first| first.path.clone())
    }
}

impl Identity {
    /// Check that a machine that was saved with this disk can resume with `now`, whose files may lie
    /// elsewhere.
    ///
    /// # Errors
    /// It is, or may be, another disk.
    pub fn check(&self, now: &Self) -> Result<(), Changed> {
        let path = || {
            let file = now.files.first().or(self.files.first());
            file.map_or_else(|| Source::SCRATCH.into(), |file| file.path.clone())
        };
        let (then_kind, now_kind) = (self.kind(), now.kind());
        if then_kind != now_kind {
            return Err(Changed::Kind {
                path: path(),
                then: then_kind,
                now: now_kind,
            });
        }
        let files = self.files.iter().zip(&now.files);
        // The disk first: an image that grew has grown in both, and the user knows its size better.
        let disk = (path(), self.size, now.size);
        let of_file =
            |(then, now): (&FileIdentity, &FileIdentity)| (now.path.clone(), then.len, now.len);
        let sizes = std::iter::once(disk).chain(files.clone().map(of_file));
        for (path, then, now) in sizes {
            if then != now {
                return Err(Changed::Size { path, then, now });
            }
        }
        for (then, now) in files {
            if then.modified_ns != now.modified_ns {
                let path = now.path.clone();
                return Err(Changed::Written { path });
            }
        }
        Ok(())
    }

    /// Format and mode in words.
    fn kind(&self) -> String {
        let format = match self.format {
            None => "a scratch disk",
            Some(Format::Raw) => "a raw image",
            Some(Format::Qcow2) => "a qcow2 image",
        };
        let bases = match self.files.len() {
            0 | 1 => String::new(),
            count => format!(" over {} other", count - 1),
        };
        let read_only = if self.read_only { ", read-only" } else { "" };
        let overlay = if self.overlay {
            ", under an overlay"
        } else {
            ""
        };
        format!("{format}{bases}{read_only}{overlay}")
    }
}
