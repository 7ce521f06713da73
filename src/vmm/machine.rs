//! From a [`Config`] to a machine that stands before its first instruction.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Instant, SystemTime};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::events::Events;
use super::outbox::{Outbox, Transmitter};
use super::vcpus::Shared;
use super::{Channel, Config, Console, VmmError};
use crate::boot::cmdline::{Cmdline, DEFAULTS};
use crate::boot::{self, Entry, Loaded, Mode, Plan};
use crate::devices::bus::{Bus, Interrupt, Shared as SharedDevice};
use crate::devices::legacy::{boot_timer, debug_port, i8042, power, rtc, serial};
use crate::kvm::vcpu::{Kicker, Vcpu};
use crate::kvm::vm::{self, Vm};
use crate::memory::layout;
use crate::memory::{GuestMemory, backing};

/// GSI of the keyboard controller.
const KEYBOARD_GSI: u32 = 1;

/// What a kernel has to be told on a KVM that emulates ring 0: not to use instructions that each
/// end in an exit to hull, and to hand long copies over (`kvm::assist`).
const SOFTWARE_KVM_WORDS: [&str; 1] = ["clearcpuid=smap,popcnt,cx16,xsavec,xsaves"];

/// A UART with its host end.
#[derive(Clone)]
pub struct Uart {
    /// The chip, for its input.
    pub chip: Arc<Mutex<serial::Serial<Transmitter>>>,
    /// What it transmitted.
    pub outbox: Arc<Outbox>,
}

/// A machine before its first instruction.
pub struct Machine {
    // Before `vm`: vCPUs go before the machine that they are part of.
    /// One a CPU.
    pub vcpus: Vec<Vcpu>,
    /// The machine itself; virtio devices connect to it.
    pub vm: Vm,
    /// What the vCPU threads share.
    pub shared: Arc<Shared>,
    /// The console.
    pub com1: Uart,
    /// The agent's channel, when it is a UART.
    pub com2: Option<Uart>,
    /// What was loaded.
    pub loaded: Loaded,
    /// Words that hull added to the kernel's command line for this host.
    pub added_words: Vec<&'static str>,
}

/// Build the machine.
pub fn build(config: &Config, started: Instant) -> Result<Machine, VmmError> {
    Kicker::prepare()?;
    let kvm = vm::open()?;
    let memory = backing::allocate(config.memory_bytes)?;
    let vm = Vm::new(kvm, memory.clone())?;
    let mut vcpus = Vec::new();
    for id in 0..config.cpus {
        vcpus.push(vm.create_vcpu(id, config.cpus)?);
    }

    let mut added_words = Vec::new();
    if let Some(first) = vcpus.first_mut()
        && !finishes_every_instruction(first, &memory)?
    {
        added_words.extend(SOFTWARE_KVM_WORDS);
    }
    let loaded = load(config, &memory, &added_words)?;
    if let Some(first) = vcpus.first() {
        first.enter_at(&loaded.entry)?;
    }

    let events = Arc::new(Events::new(started, eventfd()?));
    let com1 = uart(&vm, &events, layout::COM1_GSI)?;
    let com2 = match &config.console {
        Console::Agent {
            channel: Channel::Serial,
            ..
        } => Some(uart(&vm, &events, layout::COM2_GSI)?),
        _ => None,
    };
    let uarts = [Some(&com1), com2.as_ref()].into_iter().flatten();
    let outboxes = uarts.map(|uart| uart.outbox.clone()).collect();
    let shared = Arc::new(Shared {
        ports: ports(&vm, &events, &com1, com2.as_ref())?,
        mmio: mmio(&events)?,
        events,
        outboxes,
        first_entry: OnceLock::new(),
    });
    Ok(Machine {
        vcpus,
        vm,
        shared,
        com1,
        com2,
        loaded,
        added_words,
    })
}

fn load(config: &Config, memory: &GuestMemory, words: &[&str]) -> Result<Loaded, VmmError> {
    let mut defaults = DEFAULTS.to_vec();
    if let Console::Agent {
        channel,
        kernel_log,
        ..
    } = &config.console
    {
        if !kernel_log {
            defaults.push("quiet");
        }
        if *channel == Channel::Serial {
            defaults.push("hull.agent=ttyS1");
        }
    }
    defaults.extend(words);
    let initrd: Vec<&[u8]> = config.initrd.iter().map(Vec::as_slice).collect();
    let plan = Plan {
        via: config.via,
        initrd: &initrd,
        cmdline: Cmdline::new(&config.cmdline).with_defaults(&defaults),
        virtio_on_cmdline: true,
        machine: boot::Machine {
            cpus: config.cpus,
            com2: matches!(
                &config.console,
                Console::Agent {
                    channel: Channel::Serial,
                    ..
                }
            ),
            virtio: &[],
        },
    };
    Ok(boot::load(memory, &config.kernel, &plan)?)
}

/// Ask the vCPU, with a guest of two instructions, whether this KVM runs what kernels use.
fn finishes_every_instruction(vcpu: &mut Vcpu, memory: &GuestMemory) -> Result<bool, VmmError> {
    // popcnt eax, eax; out 0x80, al
    const SNIPPET: [u8; 6] = [0xf3, 0x0f, 0xb8, 0xc0, 0xe6, 0x80];
    let entry = Entry {
        mode: Mode::Flat64,
        rip: layout::FLAT_PAYLOAD,
        params: 0,
    };
    boot::tables::write(memory, entry.mode)?;
    let place = |bytes: &[u8]| {
        let at = GuestAddress(entry.rip);
        memory.write_slice(bytes, at).map_err(VmmError::Probe)
    };
    place(&SNIPPET)?;
    vcpu.enter_at(&entry)?;
    let finished = vcpu.finishes_instruction()?;
    place(&[0; SNIPPET.len()])?;
    Ok(finished)
}

/// The port bus with what a PC has on it.
fn ports(vm: &Vm, events: &Arc<Events>, com1: &Uart, com2: Option<&Uart>) -> Result<Bus, VmmError> {
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
    let marks = debug_port::DebugPort::new(events.clone());
    let devices: [(u16, u64, SharedDevice); 6] = [
        (layout::COM1_PORT, serial::PORTS, com1.chip.clone()),
        (i8042::PORT, i8042::PORTS, Arc::new(Mutex::new(keyboard))),
        (power::PORT, power::PORTS, Arc::new(Mutex::new(acpi))),
        (rtc::PORT, rtc::PORTS, Arc::new(Mutex::new(clock))),
        (
            layout::ACPI_RESET_PORT,
            power::ResetRegister::PORTS,
            Arc::new(Mutex::new(reset)),
        ),
        (
            layout::DEBUG_PORT,
            debug_port::PORTS,
            Arc::new(Mutex::new(marks)),
        ),
    ];
    let mut ports = Bus::new();
    for (base, len, device) in devices {
        ports.insert(base.into(), len, device)?;
    }
    if let Some(com2) = com2 {
        ports.insert(layout::COM2_PORT.into(), serial::PORTS, com2.chip.clone())?;
    }
    Ok(ports)
}

fn mmio(events: &Arc<Events>) -> Result<Bus, VmmError> {
    let mut mmio = Bus::new();
    let timer = boot_timer::BootTimer::new(events.clone());
    mmio.insert(
        layout::BOOT_TIMER,
        boot_timer::SIZE,
        Arc::new(Mutex::new(timer)),
    )?;
    Ok(mmio)
}

fn uart(vm: &Vm, events: &Arc<Events>, gsi: u32) -> Result<Uart, VmmError> {
    let outbox = Arc::new(Outbox::default());
    let transmitter = Transmitter {
        outbox: outbox.clone(),
        events: events.clone(),
    };
    let chip = serial::Serial::new(transmitter, irqfd(vm, gsi)?);
    Ok(Uart {
        chip: Arc::new(Mutex::new(chip)),
        outbox,
    })
}

/// EFD_NONBLOCK: an event that is raised twice before anyone looks must not block who raises it.
fn eventfd() -> Result<EventFd, VmmError> {
    let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
    EventFd::new(flags.bits() as i32).map_err(VmmError::EventFd)
}

fn irqfd(vm: &Vm, gsi: u32) -> Result<Arc<Irqfd>, VmmError> {
    let line = eventfd()?;
    vm.register_irqfd(&line, gsi)?;
    Ok(Arc::new(Irqfd(line)))
}

/// An interrupt line through an irqfd.
struct Irqfd(EventFd);

impl Interrupt for Irqfd {
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}
