//! A core as it is saved, and how another continues from that.

use serde::{Deserialize, Serialize};

use super::{Core, DEVICE_NEEDS_RESET, FAILED, FEATURES_OK, Negotiation, STEPS};
use crate::devices::register::flags;
use crate::devices::state::StateError;
use crate::devices::virtio::device::{F_EVENT_IDX, F_VERSION_1};
use crate::devices::virtio::names;
use crate::devices::virtio::queue::state::QueueState;

/// All of a core but what lies in guest memory.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreState {
    device_id: u32,
    negotiation: Negotiation,
    queues: Vec<QueueState>,
    /// The device's own; empty while it is not live.
    device: Vec<u8>,
}

impl Core {
    /// What another core of such a device needs to continue.
    ///
    /// # Errors
    /// The device cannot be saved as it is now.
    pub fn save(&self) -> Result<CoreState, StateError> {
        let device = if self.is_live() {
            self.device.save()?
        } else {
            Vec::new()
        };
        Ok(CoreState {
            device_id: self.device.kind().id,
            negotiation: self.negotiation.clone(),
            queues: self.queues.iter().map(|queue| queue.save()).collect(),
            device,
        })
    }

    /// Continue from `state`, which may be broken or malicious. After an error the core is reset.
    ///
    /// # Errors
    /// `state` is not that of such a device with a driver.
    pub fn load(&mut self, state: CoreState) -> Result<(), StateError> {
        let loaded = self.take_over(state);
        if loaded.is_err() {
            self.reset();
        }
        loaded
    }

    fn take_over(&mut self, state: CoreState) -> Result<(), StateError> {
        self.judge(&state)?;
        let event_idx = state.negotiation.driver_features & F_EVENT_IDX != 0;
        for (index, (queue, state)) in self.queues.iter_mut().zip(&state.queues).enumerate() {
            let loaded = queue.load(state, event_idx);
            loaded.map_err(|reason| StateError(format!("cannot use queue {index}: {reason}")))?;
        }
        self.negotiation = state.negotiation;
        if self.is_live() {
            let mut loaded = Ok(());
            self.call(|device, driver| {
                loaded = device.load(&state.device, driver);
                Ok(())
            });
            loaded?;
        } else if !state.device.is_empty() {
            return refuse("has a driver that is not live, and the state of a device with one");
        }
        // Neither notifications on their way nor what a device left for its next turn is saved.
        for queue in self.queues.iter().filter(|queue| queue.is_ready()) {
            queue.notify();
        }
        Ok(())
    }

    /// Refuse what no driver can have done, or not with this device.
    fn judge(&self, state: &CoreState) -> Result<(), StateError> {
        let id = self.device.kind().id;
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
        let status = state.negotiation.status;
        let steps = status & !(FAILED | DEVICE_NEEDS_RESET);
        let mut reached = 0;
        let in_order = STEPS.iter().any(|step| {
            reached |= step;
            steps == reached
        });
        if steps != 0 && !in_order {
            return Err(StateError(format!(
                "has a status ({status:#x}) that no driver can have reached"
            )));
        }
        if status & FEATURES_OK != 0 {
            return self.judge_features(&state.negotiation);
        }
        if state.queues.iter().any(QueueState::is_ready) {
            return refuse("has a queue in use before its features were negotiated");
        }
        Ok(())
    }

    fn judge_features(&self, negotiation: &Negotiation) -> Result<(), StateError> {
        let used = negotiation.driver_features;
        let unknown = used & !self.offered();
        let known = self.device.kind().features;
        if unknown != 0 {
            let names = [flags(unknown, known), flags(unknown, names::COMMON)];
            return Err(StateError(format!(
                "does not offer features that the guest uses ({:#x}: {})",
                unknown,
                names.join(" ").trim()
            )));
        }
        if negotiation.features_beyond || used & F_VERSION_1 == 0 {
            return refuse("has negotiated features that no driver can have negotiated");
        }
        Ok(())
    }
}

fn refuse(why: &str) -> Result<(), StateError> {
    Err(StateError(why.into()))
}
