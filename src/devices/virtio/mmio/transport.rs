//! A virtio-mmio window with a device in it.
//!
//! A driver that handles an interrupt reads InterruptStatus and writes InterruptACK (virtio 1.2,
//! 4.2.2). With a [`Page`] neither reaches hull: the guest reads the page, and KVM takes the write
//! (see [`Registers::acknowledge`]). Without one, both are served without the core's lock:
//! the driver does not wait for a device that works on a queue meanwhile, and on a host with one CPU
//! that device does not lose the CPU to the vCPU it has just interrupted.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::page::Page;
use super::{absent, register, view};
use crate::devices::Reporter;
use crate::devices::bus::{BusDevice, Interrupt};
use crate::devices::register::Register;
use crate::devices::state::{StateError, decode, encode};
use crate::devices::virtio::core::saved::CoreState;
use crate::devices::virtio::core::{Cause, Core, Interrupts, Misuse, set_high, set_low};
use crate::devices::virtio::device::Device;
use crate::devices::virtio::queue::Setup;
use crate::devices::virtio::transport::{Place, SharedCore, Shortcut, Transport};
use crate::memory::GuestMemory;
use crate::sync::lock;

/// What spares a driver exits.
#[derive(Clone, Default)]
pub struct Shortcuts {
    /// The guest reads this page instead of registers. It shows the device from
    /// [`Transport::reveal`] or [`BusDevice::load`] on.
    pub page: Option<Page>,
    /// The port at which a driver that knows hull notifies queues, and which tells it that InterruptACK
    /// need not be written for used buffers.
    pub notify_port: Option<u16>,
    /// Takes what the driver writes often.
    pub often: Option<Arc<dyn Shortcut>>,
}

/// Writes of a value to a place after which they are worth a [`Shortcut`].
const OFTEN: u8 = 8;

/// A window on the bus.
pub struct MmioTransport {
    core: SharedCore,
    registers: Registers,
    hidden: bool,
}

/// The registers that are not the core's.
struct Registers {
    line: Line,
    notify_port: Option<u16>,
    often: Option<Arc<dyn Shortcut>>,
    /// Notifications of each queue that reached hull, up to [`OFTEN`]; the last: acknowledgements of
    /// used buffers alone.
    counts: Vec<u8>,
    selectors: Selectors,
}

/// The registers that choose what others are about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Selectors {
    device_features: u32,
    driver_features: u32,
    queue: u32,
}

/// InterruptStatus, and the interrupt that it explains.
#[derive(Clone)]
struct Line {
    status: Arc<Mutex<u32>>,
    interrupt: Arc<dyn Interrupt>,
    page: Option<Page>,
}

impl Line {
    fn raise(&self, bits: u32) -> io::Result<()> {
        self.change(|status| status | bits);
        self.interrupt.trigger()
    }

    fn status(&self) -> u32 {
        *lock(&self.status)
    }

    fn change(&self, change: impl FnOnce(u32) -> u32) {
        let mut status = lock(&self.status);
        *status = change(*status);
        if let Some(page) = &self.page {
            page.store(register::INTERRUPT_STATUS, *status);
        }
    }
}

impl Interrupts for Line {
    fn raise(&mut self, causes: &[Cause]) -> io::Result<()> {
        let bits = causes.iter().fold(0, |bits, cause| match cause {
            Cause::Config => bits | register::INTERRUPT_CONFIG,
            Cause::Queue(_) => bits | register::INTERRUPT_USED,
        });
        Line::raise(self, bits)
    }

    fn changed(&mut self, device: &dyn Device, status: u32, config_generation: u32) {
        if let Some(page) = &self.page {
            page.show_config(device);
            page.store(register::CONFIG_GENERATION, config_generation);
            page.store(register::STATUS, status);
        }
    }
}

/// A window as it is saved.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    selectors: Selectors,
    interrupt_status: u32,
    core: CoreState,
}

impl MmioTransport {
    /// A window with `device` in it, which uses `memory`, raises `interrupt` and reports a
    /// driver's faults to `reporter`.
    ///
    /// # Errors
    /// As of [`Core::new`].
    pub fn new(
        memory: GuestMemory,
        device: Box<dyn Device>,
        interrupt: Arc<dyn Interrupt>,
        reporter: Reporter,
        shortcuts: Shortcuts,
    ) -> io::Result<Self> {
        let line = Line {
            status: Arc::default(),
            interrupt,
            page: shortcuts.page,
        };
        let core = Core::new(memory, device, Box::new(line.clone()), reporter)?;
        let counts = vec![0; core.queue_count() + 1];
        Ok(Self {
            core: Arc::new(Mutex::new(core)),
            registers: Registers {
                line,
                notify_port: shortcuts.notify_port,
                often: shortcuts.often,
                counts,
                selectors: Selectors::default(),
            },
            hidden: false,
        })
    }
}

impl MmioTransport {
    /// The page that the guest reads, if it does.
    pub fn page(&self) -> Option<&Page> {
        self.registers.line.page.as_ref()
    }
}

impl Registers {
    /// Those that change by an access of the driver's, but for InterruptStatus.
    const CHANGING: [u64; 5] = [
        register::DEVICE_FEATURES,
        register::QUEUE_NUM_MAX,
        register::QUEUE_READY,
        register::STATUS,
        register::CONFIG_GENERATION,
    ];

    /// Bring the page up to date after an access of the driver's.
    fn show(&self, core: &Core) {
        if let Some(page) = &self.line.page {
            for offset in Self::CHANGING {
                page.store(offset, self.read(core, offset));
            }
        }
    }

    /// Show the whole window.
    fn show_all(&self, core: &Core) {
        if let Some(page) = &self.line.page {
            page.show_fixed(core);
            page.show_config(core.device());
            let port = register::NOTIFY_PORT;
            page.store(port, self.read(core, port));
            self.show(core);
        }
    }

    fn read(&self, core: &Core, offset: u64) -> u32 {
        let queue = core.queue(self.selectors.queue);
        match offset {
            register::MAGIC_VALUE => register::MAGIC,
            register::VERSION => register::VERSION_2,
            register::DEVICE_ID => core.kind().id,
            register::VENDOR_ID => register::VENDOR,
            register::DEVICE_FEATURES => match self.selectors.device_features {
                0 => core.offered() as u32,
                1 => (core.offered() >> 32) as u32,
                _ => 0,
            },
            register::QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            register::QUEUE_READY => queue.map_or(0, |queue| queue.is_ready().into()),
            register::INTERRUPT_STATUS => self.line.status(),
            register::STATUS => core.status(),
            // No shared memory: length and address read as -1 (virtio 1.2, 4.2.2).
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            register::NOTIFY_PORT => self.notify_port.map_or(0, u32::from),
            register::CONFIG_GENERATION => core.config_generation(),
            _ => 0,
        }
    }

    fn write(&mut self, core: &mut Core, offset: u64, value: u32) -> Result<(), Misuse> {
        let selectors = &mut self.selectors;
        let queue = selectors.queue;
        let mut set_up =
            |change: fn(&mut Setup, u32)| core.set_up(queue, |setup| change(setup, value));
        match offset {
            register::DEVICE_FEATURES_SEL => selectors.device_features = value,
            register::DRIVER_FEATURES_SEL => selectors.driver_features = value,
            register::DRIVER_FEATURES => core.accept_features(selectors.driver_features, value)?,
            register::QUEUE_SEL => selectors.queue = value,
            register::QUEUE_NUM => set_up(|setup, size| setup.size = size)?,
            register::QUEUE_DESC_LOW => set_up(|setup, low| set_low(&mut setup.descriptors, low))?,
            register::QUEUE_DESC_HIGH => {
                set_up(|setup, high| set_high(&mut setup.descriptors, high))?;
            }
            register::QUEUE_DRIVER_LOW => set_up(|setup, low| set_low(&mut setup.available, low))?,
            register::QUEUE_DRIVER_HIGH => {
                set_up(|setup, high| set_high(&mut setup.available, high))?;
            }
            register::QUEUE_DEVICE_LOW => set_up(|setup, low| set_low(&mut setup.used, low))?,
            register::QUEUE_DEVICE_HIGH => set_up(|setup, high| set_high(&mut setup.used, high))?,
            register::QUEUE_READY => core.set_ready(queue, value)?,
            register::QUEUE_NOTIFY => self.notify(core, Place::Register(offset), value)?,
            register::STATUS => {
                if value == 0 {
                    self.reset();
                }
                core.set_status(value)?;
            }
            register::SHM_SEL => {}
            _ => return Err(Misuse("written though it is read-only")),
        }
        Ok(())
    }

    /// The driver has notified `queue` at `place`.
    fn notify(&mut self, core: &Core, place: Place, queue: u32) -> Result<(), Misuse> {
        core.notify(queue)?;
        let event = core.queue(queue).map(|queue| queue.event().as_fd());
        self.count(queue as usize, place, queue, event);
        Ok(())
    }

    /// The driver takes `bits` of InterruptStatus back. That of used buffers may stay until a reset if
    /// the driver reads the page: the device's line is its own and edge-triggered, so the bit decides no
    /// more than that the driver looks at its queues when it is interrupted, for whatever cause.
    fn acknowledge(&mut self, bits: u32) {
        self.line.change(|status| status & !bits);
        if self.line.page.is_some() && bits == register::INTERRUPT_USED {
            let last = self.counts.len() - 1;
            self.count(last, Place::Register(register::INTERRUPT_ACK), bits, None);
        }
    }

    /// Count a write; the one of number [`OFTEN`] is the last that reaches hull.
    fn count(&mut self, what: usize, place: Place, value: u32, event: Option<BorrowedFd<'_>>) {
        let (Some(often), Some(count)) = (&self.often, self.counts.get_mut(what)) else {
            return;
        };
        if *count < OFTEN {
            *count += 1;
            if *count == OFTEN
                && let Err(error) = often.take(place, value, event)
            {
                log::warn!("each write of {value} at {place:?} costs an exit: {error}");
            }
        }
    }

    /// Reset what is not the core's. Called with the core locked: no interrupt comes in between.
    fn reset(&mut self) {
        self.line.change(|_| 0);
        self.selectors = Selectors::default();
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if self.hidden {
            return absent::read(offset, data);
        }
        if offset == register::INTERRUPT_STATUS
            && let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data)
        {
            *data = self.registers.line.status().to_le_bytes();
            return;
        }
        let mut core = lock(&self.core);
        data.fill(0);
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            core.config(offset, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *data = self.registers.read(&core, offset).to_le_bytes();
        } else {
            core.misused(Misuse("read other than by aligned 32-bit accesses"), offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if self.hidden {
            return; // as in an empty window
        }
        let word = <[u8; 4]>::try_from(data).map(u32::from_le_bytes);
        if offset == register::INTERRUPT_ACK
            && let Ok(acknowledged) = word
        {
            return self.registers.acknowledge(acknowledged);
        }
        let mut core = lock(&self.core);
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            core.write_config(at, data);
            return self.registers.show_all(&core);
        }
        let written = match word {
            Ok(word) if offset.is_multiple_of(4) => self.registers.write(&mut core, offset, word),
            _ => Err(Misuse("written other than by aligned 32-bit accesses")),
        };
        if let Err(misuse) = written {
            core.misused(misuse, offset);
        }
        if offset == register::STATUS {
            self.registers.show_all(&core); // the device may have another configuration space
        } else {
            self.registers.show(&core);
        }
    }

    fn state(&self) -> Vec<Register> {
        let status = self.registers.line.status();
        view::registers(&lock(&self.core), self.registers.selectors.queue, status)
    }

    fn register(&self, offset: u64, _write: bool) -> Option<&'static str> {
        register::name(offset)
    }

    /// A hidden window has no state.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        if self.hidden {
            return Ok(Vec::new());
        }
        encode(&State {
            selectors: self.registers.selectors.clone(),
            interrupt_status: self.registers.line.status(),
            core: lock(&self.core).save()?,
        })
    }

    fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        let refuse = |why: &str| Err(StateError(why.into()));
        match (self.hidden, state) {
            (true, []) => return Ok(()),
            (true, _) => return refuse("is hidden from the guest, and is given a state"),
            (false, []) => return refuse("has no state to continue from: it was hidden then"),
            (false, _) => {}
        }
        let state: State = decode(state)?;
        let mut core = lock(&self.core);
        self.registers.reset();
        core.load(state.core)?;
        self.registers.selectors = state.selectors;
        self.registers.show_all(&core);
        let status =
            state.interrupt_status & (register::INTERRUPT_USED | register::INTERRUPT_CONFIG);
        // An edge on its way is not saved; one more does no harm.
        if status != 0 {
            core.report_interrupt(self.registers.line.raise(status));
        }
        Ok(())
    }
}

impl Transport for MmioTransport {
    fn core(&self) -> &SharedCore {
        &self.core
    }

    fn notify_register(&self) -> Place {
        Place::Register(register::QUEUE_NOTIFY)
    }

    fn notified(&mut self, place: Place, queue: u32) {
        if self.hidden {
            return;
        }
        let mut core = lock(&self.core);
        if let Err(misuse) = self.registers.notify(&core, place, queue) {
            core.misused(misuse, register::QUEUE_NOTIFY);
        }
    }

    fn hide(&mut self) {
        self.hidden = true;
        if let Some(page) = &self.registers.line.page {
            page.show_none();
        }
    }

    fn reveal(&mut self) {
        self.hidden = false;
        self.registers.show_all(&lock(&self.core));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::devices::virtio::rng::Rng;
    use crate::devices::virtio::testing::{Guest, LIVE, reg};

    #[test]
    fn an_interrupt_is_handled_while_the_device_works() {
        let mut guest = Guest::new(Rng::new(Box::new(|_| true), Box::new(|| Duration::ZERO)));
        guest.start(0, 8);
        guest.lend(0, 4);
        guest.notify(0);
        let mut transport = guest.transport;
        let core = transport.core().clone();
        let read = |transport: &mut MmioTransport, offset| {
            let mut data = [0; 4];
            transport.read(offset, &mut data);
            u32::from_le_bytes(data)
        };
        let working = core.lock().unwrap();
        let (done, is_done) = mpsc::channel();
        let driver = thread::spawn(move || {
            let status = read(&mut transport, reg::INTERRUPT_STATUS);
            transport.write(reg::INTERRUPT_ACK, &status.to_le_bytes());
            let after = read(&mut transport, reg::INTERRUPT_STATUS);
            done.send((status, after)).unwrap();
            transport
        });
        assert_eq!(is_done.recv().unwrap(), (1, 0));
        drop(working);
        let mut transport = driver.join().unwrap();
        assert_eq!(read(&mut transport, reg::STATUS), LIVE);
    }
}
