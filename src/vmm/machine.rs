//! From a [`Config`] to a machine that stands before its first instruction, or before the next one of
//! a machine that was saved.

use std::io;
use std::panic;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use kvm_ioctls::Kvm;
use vmm_sys_util::eventfd::EventFd;

use super::devices::windows::Board;
use super::devices::{Backs, Devices, REPORTING_ORDER, reporting_order};
use super::events::Events;
use super::explain::Explain;
use super::fault::Fault;
use super::generation;
use super::outbox::{Outbox, Transmitter};
use super::pipe::{Pipe, Uart};
use super::saved::Saved;
use super::story::{self, Story};
use super::timeline::{Span, Timeline};
use super::vcpus::Shared;
use super::{Config, Console, Start, Terminal, VmmError};
use crate::boot::cmdline::{Cmdline, DEFAULTS};
use crate::boot::{self, Loaded, Placed, Plan};
use crate::devices::bus::{Bus, Interrupt, Shared as SharedDevice};
use crate::devices::legacy::power::Power;
use crate::devices::legacy::{boot_timer, debug_port, i8042, power, rtc, serial};
use crate::kvm::probe;
use crate::kvm::vcpu::{Kicker, Vcpu};
use crate::kvm::vm::{self, Vm};
use crate::memory::layout;
use crate::memory::{GuestMemory, STACK, backing};
use crate::net::Network;
use crate::trace::{Place, Recorder, Space};

/// The span in which kernel and initial RAM disk are brought into memory.
const LOAD: &str = "load the kernel";
/// The span in which a machine takes over what another was saved with.
pub const SAVED_STATE: &str = "saved state";
/// GSI of the keyboard controller.
pub const KEYBOARD_GSI: u32 = 1;

/// Tells hull's init of the channel to hull: the port of this name, or COM2 where the kernel has
/// no driver for the port (guest/init/src/channel.rs).
const AGENT_WORD: &str = "hull.agent=ttyS1";

/// A machine before its first instruction.
pub struct Machine {
    // Before `vm`: vCPUs go before the machine that they are part of.
    /// One a CPU.
    pub vcpus: Vec<Vcpu>,
    /// The machine itself, whose slots point into guest memory.
    pub vm: Vm,
    /// What the vCPU threads share.
    pub shared: Arc<Shared>,
    /// The virtio devices.
    pub devices: Devices,
    /// The power button.
    pub power: Arc<Mutex<Power>>,
    /// What the kernel may print on: COM1 and the virtio console. The first is the one to type on.
    pub consoles: Vec<Pipe>,
    /// What the agent may speak over, the best first; none without an agent.
    pub agent: Vec<Pipe>,
    /// What was put into guest memory before the first instruction.
    pub loaded: Option<Loaded>,
    /// Words that hull added to the kernel's command line for this host.
    pub added_words: Vec<String>,
}

/// Build the machine, with `networks` in it.
pub fn build(
    config: &Config,
    networks: Vec<Network>,
    timeline: &Arc<Timeline>,
    story: &Story,
) -> Result<Machine, VmmError> {
    Kicker::prepare()?;
    let kvm = timeline.span("open KVM", vm::open)?;
    story.tell(story::open_kvm);
    let backs = timeline.span("disks and folders of the host", || {
        Backs::open(config, networks)
    })?;
    if let Start::Saved(saved) = &config.start {
        return go_on(config, kvm, saved, backs, (timeline, story));
    }
    let memory = timeline.span("guest memory", || backing::allocate(config.memory_bytes))?;
    story.tell(|| story::guest_memory(&memory));
    for (range, usable) in boot::memory_map(&memory) {
        let kind = if usable { "RAM" } else { "reserved" };
        log::debug!(
            "memory map: {:#x} to {:#x}: {kind}",
            range.start,
            range.end - 1
        );
    }
    // The kernel goes into memory meanwhile: megabytes to touch, while KVM mostly waits for the
    // host's other CPUs.
    let (mut machine, placed) = thread::scope(|scope| {
        let place = || {
            timeline.span_aside(LOAD, || {
                boot::place(&memory, &config.kernel, config.via, &config.initrd)
            })
        };
        let loader = thread::Builder::new()
            .name("loader".into())
            .stack_size(STACK);
        let loader = loader.spawn_scoped(scope, place);
        let machine = assemble(config, kvm, &memory, backs, (timeline, story))?;
        let placed = loader.map_err(VmmError::Thread)?.join();
        let placed = placed.unwrap_or_else(|panic| panic::resume_unwind(panic));
        Ok::<_, VmmError>((machine, placed?))
    })?;
    let loaded = timeline.span("boot tables", || finish(config, &memory, placed, &machine))?;
    story.tell_all(|| story::loaded(&loaded, &memory));
    if let Some(first) = machine.vcpus.first_mut() {
        first.enter_at(&loaded.entry)?;
        story.tell(|| story::registers(first, &loaded));
    }
    if let Some(unpacked) = loaded.unpacked {
        let spans = timeline.spans();
        let load = spans.iter().find(|span| span.name == LOAD);
        let start = load.map_or(Duration::ZERO, |span| span.start);
        timeline.add(Span {
            name: "unpack it",
            aside: true,
            start,
            end: start + unpacked,
        });
    }
    machine.loaded = Some(loaded);
    Ok(machine)
}

/// As [`build`], where another machine was saved.
fn go_on(
    config: &Config,
    kvm: Kvm,
    saved: &Saved,
    backs: Backs,
    clocks: (&Arc<Timeline>, &Story),
) -> Result<Machine, VmmError> {
    let timeline = clocks.0;
    let memory = timeline.span("guest memory", || saved.map_memory())?;
    let mut machine = assemble(config, kvm, &memory, backs, clocks)?;
    let mut vcpus = std::mem::take(&mut machine.vcpus);
    timeline.span(SAVED_STATE, || saved.load(&machine, &mut vcpus))?;
    machine.vcpus = vcpus;
    machine.loaded.clone_from(&saved.shape.loaded);
    // To its watchdogs the time that the snapshot lay there is a pause.
    machine.vcpus.iter().for_each(Vcpu::tell_of_pause);
    if !saved.is_template() {
        let line = line(&machine.vm, layout::VM_GENERATION_GSI, None);
        generation::renew(&memory, &*line)?;
    }
    Ok(machine)
}

/// Everything but what is in memory.
fn assemble(
    config: &Config,
    kvm: Kvm,
    memory: &GuestMemory,
    backs: Backs,
    (timeline, story): (&Arc<Timeline>, &Story),
) -> Result<Machine, VmmError> {
    let vm = timeline.span("virtual machine", || {
        Vm::lacking(config.faults.kvm(), kvm, memory.clone())
    })?;
    let chips = !config.faults.has(Fault::NoIrqchip);
    story.tell_all(|| story::virtual_machine(memory, chips));
    let saved = config.start.saved();
    let mut vcpus = timeline.span("vCPUs", || {
        saved.map_or(Ok(()), |saved| saved.fits(&vm))?;
        let create = |id| match saved {
            Some(_) => vm.create_empty_vcpu(id),
            None => vm.create_vcpu(id, config.cpus),
        };
        let vcpus = (0..config.cpus).map(create);
        Ok::<_, VmmError>(vcpus.collect::<Result<Vec<_>, _>>()?)
    })?;
    story.tell(|| story::vcpu(vcpus.len()));

    let trace = config.trace.as_ref();
    let events = Events::new(timeline.clone(), eventfd()?).traced(trace.cloned());
    let events = Arc::new(events);
    let line = |name: &str, gsi| {
        let recorder = trace.map(|trace| Recorder::new(trace, name));
        line(&vm, gsi, recorder)
    };
    let com1_line = match config.faults.has(Fault::NoSerialIrq) {
        true => Arc::new(Unconnected),
        false => line("COM1", layout::COM1_GSI),
    };
    let com1 = uart(com1_line, &events);
    let mut outboxes = vec![com1.outbox.clone()];
    let (mut ports, power) = ports(line, &events, &com1)?;
    let mut mmio = mmio(&events)?;
    let mut board = Board {
        vm: &vm,
        mmio: &mut mmio,
        events: &events,
        trace,
    };
    let mut devices = timeline.span("virtio devices", || {
        Devices::attach(config, &mut board, backs)
    })?;
    let mut consoles = vec![Pipe::Uart(com1)];
    consoles.extend(devices.terminal.take());
    if config.terminal == Terminal::Virtio {
        consoles.reverse();
    }
    let mut agent = Vec::from_iter(devices.agent.take());
    if let Console::Agent { .. } = &config.console {
        let com2 = uart(line("COM2", layout::COM2_GSI), &events);
        outboxes.push(com2.outbox.clone());
        ports.insert(
            layout::COM2_PORT.into(),
            serial::PORTS,
            "COM2",
            com2.chip.clone(),
        )?;
        agent.push(Pipe::Uart(com2));
    }

    let mut added_words = Vec::new();
    if let Some(saved) = saved {
        added_words.clone_from(&saved.shape.added_words);
    } else if let Some(first) = vcpus.first_mut()
        && !timeline.span("probe of KVM", || {
            probe::finishes_every_instruction(first, memory)
        })?
    {
        added_words.extend(probe::SOFTWARE_KVM_WORDS.map(String::from));
    }
    story.tell_all(|| story::devices(&ports, &mmio));
    if let Some(trace) = trace {
        trace.set_places(places(&ports, &mmio));
    }
    let symbols = || config.symbols.clone();
    let explain = config
        .explain_exits
        .map(|first| Explain::new(first, symbols()));
    outboxes.extend(explain.as_ref().map(|explain| explain.outbox.clone()));
    let shared = Arc::new(Shared {
        ports,
        mmio,
        events,
        outboxes,
        first_entry: OnceLock::new(),
        trace: trace.cloned(),
        explain,
    });
    Ok(Machine {
        vcpus,
        vm,
        shared,
        devices,
        power,
        consoles,
        agent,
        loaded: None,
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
    defaults.extend(machine.added_words.iter().map(String::as_str));
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
            virtio: &machine.devices.windows.slots(),
        },
        lies: config.faults.boot(),
    };
    generation::begin(memory)?;
    Ok(placed.finish(memory, &plan)?)
}

/// The port bus with what a PC has on it, its power button apart.
fn ports(
    line: impl Fn(&str, u32) -> Arc<dyn Interrupt>,
    events: &Arc<Events>,
    com1: &Uart,
) -> Result<(Bus, Arc<Mutex<Power>>), VmmError> {
    let keyboard = i8042::I8042::new(line("i8042", KEYBOARD_GSI), events.clone());
    let start = Instant::now();
    let acpi = Arc::new(Mutex::new(Power::new(
        move || start.elapsed(),
        line("ACPI power", layout::SCI_GSI),
        events.clone(),
    )));
    let clock = rtc::Rtc::new(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |time| time.as_secs())
    });
    let reset = power::ResetRegister::new(events.clone());
    let marks = debug_port::DebugPort::new(events.clone());
    let devices: [(&str, u16, u64, SharedDevice); 6] = [
        ("COM1", layout::COM1_PORT, serial::PORTS, com1.chip.clone()),
        (
            "i8042",
            i8042::PORT,
            i8042::PORTS,
            Arc::new(Mutex::new(keyboard)),
        ),
        ("ACPI power", power::PORT, power::PORTS, acpi.clone()),
        (
            "CMOS clock",
            rtc::PORT,
            rtc::PORTS,
            Arc::new(Mutex::new(clock)),
        ),
        (
            "ACPI reset",
            layout::ACPI_RESET_PORT,
            power::ResetRegister::PORTS,
            Arc::new(Mutex::new(reset)),
        ),
        (
            "debug port",
            layout::DEBUG_PORT,
            debug_port::PORTS,
            Arc::new(Mutex::new(marks)),
        ),
    ];
    let mut ports = Bus::new();
    for (name, base, len, device) in devices {
        ports.insert(base.into(), len, name, device)?;
    }
    Ok((ports, acpi))
}

fn mmio(events: &Arc<Events>) -> Result<Bus, VmmError> {
    let mut mmio = Bus::new();
    let timer = boot_timer::BootTimer::new(events.clone());
    mmio.insert(
        layout::BOOT_TIMER,
        boot_timer::SIZE,
        "boot timer",
        Arc::new(Mutex::new(timer)),
    )?;
    Ok(mmio)
}

/// What is where, as a trace has it.
fn places(ports: &Bus, mmio: &Bus) -> Vec<Place> {
    let of = |space, bus: &Bus| -> Vec<Place> {
        bus.devices()
            .map(|(base, len, name, _)| Place {
                space,
                base,
                last: base + (len - 1),
                name: name.into(),
            })
            .collect()
    };
    [of(Space::Port, ports), of(Space::Memory, mmio)].concat()
}

fn uart(line: Arc<dyn Interrupt>, events: &Arc<Events>) -> Uart {
    let outbox = Arc::new(Outbox::default());
    let transmitter = Transmitter {
        outbox: outbox.clone(),
        events: events.clone(),
    };
    let chip = serial::Serial::new(transmitter, line);
    Uart {
        chip: Arc::new(Mutex::new(chip)),
        outbox,
    }
}

/// EFD_NONBLOCK: an event that is raised twice before anyone looks must not block who raises it.
pub fn eventfd() -> Result<EventFd, VmmError> {
    let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
    EventFd::new(flags.bits() as i32).map_err(VmmError::EventFd)
}

/// The line `gsi`, of the device that records with `recorder`; one that leads nowhere in a machine
/// without interrupt controllers.
pub fn line(vm: &Vm, gsi: u32, recorder: Option<Recorder>) -> Arc<dyn Interrupt> {
    match vm.line(gsi) {
        Some(line) => Arc::new(Line {
            line,
            gsi,
            recorder,
        }),
        None => Arc::new(Unconnected),
    }
}

/// An interrupt line of the machine's.
pub struct Line {
    line: vm::Line,
    gsi: u32,
    recorder: Option<Recorder>,
}

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        if let Some(recorder) = &self.recorder {
            recorder.interrupt(self.gsi);
        }
        self.line.pulse()
    }
}

/// A line that leads nowhere.
struct Unconnected;

impl Interrupt for Unconnected {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}
