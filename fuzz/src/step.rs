//! The steps of a guest, from bytes: often correct ones, and all others.

use arbitrary::Arbitrary;
use hull::devices::virtio::testing::*;

use crate::patch::Patches;

/// One step. The first ones follow the rules of virtio, whatever the request contains.
#[derive(Arbitrary, Debug)]
pub enum Step<M, C> {
    /// A request of the device's.
    Send {
        /// Which.
        message: M,
        /// Lengths of the buffers that it is split into, in turn.
        pieces: [u8; 2],
        /// Whether it uses an indirect table.
        indirect: bool,
        /// Whether the device is notified.
        notify: bool,
    },
    /// A chain of buffers of these sizes, for the device to write or to read.
    Chain {
        queue: u8,
        pieces: Vec<(u16, bool)>,
        indirect: bool,
    },
    /// The used entry for which the driver wants an interrupt.
    Suppress { queue: u8, flag: bool, event: u16 },
    /// A notification, and all work that follows.
    Notify(u8),
    /// The event loop calls the device without a reason.
    Process(u8),
    /// The device's timer expires.
    Alarm,
    /// An action of the host.
    Call(C),
    /// The machine is saved, and another continues from its state, which may be damaged.
    Carry(Patches),
    /// A start by the rules of virtio.
    Start(Start),
    /// A reset of the device.
    Reset,
    /// A read of a register.
    Read { offset: Offset, len: u8 },
    /// A write to a register, of any length.
    Write { offset: Offset, len: u8, value: u64 },
    /// A write to a register of the right length, with a small value.
    Register { offset: Offset, value: u8 },
    /// A start that breaks the rules.
    Restart {
        /// Feature bits to flip.
        features: u64,
        queues: Vec<Rings>,
        /// The final value of Status.
        status: Option<u8>,
    },
    /// A descriptor of a queue's table.
    Describe { queue: u8, index: u8, what: Entry },
    /// A descriptor anywhere, for an indirect table.
    Table { at: Addr, index: u8, what: Entry },
    /// An indirect table with this many entries.
    Indirect {
        queue: u8,
        at: u8,
        entries: Vec<Entry>,
    },
    /// An entry of the available ring.
    Available { queue: u8, head: Number },
    /// The index of an available ring.
    Jump { queue: u8, index: u16 },
    /// A write of two bytes anywhere.
    Poke { at: Addr, value: u16 },
}

/// The parameters of a correct start.
#[derive(Arbitrary, Clone, Debug)]
pub struct Start {
    /// Features that the driver does not accept.
    pub without: u8,
    /// Ring features: events, indirect tables.
    pub ring: [bool; 2],
    /// The logarithm of the number of entries.
    pub size: u8,
}

/// A queue's registers.
#[derive(Arbitrary, Debug)]
pub struct Rings {
    pub size: Number,
    /// The addresses of its three parts, if not the correct ones.
    pub areas: Option<[Addr; 3]>,
}

/// A number that may make sense.
#[derive(Arbitrary, Debug)]
pub enum Number {
    Small(u8),
    Power(u8),
    Any(u32),
}

impl Number {
    /// The value of the number.
    pub fn value(&self) -> u32 {
        match self {
            Self::Small(value) => (*value).into(),
            Self::Power(power) => 1 << (power % 32),
            Self::Any(value) => *value,
        }
    }
}

/// Offset of a register.
#[derive(Arbitrary, Debug)]
pub enum Offset {
    Known(u8),
    Word(u8),
    Config(u8),
    Any(u64),
}

/// A register that has an effect.
const KNOWN: [u64; 13] = [
    reg::STATUS,
    reg::QUEUE_SEL,
    reg::QUEUE_NUM,
    reg::QUEUE_READY,
    reg::QUEUE_NOTIFY,
    reg::QUEUE_DESC,
    reg::QUEUE_DRIVER,
    reg::QUEUE_DEVICE,
    reg::DRIVER_FEATURES,
    reg::DRIVER_FEATURES_SEL,
    reg::DEVICE_FEATURES,
    reg::DEVICE_FEATURES_SEL,
    reg::INTERRUPT_ACK,
];

impl Offset {
    /// The value of the offset.
    pub fn value(&self) -> u64 {
        match self {
            Self::Known(index) => KNOWN[usize::from(*index) % KNOWN.len()],
            Self::Word(index) => 4 * u64::from(*index),
            Self::Config(offset) => reg::CONFIG + u64::from(*offset),
            Self::Any(offset) => *offset,
        }
    }
}

/// An address in guest memory or near it.
#[derive(Arbitrary, Debug)]
pub enum Addr {
    /// An address in a ring.
    Ring(u8, u16),
    /// One of few buffers, so that descriptors meet.
    Buffer(u8),
    /// An address in memory.
    Low(u32),
    High(u32),
    /// This many bytes before an end of memory.
    Edge(u8, u8),
    Any(u64),
}

impl Addr {
    /// The guest-physical address.
    pub fn value(&self) -> u64 {
        match self {
            Self::Ring(queue, offset) => table((queue % 8).into()) + u64::from(offset % 0x1000),
            Self::Buffer(index) => BUFFERS + 0x100 * u64::from(*index),
            Self::Low(addr) => u64::from(*addr) % LOW_END,
            Self::High(addr) => HIGH + u64::from(*addr) % (HIGH_END - HIGH),
            Self::Edge(which, before) => {
                let edges = [LOW_END, HIGH, HIGH_END, u64::MAX];
                edges[usize::from(*which) % edges.len()] - u64::from(*before)
            }
            Self::Any(addr) => *addr,
        }
    }

    /// An address that a guest itself can write `len` bytes to.
    pub fn writable(&self, len: u64) -> u64 {
        let addr = self.value();
        let there = |start, end| addr >= start && addr.saturating_add(len) <= end;
        match there(0, LOW_END) || there(HIGH, HIGH_END) {
            true => addr,
            false => BUFFERS,
        }
    }
}

/// A descriptor with any fields.
#[derive(Arbitrary, Debug)]
pub struct Entry {
    addr: Addr,
    len: Length,
    flags: u8,
    next: u8,
}

#[derive(Arbitrary, Debug)]
enum Length {
    Bytes(u8),
    Entries(u8),
    Pages(u8),
    Any(u32),
}

impl Entry {
    /// Its bytes in a table.
    pub fn descriptor(&self) -> Descriptor {
        let len = match self.len {
            Length::Bytes(len) => len.into(),
            Length::Entries(count) => 16 * u32::from(count % 16),
            Length::Pages(count) => 4096 * u32::from(count),
            Length::Any(len) => len,
        };
        // Mostly the defined bits.
        let flags = match self.flags {
            0xf0.. => u16::from(self.flags) << 4,
            flags => (flags & 7).into(),
        };
        Descriptor {
            addr: self.addr.value(),
            len,
            flags,
            next: u16::from(self.next % 80),
        }
    }
}
