//! What a driver can do wrong.

use thiserror::Error;

use crate::devices::state::StateError;

/// The guest's driver broke a rule; the device stops until it is reset (virtio 1.2, 2.1.1,
/// DEVICE_NEEDS_RESET).
#[derive(Debug, Error)]
pub enum DeviceError {
    /// A ring's indices or place make no sense.
    #[error("queue {queue}: the ring is broken: {reason}")]
    Ring {
        /// Index of the queue.
        queue: usize,
        /// Continues "the ring is broken: ".
        reason: String,
    },
    /// A descriptor chain makes no sense.
    #[error("queue {queue}: descriptor chain {head} {reason}")]
    Chain {
        /// Index of the queue.
        queue: usize,
        /// Index of its first descriptor.
        head: u16,
        /// Continues "descriptor chain 3 ".
        reason: &'static str,
    },
    /// The ring is fine, what it carries is not.
    #[error("{0}")]
    Protocol(String),
}

/// For a chain that the device held when it was saved.
impl From<DeviceError> for StateError {
    fn from(error: DeviceError) -> Self {
        Self(format!("cannot resume with its driver: {error}"))
    }
}
