//! The descriptors of a chain, from its head on (virtio 1.2, 2.7.5).

use virtio_queue::QueueT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::GuestAddress;

use super::{Chain, VirtQueue};
use crate::devices::virtio::error::DeviceError;
use crate::memory::{GuestMemory, access};

/// Bytes of a descriptor.
const SIZE: u64 = 16;

impl VirtQueue {
    /// The chain that begins with descriptor `head`, which a device took by [`VirtQueue::pop`] and
    /// held when it was saved. The available ring is not read, and the chain does not count as one
    /// of this call.
    ///
    /// # Errors
    /// The chain is not valid.
    pub fn reclaim(&mut self, head: u16) -> Result<Chain, DeviceError> {
        self.check(head, self.descriptors(head))
    }

    /// The descriptors of the chain that begins with descriptor `head`.
    pub(super) fn descriptors(&self, head: u16) -> Descriptors<'_> {
        Descriptors {
            memory: &self.memory,
            table: self.queue.desc_table(),
            entries: self.queue.size().into(),
            next: Some(head),
            left: self.queue.size().into(),
            bytes: 0,
            indirect: false,
        }
    }
}

/// The descriptors of a chain, as far as they can be followed (virtio 1.2, 2.7.5).
pub(super) struct Descriptors<'a> {
    memory: &'a GuestMemory,
    table: u64,
    entries: u32,
    next: Option<u16>,
    /// Descriptors that the table can still hold: a chain that is longer has a loop.
    left: u32,
    bytes: u32,
    indirect: bool,
}

impl Descriptors<'_> {
    fn take(&mut self) -> Option<Descriptor> {
        let index = self.next.take().filter(|_| self.left > 0)?;
        let at = self.table.checked_add(SIZE * u64::from(index));
        let inside = u32::from(index) < self.entries;
        access::read(self.memory, GuestAddress(at.filter(|_| inside)?)).ok()
    }

    /// Continue in the table that `descriptor` names; there is at most one (2.7.5.3.1).
    fn enter(&mut self, descriptor: Descriptor) -> Option<()> {
        let (len, size) = (descriptor.len(), SIZE as u32);
        let entries = len / size;
        if self.indirect || !len.is_multiple_of(size) || entries > u16::MAX.into() {
            return None;
        }
        self.table = descriptor.addr().0;
        (self.entries, self.left) = (entries, entries);
        (self.next, self.indirect) = (Some(0), true);
        Some(())
    }
}

impl Iterator for Descriptors<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let mut descriptor = self.take()?;
        if descriptor.refers_to_indirect_table() {
            self.enter(descriptor)?;
            descriptor = self.take()?;
            if descriptor.refers_to_indirect_table() {
                return None;
            }
        }
        self.left -= 1;
        self.bytes = self.bytes.checked_add(descriptor.len())?;
        self.next = descriptor.has_next().then(|| descriptor.next());
        Some(descriptor)
    }
}
