//! The interface of a debugger to a machine.

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

/// A debugger, which stops, inspects and changes a machine from a thread of its own.
pub trait Debugger {
    /// The machine is before its first instruction, and its vCPUs have no threads yet. The threads
    /// start when this has returned; the vCPUs run unless a [`Pause`](super::vcpus::Pause) holds them.
    ///
    /// # Errors
    /// No thread or file descriptor is left.
    fn attach(&mut self, machine: Debugged) -> io::Result<()>;
    /// The machine has ended, with this status if the guest ended in good order. Nothing of it may be
    /// used afterwards.
    fn ended(&mut self, status: Option<u8>);
}

/// A machine as a debugger sees it.
#[derive(Clone)]
pub struct Debugged {
    /// The vCPUs with their threads.
    pub vcpus: Arc<Vcpus>,
    /// Guest memory, shared with the vCPUs.
    pub memory: GuestMemory,
    /// Where the kernel's own page tables will map it, if that is known before the boot.
    pub kernel: Option<Linked>,
    pub(super) actions: Arc<Actions>,
}

/// A kernel image that is in memory as it is linked.
#[derive(Clone, Debug)]
pub struct Linked {
    /// The linear addresses that it is linked to.
    pub linear: Range<u64>,
    /// The guest-physical address of its first byte.
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

    /// Log a warning for the user.
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
    /// No thread or file descriptor is left.
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

    /// Report how the machine ended.
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

/// The status that a debugger reports for the end of a machine.
fn status(end: &End) -> u8 {
    match end {
        End::Off | End::Quit => 0,
        End::Exited(status) => *status,
        End::Signalled(signal) => 128u8.wrapping_add(*signal as u8),
        End::OutputLost => 1,
    }
}
