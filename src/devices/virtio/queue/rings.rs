//! The available and the used ring in guest memory (virtio 1.2, 2.7.6 and 2.7.8).

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error as RingError, QueueT};
use vm_memory::GuestAddress;

use super::VirtQueue;
use crate::devices::virtio::error::DeviceError;
use crate::memory::access;

/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.2, 2.7.6).
const AVAIL_NO_INTERRUPT: u16 = 1;
/// Bytes of flags and index, before the entries of a ring.
const HEADER: u64 = 4;
/// Where the index is.
const INDEX: u64 = 2;
/// Bytes of an entry.
const AVAIL_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;

impl VirtQueue {
    /// The head of the next available chain, which counts as taken then.
    pub(super) fn take_head(&mut self) -> Result<Option<u16>, DeviceError> {
        if !self.queue.ready() {
            return Err(self.broken(RingError::QueueNotReady));
        }
        let next = self.queue.next_avail();
        // The entries were written before it.
        let ahead = self.available(Ordering::Acquire)?.wrapping_sub(next);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > self.queue.size() {
            return Err(self.broken(RingError::InvalidAvailRingIndex));
        }
        let at = HEADER + AVAIL_ENTRY * u64::from(next % self.queue.size());
        let head = self.get(self.queue.avail_ring(), at, Ordering::Relaxed)?;
        self.queue.set_next_avail(next.wrapping_add(1));
        Ok(Some(head))
    }

    /// Ask the driver for a notification of the next chain that it adds, and return whether it has added one
    /// meanwhile (2.7.10).
    pub(super) fn await_more(&self) -> Result<bool, DeviceError> {
        let (used, next) = (self.queue.used_ring(), self.queue.next_avail());
        if self.event_idx {
            let at = HEADER + USED_ENTRY * u64::from(self.queue.size());
            self.set(used, at, next, Ordering::Relaxed)?;
        } else {
            self.set(used, 0, 0, Ordering::Relaxed)?;
        }
        // Each side writes its own, then reads the other's.
        fence(Ordering::SeqCst);
        Ok(self.available(Ordering::Relaxed)? != next)
    }

    /// Write the used entry of index `index`, which the driver does not see yet.
    pub(super) fn put_used(&self, index: u16, head: u16, written: u32) -> Result<(), DeviceError> {
        let at = HEADER + USED_ENTRY * u64::from(index % self.queue.size().max(1));
        let entry = u64::from(head) | u64::from(written) << 32;
        let addr = self.at(self.queue.used_ring(), at)?;
        access::write(&self.memory, entry.to_le(), addr)
            .map_err(|error| self.broken(RingError::GuestMemory(error)))
    }

    /// Show the driver the used entries before index `next`.
    pub(super) fn publish(&mut self, next: u16) -> Result<(), DeviceError> {
        self.queue.set_next_used(next);
        self.set(self.queue.used_ring(), INDEX, next, Ordering::Release)?;
        self.finished = true;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was given back since the last decision.
    pub(super) fn wants_interrupt(&mut self) -> Result<bool, DeviceError> {
        // Each side writes its index, then reads the other's event index: the fence keeps the
        // driver's from being read before the used index is written.
        fence(Ordering::SeqCst);
        let avail = self.queue.avail_ring();
        let (now, last) = (self.queue.next_used(), self.considered);
        let wanted = if self.event_idx {
            let at = HEADER + AVAIL_ENTRY * u64::from(self.queue.size());
            let used_event = self.get(avail, at, Ordering::Relaxed)?;
            now.wrapping_sub(used_event).wrapping_sub(1) < now.wrapping_sub(last)
        } else {
            self.get(avail, 0, Ordering::Relaxed)? & AVAIL_NO_INTERRUPT == 0
        };
        self.considered = now;
        Ok(wanted)
    }

    /// The index of the available ring.
    fn available(&self, order: Ordering) -> Result<u16, DeviceError> {
        self.get(self.queue.avail_ring(), INDEX, order)
    }

    fn get(&self, ring: u64, at: u64, order: Ordering) -> Result<u16, DeviceError> {
        access::load(&self.memory, self.at(ring, at)?, order)
            .map_err(|error| self.broken(RingError::GuestMemory(error)))
    }

    fn set(&self, ring: u64, at: u64, value: u16, order: Ordering) -> Result<(), DeviceError> {
        access::store(&self.memory, value, self.at(ring, at)?, order)
            .map_err(|error| self.broken(RingError::GuestMemory(error)))
    }

    fn at(&self, ring: u64, offset: u64) -> Result<GuestAddress, DeviceError> {
        let addr = ring.checked_add(offset).map(GuestAddress);
        addr.ok_or_else(|| self.broken(RingError::AddressOverflow))
    }
}
