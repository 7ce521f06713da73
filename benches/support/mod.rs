//! What devices report to in the benches.

use std::io;

use hull::devices::bus::Interrupt;
use hull::devices::{MachineEvents, MarkSource};

/// Takes interrupts and events of a machine that has no vCPU. A warning ends the bench.
pub struct Nobody;

impl Interrupt for Nobody {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

impl MachineEvents for Nobody {
    fn reset(&self) {}
    fn power_off(&self) {}
    fn mark(&self, _: MarkSource, _: u8) {}
    fn warn(&self, device: &str, what: &str) {
        panic!("{device}: {what}");
    }
}
