//! Guest memory in the types of the FUSE server's crate, which uses an older vm-memory than hull.

use std::io;

use fuse_vm_memory as older;
use rustix::mm::ProtFlags;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::GuestMemory;
use super::bitmap::Dirty;

/// The regions of `memory`, at the same guest-physical addresses.
///
/// # Errors
/// The older version refuses a mapping that the newer one accepts.
pub fn regions(memory: &GuestMemory) -> io::Result<Vec<older::GuestRegionMmap<()>>> {
    memory.iter().map(region).collect()
}

fn region(region: &vm_memory::GuestRegionMmap<Dirty>) -> io::Result<older::GuestRegionMmap<()>> {
    let size = usize::try_from(region.len()).map_err(io::Error::other)?;
    let start = region
        .get_host_address(MemoryRegionAddress(0))
        .map_err(io::Error::other)?;
    let access = (ProtFlags::READ | ProtFlags::WRITE).bits() as i32;
    // SAFETY: `start` begins the `size` bytes of the region, which can be read and written and are
    // never unmapped (`backing`); both versions access them through pointers alone.
    let mapping = unsafe { older::MmapRegion::build_raw(start, size, access, 0) };
    let base = older::GuestAddress(region.start_addr().raw_value());
    older::GuestRegionMmap::new(mapping.map_err(io::Error::other)?, base)
        .ok_or_else(|| io::Error::other("the addresses wrap around"))
}
