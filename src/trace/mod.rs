//! The events of a machine with their times: plain data that any module may record.
//!
//! A [`Trace`] has a [`ring::Ring`] for each vCPU's exits and one for all other events, of fixed sizes:
//! the oldest events are dropped and counted. [`perfetto`] writes it as a file that Perfetto and
//! Chrome open, [`summary`] reads such a file.
//!
//! Times are nanoseconds since the machine's clock started, by `Instant`: CLOCK_MONOTONIC from the
//! vDSO, which takes some 25 ns. RDTSC would take 10 ns, but is wrong if the TSCs of two processors
//! or of a migrated host differ; two readings for each exit are less than the variation of an exit.
//!
//! Lock order: a ring's lock is taken last, and no function is called while it is held.

#![forbid(unsafe_code)]

pub mod perfetto;
pub mod ring;
pub mod summary;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ring::Ring;

use crate::sync::{lock, wait};

/// Most exits kept for each vCPU, 88 bytes each.
pub const MAX_EXITS: usize = 1 << 17;
/// Most other events kept.
pub const MAX_EVENTS: usize = 1 << 16;
/// Most bytes kept of a line of the console.
const MAX_LINE: usize = 200;

/// Nanoseconds since the machine's clock started.
pub type Nanoseconds = u64;

/// The reason of a vCPU's exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// IN, a read of a port.
    PortRead,
    /// OUT, a write to a port.
    PortWrite,
    /// A load from where no RAM is.
    MmioRead,
    /// A store to where no RAM is.
    MmioWrite,
    /// hull emulated this instruction, which the host's KVM cannot.
    Instruction(&'static str),
    /// hull copied or filled memory for the guest's kernel (`kvm::assist::bulk`).
    Bulk,
    /// A signal interrupted the vCPU.
    Kick,
    /// A breakpoint, watchpoint or step of a debugger.
    Debug,
    /// The guest shut down, by a triple fault.
    Shutdown,
    /// KVM or hull could not continue the guest.
    Failed,
}

impl Reason {
    /// The name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::PortRead => "port read",
            Self::PortWrite => "port write",
            Self::MmioRead => "MMIO read",
            Self::MmioWrite => "MMIO write",
            Self::Instruction(_) => "instruction",
            Self::Bulk => "bulk memory",
            Self::Kick => "kick",
            Self::Debug => "debug",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
        }
    }

    /// The address space of its address.
    pub fn space(self) -> Option<Space> {
        match self {
            Self::PortRead | Self::PortWrite => Some(Space::Port),
            Self::MmioRead | Self::MmioWrite => Some(Space::Memory),
            _ => None,
        }
    }

    /// Whether the guest wrote.
    pub fn is_write(self) -> bool {
        matches!(self, Self::PortWrite | Self::MmioWrite)
    }
}

/// An address space that has devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// I/O ports, 16 bits.
    Port,
    /// Guest-physical memory, 64 bits.
    Memory,
}

/// One exit of a vCPU, and the time in the guest before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// When KVM_RUN was called.
    pub entered: Nanoseconds,
    /// When KVM_RUN had returned.
    pub left: Nanoseconds,
    /// When hull had handled it.
    pub handled: Nanoseconds,
    /// The reason of the exit.
    pub reason: Reason,
    /// The port or guest-physical address, if the reason has one.
    pub addr: u64,
    /// The bytes written or read, the first 8.
    pub value: u64,
    /// Number of bytes accessed.
    pub size: u16,
    /// The device's register, by name.
    pub register: Option<&'static str>,
}

/// An event that is not an exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A queue of a virtio device was processed, after a notification or because the backend was
    /// ready again.
    Notified {
        /// The device it belongs to.
        device: Device,
        /// Index of the queue.
        queue: u16,
    },
    /// Chains were returned to the driver.
    Completed {
        /// The device it belongs to.
        device: Device,
        /// Index of the queue.
        queue: u16,
        /// Time of the first notification since the previous completion, or of that completion.
        since: Nanoseconds,
        /// The number of chains.
        chains: u32,
        /// Whether the driver asked for an interrupt.
        interrupt: bool,
    },
    /// An interrupt line was raised.
    Interrupt {
        /// The device that raised it.
        device: Device,
        /// GSI of the line.
        gsi: u32,
    },
    /// A line of the guest's console.
    Line(String),
    /// The guest set a mark.
    Mark(Cow<'static, str>),
    /// A phase of hull ended.
    Phase {
        /// The name of the phase.
        name: Cow<'static, str>,
        /// Time at which it began.
        since: Nanoseconds,
        /// Whether it ran in parallel to other phases.
        aside: bool,
    },
}

/// A device, as [`Trace::device`] numbered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device(u16);

/// The addresses of a device on its bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The address space of the bus.
    pub space: Space,
    /// First address of the device.
    pub base: u64,
    /// Last address of the device.
    pub last: u64,
    /// The device's name in messages.
    pub name: String,
}

/// The part of a trace that one vCPU's thread records.
#[derive(Debug)]
pub struct Track {
    exits: Mutex<Ring<Exit>>,
    /// Time at which it entered the guest; 0 outside of the guest.
    entered: AtomicU64,
}

impl Track {
    fn new() -> Self {
        Self {
            exits: Mutex::new(Ring::new(MAX_EXITS)),
            entered: AtomicU64::new(0),
        }
    }

    /// Record that the vCPU enters the guest.
    pub fn entered(&self, at: Nanoseconds) {
        self.entered.store(at, Ordering::Relaxed);
    }

    /// Record an exit after it was handled.
    pub fn exit(&self, exit: Exit) {
        self.entered.store(0, Ordering::Relaxed);
        lock(&self.exits).push(exit);
    }
}

/// All events recorded for one machine.
#[derive(Debug)]
pub struct Trace {
    started: Instant,
    vcpus: Vec<Track>,
    events: Mutex<Ring<(Nanoseconds, Event)>>,
    names: Mutex<Names>,
    line: Mutex<Vec<u8>>,
    asked: Mutex<Asked>,
    change: Condvar,
}

/// Wakes the thread that writes the trace.
#[derive(Debug, Default)]
struct Asked {
    write: bool,
    end: bool,
}

#[derive(Clone, Debug, Default)]
struct Names {
    devices: Vec<String>,
    places: Vec<Place>,
}

impl Trace {
    /// An empty trace of a machine with `vcpus` vCPUs, whose clock started at `started`.
    pub fn new(started: Instant, vcpus: u8) -> Self {
        Self {
            started,
            vcpus: (0..vcpus).map(|_| Track::new()).collect(),
            events: Mutex::new(Ring::new(MAX_EVENTS)),
            names: Mutex::default(),
            line: Mutex::default(),
            asked: Mutex::default(),
            change: Condvar::new(),
        }
    }

    /// Make the thread in [`Trace::asked`] write the trace, without waiting for it.
    pub fn ask(&self) {
        lock(&self.asked).write = true;
        self.change.notify_all();
    }

    /// End the thread in [`Trace::asked`]: no more requests follow.
    pub fn end(&self) {
        lock(&self.asked).end = true;
        self.change.notify_all();
    }

    /// Wait for [`Trace::ask`]; false after [`Trace::end`].
    pub fn asked(&self) -> bool {
        let mut asked = lock(&self.asked);
        loop {
            if asked.end {
                return false;
            }
            if std::mem::take(&mut asked.write) {
                return true;
            }
            asked = wait(&self.change, asked);
        }
    }

    /// The time since the machine's clock started.
    pub fn now(&self) -> Nanoseconds {
        nanoseconds(self.started.elapsed())
    }

    /// The track of vCPU `index`.
    pub fn vcpu(&self, index: usize) -> Option<&Track> {
        self.vcpus.get(index)
    }

    /// The number of the device with this name; a new one for a new name.
    pub fn device(&self, name: &str) -> Device {
        let devices = &mut lock(&self.names).devices;
        let known = devices.iter().position(|known| known == name);
        let number = known.unwrap_or_else(|| {
            devices.push(name.into());
            devices.len() - 1
        });
        Device(number as u16) // as many as there are devices, some dozens
    }

    /// Set the addresses of the devices, which name those that exits access.
    pub fn set_places(&self, places: Vec<Place>) {
        lock(&self.names).places = places;
    }

    /// Record an event that happens now.
    pub fn record(&self, event: Event) {
        self.record_at(self.now(), event);
    }

    /// Record an event with its time.
    pub fn record_at(&self, at: Nanoseconds, event: Event) {
        lock(&self.events).push((at, event));
    }

    /// Record `bytes` that the guest wrote to its console.
    pub fn console(&self, bytes: &[u8]) {
        let mut line = lock(&self.line);
        for &byte in bytes {
            match byte {
                b'\n' => {
                    let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
                    line.clear();
                    if !text.is_empty() {
                        self.record(Event::Line(text));
                    }
                }
                byte if line.len() < MAX_LINE => line.push(byte),
                _ => {}
            }
        }
    }

    /// A copy of all events so far. The vCPUs keep running.
    pub fn recording(&self) -> Recording {
        let vcpu = |track: &Track| Vcpu {
            exits: lock(&track.exits).clone(),
            entered: Some(track.entered.load(Ordering::Relaxed)).filter(|&at| at > 0),
        };
        let Names { devices, places } = lock(&self.names).clone();
        Recording {
            at: self.now(),
            vcpus: self.vcpus.iter().map(vcpu).collect(),
            events: lock(&self.events).clone(),
            devices,
            places,
        }
    }
}

/// A copy of a [`Trace`].
pub struct Recording {
    /// Time of the copy.
    at: Nanoseconds,
    vcpus: Vec<Vcpu>,
    events: Ring<(Nanoseconds, Event)>,
    devices: Vec<String>,
    places: Vec<Place>,
}

struct Vcpu {
    exits: Ring<Exit>,
    entered: Option<Nanoseconds>,
}

impl Recording {
    /// Events that were dropped because a ring was full.
    pub fn dropped(&self) -> u64 {
        let exits = self.vcpus.iter().map(|vcpu| vcpu.exits.dropped());
        exits.sum::<u64>() + self.events.dropped()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        let exits = self.vcpus.iter().all(|vcpu| vcpu.exits.iter().len() == 0);
        exits && self.events.iter().len() == 0
    }

    /// The device at `addr`.
    fn place(&self, space: Space, addr: u64) -> Option<&Place> {
        self.places
            .iter()
            .find(|place| place.space == space && (place.base..=place.last).contains(&addr))
    }

    fn device(&self, device: Device) -> &str {
        let name = self.devices.get(usize::from(device.0));
        name.map_or("a device", String::as_str)
    }
}

/// Where one device records.
#[derive(Clone, Debug)]
pub struct Recorder {
    trace: Arc<Trace>,
    device: Device,
}

impl Recorder {
    /// For the device that messages call `name`.
    pub fn new(trace: &Arc<Trace>, name: &str) -> Self {
        Self {
            device: trace.device(name),
            trace: trace.clone(),
        }
    }

    /// Line `gsi` of the device's was raised.
    pub fn interrupt(&self, gsi: u32) {
        let device = self.device;
        self.trace.record(Event::Interrupt { device, gsi });
    }
}

/// Where one virtio device records what passes through its queues.
#[derive(Debug)]
pub struct Queues {
    recorder: Recorder,
    queues: Vec<Open>,
}

/// What a queue waits for.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    /// The first notification since the last completion.
    notified: Option<Nanoseconds>,
    /// Time of the last completion.
    completed: Nanoseconds,
    /// Chains that were given back until then.
    chains: u64,
}

impl Queues {
    /// For a device with so many queues.
    pub fn new(recorder: Recorder, count: usize) -> Self {
        Self {
            recorder,
            queues: vec![Open::default(); count],
        }
    }

    /// Queue `index` is processed from now on.
    pub fn notified(&mut self, index: usize) {
        let Recorder { trace, device } = &self.recorder;
        let at = trace.now();
        if let Some(open) = self.queues.get_mut(index) {
            open.notified.get_or_insert(at);
        }
        let (device, queue) = (*device, index as u16);
        trace.record_at(at, Event::Notified { device, queue });
    }

    /// A call of the device ended; since the start, `chains` chains of queue `index` have been
    /// given back, and the driver is told of them if there is an `interrupt`.
    pub fn completed(&mut self, index: usize, chains: u64, interrupt: bool) {
        let Recorder { trace, device } = &self.recorder;
        let Some(open) = self.queues.get_mut(index) else {
            return;
        };
        let more = chains.saturating_sub(open.chains);
        if more == 0 {
            return;
        }
        let at = trace.now();
        let since = open.notified.take().unwrap_or_default().max(open.completed);
        (open.chains, open.completed) = (chains, at);
        let completed = Event::Completed {
            device: *device,
            queue: index as u16,
            since,
            chains: u32::try_from(more).unwrap_or(u32::MAX),
            interrupt,
        };
        trace.record_at(at, completed);
    }
}

/// As times are recorded.
pub fn nanoseconds(time: Duration) -> Nanoseconds {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
