//! From a [`Config`] to a machine that stands before its first instruction.

use std::io;
use std::panic;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Instant, SystemTime};

use kvm_ioctls::Kvm;
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_sys_util::eventfd::EventFd;

use super::events::{Events, lock};
use super::outbox::{Outbox, Transmitter};
use super::pipe::{Inbox, InboxSink, Pipe, Port, Uart};
use super::vcpus::Shared;
use super::windows::{Window, Windows};
use super::{Balloon, Config, Console, Terminal, VmmError, net, share, vsock};
use crate::agent;
use crate::boot::cmdline::{Cmdline, DEFAULTS};
use crate::boot::{self, Loaded, Placed, Plan};
use crate::devices::bus::{Bus, Interrupt, Shared as SharedDevice};
use crate::devices::legacy::{boot_timer, debug_port, i8042, power, rtc, serial};
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::{balloon, block, console, rng};
use crate::disk::{self, Disk};
use crate::kvm::probe;
use crate::kvm::vcpu::{Kicker, Vcpu};
use crate::kvm::vm::{self, Vm};
use crate::memory::layout;
use crate::memory::{GuestMemory, backing};
use crate::net::Network;
use crate::share::{Share, Worker as ShareWorker};

/// GSI of the keyboard controller.
const KEYBOARD_GSI: u32 = 1;

/// The word for [`reporting_order`].
const REPORTING_ORDER: &str = "page_reporting.page_reporting_order";
/// 2 MiB: smaller blocks break the host's huge pages.
const HUGE_PAGE_ORDER: u32 = 9;

/// Tells hull's init of the channel to hull: the port of this name, or COM2 where the kernel has
/// no driver for the port (guest/init/src/channel.rs).
const AGENT_WORD: &str = "hull.agent=ttyS1";

/// A machine before its first instruction.
pub struct Machine {
    // Before `vm`: vCPUs go before the machine that they are part of.
    /// One a CPU.
    pub vcpus: Vec<Vcpu>,
    /// The machine itself, whose slots point into guest memory.
    _vm: Vm,
    /// What the vCPU threads share.
    pub shared: Arc<Shared>,
    /// The virtio devices.
    pub windows: Windows,
    /// The threads that serve disks.
    _disks: Vec<disk::Worker>,
    /// The threads that serve shares.
    _shares: Vec<ShareWorker>,
    /// What the kernel may print on: COM1, where the user types too, and the virtio console.
    pub consoles: Vec<Pipe>,
    /// What the agent may speak over, the best first; none without an agent.
    pub agent: Vec<Pipe>,
    /// The threads of networks.
    _nets: Vec<net::Worker>,
    /// The memory balloon.
    pub balloon: Option<Window>,
    /// The socket device's end on the host.
    pub vsock: Option<vsock::Link>,
    /// The kernel's command line; empty for flat payloads.
    pub cmdline: String,
    /// Words that hull added to the kernel's command line for this host.
    pub added_words: Vec<&'static str>,
}

/// Build the machine, with `networks` in it.
pub fn build(
    config: &Config,
    networks: Vec<Network>,
    started: Instant,
) -> Result<Machine, VmmError> {
    Kicker::prepare()?;
    let kvm = vm::open()?;
    let disks = config.disks.iter().map(Disk::open);
    let disks = disks.collect::<Result<Vec<_>, _>>()?;
    let shares = config.shares.iter().map(Share::open);
    let shares = shares.collect::<Result<Vec<_>, _>>()?;
    let memory = backing::allocate(config.memory_bytes)?;
    // The kernel goes into memory meanwhile: megabytes to touch, while KVM mostly waits for the
    // host's other CPUs.
    let (mut machine, placed) = thread::scope(|scope| {
        let place = || boot::place(&memory, &config.kernel, config.via, &config.initrd);
        let loader = thread::Builder::new().name("loader".into());
        let loader = loader.spawn_scoped(scope, place);
        let backs = (disks, shares, networks);
        let machine = assemble(config, kvm, &memory, backs, started)?;
        let placed = loader.map_err(VmmError::Thread)?.join();
        let placed = placed.unwrap_or_else(|panic| panic::resume_unwind(panic));
        Ok::<_, VmmError>((machine, placed?))
    })?;
    let loaded = finish(config, &memory, placed, &machine)?;
    if let Some(first) = machine.vcpus.first() {
        first.enter_at(&loaded.entry)?;
    }
    machine.cmdline = loaded.cmdline;
    Ok(machine)
}

/// Everything but what is in memory.
fn assemble(
    config: &Config,
    kvm: Kvm,
    memory: &GuestMemory,
    (disks, shares, networks): (Vec<Disk>, Vec<Share>, Vec<Network>),
    started: Instant,
) -> Result<Machine, VmmError> {
    let vm = Vm::new(kvm, memory.clone())?;
    let mut vcpus = Vec::new();
    for id in 0..config.cpus {
        vcpus.push(vm.create_vcpu(id, config.cpus)?);
    }

    let events = Arc::new(Events::new(started, eventfd()?));
    let com1 = uart(&vm, &events, layout::COM1_GSI)?;
    let mut outboxes = vec![com1.outbox.clone()];
    let mut ports = ports(&vm, &events, &com1)?;
    let mut mmio = mmio(&events)?;
    let mut windows = Windows::new()?;
    let (mut consoles, mut agent) = (vec![Pipe::Uart(com1)], Vec::new());
    let with_agent = matches!(config.console, Console::Agent { .. });
    if with_agent || config.terminal == Terminal::Virtio {
        let pipes = virtio_console(&vm, &mut windows, &mut mmio, &events, with_agent)?;
        let mut pipes = pipes.into_iter();
        consoles.extend(pipes.next());
        agent.extend(pipes);
    }
    if config.terminal == Terminal::Virtio {
        consoles.reverse();
    }
    if with_agent {
        let com2 = uart(&vm, &events, layout::COM2_GSI)?;
        outboxes.push(com2.outbox.clone());
        ports.insert(layout::COM2_PORT.into(), serial::PORTS, com2.chip.clone())?;
        agent.push(Pipe::Uart(com2));
    }
    if config.rng {
        let source = |bytes: &mut [u8]| {
            let wanted = bytes.len();
            getrandom(bytes, GetRandomFlags::empty()) == Ok(wanted)
        };
        let device = Box::new(rng::Rng::new(
            Box::new(source),
            Box::new(move || started.elapsed()),
        ));
        windows.attach(&vm, &mut mmio, &events, "rng", device)?;
    }
    let balloon = config.balloon.map(
        |Balloon {
             target_bytes,
             period,
         }| {
            let memory = memory.clone();
            // A guest may name what is no memory; nobody but itself is worse off.
            let release =
                move |start, bytes| drop(backing::release(&memory, start, bytes as usize));
            let device = balloon::Balloon::new(target_bytes, period, Box::new(release));
            windows.attach(&vm, &mut mmio, &events, "balloon", Box::new(device))
        },
    );
    let balloon = balloon.transpose()?;
    let mut workers = Vec::new();
    for disk in disks {
        workers.push(attach_disk(&vm, &mut windows, &mut mmio, &events, disk)?);
    }
    let mut nets = Vec::new();
    for network in networks {
        nets.push(net::attach(&vm, &mut windows, &mut mmio, &events, network)?);
    }
    let mut sharing = Vec::new();
    for share in shares {
        sharing.push(share::attach(&vm, &mut windows, &mut mmio, &events, share)?);
    }

    let vsock = config.vsock.as_ref().map(|config| {
        let sockets = vsock::Sockets::new(&config.socket)?;
        let device = Vsock::new(config.cid, sockets.host());
        let window = windows.attach(&vm, &mut mmio, &events, "virtio vsock", Box::new(device))?;
        Ok::<_, VmmError>(sockets.link(window))
    });
    let vsock = vsock.transpose()?;

    let mut added_words = Vec::new();
    if let Some(first) = vcpus.first_mut()
        && !probe::finishes_every_instruction(first, memory)?
    {
        added_words.extend(probe::SOFTWARE_KVM_WORDS);
    }
    let shared = Arc::new(Shared {
        ports,
        mmio,
        events,
        outboxes,
        first_entry: OnceLock::new(),
    });
    Ok(Machine {
        vcpus,
        _vm: vm,
        shared,
        windows,
        _disks: workers,
        _shares: sharing,
        consoles,
        agent,
        _nets: nets,
        balloon,
        vsock,
        cmdline: String::new(),
        added_words,
    })
}

/// Put around the kernel what it will ask for.
fn finish(
    config: &Config,
    memory: &GuestMemory,
    placed: Placed,
    machine: &Machine,
) -> Result<Loaded, VmmError> {
    let mut defaults = match config.terminal {
        Terminal::Serial => vec!["console=ttyS0"],
        // Before hvc0 is there a kernel that panics is heard on COM1.
        Terminal::Virtio => vec!["earlyprintk=ttyS0", "console=hvc0"],
    };
    defaults.extend(DEFAULTS);
    if let Console::Agent { kernel_log, .. } = &config.console {
        if !kernel_log {
            defaults.push("quiet");
        }
        defaults.push(AGENT_WORD);
    }
    defaults.extend(&machine.added_words);
    let order = format!("{REPORTING_ORDER}={}", reporting_order(config.memory_bytes));
    if config.balloon.is_some() {
        defaults.push(&order);
    }
    let plan = Plan {
        cmdline: Cmdline::new(&config.cmdline).with_defaults(&defaults),
        virtio_on_cmdline: true,
        machine: boot::Machine {
            cpus: config.cpus,
            com2: matches!(config.console, Console::Agent { .. }),
            virtio: &machine.windows.slots(),
        },
    };
    Ok(placed.finish(memory, &plan)?)
}

/// The least block of free pages, as a power of two, that Linux is to report. While less is free
/// than 32 of them it reports none (mm/page_reporting.c, page_reporting_process_zone), and without
/// a word from us they are of 4 MiB, which is more than a small guest ever has free.
fn reporting_order(memory_bytes: u64) -> u32 {
    let pages = memory_bytes / 4096 / 16 / 32;
    pages.checked_ilog2().unwrap_or(0).min(HUGE_PAGE_ORDER)
}

/// The port bus with what a PC has on it.
fn ports(vm: &Vm, events: &Arc<Events>, com1: &Uart) -> Result<Bus, VmmError> {
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

/// A virtio console: its terminal, and a port for the agent if there is one.
fn virtio_console(
    vm: &Vm,
    windows: &mut Windows,
    mmio: &mut Bus,
    events: &Arc<Events>,
    with_agent: bool,
) -> Result<Vec<Pipe>, VmmError> {
    let inboxes: [Arc<Mutex<Inbox>>; 2] = Default::default();
    let [terminal, port] = inboxes.clone().map(|inbox| Box::new(InboxSink(inbox)));
    let mut device = console::Console::new(terminal);
    if with_agent {
        device = device.with_port(agent::PORT_NAME, port);
    }
    let window = windows.attach(vm, mmio, events, "virtio console", Box::new(device))?;
    let pipe = |(number, inbox)| Pipe::Port(Port::new(window.clone(), number, inbox));
    let ports = if with_agent { 2 } else { 1 };
    Ok(inboxes
        .into_iter()
        .take(ports)
        .enumerate()
        .map(pipe)
        .collect())
}

/// A virtio block device, and the thread that serves it.
fn attach_disk(
    vm: &Vm,
    windows: &mut Windows,
    mmio: &mut Bus,
    events: &Arc<Events>,
    disk: Disk,
) -> Result<disk::Worker, VmmError> {
    let requests = disk::Requests::default();
    let device = block::Block::new(disk.geometry.clone(), Box::new(requests.clone()));
    let name = format!("disk {}", disk.geometry.name);
    let (window, notifications) =
        windows.attach_unwatched(vm, mmio, events, &name, Box::new(device))?;
    Ok(disk::Worker::start(
        disk,
        vm.memory().clone(),
        requests,
        notifications,
        DiskWindow(window),
    )?)
}

/// A block device as the thread of its disk sees it.
struct DiskWindow(Window);

impl disk::Guest for DiskWindow {
    fn notified(&self) {
        lock(&self.0).process(0);
    }

    fn served(&self, results: Vec<(u64, io::Result<()>)>) {
        lock(&self.0).with_device(|block: &mut block::Block, driver| {
            for (id, served) in results {
                block.complete(driver, id, served.map_err(|error| error.to_string()))?;
            }
            Ok(())
        });
    }

    fn resized(&self, sectors: u64) {
        lock(&self.0).with_device(|block: &mut block::Block, driver| {
            block.resize(driver, sectors);
            Ok(())
        });
    }
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
pub fn eventfd() -> Result<EventFd, VmmError> {
    let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
    EventFd::new(flags.bits() as i32).map_err(VmmError::EventFd)
}

pub fn irqfd(vm: &Vm, gsi: u32) -> Result<Arc<Irqfd>, VmmError> {
    let line = eventfd()?;
    vm.register_irqfd(&line, gsi)?;
    Ok(Arc::new(Irqfd(line)))
}

/// An interrupt line through an irqfd.
pub struct Irqfd(EventFd);

impl Interrupt for Irqfd {
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}
