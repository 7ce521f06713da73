//! Recording doubles that the device tests and fuzz targets share.

#[cfg(test)]
mod carry;

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(test)]
pub use carry::{Flips, accesses, flip, flips, goes_on};

use super::bus::Interrupt;
use super::{MachineEvents, MarkSource};

/// Counts its edges.
#[derive(Default)]
pub struct CountedInterrupt(AtomicU64);

impl CountedInterrupt {
    /// Edges since the last call.
    pub fn take(&self) -> u64 {
        self.0.swap(0, Ordering::SeqCst)
    }
}

impl Interrupt for CountedInterrupt {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Records what devices report.
#[derive(Default)]
pub struct Events(Mutex<Vec<String>>);

impl Events {
    /// The lines since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

impl MachineEvents for Events {
    fn reset(&self) {
        self.push("reset".into());
    }
    fn power_off(&self) {
        self.push("power_off".into());
    }
    fn mark(&self, source: MarkSource, code: u8) {
        self.push(format!("mark {source:?} {code:#04x}"));
    }
    fn warn(&self, device: &str, what: &str) {
        self.push(format!("{device}: {what}"));
    }
}
