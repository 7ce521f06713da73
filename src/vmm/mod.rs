//! One machine from its [`Config`] to its end: [`run`] reads as the story of a boot.
//!
//! Threads: one a vCPU (`vcpus`), one a disk, network or share (`devices`), and the caller's, which
//! moves all other bytes and waits for the end (`event_loop`). They meet in [`events`] and in the
//! devices' locks, nowhere else.

mod console_log;
mod control;
pub mod debugger;
mod devices;
mod event_loop;
pub mod events;
mod explain;
pub mod fault;
pub mod generation;
mod inspect;
mod keys;
mod link;
mod machine;
mod orders;
mod outbox;
mod pipe;
mod report;
mod sampler;
pub mod saved;
mod signals;
pub mod snapshot;
mod standstill;
pub mod story;
mod streams;
pub mod timeline;
pub mod vcpus;
mod watch;

use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGKILL;
use thiserror::Error;

pub use devices::vsock;
pub use devices::windows::LATE_WINDOWS;
pub use machine::SAVED_STATE;
pub use report::Report;
pub use signals::Signals;
pub use streams::Streams;

use crate::agent::{AgentError, Exec, Interface, Session};
use crate::boot::{BootError, Via};
use crate::control::Status;
use crate::devices::bus::Error as BusError;
use crate::disk::{self, DiskError};
use crate::fleet::{Claim, FleetError};
use crate::kvm::KvmError;
use crate::kvm::probe::ProbeError;
use crate::memory::backing::BackingError;
use crate::memory::image::Image;
use crate::memory::program;
use crate::net::{self, NetError};
use crate::profile::Profile;
use crate::share::{Config as ShareConfig, ShareError};
use crate::symbols;
use crate::trace::{self, Trace};
use control::{Control, Ordered};
use debugger::{Debugged, Debugger, Linked};
use event_loop::{Ending, EventLoop};
use events::GuestEnd;
use fault::Faults;
use inspect::Inspector;
use link::Link;
use machine::Machine;
use sampler::Sampler;
use saved::{Saved, SavedError, SavedLink};
use standstill::Standstill;
use story::Story;
use timeline::Timeline;
use vcpus::Vcpus;

/// RIP after a reset (Intel SDM 3A, 10.1.4), which is where KVM has put the vCPU when SVM reports
/// a triple fault: the VMCB is undefined then (AMD APM 2, 15.14.3).
const RESET_RIP: u64 = 0xfff0;

/// What to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it begins.
    pub start: Start,
    /// What the machine is called; its process id if `None`.
    pub name: Option<String>,
    /// The template with which the machine waits for a command, in a pool.
    pub ready_with: Option<String>,
    /// The kernel.
    pub kernel: Image,
    /// The initial RAM disk's parts, loaded one behind the other.
    pub initrd: Vec<Image>,
    /// The user's words for the kernel command line.
    pub cmdline: String,
    /// Which way into the kernel.
    pub via: Via,
    /// The vCPUs stand still until somebody lets them run.
    pub paused: bool,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// vCPUs, 1 to [`crate::memory::layout::MAX_CPUS`].
    pub cpus: u8,
    /// Disks, /dev/vda first.
    pub disks: Vec<disk::Config>,
    /// Networks, eth0 first.
    pub nets: Vec<net::Config>,
    /// Folders of the host that the guest can mount.
    pub shares: Vec<ShareConfig>,
    /// Whether there is an entropy device.
    pub rng: bool,
    /// Whether the guest finds only console and entropy device at boot, and the other devices when
    /// it is told of them.
    pub late_devices: bool,
    /// The memory balloon, if there is to be one.
    pub balloon: Option<Balloon>,
    /// Where the user talks to the guest.
    pub console: Console,
    /// What the kernel's messages and terminal are on, unless the command line says otherwise.
    pub terminal: Terminal,
    /// Names of the kernel's addresses, if it has any.
    pub symbols: Option<symbols::Source>,
    /// Where samples of the vCPUs go, if they are wanted.
    pub profile: Option<Arc<Profile>>,
    /// The socket device, if there is to be one.
    pub vsock: Option<vsock::Config>,
    /// Where to record what happens, with the clock that [`run`] is given.
    pub trace: Option<Arc<Trace>>,
    /// Who is told of each step of the boot.
    pub story: Option<story::Listener>,
    /// How many exits of each kind to tell of on standard error.
    pub explain_exits: Option<u32>,
    /// What is wrong with the machine on purpose.
    pub faults: Faults,
}

/// Where a machine begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// At the kernel's first instruction.
    Boot,
    /// There, and when hull's init waits for its command the machine is saved in this folder, to be
    /// a template.
    Template(PathBuf),
    /// Where another was saved.
    Saved(Arc<Saved>),
}

impl Start {
    /// The machine that goes on, if one does.
    pub fn saved(&self) -> Option<&Saved> {
        match self {
            Self::Saved(saved) => Some(saved),
            Self::Boot | Self::Template(_) => None,
        }
    }
}

impl Config {
    /// A machine with nothing in it.
    fn nothing(console: Console) -> Self {
        Self {
            start: Start::Boot,
            name: None,
            ready_with: None,
            kernel: Image::Bytes(Vec::new()),
            initrd: Vec::new(),
            cmdline: String::new(),
            via: Via::Auto,
            memory_bytes: 0,
            cpus: 1,
            paused: false,
            late_devices: false,
            disks: Vec::new(),
            nets: Vec::new(),
            shares: Vec::new(),
            rng: false,
            balloon: None,
            console,
            terminal: Terminal::Serial,
            symbols: None,
            profile: None,
            vsock: None,
            trace: None,
            story: None,
            explain_exits: None,
            faults: Faults::default(),
        }
    }
}

/// Where the user talks to the guest.
#[derive(Clone, Debug)]
pub enum Console {
    /// The kernel's terminal is standard input and output.
    Kernel,
    /// hull's init runs a command, whose streams are hull's.
    Agent {
        /// The command.
        exec: Exec,
        /// Whether the kernel's messages go to standard error.
        kernel_log: bool,
    },
}

/// A memory balloon as the user asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// Bytes of guest memory that the guest is to do without.
    pub target_bytes: u64,
    /// How often the guest tells of its memory; `None`: once.
    pub period: Option<Duration>,
}

/// What a guest kernel's console is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Terminal {
    /// COM1, which every kernel has a driver for: some exits a character.
    Serial,
    /// hvc0 of the virtio console: one exit a line.
    Virtio,
}

/// How a machine ended that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest powered off or rebooted.
    Off,
    /// The command ended with this status, 0 to 255.
    Exited(u8),
    /// This signal to hull ended it.
    Signalled(i32),
    /// The user left by Ctrl-A x.
    Quit,
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
    /// A disk.
    #[error("{flag} {error}")]
    Disk {
        /// The flag that asked for it.
        flag: Cow<'static, str>,
        /// Why it cannot be had.
        error: DiskError,
    },
    /// A network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A shared folder.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The machine's name.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The machine that was to go on.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// A machine from a template that has not answered.
    #[error("the machine that was restored {0}")]
    Unanswered(String),
    /// The command cannot be sent, or the guest's init does not keep to the protocol.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// More devices than windows or interrupt lines.
    #[error("more than {most} virtio devices; leave some out")]
    TooManyDevices {
        /// Most devices.
        most: usize,
    },
    /// No event file descriptor could be had.
    #[error("cannot create an event descriptor ({0}); raise the limit of open files (ulimit -n)")]
    EventFd(io::Error),
    /// The socket device's socket is there already.
    #[error(
        "--vsock: {} exists; remove it if no running hull has it, or name another path",
        path.display()
    )]
    VsockExists {
        /// Its path.
        path: PathBuf,
    },
    /// The socket device's socket could not be created.
    #[error(
        "--vsock: cannot create the socket {} ({error}); name a path in a folder that is there and \
         that you may write to",
        path.display()
    )]
    Vsock {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No thread could be had.
    #[error("cannot start a thread ({0}); raise the limit of processes (ulimit -u)")]
    Thread(io::Error),
    /// Signal handlers could not be set.
    #[error("cannot catch signals ({0})")]
    Signals(io::Error),
    /// Waiting failed.
    #[error("poll failed ({0})")]
    Poll(io::Error),
    /// The probe of the host's KVM.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// A kernel panic.
    #[error("the guest kernel panicked: {reason}{place}{log}")]
    Panicked {
        /// What it said.
        reason: String,
        /// RIP and symbol.
        place: String,
        /// The last lines of the console.
        log: String,
    },
    /// A reset or power-off without a word, before the command ran.
    #[error(
        "the guest ended before it ran the command, and its kernel did not say why; run it with \
         --kernel-log --cmdline earlyprintk=ttyS0 to see its messages from the first on"
    )]
    Unheard,
    /// A triple fault.
    #[error(
        "the guest shut down by a triple fault at {place}: an exception that it could not \
         deliver{log}"
    )]
    TripleFault {
        /// RIP and symbol.
        place: String,
        /// The last lines of the console.
        log: String,
    },
    /// KVM gave up.
    #[error("the guest stopped at {place}: {reason}{log}")]
    Failed {
        /// RIP and symbol.
        place: String,
        /// Why.
        reason: String,
        /// The last lines of the console.
        log: String,
    },
}

/// Boot a machine with this clock, and run it until it ends.
///
/// `signals` were caught before anything that a signal must not leave behind, such as a terminal
/// in raw mode. `debugger` comes to the machine before its first instruction.
pub fn run(
    config: &Config,
    streams: Streams,
    signals: Signals,
    timeline: Arc<Timeline>,
    debugger: Option<&mut dyn Debugger>,
) -> Result<(End, Report), VmmError> {
    let story = Story::new(config.story.as_ref());
    let standing = stand(config, timeline, &story)?;
    go(standing, config, streams, signals, (debugger, &story))
}

/// A machine before its first instruction, or the next one of a template.
pub struct Standing {
    machine: Machine,
    claim: Option<Claim>,
    timeline: Arc<Timeline>,
    networks: Vec<Interface>,
}

/// As [`run`] up to the first instruction.
///
/// # Errors
/// The machine cannot be made.
pub fn prepare(config: &Config, timeline: Arc<Timeline>) -> Result<Standing, VmmError> {
    stand(config, timeline, &Story::new(config.story.as_ref()))
}

impl Standing {
    /// The socket where it takes orders, if it has a name.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn listen(&self) -> io::Result<Option<OwnedFd>> {
        self.claim.as_ref().map(Claim::listen).transpose()
    }

    /// How it is.
    pub fn status(&self) -> Status {
        control::status("ready", &self.machine.shared.events)
    }

    /// As [`run`] from the first instruction on. `config` is that of [`prepare`], but for the command.
    ///
    /// # Errors
    /// As [`run`].
    pub fn run(
        self,
        config: &Config,
        streams: Streams,
        signals: Signals,
    ) -> Result<(End, Report), VmmError> {
        let story = Story::new(config.story.as_ref());
        go(self, config, streams, signals, (None, &story))
    }
}

fn stand(config: &Config, timeline: Arc<Timeline>, story: &Story) -> Result<Standing, VmmError> {
    let claim = control::claim(config)?;
    let nets = timeline.span("networks of the host", || net::open(&config.nets))?;
    let saved = config.start.saved();
    let goes_on = saved.is_some_and(|saved| !saved.is_template());
    let networks = devices::assigned(&nets, goes_on);
    if !goes_on && let Some(exec) = exec(config, &networks) {
        exec.check()?;
    }
    let machine = machine::build(config, nets, &timeline, story)?;
    Ok(Standing {
        machine,
        claim,
        timeline,
        networks,
    })
}

/// What hull's init is to run, if it is there.
fn exec(config: &Config, networks: &[Interface]) -> Option<Exec> {
    match &config.console {
        Console::Kernel => None,
        Console::Agent { exec, .. } => Some(Exec {
            networks: networks.to_vec(),
            ..exec.clone()
        }),
    }
}

/// Run a machine that stands.
fn go(
    standing: Standing,
    config: &Config,
    streams: Streams,
    signals: Signals,
    (debugger, story): (Option<&mut dyn Debugger>, &Story),
) -> Result<(End, Report), VmmError> {
    let Standing {
        mut machine,
        claim,
        timeline,
        networks,
    } = standing;
    let link = exec(config, &networks).map(|exec| link(config, exec, &machine));
    let link = link.transpose()?;
    let vcpus = std::mem::take(&mut machine.vcpus);
    let sampler = config.profile.clone();
    let sampler = sampler.map(|profile| Sampler::new(profile, vcpus.len()));
    let (sampler, samples) = sampler.unzip();
    let sampler = sampler.map(Arc::new);
    let vcpus = Vcpus::new(vcpus, machine.shared.clone(), sampler.clone());
    let standstill = Arc::new(Standstill::new(vcpus.clone()));
    if config.paused {
        standstill.pause();
    }
    let mut event_loop = EventLoop::new(
        &machine,
        &vcpus,
        config,
        link,
        streams,
        signals,
        standstill.clone(),
    );
    let mut debugger = Attached(debugger);
    debugger.attach(&machine, &vcpus)?;
    story.tell(|| story::run(&machine));
    timeline
        .span("vCPU threads", || vcpus.start())
        .map_err(VmmError::Thread)?;
    let sampling = sampler.zip(samples).map(|(sampler, samples)| {
        let memory = machine.vm.memory().clone();
        sampler::start(
            sampler,
            samples,
            vcpus.clone(),
            machine.shared.events.clone(),
            memory,
        )
    });
    let sampling = sampling.transpose().map_err(|error| {
        vcpus.stop();
        VmmError::Thread(error)
    })?;
    if let Some(trace) = &config.trace {
        record(&timeline, trace);
    }
    let ordered = Ordered {
        inspector: Inspector::new(&machine, vcpus.clone(), config),
        standstill,
        events: machine.shared.events.clone(),
    };
    // Without it the machine runs as well, only unseen.
    let control = Control::start(config, claim, ordered);
    if config.start.saved().is_none() {
        // A boot takes a while, and needs little of hull.
        program::release();
    }
    log::info!(
        "started: {} vCPUs, {} MiB of memory",
        config.cpus,
        config.memory_bytes >> 20
    );
    let ending = event_loop.run();
    if let Ok(ending) = &ending {
        log::info!("stopped: {ending:?}");
    }
    drop(control);
    vcpus.stop();
    event_loop.tell_the_rest();
    let _ = sampling.map(JoinHandle::join);

    let report = Report::new(&machine, &vcpus, &event_loop);
    let end = end(ending?, &event_loop, &vcpus, config)?;
    debugger.ended(Some(debugger::status(&end)));
    Ok((end, report))
}

/// The session with the init of `machine`, which runs `exec` unless it runs something already.
fn link(config: &Config, exec: Exec, machine: &Machine) -> Result<Link, VmmError> {
    let pipes = machine.agent.clone();
    let Some(saved) = config.start.saved() else {
        let session = match config.start {
            Start::Template(_) => Session::waiting(exec)?,
            _ => Session::new(exec)?,
        };
        return Ok(Link::new(session, pipes));
    };
    let windows = match saved.shape.revealed {
        true => 0..0,
        false => machine.devices.windows.reveal(),
    };
    let resumed = saved::resumed(windows);
    Ok(match &saved.link {
        None => Link::new(Session::new(exec)?, pipes),
        Some(SavedLink {
            session: None,
            pipe,
        }) => {
            let session = Session::restored(exec, resumed)?;
            Link::going_on(session, pipes, *pipe, false)
        }
        Some(SavedLink {
            session: Some(session),
            pipe,
        }) => {
            let mut session = Session::load(session.clone())?;
            session.resumed(resumed);
            session.set_networks(&exec.networks);
            let greeted = session.is_ready();
            Link::going_on(session, pipes, *pipe, greeted)
        }
    })
}

/// hull's own phases up to here belong into a trace, too.
fn record(timeline: &Timeline, trace: &Trace) {
    for span in timeline.spans() {
        let phase = trace::Event::Phase {
            name: span.name.into(),
            since: trace::nanoseconds(span.start),
            aside: span.aside,
        };
        trace.record_at(trace::nanoseconds(span.end), phase);
    }
}

/// The debugger, if there is one, until the machine's end.
struct Attached<'a>(Option<&'a mut dyn Debugger>);

impl Attached<'_> {
    fn attach(&mut self, machine: &Machine, vcpus: &Arc<Vcpus>) -> Result<(), VmmError> {
        let Some(debugger) = &mut self.0 else {
            return Ok(());
        };
        let debugged = Debugged {
            vcpus: vcpus.clone(),
            memory: machine.vm.memory().clone(),
            kernel: machine.loaded.as_ref().and_then(Linked::of),
            events: machine.shared.events.clone(),
        };
        debugger.attach(debugged).map_err(VmmError::Thread)
    }

    fn ended(&mut self, status: Option<u8>) {
        if let Some(debugger) = self.0.take() {
            debugger.ended(status);
        }
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.ended(None);
    }
}

/// What the ending of the event loop means: an end, or an error with all that is known of it.
fn end(
    ending: Ending,
    event_loop: &EventLoop,
    vcpus: &Vcpus,
    config: &Config,
) -> Result<End, VmmError> {
    let guest_end = match ending {
        Ending::Exited(status) => return Ok(End::Exited(status)),
        Ending::Signalled(signal) => return Ok(End::Signalled(signal)),
        Ending::Quit => return Ok(End::Quit),
        Ending::Unanswered => return Err(VmmError::Unanswered("has not answered".into())),
        Ending::Guest(end) => end,
    };
    if config.start.saved().is_some() && event_loop.waits_for_init() {
        return Err(VmmError::Unanswered(format!(
            "ended at once ({guest_end:?})"
        )));
    }
    let log = || report::quote(&event_loop.log().last_lines());
    let place = |rip: u64| report::place(rip, config.symbols.as_ref());
    match guest_end {
        GuestEnd::Killed => Ok(End::Signalled(SIGKILL)),
        GuestEnd::PoweredOff | GuestEnd::Reset => match event_loop.log().panic_reason() {
            None if event_loop.waits_for_init() => Err(VmmError::Unheard),
            None => Ok(End::Off),
            Some(reason) => Err(VmmError::Panicked {
                reason,
                place: vcpus
                    .vcpu(0)
                    .and_then(|vcpu| vcpu.rip())
                    .map_or_else(String::new, |rip| format!("\n  vCPU 0 at {}", place(rip))),
                log: log(),
            }),
        },
        GuestEnd::TripleFault { rip } => Err(VmmError::TripleFault {
            place: match rip {
                RESET_RIP => "a place that KVM on this processor does not tell".into(),
                rip => place(rip),
            },
            log: log(),
        }),
        GuestEnd::Failed { rip, reason } => Err(VmmError::Failed {
            place: place(rip),
            reason,
            log: log(),
        }),
    }
}
