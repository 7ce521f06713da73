//! What the vCPU threads share with the rest of the machine.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::buses::Buses;
use super::events::Events;
use super::explain::Explain;
use super::outbox::Outbox;
use crate::trace::Trace;

/// What every vCPU thread shares.
pub struct Shared {
    /// The devices of the machine, by address.
    pub buses: Buses,
    /// Where ends and marks go.
    pub events: Arc<Events>,
    /// Outputs whose vCPU waits while they are full.
    pub outboxes: Vec<Arc<Outbox>>,
    /// When the first vCPU entered the guest, on the machine's clock.
    pub first_entry: OnceLock<Duration>,
    /// Where exits are recorded, for `--trace`.
    pub trace: Option<Arc<Trace>>,
    /// Explains exits on standard error, for `--explain=exits`.
    pub explain: Option<Explain>,
}
