//! How a snapshot knows a disk again, of which it holds nothing but this: a machine that goes on
//! with other bytes under its file system's cache destroys them.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Cache, Config, DiskError, Format, Image, Source};

/// An image that is open, by the name that the user gave.
pub(super) struct Opened {
    pub path: PathBuf,
    /// The same open file as the image's own.
    pub file: File,
}

/// What serves a disk and what tells of it share this.
pub(super) struct Shared {
    pub image: Box<dyn Image>,
    /// The guest has changed something, or tried to.
    pub written: bool,
}

/// A disk, for who wants to know it again while it is being served.
#[derive(Clone)]
pub struct Origin {
    shared: Arc<Mutex<Shared>>,
    files: Arc<[Opened]>,
    cache: Cache,
    /// All but what changes.
    identity: Identity,
}

/// What a disk is, as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Bytes of the disk.
    pub size: u64,
    /// What the image is; `None` for a scratch disk.
    pub format: Option<Format>,
    /// The guest may not write.
    pub read_only: bool,
    /// The guest's writes go to a temporary image.
    pub overlay: bool,
    /// The image and what it is based on, the nearest first; nothing of a scratch disk.
    pub files: Vec<FileIdentity>,
}

/// One file of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Where it was, from the root on.
    pub path: PathBuf,
    /// Bytes of the file; 0 of a block device.
    pub len: u64,
    /// When it was last written, in nanoseconds since 1970; `None` of a block device, which does
    /// not say.
    pub modified_ns: Option<i64>,
    /// Device and inode: those of a copy are others, and nothing is wrong with a copy.
    pub inode: (u64, u64),
}

/// A disk is not the one that the machine had when it was saved.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Changed {
    /// Other bytes, in all likelihood.
    #[error(
        "{path}: written to since the snapshot was taken, and the machine remembers what it held \
         then; put the image back as it was (`cp -p` keeps the time of a copy), or boot afresh"
    )]
    Written {
        /// The image, or what it is based on.
        path: PathBuf,
    },
    /// Grown or cut.
    #[error(
        "{path}: {now} bytes, and {then} when the snapshot was taken; put the image back as it was \
         (`cp -p` keeps the time of a copy), or boot afresh"
    )]
    Size {
        /// The image, or what it is based on.
        path: PathBuf,
        /// Bytes in the snapshot.
        then: u64,
        /// Bytes that it has.
        now: u64,
    },
    /// Opened in another way.
    #[error("{path}: {now}, and {then} when the snapshot was taken; give the disk as it was then")]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it was.
        then: String,
        /// What it is.
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

    /// What the disk is now, with all that was written to it on the host's disk, if the
    /// user wants that at all. Asked for while
    /// nothing is being served: waits for it otherwise.
    ///
    /// # Errors
    /// The guest's writes are in a file that ends with hull; or they cannot be written to the disk.
    pub fn identity(&self) -> Result<Identity, DiskError> {
        let path = self.path();
        let fault = |reason| DiskError::Open {
            path: path.clone(),
            reason,
            hint: "",
        };
        let Ok(mut shared) = self.shared.lock() else {
            // Who served it has panicked.
            return Err(fault(std::io::Error::other(
                "hull cannot serve it any more",
            )));
        };
        if shared.written {
            match self.files.first() {
                None => return Err(DiskError::ScratchKept),
                Some(_) if self.identity.overlay => return Err(DiskError::OverlayKept { path }),
                Some(_) if self.cache == Cache::Unsafe => {
                    shared.image.write_back().map_err(fault)?
                }
                Some(_) => shared.image.flush().map_err(fault)?,
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
    /// Whether a machine that was saved with this disk can go on with `now`; where its files lie is
    /// of no importance.
    ///
    /// # Errors
    /// It is, or may be, another.
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
        // An image that grew has grown in both; the size of its file says less to the user.
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

    /// How it is opened, in words.
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
