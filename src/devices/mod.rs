//! Emulated devices and the bus they sit on. No KVM type appears here.
//!
//! A device sees guest memory, an [`bus::Interrupt`] to raise, [`MachineEvents`] to tell the
//! machine, and nothing else. [`legacy`] holds what a PC has at fixed ports, `virtio` the
//! devices behind virtio-mmio windows.
//!
//! Everything that a guest writes is hostile: no access panics, allocates without a bound, or
//! takes longer than a bound that the code names.

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

use std::sync::Arc;

/// Who set a mark (see [`MachineEvents::mark`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkSource {
    /// The boot timer's window ([`legacy::boot_timer`]).
    BootTimer,
    /// The debug port ([`legacy::debug_port`]).
    DebugPort,
}

/// What devices tell the machine they are part of.
///
/// Called on whatever thread the device runs on, often a vCPU's, with the device locked: an
/// implementation must not block, nor call back into a device.
pub trait MachineEvents: Send + Sync {
    /// The guest asked for a reset (i8042, ACPI reset register).
    fn reset(&self);
    /// The guest asked to be powered off (ACPI S5).
    fn power_off(&self);
    /// The guest set a mark, a point in time worth remembering.
    fn mark(&self, source: MarkSource, code: u8);
    /// A guest broke `device`'s rules, or the host failed it; `what` is one line for stderr.
    /// The devices keep the number of such lines small (see [`Reporter`]).
    fn warn(&self, device: &str, what: &str);
}

/// Faults that one device may report in its life.
const REPORTS_PER_DEVICE: usize = 16;

/// A device's way to [`MachineEvents::warn`], of which a guest cannot make a flood.
pub struct Reporter {
    events: Arc<dyn MachineEvents>,
    device: String,
    /// What was reported: the same again is no news, and a host's disk that is full fails every
    /// request.
    said: Vec<String>,
}

impl Reporter {
    /// A reporter for the device that messages call `device`.
    pub fn new(events: Arc<dyn MachineEvents>, device: impl Into<String>) -> Self {
        Self {
            events,
            device: device.into(),
            said: Vec::new(),
        }
    }

    /// Report one line, unless it was reported already or this device has used up its reports.
    pub fn warn(&mut self, what: &str) {
        let left = REPORTS_PER_DEVICE.saturating_sub(self.said.len());
        if left == 0 || self.said.iter().any(|said| said == what) {
            return;
        }
        self.said.push(what.into());
        match left {
            1 => self
                .events
                .warn(&self.device, &format!("{what} (not reported from now on)")),
            _ => self.events.warn(&self.device, what),
        }
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
        let lines = events.take();
        assert_eq!(lines.len(), REPORTS_PER_DEVICE);
        assert_eq!(lines[0], "disk: broken");
        assert_eq!(lines[1], "disk: broken in another way: 0");
        assert_eq!(lines[2], "disk: broken in another way: 1");
        assert!(
            lines
                .last()
                .is_some_and(|line| line.contains("not reported from now on"))
        );
    }
}
