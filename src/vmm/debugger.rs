//! How a debugger comes to a machine: what it is given, and how it hears of a stop.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::actions::Actions;
use super::config::End;
use super::error::VmmError;
use super::machine::Machine;
use super::vcpus::Vcpus;
use crate::boot::Loaded;
use crate::control::{Action, Reply};
use crate::memory::GuestMemory;

/// Something that stops, looks at and changes a machine from a thread of its own.
pub trait Debugger {
    /// The machine stands before its first instruction and its vCPUs have no threads yet. They
    /// start when this has returned, unless a [`Pause`](super::vcpus::Pause) holds them.
    ///
    /// # Errors
    /// The debugger's thread or descriptors could not be had.
    fn attach(&mut self, machine: Debugged) -> io::Result<()>;
    /// The machine has ended, with this status if the guest came to its end. Nothing of it may be
    /// touched afterwards.
    fn ended(&mut self, status: Option<u8>);
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
    pub(super) actions: Arc<Actions>,
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
    fn of(loaded: &Loaded) -> Option<Self> {
        let start = loaded.linked_at?;
        let len = loaded.kernel.end - loaded.kernel.start;
        Some(Self {
            linear: start..start.saturating_add(len),
            gpa: loaded.kernel.start,
        })
    }
}

impl Debugged {
    /// End the machine. When this returns no vCPU enters the guest again.
    pub fn kill(&self) {
        self.actions.act(Action::Kill, Reply::new(drop));
    }

    /// Tell the user something.
    pub fn warn(&self, what: &str) {
        log::warn!("gdb: {what}");
    }
}

/// The debugger, if there is one, until the machine's end.
pub struct Attached<'a>(pub Option<&'a mut dyn Debugger>);

impl Attached<'_> {
    /// Attach it to `machine`.
    ///
    /// # Errors
    /// Its thread or descriptors cannot be had.
    pub fn attach(
        &mut self,
        machine: &Machine,
        vcpus: &Arc<Vcpus>,
        actions: &Arc<Actions>,
    ) -> Result<(), VmmError> {
        let Some(debugger) = &mut self.0 else {
            return Ok(());
        };
        let debugged = Debugged {
            vcpus: vcpus.clone(),
            memory: machine.vm.memory().clone(),
            kernel: machine.loaded.as_ref().and_then(Linked::of),
            actions: actions.clone(),
        };
        debugger.attach(debugged).map_err(VmmError::Thread)
    }

    /// Tell it how the machine ended.
    pub fn ended(&mut self, end: Option<&End>) {
        let status = end.map(status);
        if let Some(debugger) = self.0.take() {
            debugger.ended(status);
        }
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.ended(None);
    }
}

/// What a debugger reports of how a machine ended.
fn status(end: &End) -> u8 {
    match end {
        End::Off | End::Quit => 0,
        End::Exited(status) => *status,
        End::Signalled(signal) => 128u8.wrapping_add(*signal as u8),
    }
}
