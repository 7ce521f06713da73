//! From a [`Config`] to a [`Machine`] before its first instruction, or before the next instruction of
//! a machine that was saved.

use std::panic;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use kvm_ioctls::Kvm;

use super::buses::Buses;
use super::config::{Config, Start};
use super::devices::notify::NotifyPorts;
use super::devices::slots::AttachContext;
use super::devices::{Backends, Devices, REPORTING_ORDER, reporting_order};
use super::error::VmmError;
use super::events::Events;
use super::explain::Explain;
use super::fault;
use super::generation;
use super::irq::{Unconnected, line};
use super::jail;
use super::lockdown::lock_down;
use super::machine::{KEYBOARD_GSI, Machine};
use super::outbox::{Outbox, Transmitter};
use super::own::Own;
use super::pipe::{Pipe, Uart};
use super::shared::Shared;
use super::snapshot::restore;
use super::snapshot::saved::Saved;
use super::story::{self, Story};
use super::timeline::{Span, Timeline};
use crate::boot::cmdline::{self, DEFAULTS};
use crate::boot::{self, BootError, Loaded, Placed, Plan};
use crate::config::{Balloon, Console, Fault, Lockdown};
use crate::devices::bus::{Bus, Interrupt, Shared as SharedDevice};
use crate::devices::legacy::power::Power;
use crate::devices::legacy::{boot_timer, debug_port, i8042, power, rtc, serial};
use crate::fleet::Runtime;
use crate::kvm::cpuid::Place;
use crate::kvm::vcpu::{Kicker, Vcpu};
use crate::kvm::vm::{self, Vm};
use crate::kvm::{probe, processor};
use crate::memory::layout;
use crate::memory::{GuestMemory, backing};
use crate::net::Network;
use crate::sandbox::{Role, spawn_scoped};
use crate::sync::eventfd;
use crate::trace::Recorder;

/// The span in which kernel and initial RAM disk are brought into memory.
const LOAD: &str = "load the kernel";
/// The span in which the state of a snapshot is loaded into a new machine.
pub const SAVED_STATE: &str = "saved state";

/// Tells hull's init of the channel to hull: the port of this name, or COM2 where the kernel has
/// no driver for the port (guest/init/src/channel.rs).
const AGENT_WORD: &str = "hull.agent=ttyS1";

/// Keeps hull's own kernel from working around flaws of processors between its processes and itself:
/// a machine is its command's alone, and the host's kernel guards the others.
const MITIGATIONS_OFF: &str = "mitigations=off";

/// Build the machine, with `networks` in it.
///
/// # Errors
/// A part of it cannot be made.
pub fn build(
    config: &Config,
    networks: Vec<Network>,
    machines: Option<&Runtime>,
    timeline: &Arc<Timeline>,
    story: &Story,
) -> Result<Machine, VmmError> {
    Kicker::prepare()?;
    let kvm = timeline.span("open KVM", vm::open)?;
    story.tell(story::open_kvm);
    let by_processor = processor::executes_guests();
    let backends = timeline.span("disks and folders of the host", || {
        Backends::open(config, networks)
    })?;
    let own = Own::open();
    jail::enter(config, timeline, story)?;
    // The machine's other threads begin later, and inherit it.
    timeline.span("lock-down", || lock_down(config, &own, machines))?;
    if config.machine.lockdown != Lockdown::Off {
        story.tell_all(story::lock_down);
    }
    let builder = Builder {
        config,
        timeline,
        story,
        own: Arc::new(own),
        by_processor,
    };
    match &config.start {
        Start::Saved(saved) => builder.restore(kvm, saved, backends),
        Start::Boot | Start::Template(_) => builder.boot(kvm, backends),
    }
}

/// What every step of the build needs.
struct Builder<'a> {
    config: &'a Config,
    timeline: &'a Arc<Timeline>,
    story: &'a Story,
    own: Arc<Own>,
    /// Whether the processor executes the guest's kernel, as far as is known.
    by_processor: bool,
}

impl Builder<'_> {
    /// A machine that boots the configured kernel.
    fn boot(&self, kvm: Kvm, backends: Backends) -> Result<Machine, VmmError> {
        let (config, timeline) = (self.config, self.timeline);
        let memory = timeline.span("guest memory", || {
            backing::allocate(config.machine.memory_bytes)
        })?;
        self.story.tell(|| story::guest_memory(&memory));
        for (range, usable) in boot::memory_map(&memory) {
            let kind = if usable { "RAM" } else { "reserved" };
            log::debug!(
                "memory map: {:#x} to {:#x}: {kind}",
                range.start,
                range.end - 1
            );
        }
        // In parallel: loading the kernel touches megabytes, while creating the machine mostly waits
        // for the host's other CPUs.
        let (mut machine, placed) = thread::scope(|scope| {
            let place = || {
                timeline.span_aside(LOAD, || {
                    let images = &config.images;
                    boot::place(&memory, &images.kernel, config.machine.boot, &images.initrd)
                })
            };
            let loader = spawn_scoped(scope, Role::Loader, place);
            let machine = self.assemble(kvm, &memory, backends)?;
            let placed = loader.map_err(VmmError::Thread)?.join();
            let placed = placed.unwrap_or_else(|panic| panic::resume_unwind(panic));
            Ok::<_, VmmError>((machine, placed?))
        })?;
        let loaded = timeline.span("boot tables", || finish(config, &memory, placed, &machine))?;
        self.story.tell_all(|| story::loaded(&loaded, &memory));
        if let Some(first) = machine.vcpus.first_mut() {
            first.enter_at(&loaded.entry)?;
            self.story.tell(|| story::registers(first, &loaded));
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

    /// A machine that continues from a snapshot.
    fn restore(&self, kvm: Kvm, saved: &Saved, backends: Backends) -> Result<Machine, VmmError> {
        let memory = self.timeline.span("guest memory", || saved.map_memory())?;
        if self.config.ready_with.is_none() {
            self.timeline
                .span("written pages", || saved.copy_written(&memory));
        }
        let mut machine = self.assemble(kvm, &memory, backends)?;
        self.timeline
            .span(SAVED_STATE, || restore::load(saved, &mut machine))?;
        machine.loaded.clone_from(&saved.shape.loaded);
        // To the guest's watchdogs the age of the snapshot is a pause.
        machine.vcpus.iter().for_each(Vcpu::tell_of_pause);
        if !saved.is_template() {
            let line = line(&machine.vm, layout::VM_GENERATION_GSI, None);
            generation::renew(&memory, &*line)?;
        }
        Ok(machine)
    }

    /// Everything but the contents of guest memory.
    fn assemble(
        &self,
        kvm: Kvm,
        memory: &GuestMemory,
        backends: Backends,
    ) -> Result<Machine, VmmError> {
        let config = self.config;
        let vm = self.virtual_machine(kvm, memory)?;
        let mut vcpus = self.vcpus(&vm)?;
        let trace = config.attachments.trace.as_ref();
        let events = Events::new(self.timeline.clone(), eventfd().map_err(VmmError::EventFd)?)
            .traced(trace.cloned());
        let events = Arc::new(events);
        let line = |name: &str, gsi| {
            let recorder = trace.map(|trace| Recorder::new(trace, name));
            line(&vm, gsi, recorder)
        };
        let com1_line = if config.machine.has_fault(Fault::NoSerialIrq) {
            Arc::new(Unconnected)
        } else {
            line("COM1", layout::COM1_GSI)
        };
        let com1 = uart(com1_line, &events);
        let (ports, power) = ports(line, &events, &com1)?;
        let mmio = mmio(&events)?;
        let mut buses = Buses { ports, mmio };
        let mut context = AttachContext {
            vm: &vm,
            mmio: &mut buses.mmio,
            events: &events,
            trace,
        };
        let mut devices = self.timeline.span("virtio devices", || {
            Devices::attach(config, &mut context, backends)
        })?;
        NotifyPorts::insert(devices.slots.transports(), &mut buses.ports)?;
        let consoles = consoles(com1, devices.terminal.take(), config.machine.console);
        let mut agent = Vec::from_iter(devices.agent.take());
        if config.machine.command.is_some() {
            let com2 = uart(line("COM2", layout::COM2_GSI), &events);
            let (base, chip) = (layout::COM2_PORT.into(), com2.chip.clone());
            buses.ports.insert(base, serial::PORTS, "COM2", chip)?;
            agent.push(Pipe::Uart(com2));
        }
        let added_words = self.added_words(&mut vcpus, memory)?;
        let outboxes = consoles.iter().chain(&agent).filter_map(Pipe::outbox);
        let shared = self.shared(buses, events, outboxes.collect());
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
            own: self.own.clone(),
        })
    }

    fn virtual_machine(&self, kvm: Kvm, memory: &GuestMemory) -> Result<Vm, VmmError> {
        let machine = &self.config.machine;
        // Accesses that are to be seen reach hull.
        let watched = &self.config.attachments;
        let hidden = watched.trace.is_none() && watched.explain_exits.is_none();
        let vm = self.timeline.span("virtual machine", || {
            let windows = hidden && Vm::maps_read_only(&kvm);
            let windows = windows.then(backing::windows).transpose()?;
            let vm = Vm::without(fault::kvm(machine), kvm, memory.clone(), windows)?;
            Ok::<_, VmmError>(vm)
        })?;
        let chips = !machine.has_fault(Fault::NoIrqchip);
        self.story
            .tell_all(|| story::virtual_machine(memory, chips));
        Ok(vm)
    }

    fn vcpus(&self, vm: &Vm) -> Result<Vec<Vcpu>, VmmError> {
        let saved = self.config.start.saved();
        let (cpus, topology) = (self.config.machine.cpus, self.config.machine.topology);
        let vcpus = self.timeline.span("vCPUs", || {
            saved.map_or(Ok(()), |saved| saved.fits(vm))?;
            let create = |id| match saved {
                Some(_) => vm.create_empty_vcpu(id),
                None => vm.create_vcpu(&Place { id, cpus, topology }),
            };
            let vcpus = (0..cpus).map(create);
            Ok::<_, VmmError>(vcpus.collect::<Result<Vec<_>, _>>()?)
        })?;
        self.story.tell(|| story::vcpu(vcpus.len()));
        Ok(vcpus)
    }

    /// What hull adds to the kernel command line for this host; a restored kernel has its words.
    fn added_words(
        &self,
        vcpus: &mut [Vcpu],
        memory: &GuestMemory,
    ) -> Result<Vec<String>, VmmError> {
        if let Some(saved) = self.config.start.saved() {
            return Ok(saved.shape.added_words.clone());
        }
        let Some(first) = vcpus.first_mut().filter(|_| !self.by_processor) else {
            return Ok(Vec::new());
        };
        // After a KVM_RUN here, the first one of the vCPU's own thread waits for an RCU grace period
        // (`kvm_vcpu_ioctl` in virt/kvm/kvm_main.c): several milliseconds.
        let complete = self.timeline.span("probe of KVM", || {
            probe::finishes_every_instruction(first, memory)
        })?;
        Ok(if complete {
            Vec::new()
        } else {
            probe::SOFTWARE_KVM_WORDS.map(String::from).into()
        })
    }

    fn shared(&self, buses: Buses, events: Arc<Events>, outboxes: Vec<Arc<Outbox>>) -> Arc<Shared> {
        let config = self.config;
        self.story
            .tell_all(|| story::devices(&buses.ports, &buses.mmio));
        if let Some(trace) = &config.attachments.trace {
            trace.set_places(buses.places());
        }
        let explain = config
            .attachments
            .explain_exits
            .map(|first| Explain::new(first, config.images.symbols.clone(), events.clone()));
        let mut outboxes = outboxes;
        outboxes.extend(explain.as_ref().map(|explain| explain.outbox.clone()));
        Arc::new(Shared {
            buses,
            events,
            outboxes,
            first_entry: OnceLock::new(),
            trace: config.attachments.trace.clone(),
            explain,
        })
    }
}

/// Write the boot tables and the command line for the kernel in memory.
fn finish(
    config: &Config,
    memory: &GuestMemory,
    placed: Placed,
    machine: &Machine,
) -> Result<Loaded, VmmError> {
    let wanted = &config.machine;
    let mut defaults = match wanted.console {
        Console::Serial => vec!["console=ttyS0"],
        // Before hvc0 is there a kernel that panics is heard on COM1.
        Console::Virtio => vec!["earlyprintk=ttyS0", "console=hvc0"],
    };
    defaults.extend(DEFAULTS);
    if wanted.kernel.is_own() {
        defaults.push(MITIGATIONS_OFF);
    }
    if wanted.command.is_some() {
        if !wanted.kernel_log {
            defaults.push("quiet");
        }
        defaults.push(AGENT_WORD);
    }
    defaults.extend(machine.added_words.iter().map(String::as_str));
    let order = format!("{REPORTING_ORDER}={}", reporting_order(wanted.memory_bytes));
    if wanted.all::<Balloon>().next().is_some() {
        defaults.push(&order);
    }
    let plan = Plan {
        cmdline: cmdline::new(&config.images.cmdline, &defaults).map_err(BootError::from)?,
        virtio_on_cmdline: true,
        machine: boot::Machine {
            cpus: wanted.cpus,
            com2: wanted.command.is_some(),
            virtio: &machine.devices.slots.places(),
        },
        faults: fault::boot(wanted),
    };
    generation::begin(memory)?;
    Ok(placed.finish(memory, &plan)?)
}

/// The port bus with the legacy devices of a PC; and its power button.
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

/// The consoles, the one to type on first.
fn consoles(com1: Uart, virtio: Option<Pipe>, console: Console) -> Vec<Pipe> {
    let mut consoles = vec![Pipe::Uart(com1)];
    consoles.extend(virtio);
    if console == Console::Virtio {
        consoles.reverse();
    }
    consoles
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
