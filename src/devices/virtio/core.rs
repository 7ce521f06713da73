//! What all transports have in common: a device with its queues and what was negotiated with the
//! driver.
//!
//! Nothing that a driver writes has an effect in the wrong state: a [`Misuse`] is returned, which
//! the transport reports (few times, see [`Reporter`]).
//!
//! ```text
//!   0 -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK = live
//!   any -- FAILED (driver) or DEVICE_NEEDS_RESET (device) --> dead -- write 0 --> 0
//! ```

pub mod saved;

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};

use super::device::{Device, Driver, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use super::error::DeviceError;
use super::names::Kind;
use super::queue::view::QueueView;
use super::queue::{QueueCounters, Setup, VirtQueue};
use crate::devices::Reporter;
use crate::memory::GuestMemory;
use crate::sync::EventFd;
use crate::trace;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const DEVICE_NEEDS_RESET: u32 = 0x40;
const FAILED: u32 = 0x80;

/// The order in which a driver sets the bits of the status (virtio 1.2, 3.1.1).
const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// Why a device interrupts its driver (virtio 1.2, 2.3 and 2.7.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The configuration space has changed, or the device needs a reset.
    Config,
    /// The device has used buffers of the queue with this index.
    Queue(usize),
}

/// A transport's way to interrupt the driver.
pub trait Interrupts: Send {
    /// Interrupt the driver for `causes`: all that one call of the device gave rise to, at least
    /// one. Called with the core locked.
    ///
    /// # Errors
    /// The host refuses.
    fn raise(&mut self, causes: &[Cause]) -> io::Result<()>;

    /// The status or the configuration space has changed, not by an access of the driver's. Called
    /// with the core locked, before the driver is interrupted for it.
    fn changed(&mut self, _device: &dyn Device, _status: u32, _config_generation: u32) {}
}

/// What a driver did though it must not, or not at this time; continues "register 0x44 was ".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misuse(pub &'static str);

const WRONG_STATE: Misuse = Misuse("written in the wrong state");

/// A device, its queues, and how far its driver has come.
pub struct Core {
    device: Box<dyn Device>,
    queues: Vec<VirtQueue>,
    timer: OwnedFd,
    interrupts: Box<dyn Interrupts>,
    /// Of the call that ends; kept for its allocation.
    causes: Vec<Cause>,
    reporter: Reporter,
    recorder: Option<trace::Queues>,
    negotiation: Negotiation,
}

/// What driver and device have negotiated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Negotiation {
    status: u32,
    driver_features: u64,
    /// The driver accepted a feature past bit 63, where none is offered.
    features_beyond: bool,
    config_generation: u32,
}

/// What the machine and the host's side of the device call.
impl Core {
    /// The core of `device`, which uses `memory`, interrupts its driver by `interrupts` and reports
    /// a driver's faults to `reporter`.
    ///
    /// # Errors
    /// No file descriptor is left, or a queue size is not allowed.
    pub fn new(
        memory: GuestMemory,
        device: Box<dyn Device>,
        interrupts: Box<dyn Interrupts>,
        reporter: Reporter,
    ) -> io::Result<Self> {
        let queues = device
            .queue_max_sizes()
            .iter()
            .enumerate()
            .map(|(index, &max_size)| VirtQueue::new(index, max_size, memory.clone()))
            .collect::<io::Result<_>>()?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            device,
            queues,
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            interrupts,
            causes: Vec::new(),
            reporter,
            recorder: None,
            negotiation: Negotiation::default(),
        })
    }

    /// Record what passes through the queues from now on.
    pub fn record(&mut self, recorder: trace::Recorder) {
        self.recorder = Some(trace::Queues::new(recorder, self.queues.len()));
    }

    /// The queues' eventfds, in their order: readable when the queue is to be processed. The
    /// machine has a notification raise them, and polls them; [`Core::process`] lowers them.
    pub fn queue_events(&self) -> impl ExactSizeIterator<Item = &EventFd> {
        self.queues.iter().map(VirtQueue::event)
    }

    /// Readable when [`Core::alarm`] is to be called.
    pub fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// What passed through each queue so far.
    pub fn counters(&self) -> impl ExactSizeIterator<Item = QueueCounters> {
        self.queues.iter().map(|queue| queue.counters)
    }

    /// The queues as they lie in memory.
    pub fn queues(&self) -> Vec<QueueView> {
        self.queues.iter().map(VirtQueue::view).collect()
    }

    /// Have the device handle queue `index`: its eventfd became readable, or the host can continue.
    /// Without a driver, nothing happens.
    pub fn process(&mut self, index: usize) {
        let Some(queue) = self.queues.get(index) else {
            return;
        };
        // Before the ring is looked at, so that no notification is lost in between.
        queue.event().lower();
        self.process_notified(index);
    }

    /// As [`Core::process`], for a thread that each notification wakes (EPOLLET): the eventfd stays
    /// raised.
    pub fn process_notified(&mut self, index: usize) {
        let live = self.is_live();
        if let Some(queue) = self.queues.get_mut(index).filter(|_| live) {
            queue.counters.notifications += 1;
            if let Some(recorder) = &mut self.recorder {
                recorder.notified(index);
            }
            self.call(|device, driver| device.process(index, driver));
        }
    }

    /// The timer has become readable; it may have been set again since.
    pub fn alarm(&mut self) {
        let _ = self.set_timer(Duration::ZERO);
        self.call(|device, driver| device.alarm(driver));
    }

    /// Call the device, which must be a `D`, from the host's side, whether its driver is live or
    /// not. `None` if it is no `D` or if the driver broke the rules.
    pub fn with_device<D: Device, R>(
        &mut self,
        call: impl FnOnce(&mut D, &mut Driver) -> Result<R, DeviceError>,
    ) -> Option<R> {
        self.call(|device, driver| {
            let device: &mut dyn Any = device;
            device
                .downcast_mut::<D>()
                .map(|device| call(device, driver))
                .transpose()
        })
        .flatten()
    }

    fn is_live(&self) -> bool {
        self.status() & (DRIVER_OK | DEVICE_NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// Call the device, then do what the call asks for: interrupts, a timer, the stop of the device.
    fn call<R>(
        &mut self,
        call: impl FnOnce(&mut dyn Device, &mut Driver) -> Result<R, DeviceError>,
    ) -> Option<R> {
        let mut driver = Driver {
            live: self.is_live(),
            queues: &mut self.queues,
            features: self.negotiation.driver_features,
            config_changed: false,
            alarm: None,
            reporter: &mut self.reporter,
        };
        for queue in driver.queues.iter_mut() {
            queue.begin();
        }
        let mut result = call(self.device.as_mut(), &mut driver);
        let (config_changed, alarm) = (driver.config_changed, driver.alarm);
        self.causes.clear();
        if let Some(time) = alarm {
            let set = self.set_timer(time.max(Duration::from_nanos(1)));
            result = result.and_then(|done| set.map(|()| done));
        }
        if config_changed {
            let generation = &mut self.negotiation.config_generation;
            *generation = generation.wrapping_add(1);
            self.causes.push(Cause::Config);
        }
        if let Err(error) = self.end_queues() {
            result = result.and(Err(error));
        }
        if let Err(error) = &result {
            self.reporter
                .warn(&format!("{error}; stopped until the driver resets it"));
            self.negotiation.status |= DEVICE_NEEDS_RESET;
            self.causes.push(Cause::Config); // virtio 1.2, 2.1.2
        }
        if self.causes.contains(&Cause::Config) {
            let Negotiation {
                status,
                config_generation,
                ..
            } = self.negotiation;
            self.interrupts
                .changed(&*self.device, status, config_generation);
        }
        // No interrupt before DRIVER_OK (virtio 1.2, 3.1.2).
        if !self.causes.is_empty() && self.status() & DRIVER_OK != 0 {
            let raised = self.interrupts.raise(&self.causes);
            self.report_interrupt(raised);
        }
        result.ok()
    }

    /// End the call for each queue; the first error counts.
    fn end_queues(&mut self) -> Result<(), DeviceError> {
        let mut result = Ok(());
        for queue in &mut self.queues {
            let ended = queue.end();
            let interrupt = matches!(ended, Ok(true));
            if let Some(recorder) = &mut self.recorder {
                recorder.completed(queue.index(), queue.counters.requests, interrupt);
            }
            if interrupt {
                self.causes.push(Cause::Queue(queue.index()));
            }
            result = result.and(ended.map(|_| ()));
        }
        result
    }

    /// Make the timer readable after `time`, and unreadable until then; never, if that is zero.
    fn set_timer(&self, time: Duration) -> Result<(), DeviceError> {
        let failed = |errno| DeviceError::Protocol(format!("the timer cannot be set: {errno}"));
        let it_value = Timespec::try_from(time).map_err(|_| failed(Errno::OVERFLOW))?;
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value,
        };
        let set = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
        set.map(|_| ()).map_err(failed)
    }

    /// Report an interrupt that the host refused.
    pub fn report_interrupt(&mut self, raised: io::Result<()>) {
        if let Err(error) = raised {
            self.reporter
                .warn(&format!("the interrupt could not be raised: {error}"));
        }
    }
}

/// What transports call: the driver's reads and writes.
impl Core {
    /// The device's type.
    pub fn kind(&self) -> &'static Kind {
        self.device.kind()
    }

    /// Features of the device, of rings and of all transports.
    pub fn offered(&self) -> u64 {
        self.device.features() | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
    }

    /// Features that the driver has accepted so far.
    pub fn driver_features(&self) -> u64 {
        self.negotiation.driver_features
    }

    /// The status (virtio 1.2, 2.1).
    pub fn status(&self) -> u32 {
        self.negotiation.status
    }

    /// Changes with the configuration space (virtio 1.2, 2.5.3).
    pub fn config_generation(&self) -> u32 {
        self.negotiation.config_generation
    }

    /// Read the configuration space into `data`, which is zeroed.
    pub fn config(&self, offset: u64, data: &mut [u8]) {
        self.device.config(offset, data);
    }

    /// The device, for its configuration space.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Write to the configuration space.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    /// How many queues the device has.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Queue `index`, if the device has it.
    pub fn queue(&self, index: u32) -> Option<&VirtQueue> {
        self.queues.get(usize::try_from(index).ok()?)
    }

    /// The driver accepts `features` among the 32 that begin with bit 32 * `word`.
    ///
    /// # Errors
    /// Not between DRIVER and FEATURES_OK.
    pub fn accept_features(&mut self, word: u32, features: u32) -> Result<(), Misuse> {
        if !self.between(DRIVER, FEATURES_OK) {
            return Err(WRONG_STATE);
        }
        let accepted = &mut self.negotiation.driver_features;
        match word {
            0 => set_low(accepted, features),
            1 => set_high(accepted, features),
            _ => self.negotiation.features_beyond |= features != 0,
        }
        Ok(())
    }

    /// Change the size or the areas of queue `index`.
    ///
    /// # Errors
    /// Not between FEATURES_OK and DRIVER_OK, or the queue is ready, or there is none.
    pub(super) fn set_up(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Setup),
    ) -> Result<(), Misuse> {
        let right_time = self.between(FEATURES_OK, DRIVER_OK);
        match self.queue_mut(index) {
            Some(queue) if right_time && !queue.is_ready() => {
                change(&mut queue.setup);
                Ok(())
            }
            _ => Err(WRONG_STATE),
        }
    }

    /// Use queue `index` as it was set up (`ready` is 1), or no longer (0). Rings that make no
    /// sense are reported, and the queue does not become ready.
    ///
    /// # Errors
    /// As of `Core::set_up`, or another value.
    pub fn set_ready(&mut self, index: u32, ready: u32) -> Result<(), Misuse> {
        let right_time = self.between(FEATURES_OK, DRIVER_OK);
        let event_idx = self.driver_features() & F_EVENT_IDX != 0;
        match self.queue_mut(index) {
            Some(queue) if ready == 0 => queue.stop(),
            Some(queue) if ready == 1 && right_time && !queue.is_ready() => {
                let size = queue.setup.size;
                match queue.start(event_idx) {
                    Ok(()) => self
                        .reporter
                        .debug(format_args!("queue {index} is ready, with {size} entries")),
                    Err(reason) => self
                        .reporter
                        .warn(&format!("queue {index} was not made ready: {reason}")),
                }
            }
            _ => return Err(WRONG_STATE),
        }
        Ok(())
    }

    /// The driver notifies queue `index`, by an access that reached hull.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn notify(&self, index: u32) -> Result<(), Misuse> {
        let queue = self.queue(index);
        queue
            .map(VirtQueue::notify)
            .ok_or(Misuse("given the index of no queue"))
    }

    /// The driver writes the status; 0 resets the device.
    ///
    /// # Errors
    /// A bit is taken back, out of order, or set after a failure.
    pub fn set_status(&mut self, value: u32) -> Result<(), Misuse> {
        if value == 0 {
            self.reset();
            return Ok(());
        }
        let status = self.status();
        if status & !value & !DEVICE_NEEDS_RESET != 0 {
            // A bit is never taken back, only all of them (virtio 1.2, 2.1.1).
            return Err(Misuse("written with a bit taken back"));
        }
        if value & FAILED != 0 {
            self.negotiation.status |= FAILED;
            return Ok(());
        }
        let mut reached = 0;
        for step in STEPS {
            if value & step == 0 {
                break;
            }
            if status & step == 0 && !self.take_step(step, reached)? {
                return Ok(());
            }
            reached |= step;
        }
        if value & !reached & !DEVICE_NEEDS_RESET != 0 {
            return Err(Misuse("written out of order"));
        }
        Ok(())
    }

    /// Report a misuse of the transport's register at `offset`.
    pub fn misused(&mut self, Misuse(how): Misuse, offset: u64) {
        self.reporter
            .warn(&format!("register {offset:#x} was {how}; ignored"));
    }

    fn queue_mut(&mut self, index: u32) -> Option<&mut VirtQueue> {
        self.queues.get_mut(usize::try_from(index).ok()?)
    }

    /// Whether `reached` is set in the status, and neither `not_yet` nor a sign of failure.
    fn between(&self, reached: u32, not_yet: u32) -> bool {
        let mask = reached | not_yet | DEVICE_NEEDS_RESET | FAILED;
        self.status() & mask == reached
    }

    /// Set bit `step` of the status after those of `reached`; false if the features forbid it.
    fn take_step(&mut self, step: u32, reached: u32) -> Result<bool, Misuse> {
        if self.status() != reached {
            return Err(Misuse("written after a failure, not to reset"));
        }
        if step == FEATURES_OK && !self.features_fit() {
            return Ok(false);
        }
        self.negotiation.status |= step;
        if step == DRIVER_OK {
            self.call(|device, driver| device.activate(driver));
        }
        Ok(true)
    }

    fn features_fit(&mut self) -> bool {
        let accepted = self.driver_features();
        let unknown = accepted & !self.offered();
        if unknown != 0 || self.negotiation.features_beyond {
            self.reporter.warn(&format!(
                "the driver accepted features that are not offered ({unknown:#x})"
            ));
        } else if accepted & F_VERSION_1 == 0 {
            self.reporter
                .warn("the driver is a legacy one (it did not accept VIRTIO_F_VERSION_1)");
        } else {
            self.reporter.debug(format_args!(
                "the driver accepted the features {accepted:#x}"
            ));
            return true;
        }
        false
    }

    fn reset(&mut self) {
        if self.status() != 0 {
            self.reporter.debug(format_args!("reset by the driver"));
            self.device.reset();
        }
        for queue in &mut self.queues {
            queue.reset();
        }
        self.negotiation = Negotiation {
            // Not reset, so that a reader on another vCPU does not mistake old for new.
            config_generation: self.config_generation(),
            ..Negotiation::default()
        };
    }
}

/// Replace the low 32 bits of `value`.
pub(super) fn set_low(value: &mut u64, low: u32) {
    *value = *value & !0xffff_ffff | u64::from(low);
}

/// Replace the high 32 bits of `value`.
pub(super) fn set_high(value: &mut u64, high: u32) {
    *value = *value & 0xffff_ffff | u64::from(high) << 32;
}
