//! qcow2 images, by the imago crate. The crate opens no file itself: it is given the bases of an
//! image, and only those that the user named ([`access`]).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use imago::storage::StorageOpenOptions;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping,
};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

use super::config::Format;
use super::error::DiskError;
use super::file::open_image;
use super::identity::Opened;
use super::image::{BLOCK, Image};
use crate::devices::virtio::block::Range;
use crate::memory::GuestMemory;
use crate::memory::bitmap::Part;
use crate::memory::transfer::Segment;

type Storage = imago::file::File;
type Access = FormatAccess<Storage>;

/// Images in a chain of bases.
const MAX_BASES: usize = 16;
/// Offset of cluster_bits in a header (QEMU, docs/interop/qcow2.rst).
const CLUSTER_BITS: u64 = 20;
/// Offset of crypt_method, which is 0 for none.
const CRYPT_METHOD: u64 = 32;
/// Offset of refcount_table_offset; refcount_table_clusters follows it.
const REFCOUNT_TABLE: u64 = 48;
/// Offset of refcount_order, from version 3 on.
const REFCOUNT_ORDER: u64 = 96;

/// Bits of incompatible_features, at offset 72 from version 3 on, that imago does not know, with what
/// makes an image without them.
const INCOMPATIBLE: u64 = 72;
const UNREAD_FEATURES: [(u64, &str, &str); 2] = [
    (1 << 3, "compression_type=zstd", "compression_type=zlib"),
    (1 << 4, "extended_l2=on", "extended_l2=off"),
];
/// Pieces of the file that one request gives back to the host at most.
const MAX_PIECES: usize = 4096;
/// Bytes of zeroes written at once.
const CHUNK: u64 = 1 << 20;

/// A qcow2 image.
pub struct Qcow2 {
    access: Access,
    /// The image's own file.
    file: File,
}

impl Qcow2 {
    /// An image in `file` that imago has opened.
    pub fn new(access: Access, file: File) -> Self {
        Self { access, file }
    }

    /// A new image in `file`, based on `base`.
    pub fn over(base: Access, file: File) -> io::Result<Self> {
        let own = file.try_clone()?;
        let create = imago::qcow2::Qcow2::<Storage>::create_builder(storage(file, true)?);
        let create = create.size(base.size());
        let open = |file| {
            let open = imago::qcow2::Qcow2::<Storage>::builder(file).write(true);
            Ok(open.data_file(None).backing(Some(base)))
        };
        let image = create.create_open(DenyImplicitOpenGate::default(), open)?;
        Ok(Self::new(FormatAccess::new(image), own))
    }

    /// Bytes of a cluster; none in an image of version 2, which cannot record that one is zero.
    fn zero_unit(&self) -> Option<u64> {
        let version = read_u64(&self.file, 0) as u32;
        let bits = (read_u64(&self.file, CLUSTER_BITS) >> 32) as u32;
        (version >= 3).then(|| 1u64.checked_shl(bits).unwrap_or_default())
    }

    /// Give back to the host what only this image's file has of `range`, as far as it may be written: those
    /// bytes become 0. Before the image frees them, since it may use them for something else at once.
    fn release(&self, range: &Range) -> io::Result<()> {
        // Version 2 cannot record that they are free.
        if self.zero_unit().is_none() {
            return Ok(());
        }
        let (mut at, end) = (range.at, range.at + range.len);
        for _ in 0..MAX_PIECES {
            if at >= end {
                break;
            }
            let (mapping, len) = self.access.get_mapping(at, end - at)?;
            if let Mapping::Raw {
                offset: in_file,
                writable: true,
                ..
            } = mapping
            {
                let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match fallocate(&self.file, mode, in_file, len) {
                    Err(Errno::OPNOTSUPP | Errno::NODEV) | Ok(()) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            at += len.max(1);
        }
        Ok(())
    }

    fn write_zeroes(&self, range: &Range) -> io::Result<()> {
        let zeroes = vec![0; range.len.min(CHUNK) as usize];
        let (mut at, end) = (range.at, range.at + range.len);
        while at < end {
            let now = zeroes.len().min((end - at) as usize);
            self.access
                .write(zeroes.get(..now).unwrap_or_default(), at)?;
            at += now as u64;
        }
        Ok(())
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
    let mut features = [0; 8];
    let version_3 = read_u64(&file, 0) as u32 >= 3;
    if format == Format::Qcow2
        && version_3
        && file.read_exact_at(&mut features, INCOMPATIBLE).is_ok()
        && let Some((_, feature, convert)) = UNREAD_FEATURES
            .iter()
            .find(|(bit, ..)| u64::from_be_bytes(features) & bit != 0)
    {
        return Err(DiskError::Feature {
            path: path.into(),
            feature,
            convert,
        });
    }
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
    let read = |at: u64| read_u64(file, at);
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

/// The big-endian number at a byte of the file; bytes beyond the end count as 0, as in the crate.
fn read_u64(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    let _ = file.read_at(&mut bytes, at);
    u64::from_be_bytes(bytes)
}

fn storage(file: File, write: bool) -> io::Result<Storage> {
    Storage::from_open_file(file, StorageOpenOptions::new().write(write))
}

impl Image for Qcow2 {
    fn size(&self) -> io::Result<u64> {
        Ok(self.access.size())
    }

    fn read(&mut self, memory: &GuestMemory, at: u64, to: &[Segment]) -> io::Result<()> {
        let slices = slices(memory, to)?;
        let (vector, _guard) = imago::io_buffers::IoVectorMut::from_volatile_slice(&slices);
        self.access.readv(vector, at)
    }

    fn write(&mut self, memory: &GuestMemory, at: u64, from: &[Segment]) -> io::Result<()> {
        let slices = slices(memory, from)?;
        let (vector, _guard) = imago::io_buffers::IoVector::from_volatile_slice(&slices);
        self.access.writev(vector, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.access.flush()?;
        self.access.sync()
    }

    fn write_back(&mut self) -> io::Result<()> {
        // Writes the tables and refcounts that the crate caches, without a sync of the file.
        self.access.flush()
    }

    fn discard_unit(&self) -> Option<u64> {
        self.zero_unit().map(|cluster| cluster.max(BLOCK))
    }

    fn discard(&mut self, range: &Range) -> io::Result<()> {
        self.release(range)?;
        match self.access.discard_to_any(range.at, range.len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            done => done,
        }
    }

    fn zero(&mut self, range: &Range) -> io::Result<()> {
        // In a disk that is smaller than a cluster the crate goes on beyond the range (imago 0.2.6,
        // `soft_ensure_zero`).
        if self.zero_unit() > Some(self.access.size()) {
            return self.write_zeroes(range);
        }
        let done = match range.unmap {
            true => {
                self.release(range)?;
                self.access.discard_to_zero(range.at, range.len)
            }
            false => self.access.write_zeroes(range.at, range.len),
        };
        match done {
            // Version 2 has no way to record zeroes.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.write_zeroes(range),
            done => done,
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
        let own = file.try_clone().unwrap();
        let mut again = Qcow2::new(access(file, &top, Format::Qcow2), own);
        again.read(&memory, 0x8_0000, &[sector(0x800)]).unwrap();
        let mut bytes = [0; 512];
        memory.read_slice(&mut bytes, GuestAddress(0x800)).unwrap();
        assert_eq!(bytes, [7; 512]);
        drop(image);
    }

    #[test]
    fn zeroes_stay_in_their_range_on_a_disk_smaller_than_a_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let [base, top] = ["base", "top"].map(|name| folder.path().join(name));
        std::fs::write(&base, [1; 1536]).unwrap();
        let below = File::open(&base).unwrap();
        let below = access((below, Format::Raw), &base, false, &[], &mut Vec::new()).unwrap();
        let mut new = File::options();
        let new = new.read(true).write(true).create_new(true).open(&top);
        let mut image = Qcow2::over(below, new.unwrap()).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let all = [Segment {
            addr: GuestAddress(0),
            len: 1536,
        }];
        for unmap in [true, false] {
            let (at, len) = (512, 512);
            image.zero(&Range { at, len, unmap }).unwrap();
            image.read(&memory, 0, &all).unwrap();
            let mut bytes = [0; 1536];
            memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            assert_eq!(bytes, *[[1; 512], [0; 512], [1; 512]].as_flattened());
        }
    }
    #[test]
    fn what_zeroes_free_is_given_back_before_it_is_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let [base, top] = ["base", "top"].map(|name| folder.path().join(name));
        std::fs::write(&base, [1; 0x4_0000]).unwrap();
        let below = File::open(&base).unwrap();
        let below = access((below, Format::Raw), &base, false, &[], &mut Vec::new()).unwrap();
        let mut new = File::options();
        let new = new.read(true).write(true).create_new(true).open(&top);
        let mut image = Qcow2::over(below, new.unwrap()).unwrap();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        memory.write_slice(&[2; 0x1_0000], GuestAddress(0)).unwrap();
        let all = [Segment {
            addr: GuestAddress(0),
            len: 0x1_0000,
        }];
        image.write(&memory, 0x1_0000, &all).unwrap();
        // Half of the first cluster, for whose other half a new one is needed, and all of the second.
        let (at, len, unmap) = (0x8000, 0x1_8000, true);
        image.zero(&Range { at, len, unmap }).unwrap();
        for (at, expected) in [
            (0, [[1; 0x8000], [0; 0x8000]]),
            (0x1_0000, [[0; 0x8000]; 2]),
        ] {
            image.read(&memory, at, &all).unwrap();
            let mut bytes = vec![0; 0x1_0000];
            memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            assert!(bytes == *expected.as_flattened(), "at {at:#x}");
        }
    }
}
