//! A queue as it is saved.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

use super::{Setup, VirtQueue};

/// All of a queue but what lies in guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::devices::virtio) struct QueueState {
    setup: Setup,
    ready: bool,
    next_avail: u16,
    next_used: u16,
    considered: u16,
}

impl QueueState {
    pub(in crate::devices::virtio) fn is_ready(&self) -> bool {
        self.ready
    }
}

impl VirtQueue {
    pub(in crate::devices::virtio) fn save(&self) -> QueueState {
        QueueState {
            setup: self.setup,
            ready: self.queue.ready(),
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
            considered: self.considered,
        }
    }

    /// Continue from `state`; the error says why not. Whether its indices fit the rings is checked
    /// when the rings are used, as with indices that a driver has written.
    pub(in crate::devices::virtio) fn load(
        &mut self,
        state: &QueueState,
        event_idx: bool,
    ) -> Result<(), String> {
        self.stop();
        self.setup = state.setup;
        if state.ready {
            self.start(event_idx)?;
            self.queue.set_next_avail(state.next_avail);
            self.queue.set_next_used(state.next_used);
            self.considered = state.considered;
        }
        Ok(())
    }
}
