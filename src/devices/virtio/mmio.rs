//! The virtio-mmio transport, version 2 (virtio 1.2, 4.2.2): registers, negotiation, interrupts.
//!
//! A [`Transport`] sits on the bus and in the event loop at once, behind one mutex. Nothing that
//! a driver writes has an effect in the wrong state; it is reported instead (few times, see
//! [`Reporter`]), and reading the register back tells the driver.
//!
//! ```text
//!   0 -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK = live
//!   any -- FAILED (driver) or DEVICE_NEEDS_RESET (device) --> dead -- write 0 --> 0
//! ```

mod state;
pub mod view;

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Setup, VirtQueue};
use super::{
    Device, DeviceError, Driver, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, QueueCounters, absent,
};
use crate::devices::Reporter;
use crate::devices::bus::{BusDevice, Interrupt};
use crate::devices::register::Register;
use crate::devices::state::StateError;
use crate::memory::GuestMemory;
use crate::trace;

/// Offset of QueueNotify, where the machine puts an ioeventfd a queue (datamatch: its index).
pub const QUEUE_NOTIFY: u64 = 0x50;

/// Registers, by offset (virtio 1.2, table 4.1).
pub(super) mod register {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = super::QUEUE_NOTIFY;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_SEL: u64 = 0x0ac;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;

    /// As the table names them.
    pub fn name(offset: u64) -> Option<&'static str> {
        Some(match offset {
            MAGIC_VALUE => "MagicValue",
            VERSION => "Version",
            DEVICE_ID => "DeviceID",
            VENDOR_ID => "VendorID",
            DEVICE_FEATURES => "DeviceFeatures",
            DEVICE_FEATURES_SEL => "DeviceFeaturesSel",
            DRIVER_FEATURES => "DriverFeatures",
            DRIVER_FEATURES_SEL => "DriverFeaturesSel",
            QUEUE_SEL => "QueueSel",
            QUEUE_NUM_MAX => "QueueNumMax",
            QUEUE_NUM => "QueueNum",
            QUEUE_READY => "QueueReady",
            QUEUE_NOTIFY => "QueueNotify",
            INTERRUPT_STATUS => "InterruptStatus",
            INTERRUPT_ACK => "InterruptACK",
            STATUS => "Status",
            QUEUE_DESC_LOW => "QueueDescLow",
            QUEUE_DESC_HIGH => "QueueDescHigh",
            QUEUE_DRIVER_LOW => "QueueDriverLow",
            QUEUE_DRIVER_HIGH => "QueueDriverHigh",
            QUEUE_DEVICE_LOW => "QueueDeviceLow",
            QUEUE_DEVICE_HIGH => "QueueDeviceHigh",
            SHM_SEL => "SHMSel",
            SHM_LEN_LOW..=SHM_BASE_HIGH => "SHMLen, SHMBase",
            CONFIG_GENERATION => "ConfigGeneration",
            CONFIG.. => "Config",
            _ => return None,
        })
    }
}

pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"virt");
pub(super) const VERSION: u32 = 2;
pub(super) const VENDOR: u32 = u32::from_le_bytes(*b"hull");

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const DEVICE_NEEDS_RESET: u32 = 0x40;
const FAILED: u32 = 0x80;

/// The order in which a driver sets the bits of Status (virtio 1.2, 3.1.1).
const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

const INTERRUPT_USED: u32 = 1;
const INTERRUPT_CONFIG: u32 = 2;

/// A virtio-mmio window with a device behind it.
pub struct Transport {
    device: Box<dyn Device>,
    queues: Vec<VirtQueue>,
    timer: OwnedFd,
    interrupt: Arc<dyn Interrupt>,
    reporter: Reporter,
    recorder: Option<trace::Queues>,
    /// The guest is not to find the device yet.
    hidden: bool,
    registers: Registers,
    /// InterruptStatus, which [`super::front::Front`] reads and clears as well.
    pub(super) interrupt_status: Arc<AtomicU32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    /// The driver accepted a feature past bit 63, where none is offered.
    features_beyond: bool,
    queue_sel: u32,
    config_generation: u32,
}

impl Transport {
    /// The window of `device`, which uses `memory`, raises `interrupt` and has `reporter` tell
    /// of a driver's faults.
    ///
    /// # Errors
    /// No more file descriptors, or a queue size that the device must not have.
    pub fn new(
        memory: GuestMemory,
        device: Box<dyn Device>,
        interrupt: Arc<dyn Interrupt>,
        reporter: Reporter,
    ) -> io::Result<Self> {
        let queues = device
            .queue_max_sizes()
            .iter()
            .enumerate()
            .map(|(index, &max_size)| VirtQueue::new(index, max_size, memory.clone()))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            device,
            queues,
            timer: timer()?,
            interrupt,
            reporter,
            recorder: None,
            hidden: false,
            registers: Registers::default(),
            interrupt_status: Arc::default(),
        })
    }

    /// Have the guest find no device here until [`Transport::reveal`]; to be called before it looks.
    pub fn hide(&mut self) {
        self.hidden = true;
    }

    /// End [`Transport::hide`]: from now on whoever probes the window finds the device.
    pub fn reveal(&mut self) {
        self.hidden = false;
    }

    /// Have what passes through the queues recorded from now on.
    pub fn record(&mut self, recorder: trace::Recorder) {
        self.recorder = Some(trace::Queues::new(recorder, self.queues.len()));
    }

    /// One eventfd a queue, in their order; readable when the queue is to be processed. For the
    /// machine to register at [`QUEUE_NOTIFY`] and to poll; [`Transport::process`] empties them.
    pub fn queue_events(&self) -> impl ExactSizeIterator<Item = &EventFd> {
        self.queues.iter().map(VirtQueue::event)
    }

    /// Readable when [`Transport::alarm`] is to be called.
    pub fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// What passed through each queue so far.
    pub fn counters(&self) -> impl ExactSizeIterator<Item = QueueCounters> {
        self.queues.iter().map(|queue| queue.counters)
    }

    /// Have the device handle queue `index`: its eventfd became readable, or the host takes again
    /// what it did not take before. Without a driver, nothing happens.
    pub fn process(&mut self, index: usize) {
        let Some(queue) = self.queues.get(index) else {
            return;
        };
        // Emptied before the ring is looked at, so that no notification falls in between. An
        // error says that it was empty already.
        let _ = queue.event().read();
        self.process_notified(index);
    }

    /// As [`Transport::process`], for who is woken by each notification (EPOLLET) and so has no
    /// need to empty the eventfd.
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

    /// The timer has become readable, or has been taken care of meanwhile.
    pub fn alarm(&mut self) {
        let _ = self.set_timer(Duration::ZERO);
        self.call(|device, driver| device.alarm(driver));
    }

    /// Call the device, which must be a `D`, from the host's side, with the driver as it is now
    /// (perhaps not up). `None` if it is no `D` or if the call found out that the driver broke
    /// the rules.
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
        self.registers.status & (DRIVER_OK | DEVICE_NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// Call the device, then do what the call asks for: interrupts, the end of the driver.
    fn call<R>(
        &mut self,
        call: impl FnOnce(&mut dyn Device, &mut Driver) -> Result<R, DeviceError>,
    ) -> Option<R> {
        let mut driver = Driver {
            live: self.is_live(),
            queues: &mut self.queues,
            features: self.registers.driver_features,
            config_changed: false,
            alarm: None,
            reporter: &mut self.reporter,
        };
        for queue in driver.queues.iter_mut() {
            queue.begin();
        }
        let mut result = call(self.device.as_mut(), &mut driver);
        let mut reasons = 0;
        let (config_changed, alarm) = (driver.config_changed, driver.alarm);
        if let Some(time) = alarm {
            let set = self.set_timer(time.max(Duration::from_nanos(1)));
            result = result.and_then(|done| set.map(|()| done));
        }
        if config_changed {
            self.registers.config_generation = self.registers.config_generation.wrapping_add(1);
            reasons |= INTERRUPT_CONFIG;
        }
        for queue in &mut self.queues {
            let ended = queue.end();
            if let Some(recorder) = &mut self.recorder {
                let interrupt = matches!(ended, Ok(true));
                recorder.completed(queue.index(), queue.counters.requests, interrupt);
            }
            match ended {
                Ok(true) => reasons |= INTERRUPT_USED,
                Ok(false) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        if let Err(error) = &result {
            self.reporter
                .warn(&format!("{error}; stopped until the driver resets it"));
            self.registers.status |= DEVICE_NEEDS_RESET;
            reasons |= INTERRUPT_CONFIG; // virtio 1.2, 2.1.2
        }
        // Before DRIVER_OK there is nobody to tell (virtio 1.2, 3.1.2).
        if reasons != 0 && self.registers.status & DRIVER_OK != 0 {
            self.raise(reasons);
        }
        result.ok()
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

    fn raise(&mut self, reasons: u32) {
        self.interrupt_status.fetch_or(reasons, Ordering::AcqRel);
        if let Err(error) = self.interrupt.trigger() {
            self.reporter
                .warn(&format!("the interrupt could not be raised: {error}"));
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn selected(&mut self) -> Option<&mut VirtQueue> {
        let index = usize::try_from(self.registers.queue_sel).ok()?;
        self.queues.get_mut(index)
    }
}

fn timer() -> io::Result<OwnedFd> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    Ok(timerfd_create(TimerfdClockId::Monotonic, flags)?)
}

impl BusDevice for Transport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if self.hidden {
            absent::read(offset, data);
        } else if let Some(offset) = offset.checked_sub(register::CONFIG) {
            self.device.config(offset, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *data = self.read_register(offset).to_le_bytes();
        } else {
            self.misused("read other than by aligned 32-bit accesses", offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if self.hidden {
            // As into an empty window.
        } else if let Some(offset) = offset.checked_sub(register::CONFIG) {
            self.device.write_config(offset, data);
        } else if let Ok(&data) = <&[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            self.write_register(offset, u32::from_le_bytes(data));
        } else {
            self.misused("written other than by aligned 32-bit accesses", offset);
        }
    }

    fn state(&self) -> Vec<Register> {
        self.registers()
    }

    fn register(&self, offset: u64, _write: bool) -> Option<&'static str> {
        register::name(offset)
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        self.save_state()
    }

    fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.load_state(state)
    }
}

/// The registers.
impl Transport {
    fn read_register(&mut self, offset: u64) -> u32 {
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.device.id(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => match self.registers.device_features_sel {
                0 => self.offered() as u32,
                1 => (self.offered() >> 32) as u32,
                _ => 0,
            },
            register::QUEUE_NUM_MAX => self.selected().map_or(0, |queue| queue.max_size().into()),
            register::QUEUE_READY => self.selected().map_or(0, |queue| queue.is_ready().into()),
            register::INTERRUPT_STATUS => self.interrupt_status.load(Ordering::Acquire),
            register::STATUS => self.registers.status,
            // No shared memory: length and address read as -1 (virtio 1.2, 4.2.2).
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            register::CONFIG_GENERATION => self.registers.config_generation,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.registers.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.registers.driver_features_sel = value,
            register::DRIVER_FEATURES => self.write_features(value),
            register::QUEUE_SEL => self.registers.queue_sel = value,
            register::QUEUE_NUM => self.set_up(offset, |setup| setup.size = value),
            register::QUEUE_DESC_LOW => {
                self.set_up(offset, |setup| set_low(&mut setup.descriptors, value))
            }
            register::QUEUE_DESC_HIGH => {
                self.set_up(offset, |setup| set_high(&mut setup.descriptors, value))
            }
            register::QUEUE_DRIVER_LOW => {
                self.set_up(offset, |setup| set_low(&mut setup.available, value))
            }
            register::QUEUE_DRIVER_HIGH => {
                self.set_up(offset, |setup| set_high(&mut setup.available, value))
            }
            register::QUEUE_DEVICE_LOW => {
                self.set_up(offset, |setup| set_low(&mut setup.used, value))
            }
            register::QUEUE_DEVICE_HIGH => {
                self.set_up(offset, |setup| set_high(&mut setup.used, value))
            }
            register::QUEUE_READY => self.write_queue_ready(value),
            register::QUEUE_NOTIFY => match self.queues.get(value as usize) {
                Some(queue) => queue.notify(),
                None => self.misused("given the index of no queue", offset),
            },
            register::INTERRUPT_ACK => {
                self.interrupt_status.fetch_and(!value, Ordering::AcqRel);
            }
            register::STATUS => self.write_status(value),
            register::SHM_SEL => {}
            _ => self.misused("written though it is none to write", offset),
        }
    }

    fn write_features(&mut self, value: u32) {
        if !self.between(DRIVER, FEATURES_OK) {
            return self.misused("written in the wrong state", register::DRIVER_FEATURES);
        }
        let features = &mut self.registers.driver_features;
        match self.registers.driver_features_sel {
            0 => set_low(features, value),
            1 => set_high(features, value),
            _ => self.registers.features_beyond |= value != 0,
        }
    }

    /// Change the selected queue's setup, at the time when a driver may.
    fn set_up(&mut self, offset: u64, change: impl FnOnce(&mut Setup)) {
        let right_time = self.between(FEATURES_OK, DRIVER_OK);
        match self.selected() {
            Some(queue) if right_time && !queue.is_ready() => change(&mut queue.setup),
            _ => self.misused("written in the wrong state", offset),
        }
    }

    fn write_queue_ready(&mut self, value: u32) {
        let right_time = self.between(FEATURES_OK, DRIVER_OK);
        let event_idx = self.registers.driver_features & F_EVENT_IDX != 0;
        let index = self.registers.queue_sel;
        match self.selected() {
            Some(queue) if value == 0 => queue.stop(),
            Some(queue) if value == 1 && right_time && !queue.is_ready() => {
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
            _ => self.misused("written in the wrong state", register::QUEUE_READY),
        }
    }

    /// Whether `reached` is set in Status, and neither `not_yet` nor a sign of failure.
    fn between(&self, reached: u32, not_yet: u32) -> bool {
        let mask = reached | not_yet | DEVICE_NEEDS_RESET | FAILED;
        self.registers.status & mask == reached
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let status = self.registers.status;
        if status & !value & !DEVICE_NEEDS_RESET != 0 {
            // A bit is never taken back, only all of them (virtio 1.2, 2.1.1).
            return self.misused("written with a bit taken back", register::STATUS);
        }
        if value & FAILED != 0 {
            self.registers.status |= FAILED;
            return;
        }
        let mut reached = 0;
        for step in STEPS {
            if value & step == 0 {
                break;
            }
            if status & step == 0 && !self.take_step(step, reached) {
                return;
            }
            reached |= step;
        }
        if value & !reached & !DEVICE_NEEDS_RESET != 0 {
            self.misused("written out of order", register::STATUS);
        }
    }

    /// Set bit `step` of Status after those of `reached`; says whether that could be.
    fn take_step(&mut self, step: u32, reached: u32) -> bool {
        if self.registers.status != reached {
            self.misused("written after a failure, not to reset", register::STATUS);
            return false;
        }
        if step == FEATURES_OK && !self.features_fit() {
            return false;
        }
        self.registers.status |= step;
        if step == DRIVER_OK {
            self.call(|device, driver| device.activate(driver));
        }
        true
    }

    fn features_fit(&mut self) -> bool {
        let accepted = self.registers.driver_features;
        let unknown = accepted & !self.offered();
        if unknown != 0 || self.registers.features_beyond {
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
        if self.registers.status != 0 {
            self.reporter.debug(format_args!("reset by the driver"));
            self.device.reset();
        }
        for queue in &mut self.queues {
            queue.reset();
        }
        self.interrupt_status.store(0, Ordering::Release);
        self.registers = Registers {
            // Goes on, so that a reader on another vCPU does not take old for new.
            config_generation: self.registers.config_generation,
            ..Registers::default()
        };
    }

    fn misused(&mut self, how: &str, offset: u64) {
        self.reporter
            .warn(&format!("register {offset:#x} was {how}; ignored"));
    }
}

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !0xffff_ffff | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & 0xffff_ffff | u64::from(high) << 32;
}
