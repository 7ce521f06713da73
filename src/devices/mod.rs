//! Emulated devices and the bus they sit on. No KVM type appears here.
//!
//! A device knows guest memory, its interrupt ([`bus::Interrupt`]) and [`MachineEvents`], by which
//! it reports to the machine. [`legacy`] has the devices of a PC at fixed ports, [`virtio`] those
//! behind a virtio transport.
//!
//! All that a guest writes may be hostile: no access panics, allocates without a limit, or takes
//! longer than a limit that the code names.

#![forbid(unsafe_code)]
#![cfg_attr(
    not(any(test, fuzzing)),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod bus;
pub mod legacy;
pub mod rate;
pub mod register;
pub mod state;
#[cfg(any(test, fuzzing))]
#[allow(missing_docs)]
pub mod testing;
pub mod virtio;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The device by which a guest set a mark (see [`MachineEvents::mark`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkSource {
    /// The boot timer's window ([`legacy::boot_timer`]).
    BootTimer,
    /// The debug port ([`legacy::debug_port`]).
    DebugPort,
}

/// What devices report to their machine.
///
/// Called on the device's current thread, often a vCPU's, with the device locked: an implementation
/// must not block, nor call a device.
pub trait MachineEvents: Send + Sync {
    /// The guest asked for a reset (i8042, ACPI reset register).
    fn reset(&self);
    /// The guest asked to be powered off (ACPI S5).
    fn power_off(&self);
    /// The guest set a mark: a point in time that a report shows.
    fn mark(&self, source: MarkSource, code: u8);
    /// A guest broke `device`'s rules, or the host failed it; `what` is one line for the log.
    /// A [`Reporter`] keeps the number of such lines small.
    fn warn(&self, device: &str, what: &str);
}

/// Different warnings that one device may log in its life.
const MAX_WARNINGS: usize = 16;
/// Debug lines that one device may log in its life: some resets, each with all queues.
const MAX_DEBUG_LINES: usize = 256;
/// How often a device logs the number of lines that it held back.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(60);

/// A device's way to the log, which a guest cannot flood: a repeated line and those past the limits
/// are counted, and the count is logged now and then and at the device's end.
pub struct Reporter {
    events: Arc<dyn MachineEvents>,
    device: String,
    warnings: Vec<String>,
    debug_lines: usize,
    held_back: u64,
    summarized: Instant,
}

impl Reporter {
    /// A reporter for the device that messages call `device`.
    pub fn new(events: Arc<dyn MachineEvents>, device: impl Into<String>) -> Self {
        Self {
            events,
            device: device.into(),
            warnings: Vec::new(),
            debug_lines: 0,
            held_back: 0,
            summarized: Instant::now(),
        }
    }

    /// Log what the guest or the host does wrong. A full disk of the host fails every request with
    /// the same line, which is logged once.
    pub fn warn(&mut self, what: &str) {
        if self.warnings.len() == MAX_WARNINGS || self.warnings.iter().any(|known| known == what) {
            return self.hold_back();
        }
        self.warnings.push(what.into());
        self.events.warn(&self.device, what);
    }

    /// Log a step of the driver, for debugging.
    pub fn debug(&mut self, what: fmt::Arguments) {
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        if self.debug_lines == MAX_DEBUG_LINES {
            return self.hold_back();
        }
        self.debug_lines += 1;
        log::debug!("{}: {what}", self.device);
    }

    fn hold_back(&mut self) {
        self.held_back += 1;
        if self.summarized.elapsed() >= SUMMARY_INTERVAL {
            self.summarize();
        }
    }

    fn summarize(&mut self) {
        self.summarized = Instant::now();
        let count = std::mem::take(&mut self.held_back);
        if count > 0 {
            self.events
                .warn(&self.device, &format!("{count} more like it"));
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.summarize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_flood_the_log() {
        let events = Arc::new(testing::Events::default());
        let mut reporter = Reporter::new(events.clone(), "disk");
        for n in 0..1000 {
            reporter.warn("broken");
            reporter.warn(&format!("broken in another way: {n}"));
        }
        drop(reporter);
        let lines = events.take();
        assert_eq!(lines.len(), MAX_WARNINGS + 1);
        assert_eq!(lines[0], "disk: broken");
        assert_eq!(lines[1], "disk: broken in another way: 0");
        assert_eq!(lines[2], "disk: broken in another way: 1");
        let last = lines.last().map(String::as_str);
        assert_eq!(last, Some("disk: 1984 more like it"));
    }
}
