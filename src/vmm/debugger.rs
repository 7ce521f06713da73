//! How a debugger comes to a machine: what it is given, and how it hears of a stop.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::End;
use super::events::{Events, GuestEnd};
use super::vcpus::{Pause, Vcpus};
use crate::boot::Loaded;
use crate::kvm::debug::Stop;
use crate::memory::GuestMemory;

/// Something that stops, looks at and changes a machine from a thread of its own.
pub trait Debugger {
    /// The machine stands before its first instruction and its vCPUs have no threads yet. They
    /// start when this has returned, unless a [`Pause`] holds them.
    ///
    /// # Errors
    /// The debugger's thread or descriptors could not be had.
    fn attach(&mut self, machine: Debugged) -> io::Result<()>;
    /// The machine has ended, with this status if the guest came to its end. Nothing of it may be
    /// touched afterwards.
    fn ended(&mut self, status: Option<u8>);
}

/// A vCPU stopped at what the debugger had told it to stop at, and all others with it.
pub struct Stopped {
    /// Which.
    pub index: usize,
    /// Why.
    pub stop: Stop,
    /// Holds all vCPUs.
    pub pause: Pause,
}

/// A machine as a debugger sees it.
#[derive(Clone)]
pub struct Debugged {
    /// Its vCPUs.
    pub vcpus: Arc<Vcpus>,
    /// Its memory.
    pub memory: GuestMemory,
    /// Where its kernel will be under page tables of its own, if that is known before the boot.
    pub kernel: Option<Linked>,
    pub(super) events: Arc<Events>,
}

/// A kernel that lies in memory as it is linked.
#[derive(Clone, Debug)]
pub struct Linked {
    /// Where it is linked to.
    pub linear: Range<u64>,
    /// Where it lies.
    pub gpa: u64,
}

impl Linked {
    pub(super) fn of(loaded: &Loaded) -> Option<Self> {
        let start = loaded.linked_at?;
        let len = loaded.kernel.end - loaded.kernel.start;
        Some(Self {
            linear: start..start.saturating_add(len),
            gpa: loaded.kernel.start,
        })
    }
}

impl Debugged {
    /// End the machine.
    pub fn kill(&self) {
        self.events.finish(GuestEnd::Killed);
    }

    /// Tell the user something.
    pub fn warn(&self, what: &str) {
        log::warn!("gdb: {what}");
    }
}

/// What a debugger reports of how a machine ended.
pub(super) fn status(end: &End) -> u8 {
    match end {
        End::Off | End::Quit => 0,
        End::Exited(status) => *status,
        End::Signalled(signal) => 128u8.wrapping_add(*signal as u8),
    }
}
