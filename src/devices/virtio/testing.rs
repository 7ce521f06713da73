//! A driver for tests and fuzz targets: it writes registers and rings as a guest would, and relies
//! only on virtio 1.2.

#[cfg(test)]
pub mod carry;
#[cfg(test)]
mod moved;
#[cfg(test)]
mod strategies;

use std::sync::{Arc, MutexGuard};

use vm_memory::{Bytes, GuestAddress};

use super::core::Core;
use super::mmio::{MmioTransport, Page, Shortcuts};
use super::transport::Transport;
use super::{Device, F_VERSION_1};
use crate::devices::Reporter;
use crate::devices::bus::BusDevice;
use crate::devices::testing::{CountedInterrupt, Events};
use crate::memory::GuestMemory;
#[cfg(test)]
pub use strategies::descriptor;

/// Registers (virtio 1.2, 4.2.2), apart from the device's own list of them.
pub mod reg {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const VENDOR_ID: u64 = 0x0c;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM_MAX: u64 = 0x34;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC: u64 = 0x80;
    pub const QUEUE_DRIVER: u64 = 0x90;
    pub const QUEUE_DEVICE: u64 = 0xa0;
    pub const SHM_LEN_LOW: u64 = 0xb0;
    pub const CONFIG_GENERATION: u64 = 0xfc;
    pub const CONFIG: u64 = 0x100;
}

/// Bits of Status.
pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 0x40;
pub const FAILED: u32 = 0x80;
/// Status of a device that works.
pub const LIVE: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// Descriptor flags (virtio 1.2, 2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// Memory lies at 0 and, after a hole, at `HIGH`.
pub const LOW_END: u64 = 0x8_0000;
pub const HIGH: u64 = 0x10_0000;
pub const HIGH_END: u64 = 0x12_0000;

/// Where buffers lie; the rings lie before them, a page a queue.
pub const BUFFERS: u64 = 0x1_0000;
const PAGE: u64 = 0x1000;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x600;
/// Most entries of a queue in its page.
pub const MAX_SIZE: u16 = 64;

/// A page for a window.
pub fn shortcuts() -> Shortcuts {
    let windows = GuestMemory::from_ranges(&[(GuestAddress(0), PAGE as usize)]).unwrap();
    Shortcuts {
        page: Some(Page::new(windows, 0)),
        ..Shortcuts::default()
    }
}

/// GPA of the descriptor table of `queue`.
pub fn table(queue: usize) -> u64 {
    PAGE * (1 + queue as u64)
}

/// GPA of the available ring of `queue`.
pub fn avail(queue: usize) -> u64 {
    table(queue) + AVAIL
}

/// GPA of the used ring of `queue`.
pub fn used(queue: usize) -> u64 {
    table(queue) + USED
}

/// struct virtq_desc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    pub fn read(memory: &GuestMemory, table: u64, index: u64) -> Option<Self> {
        let mut raw = [0; 16];
        let addr = table.checked_add(16 * index)?;
        memory.read_slice(&mut raw, GuestAddress(addr)).ok()?;
        let raw = u128::from_le_bytes(raw);
        Some(Self {
            addr: raw as u64,
            len: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        })
    }

    pub fn write(&self, memory: &GuestMemory, table: u64, index: u16) {
        let raw = u128::from(self.addr)
            | u128::from(self.len) << 64
            | u128::from(self.flags) << 96
            | u128::from(self.next) << 112;
        let addr = GuestAddress(table + 16 * u64::from(index));
        memory.write_slice(&raw.to_le_bytes(), addr).unwrap();
    }

    pub fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A piece of a chain: address, length, for the device to write.
pub type Piece = (u64, u32, bool);

#[derive(Clone, Default)]
struct Ring {
    size: u16,
    descriptors: u16,
    available: u16,
    /// As far as the driver kicked.
    kicked: u16,
    used: u16,
    /// Chains that the device has, by their head.
    lent: Vec<Vec<Piece>>,
}

/// A guest with one device.
pub struct Guest {
    pub transport: MmioTransport,
    pub memory: GuestMemory,
    pub interrupt: Arc<CountedInterrupt>,
    pub events: Arc<Events>,
    rings: Vec<Ring>,
    /// Where the next buffer lies.
    pub next_buffer: u64,
    /// Whether its rings may lie in each other, so that what the device returns is offered again: then
    /// [`Guest::run`] ends without rest.
    pub feeds_itself: bool,
}

impl Guest {
    /// A guest that has done nothing yet with `device`.
    pub fn new(device: impl Device) -> Self {
        let memory = GuestMemory::from_ranges(&[
            (GuestAddress(0), LOW_END as usize),
            (GuestAddress(HIGH), (HIGH_END - HIGH) as usize),
        ])
        .unwrap();
        let interrupt = Arc::new(CountedInterrupt::default());
        let events = Arc::new(Events::default());
        let rings = vec![Ring::default(); device.queue_max_sizes().len()];
        let mut transport = MmioTransport::new(
            memory.clone(),
            Box::new(device),
            interrupt.clone(),
            Reporter::new(events.clone(), "device"),
            shortcuts(),
        )
        .unwrap();
        transport.reveal();
        Self {
            transport,
            memory,
            interrupt,
            events,
            rings,
            next_buffer: BUFFERS,
            feeds_itself: false,
        }
    }

    /// The core of the device, locked.
    pub fn core(&self) -> MutexGuard<'_, Core> {
        self.transport.core().lock().unwrap()
    }

    /// Read a register; one of the page is there the same.
    pub fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(offset, &mut data);
        let value = u32::from_le_bytes(data);
        if offset.is_multiple_of(4) && offset < PAGE {
            let shown = self.transport.page().and_then(|page| page.load(offset));
            assert_eq!(shown, Some(value), "register {offset:#x} of the page");
        }
        value
    }

    /// Read all registers, and what the page shows of them.
    pub fn read_all(&mut self) {
        for offset in (0..reg::CONFIG + 0x80).step_by(4) {
            self.read(offset);
        }
    }

    pub fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn status(&mut self) -> u32 {
        self.read(reg::STATUS)
    }

    /// Write Status and read it back.
    pub fn set_status(&mut self, value: u32) -> u32 {
        self.write(reg::STATUS, value);
        self.status()
    }

    pub fn accept(&mut self, features: u64) {
        for (sel, value) in [features as u32, (features >> 32) as u32]
            .into_iter()
            .enumerate()
        {
            self.write(reg::DRIVER_FEATURES_SEL, sel as u32);
            self.write(reg::DRIVER_FEATURES, value);
        }
    }

    /// From reset up to FEATURES_OK, with `features` and VIRTIO_F_VERSION_1.
    pub fn negotiate(&mut self, features: u64) {
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        self.accept(features | F_VERSION_1);
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        assert_eq!(self.set_status(status), status);
    }

    /// Write the registers of a queue, with the rings in its page; returns whether it became ready.
    pub fn set_up(&mut self, queue: usize, size: u32) -> bool {
        self.set_up_at(queue, size, [table(queue), avail(queue), used(queue)])
    }

    /// The same with the descriptor table and the two rings elsewhere.
    pub fn set_up_at(&mut self, queue: usize, size: u32, areas: [u64; 3]) -> bool {
        self.rings[queue] = Ring {
            size: size as u16,
            lent: vec![Vec::new(); size as u16 as usize],
            ..Ring::default()
        };
        self.write(reg::QUEUE_SEL, queue as u32);
        self.write(reg::QUEUE_NUM, size);
        let registers = [reg::QUEUE_DESC, reg::QUEUE_DRIVER, reg::QUEUE_DEVICE];
        for (register, addr) in registers.into_iter().zip(areas) {
            self.write(register, addr as u32);
            self.write(register + 4, (addr >> 32) as u32);
        }
        self.write(reg::QUEUE_READY, 1);
        self.read(reg::QUEUE_READY) == 1
    }

    /// All the way from reset, every queue with `size` entries in zeroed rings.
    pub fn start(&mut self, features: u64, size: u16) {
        assert!(size <= MAX_SIZE);
        self.negotiate(features);
        for queue in 0..self.rings.len() {
            let zeros = [0; PAGE as usize];
            self.memory
                .write_slice(&zeros, GuestAddress(table(queue)))
                .unwrap();
            assert!(self.set_up(queue, size.into()));
        }
        assert_eq!(self.set_status(LIVE), LIVE);
    }

    /// Entries of `queue` as they were last written to its register, and the descriptor with which
    /// the next chain begins.
    pub fn place(&self, queue: usize) -> (u16, u16) {
        let ring = &self.rings[queue];
        (ring.size, ring.descriptors)
    }

    /// A place for `len` bytes, taken from the guest's memory in turn.
    pub fn buffer(&mut self, len: u32) -> u64 {
        if self.next_buffer + u64::from(len) > LOW_END {
            self.next_buffer = BUFFERS;
        }
        let addr = self.next_buffer;
        assert!(addr + u64::from(len) <= LOW_END);
        self.next_buffer += u64::from(len);
        addr
    }

    /// Offer a chain of `pieces`, in an indirect table if `indirect`; returns its head.
    pub fn offer(&mut self, queue: usize, pieces: &[Piece], indirect: bool) -> u16 {
        let memory = self.memory.clone();
        let size = self.rings[queue].size;
        let head = self.rings[queue].descriptors % size;
        let (at, first, wrap) = if indirect {
            let at = self.buffer(16 * pieces.len() as u32);
            let table_len = 16 * pieces.len() as u32;
            self.describe(queue, head, (at, table_len, INDIRECT, 0));
            (at, 0, u16::MAX)
        } else {
            (table(queue), head, size)
        };
        for (i, &(addr, len, write)) in (0u16..).zip(pieces) {
            let more = usize::from(i) + 1 < pieces.len();
            Descriptor {
                addr,
                len,
                flags: if write { WRITE } else { 0 } | if more { NEXT } else { 0 },
                next: (first + i + 1) % wrap,
            }
            .write(&memory, at, (first + i) % wrap);
        }
        let taken = if indirect { 1 } else { pieces.len() as u16 };
        let ring = &mut self.rings[queue];
        ring.descriptors = (head + taken) % size;
        ring.lent[usize::from(head)] = pieces.to_vec();
        self.make_available(queue, head);
        head
    }

    /// Offer `bytes` to be read, in pieces of the lengths that `lens` gives in turn.
    pub fn send(&mut self, queue: usize, bytes: &[u8], lens: &[usize], indirect: bool) -> u16 {
        let addr = self.buffer(bytes.len() as u32);
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
        let mut pieces = Vec::new();
        let mut done = 0;
        for len in lens.iter().copied().chain([usize::MAX]) {
            let len = len.min(bytes.len() - done);
            if len > 0 {
                pieces.push((addr + done as u64, len as u32, false));
            }
            done += len;
        }
        self.offer(queue, &pieces, indirect)
    }

    /// Offer a buffer of `len` bytes to be written.
    pub fn lend(&mut self, queue: usize, len: u32) -> u16 {
        let addr = self.buffer(len);
        self.offer(queue, &[(addr, len, true)], false)
    }

    /// Write one descriptor (addr, len, flags, next) to the queue's table.
    pub fn describe(&self, queue: usize, index: u16, parts: (u64, u32, u16, u16)) {
        let (addr, len, flags, next) = parts;
        let descriptor = Descriptor {
            addr,
            len,
            flags,
            next,
        };
        descriptor.write(&self.memory, table(queue), index);
    }

    /// Add `head` to the available ring.
    pub fn make_available(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = u64::from(ring.available % ring.size);
        ring.available = ring.available.wrapping_add(1);
        let available = ring.available;
        self.poke(avail(queue) + 4 + 2 * slot, head);
        self.poke(avail(queue) + 2, available);
    }

    /// Set the used entry for which the driver wants an interrupt (VIRTIO_F_EVENT_IDX).
    pub fn set_used_event(&self, queue: usize, index: u16) {
        self.poke(
            avail(queue) + 4 + 2 * u64::from(self.rings[queue].size),
            index,
        );
    }

    /// Notify if the device wants that for what was made available since the last time (virtio 1.2,
    /// 2.7.10); returns whether it was notified.
    pub fn kick(&mut self, queue: usize, event_idx: bool) -> bool {
        let ring = &mut self.rings[queue];
        let (old, new) = (ring.kicked, ring.available);
        ring.kicked = new;
        let size = u64::from(ring.size);
        let wanted = if event_idx {
            let event = self.peek(used(queue) + 4 + 8 * size);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.peek(used(queue)) & 1 == 0
        };
        if wanted {
            self.write(reg::QUEUE_NOTIFY, queue as u32);
        }
        wanted
    }

    /// Notify, then do what an event loop does.
    pub fn notify(&mut self, queue: usize) {
        self.write(reg::QUEUE_NOTIFY, queue as u32);
        self.run();
    }

    /// Process queues as an event loop would until none asks for it; returns how often. More
    /// often than 1000 times is taken for an endless loop.
    pub fn run(&mut self) -> usize {
        for turns in 0..1000 {
            let asks = |event: &crate::sync::EventFd| event.lower();
            let Some(queue) = self.core().queue_events().position(asks) else {
                return turns;
            };
            self.core().process(queue);
        }
        assert!(self.feeds_itself, "the queues never come to rest");
        1000
    }

    /// Chains that came back since the last call: head and bytes written.
    pub fn returned(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let end = self.peek(used(queue) + 2);
        let mut returned = Vec::new();
        while self.rings[queue].used != end {
            let ring = &mut self.rings[queue];
            let entry = used(queue) + 4 + 8 * u64::from(ring.used % ring.size);
            ring.used = ring.used.wrapping_add(1);
            let word = |addr| self.memory.read_obj::<u32>(GuestAddress(addr)).unwrap();
            returned.push((word(entry), word(entry + 4)));
            assert!(returned.len() <= usize::from(self.rings[queue].size));
        }
        returned
    }

    /// The bytes in the chains that came back since the last call, a vector a chain.
    pub fn received(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let mut chains = Vec::new();
        for (head, written) in self.returned(queue) {
            let mut bytes = Vec::new();
            let pieces = std::mem::take(&mut self.rings[queue].lent[head as usize]);
            for (addr, len, _) in pieces.into_iter().filter(|piece| piece.2) {
                let mut piece = vec![0; (len as usize).min(written as usize - bytes.len())];
                self.memory
                    .read_slice(&mut piece, GuestAddress(addr))
                    .unwrap();
                bytes.extend(piece);
            }
            assert_eq!(bytes.len(), written as usize, "written past the buffers");
            chains.push(bytes);
        }
        chains
    }

    /// How many chains the device has.
    pub fn in_flight(&self, queue: usize) -> u16 {
        let ring = &self.rings[queue];
        ring.available.wrapping_sub(ring.used)
    }

    pub fn peek(&self, addr: u64) -> u16 {
        self.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    pub fn poke(&self, addr: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(addr)).unwrap();
    }

    /// All that lies in memory, with addresses.
    pub fn snapshot(&self) -> Vec<(u64, Vec<u8>)> {
        [(0, LOW_END), (HIGH, HIGH_END)]
            .into_iter()
            .map(|(start, end)| {
                let mut bytes = vec![0; (end - start) as usize];
                let read = self.memory.read_slice(&mut bytes, GuestAddress(start));
                read.map(|()| (start, bytes)).unwrap()
            })
            .collect()
    }
}
