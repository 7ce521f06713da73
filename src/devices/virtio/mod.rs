//! Virtio devices (virtio 1.2, modern only), each behind a virtio-mmio window.
//!
//! [`mmio::Transport`] is what the bus and the event loop see: registers, negotiation, queues,
//! interrupts. A [`Device`] is the model behind it, [`console`] for one. [`queue::VirtQueue`] is a
//! ring as devices use it, [`Driver`] the guest's side as a whole.
//!
//! ```text
//!  vCPU thread --- registers --> Transport --- DRIVER_OK --> Device::activate
//!  QueueNotify --- ioeventfd --> event loop -> Transport::process -> Device::process
//!  host input ---- epoll ------> event loop -> Transport::with_device -> the device's own call
//! ```

pub mod absent;
pub mod balloon;
pub mod block;
pub mod console;
pub mod front;
pub mod fs;
pub mod mmio;
pub mod names;
pub mod net;
pub mod queue;
pub mod requests;
pub mod rng;
#[cfg(any(test, fuzzing))]
#[allow(missing_docs)]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod vsock;

use std::any::Any;
use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Reporter;
use super::state::StateError;
use queue::VirtQueue;

/// VIRTIO_F_INDIRECT_DESC (virtio 1.2, 6): a descriptor may stand for a table of them.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (virtio 1.2, 6): each side says from which entry on it wants to be told.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1 (virtio 1.2, 6): not a legacy device.
pub const F_VERSION_1: u64 = 1 << 32;

/// A virtio device's model: no thread, no lock, no file descriptor of its own making.
///
/// The transport owns it and calls it one call at a time, from a vCPU's thread (`config*`,
/// `activate`, `reset`) or from the event loop's (`process`). No call may block.
///
/// Order of calls: `id`, `features` and `queue_max_sizes` at any time and always with the same
/// answer; `config` and `write_config` at any time; `activate` once, then any number of `process`;
/// then `reset`, after which `activate` may come again. `reset` may also come without `activate`.
/// After a [`DeviceError`] nothing but `config*` and `reset` comes.
pub trait Device: Any + Send {
    /// Device type (virtio 1.2, 5).
    fn id(&self) -> u32;

    /// Feature bits of the device type, 0 to 23 and 50 to 127. Ring and transport features are
    /// the transport's.
    fn features(&self) -> u64;

    /// Most entries of each queue, a power of two up to 32768; as many queues as elements.
    fn queue_max_sizes(&self) -> &[u16];

    /// The driver reads `data.len()` bytes of the configuration space at `offset`; `data` comes
    /// zeroed, which is what lies beyond the space's end (see [`read_config_bytes`]).
    fn config(&self, offset: u64, data: &mut [u8]);

    /// The driver writes to the configuration space; most have nothing to write to.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver set DRIVER_OK. The queues are up from here on; `driver` says what was
    /// negotiated.
    ///
    /// # Errors
    /// The driver chose something that cannot work.
    fn activate(&mut self, driver: &mut Driver) -> Result<(), DeviceError>;

    /// Forget the driver: back to the state after creation, but for what belongs to the host.
    fn reset(&mut self);

    /// Queue `queue` was notified, or something that held it up has gone: handle what is there,
    /// until [`VirtQueue::pop`] says that there is no more or the host takes no more. Comes at
    /// times without a reason.
    ///
    /// # Errors
    /// The driver broke the rules of ring or device.
    fn process(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError>;

    /// The time of [`Driver::wake_in`] is over; the driver may have gone meanwhile.
    ///
    /// # Errors
    /// As in `process`.
    fn alarm(&mut self, _driver: &mut Driver) -> Result<(), DeviceError> {
        Ok(())
    }

    /// What another of its kind needs to go on from here, beside what the transport knows (features,
    /// queues). No vCPU runs, nothing is being served, and the queues hold no chain that is neither
    /// available nor used but those that the device keeps in its state, by [`queue::Chain::head`].
    ///
    /// # Errors
    /// It cannot be saved as it is now.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(Vec::new())
    }

    /// Go on from `state`, which [`Device::save`] has given, or which is broken or malicious. Called
    /// instead of `activate`, with the driver as it was ([`VirtQueue::reclaim`] for the chains that
    /// the device kept); after it, each queue is processed once.
    ///
    /// # Errors
    /// It is no state of such a device.
    fn load(&mut self, state: &[u8], _driver: &mut Driver) -> Result<(), StateError> {
        match state {
            [] => Ok(()),
            _ => Err(StateError("has no state, and is given one".into())),
        }
    }
}

/// The guest's driver broke a rule; the device stops until it is reset (virtio 1.2, 2.1.1,
/// DEVICE_NEEDS_RESET).
#[derive(Debug, Error)]
pub enum DeviceError {
    /// A ring's indices or place make no sense.
    #[error("queue {queue}: the ring is broken: {reason}")]
    Ring {
        /// Index of the queue.
        queue: usize,
        /// What about it.
        reason: String,
    },
    /// A descriptor chain makes no sense.
    #[error("queue {queue}: descriptor chain {head} {reason}")]
    Chain {
        /// Index of the queue.
        queue: usize,
        /// Its first descriptor.
        head: u16,
        /// What about it.
        reason: &'static str,
    },
    /// The ring is fine, what it carries is not.
    #[error("{0}")]
    Protocol(String),
}

/// A chain that a device kept, say, makes no sense any more.
impl From<DeviceError> for StateError {
    fn from(error: DeviceError) -> Self {
        Self(format!("cannot go on with its driver: {error}"))
    }
}

/// What passed through one queue since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCounters {
    /// Descriptor chains given back to the driver.
    pub requests: u64,
    /// Bytes that the driver offered to read and bytes that were written for it, in those chains.
    pub bytes: u64,
    /// Times that the queue was processed, for a notification or because it could go on.
    pub notifications: u64,
    /// Batches after which the driver wanted an interrupt.
    pub interrupts: u64,
}

impl Add for QueueCounters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            bytes: self.bytes + other.bytes,
            notifications: self.notifications + other.notifications,
            interrupts: self.interrupts + other.interrupts,
        }
    }
}

/// The driver's side, as a device sees it during a call.
pub struct Driver<'a> {
    queues: &'a mut [VirtQueue],
    /// DRIVER_OK, and neither side has given up.
    live: bool,
    features: u64,
    config_changed: bool,
    /// When [`Device::alarm`] is to be called.
    alarm: Option<Duration>,
    reporter: &'a mut Reporter,
}

impl Driver<'_> {
    /// Queue `index`, if the driver set it up and is up itself.
    pub fn queue(&mut self, index: usize) -> Option<&mut VirtQueue> {
        let live = self.live;
        self.queues
            .get_mut(index)
            .filter(|queue| live && queue.is_ready())
    }

    /// Whether all bits of `feature` were negotiated. Nothing is while the driver is not up.
    pub fn has(&self, feature: u64) -> bool {
        self.live && self.features & feature == feature
    }

    /// The configuration space has changed: the driver is told when this call ends.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
    }

    /// Have [`Device::alarm`] called after so long, at least; the last call counts.
    pub fn wake_in(&mut self, time: Duration) {
        self.alarm = Some(time);
    }

    /// Tell the user, on one line, of a driver's fault that the device can live with.
    pub fn warn(&mut self, what: &str) {
        self.reporter.warn(what);
    }
}

/// A [`Device::config`] over the bytes of a configuration space.
pub fn read_config_bytes(space: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let there = space.get(start..).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(there) {
        *to = *from;
    }
}
