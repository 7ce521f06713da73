//! From a configuration to a disk: an image, opened and locked.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::config::{Cache, Config, Format, Source};
use super::error::DiskError;
use super::ext4;
use super::file::{no_temporary, open_image, scratch};
use super::identity::{Opened, Origin, Shared};
use super::image::{Image, Results};
use super::joined::Joined;
use super::qcow2::{self, Qcow2};
use super::raw::Raw;
use crate::devices::rate::Limits;
use crate::devices::virtio::block::{Geometry, Request, SECTOR};
use crate::memory::GuestMemory;
use crate::sync::lock;

/// An image, open and locked while this lives: shared by readers, or for one writer.
pub struct Disk {
    shared: Arc<Mutex<Shared>>,
    origin: Origin,
    cache: Cache,
    pub(super) limits: Limits,
    /// The disk as the guest sees it.
    pub geometry: Geometry,
}

impl Disk {
    /// Open and lock the image, or make the file.
    ///
    /// # Errors
    /// It is not a disk, cannot be opened or made, or another machine uses it.
    pub fn open(config: &Config) -> Result<Self, DiskError> {
        let mut files = Vec::new();
        let (image, bytes, format) = open(config, &mut files)?;
        let written = false;
        let discard_unit = image.discard_unit().map(|bytes| (bytes / SECTOR) as u32);
        let shared = Arc::new(Mutex::new(Shared { image, written }));
        Ok(Self {
            origin: Origin::new(config, shared.clone(), format, files),
            shared,
            cache: config.cache,
            limits: config.limits,
            geometry: Geometry {
                sectors: bytes / SECTOR,
                read_only: config.read_only,
                discard_unit,
                name: config.id(),
            },
        })
    }

    /// A handle by which to identify the disk while it is being served.
    pub fn origin(&self) -> Origin {
        self.origin.clone()
    }

    /// The number of sectors, if it has changed since the last call.
    pub(super) fn new_size(&mut self) -> Option<u64> {
        let sectors = self.with(|shared| shared.image.size()).ok()? / SECTOR;
        let changed = sectors != self.geometry.sectors;
        self.geometry.sectors = sectors;
        changed.then_some(sectors)
    }

    /// The first step of the thread that serves it.
    pub(super) fn prepare(&self) {
        self.with(|shared| shared.image.prepare());
    }

    /// Put all that the guest has written into the image's file.
    ///
    /// # Errors
    /// The host refuses a write.
    pub fn write_back(&self) -> io::Result<()> {
        self.with(|shared| shared.image.write_back())
    }

    /// Serve requests that do not depend on each other; returns the results in the same order.
    pub fn serve(&self, memory: &GuestMemory, requests: &[Request]) -> Results {
        self.with(|shared| {
            let mut reads = shared.read_together(memory, requests).into_iter();
            let mut serve = |request: &Request| match request {
                Request::Read { at, to } => match reads.next() {
                    Some(read) => read,
                    None => shared.image.read(memory, *at, to),
                },
                other => shared.change(memory, other, self.cache),
            };
            requests.iter().map(&mut serve).collect()
        })
    }

    fn with<R>(&self, act: impl FnOnce(&mut Shared) -> R) -> R {
        act(&mut lock(&self.shared))
    }
}

impl Shared {
    /// The results of the reads, if there are several: a format may read them at once.
    fn read_together(&mut self, memory: &GuestMemory, requests: &[Request]) -> Results {
        if requests.len() < 2 {
            return Results::new();
        }
        let reads = requests.iter().filter_map(|request| match request {
            Request::Read { at, to } => Some((*at, to.as_slice())),
            _ => None,
        });
        let reads: Vec<_> = reads.collect();
        match reads.len() {
            0 | 1 => Results::new(),
            _ => self.image.read_all(memory, &reads),
        }
    }

    fn change(&mut self, memory: &GuestMemory, request: &Request, cache: Cache) -> io::Result<()> {
        self.written |= !matches!(request, Request::Read { .. } | Request::Flush);
        let image = &mut self.image;
        let flush = match request {
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
        if flush && cache != Cache::Unsafe {
            image.flush()?;
        }
        Ok(())
    }
}

/// An image, its size in bytes, and its format unless it is a scratch disk.
type Open = (Box<dyn Image>, u64, Option<Format>);

/// The image of `config`; its file and those of its bases are added to `files`.
fn open(config: &Config, files: &mut Vec<Opened>) -> Result<Open, DiskError> {
    let path = match &config.source {
        Source::Scratch(bytes) => return Ok((Box::new(Raw::new(scratch(*bytes)?)), *bytes, None)),
        Source::Ext4(bytes) => {
            let file = scratch(0)?;
            ext4::format(&file, *bytes).map_err(no_temporary)?;
            let image = Raw::new(file);
            let bytes = image.size().map_err(no_temporary)?;
            return Ok((Box::new(image), bytes, None));
        }
        Source::Joined(paths) => return joined(paths, files),
        Source::Image(path) => path,
    };
    let read_only = config.read_only || config.overlay;
    let (file, format) = open_image(path, read_only, config.format)?;
    files.push(Opened::new(path, &file)?);
    if format == Format::Raw
        && let Some(backing) = config.backing.first()
    {
        return Err(DiskError::NoBacking {
            path: path.clone(),
            backing: backing.clone(),
        });
    }
    if config.overlay {
        let base = qcow2::access((file, format), path, false, &config.backing, files)?;
        let image = Qcow2::over(base, scratch(0)?).map_err(no_temporary)?;
        return sized(Box::new(image), path, format);
    }
    match format {
        Format::Raw => sized(Box::new(Raw::new(file)), path, format),
        Format::Qcow2 => {
            let own = file.try_clone().map_err(|reason| DiskError::Open {
                path: path.clone(),
                reason,
                hint: "",
            })?;
            let image = qcow2::access((file, format), path, !read_only, &config.backing, files)?;
            sized(Box::new(Qcow2::new(image, own)), path, format)
        }
    }
}

/// A disk of several files.
fn joined(paths: &[PathBuf], files: &mut Vec<Opened>) -> Result<Open, DiskError> {
    let mut parts = Vec::with_capacity(paths.len());
    for path in paths {
        let (file, _) = open_image(path, true, Some(Format::Raw))?;
        files.push(Opened::new(path, &file)?);
        parts.push(file);
    }
    let path = paths.first().map_or(Path::new(""), PathBuf::as_path);
    let image = Joined::new(parts).map_err(|reason| DiskError::Open {
        path: path.into(),
        reason,
        hint: "",
    })?;
    sized(Box::new(image), path, Format::Raw)
}

/// The image, if a disk can have its size.
fn sized(image: Box<dyn Image>, path: &Path, format: Format) -> Result<Open, DiskError> {
    let path = || path.to_path_buf();
    let bytes = image.size().map_err(|reason| DiskError::Open {
        path: path(),
        reason,
        hint: "",
    })?;
    match bytes {
        0 => Err(DiskError::Empty { path: path() }),
        bytes if !bytes.is_multiple_of(SECTOR) => Err(DiskError::Size {
            path: path(),
            bytes,
        }),
        bytes => Ok((image, bytes, Some(format))),
    }
}
