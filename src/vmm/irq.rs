//! Interrupt lines of the machine as its devices see them, and eventfds.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::error::VmmError;
use crate::devices::bus::Interrupt;
use crate::kvm::vm::{self, Vm};
use crate::trace::Recorder;

/// EFD_NONBLOCK: an event that is raised twice before anyone looks must not block who raises it.
pub fn eventfd() -> Result<EventFd, VmmError> {
    let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
    EventFd::new(flags.bits() as i32).map_err(VmmError::EventFd)
}

/// The line `gsi`, of the device that records with `recorder`; one that leads nowhere in a machine
/// without interrupt controllers.
pub fn line(vm: &Vm, gsi: u32, recorder: Option<Recorder>) -> Arc<dyn Interrupt> {
    match vm.line(gsi) {
        Some(line) => Arc::new(Line {
            line,
            gsi,
            recorder,
        }),
        None => Arc::new(Unconnected),
    }
}

/// An interrupt line of the machine's.
pub struct Line {
    line: vm::Line,
    gsi: u32,
    recorder: Option<Recorder>,
}

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        if let Some(recorder) = &self.recorder {
            recorder.interrupt(self.gsi);
        }
        self.line.pulse()
    }
}

/// A line that leads nowhere.
pub struct Unconnected;

impl Interrupt for Unconnected {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}
