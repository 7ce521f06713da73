//! What a device model is to the core that drives it, and what the driver is to the model.

use std::any::Any;
use std::time::Duration;

use super::error::DeviceError;
use super::names::Kind;
use super::queue::VirtQueue;
use crate::devices::Reporter;
use crate::devices::state::StateError;

/// VIRTIO_F_INDIRECT_DESC (virtio 1.2, 6): a descriptor may stand for a table of them.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (virtio 1.2, 6): each side names the entry from which on it wants to be
/// notified.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1 (virtio 1.2, 6): not a legacy device.
pub const F_VERSION_1: u64 = 1 << 32;

/// A virtio device's model. It has no thread and no lock, and creates no file descriptor.
///
/// [`super::core::Core`] owns it and makes one call at a time, from a vCPU's thread (`config*`,
/// `activate`, `reset`) or from the thread that processes its queues (`process`). No call may block.
///
/// Order of calls: `kind`, `features` and `queue_max_sizes` at any time and always with the same
/// answer; `config` and `write_config` at any time; `activate` once, then any number of `process`;
/// then `reset`, after which `activate` may come again. `reset` may also come without `activate`.
/// After a [`DeviceError`] only `config*` and `reset` are called.
pub trait Device: Any + Send {
    /// The device type, with the names of its parts for inspections.
    fn kind(&self) -> &'static Kind;

    /// Feature bits of the device type, 0 to 23 and 50 to 127. The core adds those of rings and
    /// transport.
    fn features(&self) -> u64;

    /// Most entries of each queue, a power of two up to 32768; as many queues as elements.
    fn queue_max_sizes(&self) -> &[u16];

    /// The driver reads `data.len()` bytes of the configuration space at `offset`; `data` is
    /// zeroed before, and bytes beyond the space's end stay zero (see [`read_config_bytes`]).
    fn config(&self, offset: u64, data: &mut [u8]);

    /// The driver writes to the configuration space, which is read-only by default.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver set DRIVER_OK: the queues can be used, and `driver` has the negotiated
    /// features.
    ///
    /// # Errors
    /// The driver chose something that cannot work.
    fn activate(&mut self, driver: &mut Driver) -> Result<(), DeviceError>;

    /// Return to the state after creation, except for what belongs to the host.
    fn reset(&mut self);

    /// Handle the chains in queue `queue`, until [`VirtQueue::pop`] returns none or the host takes
    /// no more. Called after a notification, when the host can continue, and at times without a
    /// reason.
    ///
    /// # Errors
    /// The driver broke the rules of ring or device.
    fn process(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError>;

    /// The time of [`Driver::wake_in`] is over; the driver may have reset the device since.
    ///
    /// # Errors
    /// As in `process`.
    fn alarm(&mut self, _driver: &mut Driver) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The state that another device of this type needs to continue, beside what the core saves
    /// (features, queues). No vCPU runs, no request is being served, and every chain is available,
    /// used, or held by the device, which then saves its [`super::queue::Chain::head`].
    ///
    /// # Errors
    /// It cannot be saved as it is now.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(Vec::new())
    }

    /// Continue from `state`: the result of [`Device::save`], or broken or malicious bytes. Called
    /// instead of `activate`, with the driver as it was ([`VirtQueue::reclaim`] returns the chains
    /// that the device held); afterwards each queue is processed once.
    ///
    /// # Errors
    /// `state` is not that of such a device.
    fn load(&mut self, state: &[u8], _driver: &mut Driver) -> Result<(), StateError> {
        if state.is_empty() {
            return Ok(());
        }
        Err(StateError("has no state, and is given one".into()))
    }
}

/// The driver's side, as a device sees it during a call.
pub struct Driver<'a> {
    pub(super) queues: &'a mut [VirtQueue],
    /// DRIVER_OK is set, and neither side has failed.
    pub(super) live: bool,
    pub(super) features: u64,
    pub(super) config_changed: bool,
    /// When [`Device::alarm`] is to be called.
    pub(super) alarm: Option<Duration>,
    pub(super) reporter: &'a mut Reporter,
}

impl Driver<'_> {
    /// Queue `index`, if the driver is live and has set the queue up.
    pub fn queue(&mut self, index: usize) -> Option<&mut VirtQueue> {
        let live = self.live;
        self.queues
            .get_mut(index)
            .filter(|queue| live && queue.is_ready())
    }

    /// Whether the driver is live and has accepted all bits of `feature`.
    pub fn has(&self, feature: u64) -> bool {
        self.live && self.features & feature == feature
    }

    /// The configuration space has changed: the driver is interrupted when this call ends.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
    }

    /// Have [`Device::alarm`] called after `time` or later. A new call replaces the last.
    pub fn wake_in(&mut self, time: Duration) {
        self.alarm = Some(time);
    }

    /// Report a fault of the driver, in one line, that the device can tolerate.
    pub fn warn(&mut self, what: &str) {
        self.reporter.warn(what);
    }
}

/// Read `data.len()` bytes at `offset` of the configuration space `space`, for [`Device::config`].
pub fn read_config_bytes(space: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let there = space.get(start..).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(there) {
        *to = *from;
    }
}
