//! One machine from its [`Config`] to its end: [`run`] reads as the story of a boot.
//!
//! A watchdog-free, single-vCPU machine for now: the calling thread is the vCPU's.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::boot::cmdline::{Cmdline, DEFAULTS};
use crate::boot::{self, BootError, Machine, Plan, Via};
use crate::devices::bus::{Bus, Error as BusError, Interrupt, Shared};
use crate::devices::legacy::{i8042, power, rtc, serial};
use crate::devices::{MachineEvents, MarkSource};
use crate::kvm::vcpu::{Accesses, Exit};
use crate::kvm::{KvmError, vm};
use crate::memory::backing::{self, BackingError};
use crate::memory::layout;

/// What to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kernel's bytes.
    pub kernel: Vec<u8>,
    /// The initial RAM disk; empty for none.
    pub initrd: Vec<u8>,
    /// The kernel command line.
    pub cmdline: String,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
}

/// How a guest ended by its own will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// ACPI S5.
    PoweredOff,
    /// i8042 or the ACPI reset register.
    Reset,
}

/// Why a guest did not run, or not to its end.
#[derive(Debug, Error)]
pub enum VmmError {
    /// Guest memory.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// An overlap on a bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// No event file descriptor could be had.
    #[error("cannot create an eventfd ({0}); raise the limit of open files (ulimit -n)")]
    EventFd(io::Error),
    /// A triple fault.
    #[error(
        "the guest shut down by a triple fault at RIP {rip:#x}: an exception that it could not deliver"
    )]
    TripleFault {
        /// Where.
        rip: u64,
    },
    /// KVM gave up.
    #[error("the guest stopped at RIP {rip:#x}: {reason}")]
    Failed {
        /// Where.
        rip: u64,
        /// Why.
        reason: String,
    },
}

/// Boot a machine and run it until it ends; the guest's console goes to `console`.
pub fn run(config: &Config, console: impl Write + Send + 'static) -> Result<End, VmmError> {
    let kvm = vm::open()?;
    let memory = backing::allocate(config.memory_bytes)?;
    let initrd: &[&[u8]] = match config.initrd.as_slice() {
        [] => &[],
        bytes => &[bytes],
    };
    let plan = Plan {
        via: Via::Auto,
        initrd,
        cmdline: Cmdline::new(&config.cmdline).with_defaults(&DEFAULTS),
        virtio_on_cmdline: false,
        machine: Machine {
            cpus: 1,
            virtio: &[],
        },
    };
    let entry = boot::load(&memory, &config.kernel, &plan)?.entry;
    let vm = vm::Vm::new(kvm, memory)?;
    let events = Arc::new(Events::default());
    let buses = Buses {
        ports: ports(&vm, &events, console)?,
        mmio: Bus::new(),
    };
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.enter_at(&entry)?;
    loop {
        let rip = |vcpu: &crate::kvm::vcpu::Vcpu| vcpu.rip().unwrap_or_default();
        match vcpu.run(&buses)? {
            Exit::Handled | Exit::Interrupted => {}
            Exit::Shutdown => return Err(VmmError::TripleFault { rip: rip(&vcpu) }),
            Exit::Failed(reason) => {
                return Err(VmmError::Failed {
                    rip: rip(&vcpu),
                    reason,
                });
            }
        }
        if let Some(end) = events.end() {
            return Ok(end);
        }
    }
}

/// The port bus with what a PC has on it.
fn ports(
    vm: &vm::Vm,
    events: &Arc<Events>,
    console: impl Write + Send + 'static,
) -> Result<Bus, VmmError> {
    let com1 = serial::Serial::new(Console(console), irqfd(vm, layout::COM1_GSI)?);
    let keyboard = i8042::I8042::new(irqfd(vm, KEYBOARD_GSI)?, events.clone());
    let start = Instant::now();
    let acpi = power::Power::new(
        move || start.elapsed(),
        irqfd(vm, layout::SCI_GSI)?,
        events.clone(),
    );
    let clock = rtc::Rtc::new(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |time| time.as_secs())
    });
    let reset = power::ResetRegister::new(events.clone());
    let devices: [(u16, u64, Shared); 5] = [
        (layout::COM1_PORT, serial::PORTS, Arc::new(Mutex::new(com1))),
        (i8042::PORT, i8042::PORTS, Arc::new(Mutex::new(keyboard))),
        (power::PORT, power::PORTS, Arc::new(Mutex::new(acpi))),
        (rtc::PORT, rtc::PORTS, Arc::new(Mutex::new(clock))),
        (
            layout::ACPI_RESET_PORT,
            power::ResetRegister::PORTS,
            Arc::new(Mutex::new(reset)),
        ),
    ];
    let mut ports = Bus::new();
    for (base, len, device) in devices {
        ports.insert(base.into(), len, device)?;
    }
    Ok(ports)
}

/// GSI of the keyboard controller.
const KEYBOARD_GSI: u32 = 1;

fn irqfd(vm: &vm::Vm, gsi: u32) -> Result<Arc<Irqfd>, VmmError> {
    let line = EventFd::new(libc_nonblock()).map_err(VmmError::EventFd)?;
    vm.register_irqfd(&line, gsi)?;
    Ok(Arc::new(Irqfd(line)))
}

/// The guest's serial output on its way to a writer.
struct Console<W: Write + Send>(W);

impl<W: Write + Send> serial::Sink for Console<W> {
    fn write(&mut self, bytes: &[u8]) {
        // Nobody listening is no reason to stop the guest.
        let _ = self.0.write_all(bytes).and_then(|()| self.0.flush());
    }
}

/// EFD_NONBLOCK: a line that is raised twice before KVM looks must not block the vCPU.
fn libc_nonblock() -> i32 {
    rustix::event::EventfdFlags::NONBLOCK.bits() as i32
}

/// An interrupt line through an irqfd.
struct Irqfd(EventFd);

impl Interrupt for Irqfd {
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// What the devices told the machine; the vCPU looks after every exit.
#[derive(Default)]
struct Events {
    end: AtomicU8,
}

impl Events {
    fn end(&self) -> Option<End> {
        match self.end.load(Ordering::Acquire) {
            1 => Some(End::PoweredOff),
            2 => Some(End::Reset),
            _ => None,
        }
    }
}

impl MachineEvents for Events {
    fn reset(&self) {
        self.end.store(2, Ordering::Release);
    }
    fn power_off(&self) {
        self.end.store(1, Ordering::Release);
    }
    fn mark(&self, _source: MarkSource, _code: u8) {}
    fn warn(&self, _device: &str, _what: &str) {}
}

/// The two buses, as the vCPU reaches them.
struct Buses {
    ports: Bus,
    mmio: Bus,
}

impl Accesses for Buses {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        self.ports.read(port.into(), data);
    }
    fn port_write(&self, port: u16, data: &[u8]) {
        self.ports.write(port.into(), data);
    }
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        self.mmio.read(gpa, data);
    }
    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.mmio.write(gpa, data);
    }
}
