//! qcow2 images, by the imago crate. The crate opens no file itself: it is given the bases of an
//! image, and only those that the user named ([`access`]).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use imago::storage::StorageOpenOptions;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder};
use vm_memory::{GuestMemoryBackend, VolatileSlice};

use super::config::Format;
use super::error::DiskError;
use super::file::open_image;
use super::identity::Opened;
use super::image::Image;
use crate::devices::virtio::block::Range;
use crate::memory::GuestMemory;
use crate::memory::bitmap::Part;
use crate::memory::transfer::Segment;

type Storage = imago::file::File;
type Access = FormatAccess<Storage>;

/// Images in a chain of bases.
const MAX_BASES: usize = 16;
/// Offset of crypt_method, which is 0 for none, in a header (QEMU, docs/interop/qcow2.rst).
const CRYPT_METHOD: u64 = 32;
/// Offset of refcount_table_offset; refcount_table_clusters follows it.
const REFCOUNT_TABLE: u64 = 48;
/// Offset of refcount_order, from version 3 on.
const REFCOUNT_ORDER: u64 = 96;

/// A qcow2 image.
pub struct Qcow2(Access);

impl Qcow2 {
    /// An image that imago has opened.
    pub fn new(access: Access) -> Self {
        Self(access)
    }

    /// A new image in `file`, based on `base`.
    pub fn over(base: Access, file: File) -> io::Result<Self> {
        let create = imago::qcow2::Qcow2::<Storage>::create_builder(storage(file, true)?);
        let create = create.size(base.size());
        let open = |file| {
            let open = imago::qcow2::Qcow2::<Storage>::builder(file).write(true);
            Ok(open.data_file(None).backing(Some(base)))
        };
        let image = create.create_open(DenyImplicitOpenGate::default(), open)?;
        Ok(Self(FormatAccess::new(image)))
    }
}

/// Access to the image at `path`, open as `file`, with the bases `backing` and no others, which are
/// added to `files`.
///
/// # Errors
/// It is not such an image, or has a base though none was given or the reverse, or a base cannot be
/// used.
pub fn access(
    (file, format): (File, Format),
    path: &Path,
    write: bool,
    backing: &[PathBuf],
    files: &mut Vec<Opened>,
) -> Result<Access, DiskError> {
    let fault = |reason| DiskError::Qcow2 {
        path: path.into(),
        reason,
    };
    let mut method = [0; 4];
    let plain = file.read_exact_at(&mut method, CRYPT_METHOD).is_err() || method == [0; 4];
    let counted = !write || format == Format::Raw || header_is_counted(&file);
    let storage = storage(file, write).map_err(fault)?;
    if format == Format::Raw {
        let raw = imago::raw::Raw::builder(storage).write(write);
        let raw = raw.open(DenyImplicitOpenGate::default()).map_err(fault)?;
        return Ok(FormatAccess::new(raw));
    }
    let mut image = imago::qcow2::Qcow2::<Storage>::open_image(storage, write).map_err(fault)?;
    if !counted {
        let reason = "the header's own cluster is counted as free";
        return Err(fault(io::Error::other(reason)));
    }
    if !plain {
        // The crate would return encrypted bytes as they are, and mix them with plain ones.
        return Err(DiskError::Encrypted { path: path.into() });
    }
    if image.requires_external_data_file() {
        return Err(DiskError::DataFile { path: path.into() });
    }
    image.set_data_file(None);
    let base = base_of(&image, path, backing, files)?;
    image.set_backing(base);
    Ok(FormatAccess::new(image))
}

/// The base of `image`, which must be given exactly if the header names one.
fn base_of(
    image: &imago::qcow2::Qcow2<Storage>,
    path: &Path,
    backing: &[PathBuf],
    files: &mut Vec<Opened>,
) -> Result<Option<Access>, DiskError> {
    match (image.implicit_backing_file(), backing.split_first()) {
        (None, None) => Ok(None),
        (None, Some((backing, _))) => Err(DiskError::NoBacking {
            path: path.into(),
            backing: backing.clone(),
        }),
        (Some(backing), None) => Err(DiskError::BackingUnnamed {
            path: path.into(),
            backing: backing.clone(),
        }),
        (Some(_), Some((base, rest))) => {
            let format = match image.implicit_backing_format().map(String::as_str) {
                Some("raw") => Some(Format::Raw),
                Some("qcow2") => Some(Format::Qcow2),
                _ => None,
            };
            let rest = rest.get(..rest.len().min(MAX_BASES)).unwrap_or_default();
            let opened = open_image(base, true, format).and_then(|(file, format)| {
                files.push(Opened::new(base, &file)?);
                access((file, format), base, false, rest, files)
            });
            let opened = opened.map_err(|base| DiskError::Backing {
                path: path.into(),
                base: Box::new(base),
            });
            opened.map(Some)
        }
    }
}

/// Whether the cluster that the header is in has a refcount (QEMU, docs/interop/qcow2.rst, "Host
/// cluster management"). Without one the crate would allocate that cluster for something else, or
/// search for a place for its refcounts without end.
fn header_is_counted(file: &File) -> bool {
    let read = |at: u64| {
        let mut bytes = [0; 8];
        // Bytes beyond the end count as 0, as in the crate.
        let _ = file.read_at(&mut bytes, at);
        u64::from_be_bytes(bytes)
    };
    let order = match read(0) as u32 {
        2 => 4,
        _ => (read(REFCOUNT_ORDER) >> 32) as u32,
    };
    let table_clusters = read(REFCOUNT_TABLE + 8) >> 32;
    let block = read(read(REFCOUNT_TABLE)) & !0x1ff;
    if table_clusters == 0 || block == 0 {
        return false;
    }
    let first = read(block);
    match order {
        // Of refcounts below a byte, the first is in the lowest bits.
        0..3 => (first >> 56) & ((1 << (1 << order)) - 1) != 0,
        3..6 => first >> (64 - (1 << order)) != 0,
        _ => first != 0,
    }
}

fn storage(file: File, write: bool) -> io::Result<Storage> {
    Storage::from_open_file(file, StorageOpenOptions::new().write(write))
}

impl Image for Qcow2 {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.size())
    }

    fn read(&mut self, memory: &GuestMemory, parts: &[(u64, &[Segment])]) -> Vec<io::Result<()>> {
        let read = |&(at, to): &(u64, &[Segment])| {
            let slices = slices(memory, to)?;
            let (vector, _guard) = imago::io_buffers::IoVectorMut::from_volatile_slice(&slices);
            self.0.readv(vector, at)
        };
        parts.iter().map(read).collect()
    }

    fn write(&mut self, memory: &GuestMemory, at: u64, from: &[Segment]) -> io::Result<()> {
        let slices = slices(memory, from)?;
        let (vector, _guard) = imago::io_buffers::IoVector::from_volatile_slice(&slices);
        self.0.writev(vector, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()?;
        self.0.sync()
    }

    fn write_back(&mut self) -> io::Result<()> {
        // Writes the tables and refcounts that the crate caches, without a sync of the file.
        self.0.flush()
    }

    fn discard(&mut self, range: &Range) -> io::Result<()> {
        match self.0.discard_to_any(range.at, range.len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn zero(&mut self, range: &Range) -> io::Result<()> {
        if range.unmap {
            self.0.discard_to_zero(range.at, range.len)
        } else {
            self.0.write_zeroes(range.at, range.len)
        }
    }
}

/// A contiguous part of guest memory.
type Slice<'a> = VolatileSlice<'a, Part<'a>>;

fn slices<'a>(memory: &'a GuestMemory, segments: &[Segment]) -> io::Result<Vec<Slice<'a>>> {
    let mut slices = Vec::with_capacity(segments.len());
    for segment in segments {
        for slice in memory.get_slices(segment.addr, segment.len as usize) {
            slices.push(slice.map_err(io::Error::other)?);
        }
    }
    Ok(slices)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn written_bytes_are_found_when_the_image_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let [base, top] = ["base", "top"].map(|name| folder.path().join(name));
        std::fs::write(&base, vec![1; 1 << 20]).unwrap();
        let access = |file, path, format| {
            super::access((file, format), path, false, &[], &mut Vec::new()).unwrap()
        };
        let below = access(File::open(&base).unwrap(), &base, Format::Raw);
        let new = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&top);
        let mut image = Qcow2::over(below, new.unwrap()).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        memory.write_slice(&[7; 512], GuestAddress(0)).unwrap();
        let sector = |at| Segment {
            addr: GuestAddress(at),
            len: 512,
        };
        image.write(&memory, 0x8_0000, &[sector(0)]).unwrap();
        image.write_back().unwrap();
        let file = File::open(&top).unwrap();
        let mut again = Qcow2::new(access(file, &top, Format::Qcow2));
        for read in again.read(&memory, &[(0x8_0000, &[sector(0x800)])]) {
            read.unwrap();
        }
        let mut bytes = [0; 512];
        memory.read_slice(&mut bytes, GuestAddress(0x800)).unwrap();
        assert_eq!(bytes, [7; 512]);
        drop(image);
    }
}
