//! The bus: from an address to the device behind it.

use std::io;
use std::sync::{Arc, Mutex};

/// A device that answers port or memory-mapped accesses.
///
/// Called on a vCPU thread with the guest's bytes: any `offset` inside the registered range and
/// `data` of 1, 2, 4 or 8 bytes (string I/O is split before it arrives here), at any time, from
/// any vCPU, one at a time.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset`; bytes left alone read as they were handed
    /// in (all ones).
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A line into the guest's interrupt controller (an irqfd outside tests).
pub trait Interrupt: Send + Sync {
    /// Raise an edge.
    fn trigger(&self) -> io::Result<()>;
}

/// A device as the bus holds it.
pub type Shared = Arc<Mutex<dyn BusDevice>>;
