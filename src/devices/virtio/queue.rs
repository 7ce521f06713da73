//! A split virtqueue as devices use it: chains out, used entries in (virtio 1.2, 2.7).
//!
//! [`VirtQueue`] adds to `virtio_queue::Queue` what hostile drivers make necessary: a [`Chain`] is
//! checked as a whole before a device sees it, and one call handles at most as many chains as the
//! ring has entries; more wait for another turn of the event loop.

mod chain;
mod rings;
pub(super) mod state;
pub mod view;

use std::io;
use std::ops::Add;

use serde::{Deserialize, Serialize};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Error as RingError, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::error::DeviceError;
pub use crate::memory::transfer::{Segment, Segments};
use crate::memory::{GuestMemory, access, dirty};
use crate::sync::{EventFd, eventfd};

/// A queue's registers as the driver wrote them; checked when it sets QueueReady.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Setup {
    /// Entries of the rings.
    pub size: u32,
    /// GPA of the descriptor table.
    pub descriptors: u64,
    /// GPA of the available ring (the driver area).
    pub available: u64,
    /// GPA of the used ring (the device area).
    pub used: u64,
}

/// A descriptor chain: what the driver wrote for the device and where the device may write, all of
/// it in guest memory. Must be given back by [`VirtQueue::finish`] or [`VirtQueue::put_back`].
#[derive(Debug)]
pub struct Chain {
    head: u16,
    segments: Segments,
    /// Number of readable segments, which come first.
    readable: usize,
}

impl Chain {
    /// Index of its first descriptor, by which [`VirtQueue::reclaim`] finds it again.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver wrote, in order.
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }

    /// Where the device may write, in order.
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }

    /// Bytes of all readable segments.
    pub fn readable_len(&self) -> u64 {
        total(self.readable())
    }

    /// Bytes of all writable segments.
    pub fn writable_len(&self) -> u64 {
        total(self.writable())
    }
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// What passed through one queue since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCounters {
    /// Descriptor chains given back to the driver.
    pub requests: u64,
    /// Bytes in those chains that the driver offered to read, and bytes written for it.
    pub bytes: u64,
    /// Times that the queue was processed, for a notification or because the host could continue.
    pub notifications: u64,
    /// Batches after which the driver wanted an interrupt.
    pub interrupts: u64,
}

impl Add for QueueCounters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            bytes: self.bytes + other.bytes,
            notifications: self.notifications + other.notifications,
            interrupts: self.interrupts + other.interrupts,
        }
    }
}

/// One queue of a device.
pub struct VirtQueue {
    index: usize,
    queue: Queue,
    pub(super) setup: Setup,
    memory: GuestMemory,
    event: EventFd,
    pub(super) counters: QueueCounters,
    /// Chains that may still be handled in this call.
    budget: u16,
    /// The call ended before the ring did.
    again: bool,
    /// Chains were given back since the last decision about an interrupt.
    finished: bool,
    /// The used index at the last decision about an interrupt.
    considered: u16,
    event_idx: bool,
}

impl VirtQueue {
    /// Queue `index` of a device, with at most `max_size` entries.
    pub(super) fn new(index: usize, max_size: u16, memory: GuestMemory) -> io::Result<Self> {
        Ok(Self {
            index,
            queue: Queue::new(max_size)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?,
            setup: Setup::new(max_size),
            memory,
            event: eventfd()?,
            counters: QueueCounters::default(),
            budget: 0,
            again: false,
            finished: false,
            considered: 0,
            event_idx: false,
        })
    }

    /// Index of the queue in its device.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Whether this call has handled as many chains as it may; the device is then called again.
    pub fn is_spent(&self) -> bool {
        self.budget == 0
    }

    /// Guest memory, which chains point into.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The next chain, or `None` when there are no more for now; the driver notifies when it adds
    /// one.
    ///
    /// # Errors
    /// The ring or the chain is broken.
    pub fn pop(&mut self) -> Result<Option<Chain>, DeviceError> {
        // Twice, for chains that the driver added before it knew that it has to notify.
        for _ in 0..2 {
            if self.budget == 0 {
                self.again = true;
                return Ok(None);
            }
            if let Some(chain) = self.take_next()? {
                self.budget -= 1;
                return Ok(Some(chain));
            }
            if !self.await_more()? {
                return Ok(None);
            }
        }
        self.again = true;
        Ok(None)
    }

    /// Undo the last [`VirtQueue::pop`], for a device that can continue only later; the device
    /// remembers how far it got.
    pub fn put_back(&mut self, _chain: Chain) {
        self.queue.go_to_previous_position();
    }

    /// Have the device's `process` called again soon: there is more to do than one call may.
    pub fn process_again(&mut self) {
        self.again = true;
    }

    /// Give `chain` back to the driver, with `written` bytes in its writable part.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn finish(&mut self, chain: Chain, written: u32) -> Result<(), DeviceError> {
        let index = self.queue.next_used();
        self.give_back(&chain, written, index)?;
        self.publish(index.wrapping_add(1))?;
        self.counters.bytes += chain.readable_len();
        Ok(())
    }

    /// Give back `chains`, each with the bytes written, so that the driver sees all of them or none
    /// (virtio 1.2, 5.1.6.4, merged buffers).
    ///
    /// # Errors
    /// The ring is broken.
    pub fn finish_together(
        &mut self,
        chains: impl Iterator<Item = (Chain, u32)>,
    ) -> Result<(), DeviceError> {
        let first = self.queue.next_used();
        let mut next = first;
        for (chain, written) in chains {
            self.give_back(&chain, written, next)?;
            next = next.wrapping_add(1);
        }
        match next == first {
            true => Ok(()),
            false => self.publish(next),
        }
    }

    /// Write the used entry of `chain`, which the driver does not see yet.
    fn give_back(&mut self, chain: &Chain, written: u32, index: u16) -> Result<(), DeviceError> {
        self.mark_dirty(chain);
        self.put_used(index, chain.head, written)?;
        self.counters.requests += 1;
        self.counters.bytes += u64::from(written);
        Ok(())
    }

    /// Mark the writable pages of `chain` as written, however that was done.
    fn mark_dirty(&self, chain: &Chain) {
        if dirty::is_on(&self.memory) {
            for segment in chain.writable() {
                dirty::mark(&self.memory, segment.addr, segment.len as usize);
            }
        }
    }

    /// Read from the readable part of `chain` at byte `offset`; returns the number of bytes read.
    ///
    /// # Errors
    /// A segment no longer lies in memory.
    pub fn read(
        &self,
        chain: &Chain,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, DeviceError> {
        let mut done = 0;
        for (addr, len) in pieces(chain.readable(), offset, buffer.len()) {
            let Some(piece) = buffer.get_mut(done..done + len) else {
                break;
            };
            access::read_slice(&self.memory, piece, addr)
                .map_err(|_| self.bad_chain(chain.head, OUTSIDE))?;
            done += len;
        }
        Ok(done)
    }

    /// Write to the writable part of `chain` at byte `offset`; returns the number of bytes written.
    ///
    /// # Errors
    /// A segment no longer lies in memory.
    pub fn write(&self, chain: &Chain, offset: u64, data: &[u8]) -> Result<usize, DeviceError> {
        let mut done = 0;
        for (addr, len) in pieces(chain.writable(), offset, data.len()) {
            let Some(piece) = data.get(done..done + len) else {
                break;
            };
            access::write_slice(&self.memory, piece, addr)
                .map_err(|_| self.bad_chain(chain.head, OUTSIDE))?;
            done += len;
        }
        Ok(done)
    }

    /// An error about `chain`; `reason` continues "descriptor chain 3 ".
    pub fn refuse(&self, chain: &Chain, reason: &'static str) -> DeviceError {
        self.bad_chain(chain.head, reason)
    }

    fn take_next(&mut self) -> Result<Option<Chain>, DeviceError> {
        let head = self.take_head()?;
        head.map(|head| self.check(head, self.descriptors(head)))
            .transpose()
    }

    /// The chain of `descriptors`, if it is valid.
    fn check(
        &self,
        head: u16,
        descriptors: impl Iterator<Item = Descriptor>,
    ) -> Result<Chain, DeviceError> {
        let mut chain = Chain {
            head,
            segments: Segments::new(),
            readable: 0,
        };
        let fault = |reason| Err(self.bad_chain(chain.head, reason));
        // The iterator ends early on what it cannot follow; the last descriptor then still names
        // a next one.
        let mut whole = false;
        for (count, descriptor) in descriptors.enumerate() {
            if count >= usize::from(self.queue.size()) {
                return fault("is longer than the queue"); // virtio 1.2, 2.7.5.3.1
            }
            whole = !descriptor.has_next();
            let (addr, len) = (descriptor.addr(), descriptor.len());
            if len == 0 {
                continue;
            }
            let inside = access::slice(&self.memory, addr, len as usize).is_some();
            if !inside && !self.memory.check_range(addr, len as usize) {
                return fault(OUTSIDE);
            }
            if !descriptor.is_write_only() {
                if chain.readable < chain.segments.len() {
                    return fault("has a readable part after a writable one"); // 2.7.4.2
                }
                chain.readable += 1;
            }
            chain.segments.push(Segment { addr, len });
        }
        if !whole {
            return fault("breaks off: it leaves its table, or is longer than 4 GiB");
        }
        Ok(chain)
    }

    fn broken(&self, error: RingError) -> DeviceError {
        DeviceError::Ring {
            queue: self.index,
            reason: error.to_string(),
        }
    }

    fn bad_chain(&self, head: u16, reason: &'static str) -> DeviceError {
        DeviceError::Chain {
            queue: self.index,
            head,
            reason,
        }
    }
}

const OUTSIDE: &str = "points outside of memory";

/// The `len` bytes from byte `offset` of `segments`, or as many as exist.
pub fn part(segments: &[Segment], offset: u64, len: u64) -> Segments {
    let pieces = pieces(segments, offset, len as usize);
    let segment = |(addr, len)| Segment {
        addr,
        len: len as u32, // of a segment, whose length is one
    };
    pieces.map(segment).collect()
}

/// The parts of `segments` within the `len` bytes from byte `offset`.
fn pieces(
    segments: &[Segment],
    offset: u64,
    len: usize,
) -> impl Iterator<Item = (GuestAddress, usize)> {
    let (mut skip, mut left) = (offset, len);
    segments.iter().filter_map(move |segment| {
        let here = u64::from(segment.len);
        let start = skip.min(here);
        skip -= start;
        let take = left.min((here - start) as usize);
        left -= take;
        // Checked to lie in memory, so the sum does not wrap.
        (take > 0).then(|| (GuestAddress(segment.addr.0.wrapping_add(start)), take))
    })
}

/// What [`super::core::Core`] calls.
impl VirtQueue {
    pub(super) fn max_size(&self) -> u16 {
        self.queue.max_size()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// QueueReady = 1: use the rings as set up; the error says why not.
    pub(super) fn start(&mut self, event_idx: bool) -> Result<(), String> {
        let Setup {
            size,
            descriptors,
            available,
            used,
        } = self.setup;
        let set = |queue: &mut Queue| {
            queue.try_set_size(u16::try_from(size).map_err(|_| RingError::InvalidSize)?)?;
            queue.try_set_desc_table_address(GuestAddress(descriptors))?;
            queue.try_set_avail_ring_address(GuestAddress(available))?;
            queue.try_set_used_ring_address(GuestAddress(used))
        };
        self.queue.reset();
        set(&mut self.queue).map_err(|error| error.to_string())?;
        self.queue.set_event_idx(event_idx);
        self.event_idx = event_idx;
        self.considered = 0;
        self.queue.set_ready(true);
        // `Queue` takes an available ring at address 0 for a missing one.
        if available == 0 || !self.queue.is_valid(&self.memory) {
            self.queue.set_ready(false);
            return Err("the rings do not lie in memory above address 0".into());
        }
        Ok(())
    }

    /// QueueReady = 0: use the rings no more.
    pub(super) fn stop(&mut self) {
        self.queue.reset();
        self.finished = false;
    }

    /// Return to the state after power-on.
    pub(super) fn reset(&mut self) {
        self.stop();
        self.setup = Setup::new(self.queue.max_size());
    }

    /// A call into the device begins.
    pub(super) fn begin(&mut self) {
        self.budget = self.queue.size();
        self.again = false;
    }

    /// A call of the device ended: have what is left processed, and return whether the driver wants
    /// an interrupt (virtio 1.2, 2.7.7).
    pub(super) fn end(&mut self) -> Result<bool, DeviceError> {
        if self.again {
            self.notify();
        }
        if !self.is_ready() || !std::mem::take(&mut self.finished) {
            return Ok(false);
        }
        let wanted = self.wants_interrupt()?;
        self.counters.interrupts += u64::from(wanted);
        Ok(wanted)
    }

    /// Make the queue's eventfd readable.
    pub(super) fn notify(&self) {
        self.event.raise();
    }
}

impl Setup {
    fn new(max_size: u16) -> Self {
        Self {
            size: max_size.into(),
            descriptors: 0,
            available: 0,
            used: 0,
        }
    }
}
