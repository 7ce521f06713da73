//! The mappings behind guest memory: private, anonymous or of a snapshot's file. The host allocates
//! each page when it is touched.
//!
//! Each mapping begins at a multiple of 2 MiB, as do its guest-physical addresses. So if the host has
//! huge pages (transparent_hugepage/enabled), KVM maps 2 MiB of the guest at once instead of 4 KiB,
//! which saves a boot some thousand page faults. The pages right before and after it are not mapped.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect,
};
use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::GuestMemory;
use super::bitmap::Dirty;
use super::file::MemoryFile;
use super::layout::{MMIO_HOLE, MMIO_HOLE_END, VIRTIO_GSIS, VIRTIO_MMIO, VIRTIO_MMIO_SIZE};
use super::pages::{Pages, at_offsets};

/// Size of a page of x86_64 in bytes.
const PAGE: usize = 4096;
/// Size of a huge page of x86_64 in bytes.
const HUGE_PAGE: usize = 2 << 20;

/// Bytes for which one mincore(2) asks whether they are resident.
const RESIDENT_STEP: u64 = 64 << 20;

/// Most parts of a region mapped from a file that other mappings replace: each may add two to the
/// 65530 mappings that a process may have (vm.max_map_count).
const MAX_REPLACED: usize = 16384;

/// Why guest memory cannot be mapped.
#[derive(Debug, Error)]
pub enum BackingError {
    /// The host refuses anonymous memory.
    #[error("cannot map {bytes} bytes of guest memory ({reason}); ask for less memory")]
    Anonymous {
        /// Size of the memory asked for.
        bytes: u64,
        /// The error that the host returned.
        reason: String,
    },
    /// The host refuses to map a snapshot's file.
    #[error("cannot map {bytes} bytes of guest memory ({reason}); free some memory")]
    Mapping {
        /// Size of all regions.
        bytes: u64,
        /// The error that the host returned.
        reason: String,
    },
    /// A snapshot's file does not hold a guest's memory.
    #[error("cannot map the {bytes} bytes of guest memory of a snapshot ({reason})")]
    File {
        /// Size of all regions.
        bytes: u64,
        /// What is wrong with the file.
        reason: String,
    },
}

/// Map `bytes` of memory from GPA 0, continued at 4 GiB after the MMIO hole. It stays mapped until
/// the process ends.
pub fn allocate(bytes: u64) -> Result<GuestMemory, BackingError> {
    map_all(&regions(bytes), None).map_err(|reason| BackingError::Anonymous { bytes, reason })
}

/// Map `bytes` of memory from address 0 that a process started later by fork(2) shares: a window for messages,
/// not a guest's memory. It stays mapped until the process ends.
///
/// # Errors
/// The host has no memory or address space left.
pub fn shared(bytes: u64) -> Result<GuestMemory, BackingError> {
    let region = map(0, bytes, None, MapFlags::SHARED);
    region
        .and_then(|region| {
            GuestMemory::from_regions(vec![region]).map_err(|error| error.to_string())
        })
        .map_err(|reason| BackingError::Anonymous { bytes, reason })
}

/// Map the memory of the windows of all virtio-mmio slots, which is theirs alone. It stays mapped until
/// the process ends.
///
/// # Errors
/// The host has no memory or address space left.
pub fn windows() -> Result<GuestMemory, BackingError> {
    let bytes = VIRTIO_GSIS.len() as u64 * VIRTIO_MMIO_SIZE;
    let region = map(VIRTIO_MMIO, bytes, None, MapFlags::PRIVATE);
    region
        .and_then(|region| {
            GuestMemory::from_regions(vec![region]).map_err(|error| error.to_string())
        })
        .map_err(|reason| BackingError::Anonymous { bytes, reason })
}

/// Map the memory in `file`, which is never changed: a page is read from it when it is touched, and
/// copied when it is written. The layout is that of [`allocate`]; it stays mapped until the process
/// ends. Truncating the file meanwhile kills the process (SIGBUS); removing or replacing it does not.
///
/// # Errors
/// The regions are not those of a guest's memory, the file is too short, or the host refuses.
pub fn map_file(file: &MemoryFile) -> Result<GuestMemory, BackingError> {
    let bytes = file
        .regions
        .iter()
        .fold(0, |sum: u64, (_, len)| sum.saturating_add(*len));
    let refused = |reason: String| BackingError::File { bytes, reason };
    if bytes == 0 || !bytes.is_multiple_of(PAGE as u64) || regions(bytes) != file.regions {
        return Err(refused("its regions are not those of a guest".into()));
    }
    match file.file.metadata() {
        Ok(data) if data.len() >= bytes => {}
        Ok(data) => return Err(refused(format!("the file has only {} bytes", data.len()))),
        Err(error) => return Err(refused(error.to_string())),
    }
    map_all(&file.regions, Some(file)).map_err(|reason| BackingError::Mapping { bytes, reason })
}

/// The regions of `bytes` of memory: GPA and size.
fn regions(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(MMIO_HOLE);
    let mut regions = vec![(0, low)];
    if bytes > low {
        regions.push((MMIO_HOLE_END, bytes - low));
    }
    regions
}

fn map_all(regions: &[(u64, u64)], file: Option<&MemoryFile>) -> Result<GuestMemory, String> {
    let mut mapped = Vec::with_capacity(regions.len());
    let mut at = 0;
    for &(base, bytes) in regions {
        let from = file.map(|file| FileOffset::from_arc(file.file.clone(), at));
        mapped.push(map(base, bytes, from, MapFlags::PRIVATE)?);
        at += bytes;
    }
    GuestMemory::from_regions(mapped).map_err(|error| error.to_string())
}

/// A mapping for the GPAs from `base` on, of zeros or of a file.
fn map(
    base: u64,
    bytes: u64,
    from: Option<FileOffset>,
    sharing: MapFlags,
) -> Result<GuestRegionMmap<Dirty>, String> {
    let size = usize::try_from(bytes).map_err(|error| error.to_string())?;
    let around = size.checked_add(2 * HUGE_PAGE).ok_or("too much")?;
    let flags = sharing | MapFlags::NORESERVE;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), around, ProtFlags::empty(), flags) };
    let start = start.map_err(|error| error.to_string())?;
    let pointer = start.wrapping_byte_add(HUGE_PAGE - start.addr() % HUGE_PAGE);
    match &from {
        // SAFETY: at most HUGE_PAGE was added: these `size` bytes are inside of the new mapping, to
        // which no other pointer exists yet.
        None => unsafe { mprotect(pointer, size, MprotectFlags::READ | MprotectFlags::WRITE) },
        Some(from) => {
            let flags = flags | MapFlags::FIXED;
            // SAFETY: as before: what it is mapped over is the new mapping's own.
            unsafe { mmap(pointer, size, access, flags, from.file(), from.start()) }.map(drop)
        }
    }
    .map_err(|error| error.to_string())?;
    // What the guest knows is in no core dump.
    // SAFETY: it says what a dump is to hold, of the mapping made above.
    unsafe { madvise(pointer, size, Advice::LinuxDontDump) }.map_err(|error| error.to_string())?;
    let mut builder = MmapRegionBuilder::new(size)
        .with_mmap_prot(access.bits() as i32)
        .with_mmap_flags(flags.bits() as i32);
    if let Some(from) = from {
        builder = builder.with_file_offset(from);
    }
    // SAFETY: `pointer` begins `size` bytes that can be read and written and are never unmapped.
    let region = unsafe { builder.with_raw_mmap_pointer(pointer.cast()) }.build();
    GuestRegionMmap::new(
        region.map_err(|error| error.to_string())?,
        GuestAddress(base),
    )
    .ok_or_else(|| "the addresses wrap around".to_string())
}

/// Map `bytes` bytes of `file`, from `offset` on, to `gpa` instead of copying them there: a page is read
/// when it is touched, shared by all machines that map it, and copied when it is written. All three
/// are multiples of a page. The file must stay as it is, as for [`map_file`].
///
/// # Errors
/// Not all of it is guest memory, or the host refuses.
pub fn map_part(
    memory: &GuestMemory,
    gpa: GuestAddress,
    file: &File,
    offset: u64,
    bytes: usize,
) -> io::Result<()> {
    if !(gpa.0 | offset | bytes as u64).is_multiple_of(PAGE as u64) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut from = offset;
    for slice in memory.get_slices(gpa, bytes) {
        let slice = slice.map_err(io::Error::other)?;
        let start = slice.ptr_guard_mut().as_ptr();
        let region = region_of(memory, start).ok_or(io::ErrorKind::NotFound)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the pages are guest memory, a mapping to which only pointers exist, and stay
        // mapped: other content appears there, as a guest may have written itself.
        unsafe { mmap(start.cast(), slice.len(), access, flags, file, from) }?;
        // SAFETY: it says what a dump is to hold, of the mapping just made.
        unsafe { madvise(start.cast(), slice.len(), Advice::LinuxDontDump) }?;
        slice.bitmap().mark_dirty(0, slice.len());
        let at = (start.addr() - region.as_ptr().addr()) as u64;
        let part = at..at + slice.len() as u64;
        (**region).bitmap().add_part(part);
        from += slice.len() as u64;
    }
    Ok(())
}

/// Have the host copy `pages` of memory from [`map_file`] now, instead of each one in a page fault of the
/// guest's and another one of the host's. Best effort: not before Linux 5.14.
pub fn copy(memory: &GuestMemory, pages: &Pages) {
    let parts = pages.ranges().iter();
    for (gpa, bytes) in parts.flat_map(|range| at_offsets(memory, range)) {
        for slice in memory.get_slices(gpa, bytes as usize).flatten() {
            let start = slice.ptr_guard_mut().as_ptr();
            // SAFETY: the pages are guest memory, which stays mapped; their content stays.
            if unsafe { madvise(start.cast(), slice.len(), Advice::LinuxPopulateWrite) }.is_err() {
                return;
            }
        }
    }
}

/// The region of guest memory that `pointer` points into.
fn region_of(memory: &GuestMemory, pointer: *const u8) -> Option<&GuestRegionMmap<Dirty>> {
    memory.iter().find(|region| {
        let start = region.as_ptr().addr();
        (start..start + region.size()).contains(&pointer.addr())
    })
}

/// Whether the `pages` pages from `first` on, which are in `region`, or some of them are mapped from a
/// file.
fn is_of_file(region: &GuestRegionMmap<Dirty>, first: *const u8, pages: usize) -> bool {
    let start = (first.addr() - region.as_ptr().addr()) as u64;
    let end = start + (pages * PAGE) as u64;
    let parts = (**region).bitmap().parts();
    let mut parts = parts.iter();
    region.file_offset().is_some() || parts.any(|part| part.start < end && start < part.end)
}

/// Return the pages that are completely in the `bytes` from `start` on to the host: they are zero when
/// they are touched again, or, if they could not be returned, have their old content (virtio 1.2,
/// 5.5.6.7 lets a device keep it).
///
/// # Errors
/// Not all of it is guest memory, or the host refuses.
pub fn release(memory: &GuestMemory, start: GuestAddress, bytes: usize) -> io::Result<()> {
    for slice in memory.get_slices(start, bytes) {
        let slice = slice.map_err(io::Error::other)?;
        let pointer = slice.ptr_guard_mut().as_ptr();
        let before = pointer.addr().wrapping_neg() % PAGE;
        let pages = slice.len().saturating_sub(before) / PAGE;
        if pages == 0 {
            continue;
        }
        slice.bitmap().mark_dirty(before, pages * PAGE);
        let first = pointer.wrapping_add(before);
        match region_of(memory, first).filter(|region| is_of_file(region, first, pages)) {
            Some(region) => replace(region, first, pages),
            // SAFETY: `pages` whole pages from `first` on are in `slice`, which is guest memory: a
            // private anonymous mapping of which no reference exists, only pointers. What is read
            // there afterwards is zero, as a guest may have written itself.
            None => unsafe { madvise(first.cast(), pages * PAGE, Advice::LinuxDontNeed) }?,
        }
    }
    Ok(())
}

/// Zero `pages` pages from `first` on, which are in `region`, some of them mapped from a file:
/// MADV_DONTNEED alone would bring back the content of the file. So anonymous memory is mapped over
/// them; neighbours become one mapping. After [`MAX_REPLACED`], or when the host has no mapping left,
/// nothing is released: zeroing would take memory and time, as much as the guest asks for.
fn replace(region: &GuestRegionMmap<Dirty>, first: *mut u8, pages: usize) {
    let replaced = (**region).bitmap().replaced();
    if replaced.load(Ordering::Relaxed) < MAX_REPLACED {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the pages are in a mapping of guest memory, to which only pointers exist, and
        // stay mapped; what is read there afterwards is zero, as a guest may have written itself.
        if unsafe { mmap_anonymous(first.cast(), pages * PAGE, access, flags) }.is_ok() {
            // In no core dump, as the rest of guest memory.
            // SAFETY: it says what a dump is to hold, of the mapping just made.
            let _ = unsafe { madvise(first.cast(), pages * PAGE, Advice::LinuxDontDump) };
            replaced.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Bytes of the guest-physical `range` that are resident on the host; those outside of guest memory
/// do not count.
pub fn resident(memory: &GuestMemory, range: &Range<u64>) -> u64 {
    let mut bytes = 0;
    let mut at = range.start - range.start % PAGE as u64;
    while at < range.end {
        let step = (range.end - at).min(RESIDENT_STEP) as usize;
        let slices = memory.get_slices(GuestAddress(at), step).flatten();
        for slice in slices {
            let pages = slice.len().div_ceil(PAGE);
            let mut there = vec![0u8; pages];
            let start = slice.ptr_guard_mut().as_ptr();
            // SAFETY: `start` is a page's first byte, as `at` and the mapping of a region are
            // multiples of a page, and the pages from there are mapped, as guest memory is until
            // the process ends; mincore(2) writes a byte a page to `there` and touches nothing
            // else.
            let told = unsafe { libc::mincore(start.cast(), slice.len(), there.as_mut_ptr()) };
            if told == 0 {
                let pages = there.iter().filter(|page| **page & 1 == 1).count();
                bytes += (pages * PAGE) as u64;
            }
        }
        at += step as u64;
    }
    bytes.min(range.end - range.start)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Address, Bytes, GuestMemoryBackend, GuestMemoryRegion};

    use super::*;

    #[test]
    fn memory_is_zero_and_goes_around_the_hole_at_huge_pages() {
        let memory = allocate(MMIO_HOLE + 0x1000).expect("mapped");
        let regions: Vec<_> = memory.iter().collect();
        let ranges: Vec<_> = regions
            .iter()
            .map(|r| (r.start_addr().raw_value(), r.len()))
            .collect();
        assert_eq!(ranges, [(0, MMIO_HOLE), (MMIO_HOLE_END, 0x1000)]);
        for region in regions {
            assert_eq!(region.as_ptr().addr() % HUGE_PAGE, 0);
        }
        for at in [0, MMIO_HOLE - 8, MMIO_HOLE_END, MMIO_HOLE_END + 0xff8] {
            let at = GuestAddress(at);
            assert_eq!(memory.read_obj::<u64>(at).expect("read"), 0);
            memory.write_obj(!0u64, at).expect("written");
            assert_eq!(memory.read_obj::<u64>(at).expect("read"), !0);
        }
        assert!(memory.write_obj(0u8, GuestAddress(MMIO_HOLE)).is_err());
    }

    #[test]
    fn touched_pages_are_resident() {
        let memory = allocate(0x40_0000).expect("mapped");
        assert_eq!(resident(&memory, &(0..0x40_0000)), 0);
        memory
            .write_obj(1u8, GuestAddress(0x20_1000))
            .expect("written");
        assert_eq!(resident(&memory, &(0x20_1000..0x20_2000)), 0x1000);
        assert_eq!(resident(&memory, &(0x20_1080..0x20_1100)), 0x80);
        assert_eq!(resident(&memory, &(0..0x20_0000)), 0);
        assert_eq!(resident(&memory, &(1 << 40..2 << 40)), 0);
    }

    #[test]
    fn released_pages_are_zero_and_their_neighbours_stay() {
        let memory = allocate(0x10000).expect("mapped");
        let fill = |byte: u8| memory.write_slice(&[byte; 0x10000], GuestAddress(0));
        fill(7).expect("filled");
        release(&memory, GuestAddress(0x1800), 0x3000).expect("released");
        let mut seen = vec![0; 0x10000];
        memory.read_slice(&mut seen, GuestAddress(0)).expect("read");
        let zero = |at: usize| (0x2000..0x4000).contains(&at);
        assert!((0..0x10000).all(|at| (seen[at] == 0) == zero(at)));
        release(&memory, GuestAddress(0x100), 0x200).expect("no page");
        assert!(release(&memory, GuestAddress(0xf000), 0x2000).is_err());
    }

    #[test]
    fn a_mapped_part_has_the_content_of_its_file_until_it_is_released() {
        let memory = allocate(0x10000).expect("mapped");
        let mut file = tempfile::tempfile().expect("a file");
        let content: Vec<u8> = (0..0x4000u32).map(|at| (at >> 12) as u8 + 1).collect();
        io::Write::write_all(&mut file, &content).expect("written");
        let at = |page: u64| GuestAddress(page << 12);
        map_part(&memory, at(3), &file, 0x1000, 0x2000).expect("mapped");
        let seen = || (0..8).map(|page| memory.read_obj::<u8>(at(page)).unwrap());
        assert_eq!(seen().collect::<Vec<_>>(), [0, 0, 0, 2, 3, 0, 0, 0]);
        memory.write_obj(9u8, at(4)).expect("written");
        let mut kept = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut kept, 0x2000).expect("read");
        assert_eq!(kept, [3]);
        let pagemap = File::open("/proc/self/pagemap").expect("opened");
        let touched = Pages::touched(&memory, Some(&pagemap));
        // What was read counts as touched, too.
        let within = [0..0x1000, 0x1000..0x8000];
        assert!(touched.minus(&Pages::from_ranges(within)).is_empty());
        let mapped = [0x3000..0x4000, 0x4000..0x5000];
        assert!(Pages::from_ranges(mapped).minus(&touched).is_empty());
        release(&memory, at(2), 0x3000).expect("released");
        assert_eq!(seen().collect::<Vec<_>>(), [0; 8]);
        for (gpa, offset, bytes) in [
            (1, 0, 0x1000),
            (0, 1, 0x1000),
            (0, 0, 1),
            (0xf000, 0, 0x2000),
        ] {
            map_part(&memory, GuestAddress(gpa), &file, offset, bytes).expect_err("refused");
        }
    }

    #[test]
    fn more_memory_than_addresses_is_an_error() {
        assert!(allocate(1 << 50).is_err());
        assert!(allocate(u64::MAX).is_err());
    }
}
