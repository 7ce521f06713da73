//! A window as it is saved, and how another goes on from that.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::{
    DEVICE_NEEDS_RESET, FAILED, FEATURES_OK, INTERRUPT_CONFIG, INTERRUPT_USED, Registers, STEPS,
    Transport,
};
use crate::devices::register::flags;
use crate::devices::state::{StateError, decode, encode};
use crate::devices::virtio::queue::state::QueueState;
use crate::devices::virtio::{F_EVENT_IDX, F_VERSION_1, names};

/// A window.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    device_id: u32,
    registers: Registers,
    interrupt_status: u32,
    queues: Vec<QueueState>,
    /// The device's own; nothing while it has no driver that it works with.
    device: Vec<u8>,
}

impl Transport {
    /// See [`crate::devices::bus::BusDevice::save`]. Of a hidden window there is nothing to save.
    pub(super) fn save_state(&self) -> Result<Vec<u8>, StateError> {
        if self.hidden {
            return Ok(Vec::new());
        }
        let device = match self.is_live() {
            true => self.device.save()?,
            false => Vec::new(),
        };
        encode(&State {
            device_id: self.device.id(),
            registers: self.registers.clone(),
            interrupt_status: self.interrupt_status.load(Ordering::Acquire),
            queues: self.queues.iter().map(|queue| queue.save()).collect(),
            device,
        })
    }

    /// See [`crate::devices::bus::BusDevice::load`].
    pub(super) fn load_state(&mut self, state: &[u8]) -> Result<(), StateError> {
        match (self.hidden, state) {
            (true, []) => return Ok(()),
            (true, _) => return refuse("is hidden from the guest, and is given a state"),
            (false, []) => return refuse("has no state to go on from: it was hidden then"),
            (false, _) => {}
        }
        let loaded = self.take_over(decode(state)?);
        if loaded.is_err() {
            self.reset();
        }
        loaded
    }

    fn take_over(&mut self, state: State) -> Result<(), StateError> {
        self.judge(&state)?;
        let event_idx = state.registers.driver_features & F_EVENT_IDX != 0;
        for (index, (queue, state)) in self.queues.iter_mut().zip(&state.queues).enumerate() {
            let loaded = queue.load(state, event_idx);
            loaded.map_err(|reason| StateError(format!("cannot use queue {index}: {reason}")))?;
        }
        self.registers = state.registers;
        let reasons = state.interrupt_status & (INTERRUPT_USED | INTERRUPT_CONFIG);
        self.interrupt_status.store(reasons, Ordering::Release);
        if self.is_live() {
            let mut loaded = Ok(());
            self.call(|device, driver| {
                loaded = device.load(&state.device, driver);
                Ok(())
            });
            loaded?;
        } else if !state.device.is_empty() {
            return refuse("has a driver that is not up, and a state of one that is");
        }
        // Notifications that were on their way are not saved, nor is what a device left for its next
        // turn.
        for queue in self.queues.iter().filter(|queue| queue.is_ready()) {
            queue.notify();
        }
        // An edge that was on its way neither; one more does no harm.
        if reasons != 0 {
            self.raise(reasons);
        }
        Ok(())
    }

    /// What a driver could not have brought about, or not with this device.
    fn judge(&self, state: &State) -> Result<(), StateError> {
        let id = self.device.id();
        if state.device_id != id {
            return Err(StateError(format!(
                "is a virtio device of type {id}, and is given the state of one of type {}",
                state.device_id
            )));
        }
        if state.queues.len() != self.queues.len() {
            return Err(StateError(format!(
                "has {} queues, and is given the state of {}",
                self.queues.len(),
                state.queues.len()
            )));
        }
        let registers = &state.registers;
        let steps = registers.status & !(FAILED | DEVICE_NEEDS_RESET);
        let mut reached = 0;
        let in_order = STEPS.iter().any(|step| {
            reached |= step;
            steps == reached
        });
        if steps != 0 && !in_order {
            return Err(StateError(format!(
                "has a status ({:#x}) that no driver can have reached",
                registers.status
            )));
        }
        if registers.status & FEATURES_OK != 0 {
            return self.judge_features(registers);
        }
        match state.queues.iter().any(QueueState::is_ready) {
            true => refuse("has a queue in use before its features were agreed on"),
            false => Ok(()),
        }
    }

    fn judge_features(&self, registers: &Registers) -> Result<(), StateError> {
        let used = registers.driver_features;
        let unknown = used & !self.offered();
        let known = names::kind(self.device.id()).map_or(&[][..], |kind| kind.features);
        if unknown != 0 {
            let names = [flags(unknown, known), flags(unknown, names::COMMON)];
            return Err(StateError(format!(
                "does not offer features that the guest uses ({:#x}: {})",
                unknown,
                names.join(" ").trim()
            )));
        }
        match registers.features_beyond || used & F_VERSION_1 == 0 {
            true => refuse("has agreed on features that no driver can have agreed on"),
            false => Ok(()),
        }
    }
}

fn refuse(why: &str) -> Result<(), StateError> {
    Err(StateError(why.into()))
}
