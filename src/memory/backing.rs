//! What backs guest memory: anonymous private mappings, allocated page by page when touched.
//!
//! Each begins at a multiple of 2 MiB, as its guest-physical addresses do. So where the host gives
//! out huge pages (transparent_hugepage/enabled), KVM maps 2 MiB of the guest at once instead of
//! 4 KiB: a boot takes some thousand page faults less. Nothing is mapped right before and behind.

use std::io;
use std::ops::Range;

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect};
use thiserror::Error;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestRegionMmap};

use super::GuestMemory;
use super::layout::{MMIO_HOLE, MMIO_HOLE_END};

/// The page of x86_64.
const PAGE: usize = 4096;
/// The huge page of x86_64.
const HUGE_PAGE: usize = 2 << 20;

/// How much is asked for at once of what is resident.
const RESIDENT_STEP: u64 = 64 << 20;

/// The mapping failed.
#[derive(Debug, Error)]
#[error("cannot map {bytes} bytes of guest memory ({reason}); ask for less with --memory")]
pub struct BackingError {
    bytes: u64,
    reason: String,
}

/// `bytes` of memory from GPA 0, continued at 4 GiB where the MMIO hole is in the way. It stays
/// mapped until the process ends.
pub fn allocate(bytes: u64) -> Result<GuestMemory, BackingError> {
    let refused = |reason: String| BackingError { bytes, reason };
    let low = bytes.min(MMIO_HOLE);
    let mut regions = vec![map(0, low).map_err(refused)?];
    if bytes > low {
        regions.push(map(MMIO_HOLE_END, bytes - low).map_err(refused)?);
    }
    GuestMemory::from_regions(regions).map_err(|error| refused(error.to_string()))
}

/// A mapping for the GPAs from `base` on.
fn map(base: u64, bytes: u64) -> Result<GuestRegionMmap<()>, String> {
    let size = usize::try_from(bytes).map_err(|error| error.to_string())?;
    let around = size.checked_add(2 * HUGE_PAGE).ok_or("too much")?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), around, ProtFlags::empty(), flags) };
    let start = start.map_err(|error| error.to_string())?;
    let pointer = start.wrapping_byte_add(HUGE_PAGE - start.addr() % HUGE_PAGE);
    // SAFETY: at most HUGE_PAGE was added: these `size` bytes lie inside of the new mapping, to
    // which nobody has a pointer yet.
    unsafe { mprotect(pointer, size, MprotectFlags::READ | MprotectFlags::WRITE) }
        .map_err(|error| error.to_string())?;
    let builder = MmapRegionBuilder::new(size)
        .with_mmap_prot((ProtFlags::READ | ProtFlags::WRITE).bits() as i32)
        .with_mmap_flags(flags.bits() as i32);
    // SAFETY: `pointer` begins `size` bytes that can be read and written and are never unmapped.
    let region = unsafe { builder.with_raw_mmap_pointer(pointer.cast()) }.build();
    GuestRegionMmap::new(
        region.map_err(|error| error.to_string())?,
        GuestAddress(base),
    )
    .ok_or_else(|| "the addresses wrap around".to_string())
}

/// Give the pages that lie wholly in the `bytes` from `start` on back to the host: they are zero
/// when they are touched again.
///
/// # Errors
/// Not all of it is guest memory, or the host refuses.
pub fn release(memory: &GuestMemory, start: GuestAddress, bytes: usize) -> io::Result<()> {
    for slice in memory.get_slices(start, bytes) {
        let slice = slice.map_err(io::Error::other)?;
        let pointer = slice.ptr_guard_mut().as_ptr();
        let before = pointer.addr().wrapping_neg() % PAGE;
        let pages = slice.len().saturating_sub(before) / PAGE;
        if pages > 0 {
            let first = pointer.wrapping_add(before).cast();
            // SAFETY: `pages` whole pages from `first` on lie in `slice`, which is guest memory: a
            // private anonymous mapping of which no reference exists, only pointers. What is read
            // there afterwards is zero, as a guest may have written itself.
            unsafe { madvise(first, pages * PAGE, Advice::LinuxDontNeed) }?;
        }
    }
    Ok(())
}

/// Bytes of the guest-physical `range` that the host has in memory; those outside of guest memory
/// count as none.
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
    fn what_was_touched_is_resident() {
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
    fn what_is_released_is_zero_and_what_is_beside_it_stays() {
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
    fn more_than_there_are_addresses_is_an_error() {
        assert!(allocate(1 << 50).is_err());
        assert!(allocate(u64::MAX).is_err());
    }
}
