//! What backs guest memory: anonymous private mappings, allocated page by page when touched.

use thiserror::Error;
use vm_memory::GuestAddress;

use super::GuestMemory;
use super::layout::{MMIO_HOLE, MMIO_HOLE_END};

/// The mapping failed.
#[derive(Debug, Error)]
#[error("cannot map {bytes} bytes of guest memory ({reason}); ask for less with --memory")]
pub struct BackingError {
    bytes: u64,
    reason: String,
}

/// `bytes` of memory from GPA 0, continued at 4 GiB where the MMIO hole is in the way.
pub fn allocate(bytes: u64) -> Result<GuestMemory, BackingError> {
    let low = bytes.min(MMIO_HOLE);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if bytes > low {
        ranges.push((GuestAddress(MMIO_HOLE_END), (bytes - low) as usize));
    }
    GuestMemory::from_ranges(&ranges).map_err(|error| BackingError {
        bytes,
        reason: error.to_string(),
    })
}
