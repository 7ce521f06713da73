//! Disks of the host, behind the virtio block device: [`Disk`] is an image that was opened and
//! locked, [`start`] starts the thread that serves a guest's requests on it.
//!
//! An image is `raw` or `qcow2`, told apart by how it begins; both are an `Image`. The front
//! end is `devices::virtio::block`; `vmm` ties the two together.

pub mod config;
mod identity;
mod open;
mod qcow2;
mod raw;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use thiserror::Error;

pub use crate::devices::rate::{Limit, Limits};
pub use crate::devices::virtio::block::NAME_MOST;
use crate::devices::virtio::block::{Geometry, Range, Request, SECTOR};
use crate::memory::GuestMemory;
use crate::memory::transfer::Segment;
use crate::sync::lock;
pub use config::{Cache, Config, Format, Source};

use identity::Shared;
pub use identity::{Changed, FileIdentity, Identity, Origin};
pub use worker::{Guest, start};

/// A disk cannot be had.
#[derive(Debug, Error)]
pub enum DiskError {
    /// No such file, or no right to it.
    #[error("{path}: {reason}{hint}")]
    Open {
        /// The image.
        path: PathBuf,
        /// Why not.
        reason: io::Error,
        /// What else to try.
        hint: &'static str,
    },
    /// A directory, a terminal.
    #[error(
        "{path}: neither a file nor a block device; name an image, such as `truncate -s 1G FILE` \
         makes"
    )]
    NotADisk {
        /// What was named.
        path: PathBuf,
    },
    /// No file for what is gone afterwards.
    #[error("needs a file in {folder}: {reason}; set TMPDIR to another folder")]
    Temporary {
        /// The folder for temporary files.
        folder: PathBuf,
        /// Why there is none.
        reason: io::Error,
    },
    /// Another machine has it.
    #[error(
        "{path}: another machine, or another disk of this one, uses it{how}; give each an image of \
         its own, or each of them this one with ,ro"
    )]
    InUse {
        /// The image.
        path: PathBuf,
        /// And for what.
        how: &'static str,
    },
    /// Nothing in it, or half a sector.
    #[error(
        "{path}: {bytes} bytes, which are no whole number of 512-byte sectors; \
         `truncate -s %512 {path}` adds what is missing"
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// An empty file.
    #[error("{path}: the file is empty; `truncate -s 1G {path}` makes a disk of it")]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// An image in a format that hull does not read.
    #[error(
        "{path}: a {format} image, which hull does not read; if you made it, `qemu-img convert -O \
         raw {path} {path}.raw` makes a raw one, but do not do so with a disk that a guest wrote: \
         it may have put the header there to have a file of the host copied. format=raw takes it \
         as it is"
    )]
    Foreign {
        /// The image.
        path: PathBuf,
        /// What it is.
        format: &'static str,
    },
    /// A qcow2 image that cannot be used.
    #[error("{path}: no usable qcow2 image ({reason}); `qemu-img check {path}` tells more")]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        reason: io::Error,
    },
    /// A qcow2 image that is based on another.
    #[error(
        "{path}: the image says that it is based on {backing:?}; hull opens no file that only an \
         image names: add backing=FILE if it is what you want"
    )]
    BackingUnnamed {
        /// The image.
        path: PathBuf,
        /// What it is based on.
        backing: String,
    },
    /// A base for an image without one.
    #[error("{path}: it is based on no other image; leave out backing={backing}")]
    NoBacking {
        /// The image.
        path: PathBuf,
        /// What the user named.
        backing: PathBuf,
    },
    /// A qcow2 image with its bytes in another file.
    #[error(
        "{path}: its data is in another file, which hull does not open; if you made it, `qemu-img \
         convert -O qcow2 {path} {path}.qcow2` puts all in one, but do not do so with a disk that a \
         guest wrote: it may have put the header there to have a file of the host copied"
    )]
    DataFile {
        /// The image.
        path: PathBuf,
    },
    /// A qcow2 image whose bytes need a key.
    #[error(
        "{path}: an encrypted image, which hull does not read; `qemu-img convert` with its key \
         makes a plain one"
    )]
    Encrypted {
        /// The image.
        path: PathBuf,
    },
    /// What an image is based on cannot be had.
    #[error("{path},backing={base}")]
    Backing {
        /// The image.
        path: PathBuf,
        /// What is wrong with its base.
        base: Box<DiskError>,
    },
    /// A snapshot of what is gone with hull.
    #[error(
        "{path}: the guest has written to this disk, and its overlay ends with this machine: no \
         snapshot keeps it; for one, use a qcow2 image of your own (`qemu-img create -f qcow2 -b \
         {path} -F raw FILE`, then --disk FILE,backing={path})"
    )]
    OverlayKept {
        /// The image under the overlay.
        path: PathBuf,
    },
    /// The same of a disk without an image.
    #[error(
        "scratch: the guest has written to this disk, which ends with this machine: no snapshot \
         keeps it; for one, use an image (`truncate -s 1G FILE`, then --disk FILE)"
    )]
    ScratchKept,
}

/// Bytes that can be read and written. Positions and lengths are inside of its size, whole sectors.
trait Image: Send {
    /// Bytes of the disk now.
    fn size(&self) -> io::Result<u64>;

    /// Fill each of the parts from its byte on; what came of each, in the same order.
    fn read(&mut self, memory: &GuestMemory, parts: &[(u64, &[Segment])]) -> Vec<io::Result<()>>;

    /// Write `from` at byte `at`.
    fn write(&mut self, memory: &GuestMemory, at: u64, from: &[Segment]) -> io::Result<()>;

    /// All that was written is on the host's disk.
    fn flush(&mut self) -> io::Result<()>;

    /// Nothing that was written is in hull alone: who opens the image finds all of it.
    fn write_back(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Give space back, if that can be; the bytes may be anything afterwards.
    fn discard(&mut self, range: &Range) -> io::Result<()>;

    /// The bytes are 0 afterwards.
    fn zero(&mut self, range: &Range) -> io::Result<()>;
}

/// An image, open and locked for as long as this lives: shared by readers, or for one writer.
pub struct Disk {
    shared: Arc<Mutex<Shared>>,
    origin: Origin,
    cache: Cache,
    limits: Limits,
    /// What the guest is told.
    pub geometry: Geometry,
}

impl Disk {
    /// Open and lock the image, or make the file.
    ///
    /// # Errors
    /// It is no disk, cannot be opened or made, or another machine uses it.
    pub fn open(config: &Config) -> Result<Self, DiskError> {
        let mut files = Vec::new();
        let (image, bytes, format) = open::open(config, &mut files)?;
        let written = false;
        let shared = Arc::new(Mutex::new(Shared { image, written }));
        Ok(Self {
            origin: Origin::new(config, shared.clone(), format, files),
            shared,
            cache: config.cache,
            limits: config.limits,
            geometry: Geometry {
                sectors: bytes / SECTOR,
                read_only: config.read_only,
                name: config.name.clone().unwrap_or_else(|| config.source.name()),
            },
        })
    }

    /// What tells of the disk while it is being served.
    pub fn origin(&self) -> Origin {
        self.origin.clone()
    }

    /// Sectors that the image has now, if they are others than before.
    fn new_size(&mut self) -> Option<u64> {
        let sectors = self.with(|shared| shared.image.size()).ok()? / SECTOR;
        let changed = sectors != self.geometry.sectors;
        self.geometry.sectors = sectors;
        changed.then_some(sectors)
    }

    /// Have the image be what the guest has written, for whoever opens it next.
    fn write_back(&self) -> io::Result<()> {
        self.with(|shared| shared.image.write_back())
    }

    /// Serve requests, of which none waits for another; what came of each, in the same order.
    fn serve(&self, memory: &GuestMemory, requests: &[Request]) -> Vec<io::Result<()>> {
        let reads = requests.iter().filter_map(|request| match request {
            Request::Read { at, to } => Some((*at, to.as_slice())),
            _ => None,
        });
        let reads: Vec<_> = reads.collect();
        self.with(|shared| {
            let mut read = shared.image.read(memory, &reads).into_iter();
            let mut serve = |request: &Request| match request {
                // As many results as reads.
                Request::Read { .. } => read.next().unwrap_or(Ok(())),
                other => shared.change(memory, other, self.cache),
            };
            requests.iter().map(&mut serve).collect()
        })
    }

    fn with<R>(&self, act: impl FnOnce(&mut Shared) -> R) -> R {
        // After a panic nobody comes here any more (`worker`).
        act(&mut lock(&self.shared))
    }
}

impl Shared {
    fn change(&mut self, memory: &GuestMemory, request: &Request, cache: Cache) -> io::Result<()> {
        self.written |= !matches!(request, Request::Read { .. } | Request::Flush);
        let image = &mut self.image;
        // What was written is on the host's disk, if that was asked for and the user wants it.
        let wanted = match request {
            Request::Read { .. } => false,
            Request::Write { at, from, stable } => {
                image.write(memory, *at, from)?;
                *stable
            }
            Request::Flush => true,
            Request::Discard(ranges) => {
                ranges.iter().try_for_each(|range| image.discard(range))?;
                false
            }
            Request::WriteZeroes { ranges, stable } => {
                ranges.iter().try_for_each(|range| image.zero(range))?;
                *stable
            }
        };
        match wanted && cache != Cache::Unsafe {
            true => image.flush(),
            false => Ok(()),
        }
    }
}
