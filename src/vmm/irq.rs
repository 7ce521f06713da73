//! Interrupt lines of the machine as its devices see them.

use std::io;
use std::sync::Arc;

use crate::devices::bus::Interrupt;
use crate::kvm::vm::{self, Vm};
use crate::trace::Recorder;

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
