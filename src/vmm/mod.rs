//! One machine from its [`Config`] to its end: [`build`] makes it, [`ReadyMachine::run`] runs it.
//!
//! Threads: one for each vCPU ([`vcpus`]), one for each disk, network and share (`devices`), one for
//! the control socket (`control`), and the caller's, which moves all other bytes and waits for the end
//! (`event_loop`). They meet in [`events`], in the devices' locks, and in the machine's state
//! ([`life`]).

mod action_queue;
mod actions;
mod ancestors;
mod builder;
mod buses;
mod config;
mod console_log;
mod control;
pub mod debugger;
mod devices;
mod error;
mod event_loop;
pub mod events;
mod explain;
mod fault;
pub mod generation;
mod inspect;
mod irq;
mod jail;
mod keys;
pub mod life;
mod link;
mod lockdown;
mod machine;
mod marks;
mod outbox;
mod outcome;
mod own;
mod pipe;
mod place;
mod report;
mod sampler;
mod shared;
mod signals;
pub mod snapshot;
pub mod socket;
pub mod story;
mod streams;
pub mod timeline;
mod trace_thread;
mod tty;
pub mod vcpus;
mod watch;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

pub use ancestors::has_job_control;
pub use builder::SAVED_STATE;
pub use config::{Attachments, Config, End, Images, Start, Supervised, TraceWriter, exec};
pub use devices::files::allow_many;
pub use devices::slots::LATE_SLOTS;
#[cfg(fuzzing)]
pub use devices::vsock;
pub use error::VmmError;
pub use report::Report;
pub use signals::Signals;
pub use streams::{Output, Streams};
pub use tty::Tty;

use crate::agent::{Interface, WindowSize};
use crate::control::Status;
use crate::fleet::kept::Kept;
use crate::memory::pages::Pages;
use crate::memory::program;
use crate::net;
use crate::profile::Sample;
use crate::sandbox::{is_jailed, is_restricted};
use crate::snapshot::add_written;
use actions::Actions;
use control::Control;
use debugger::{Attached, Debugger};
use event_loop::EventLoop;
use inspect::Inspector;
use life::{Life, State, Transition};
use machine::Machine;
use sampler::Sampler;
use story::Story;
use timeline::Timeline;
use trace_thread::TraceThread;
use vcpus::Vcpus;

/// Build a machine and run it until it ends.
///
/// `signals` were caught before anything that a signal must not leave behind, such as a terminal
/// in raw mode. `debugger` is attached before the machine's first instruction.
///
/// # Errors
/// The machine cannot be built, or its guest did not end in good order.
pub fn run(
    config: &Config,
    streams: Streams,
    signals: Signals,
    timeline: Arc<Timeline>,
    debugger: Option<&mut dyn Debugger>,
) -> Result<(End, Report), VmmError> {
    build(config, timeline)?.run(config, streams, signals, debugger)
}

/// A machine before its first instruction, or before the next one of a template.
pub struct ReadyMachine {
    machine: Machine,
    place: control::Place,
    timeline: Arc<Timeline>,
    networks: Vec<Interface>,
    story: Story,
}

/// Build a machine, up to its first instruction.
///
/// # Errors
/// A part of it cannot be made.
pub fn build(config: &Config, timeline: Arc<Timeline>) -> Result<ReadyMachine, VmmError> {
    let story = Story::new(config.attachments.story.clone());
    let place = control::Place::open(config)?;
    let pid = std::process::id().to_string();
    let name = config.machine.name.as_deref().unwrap_or(&pid);
    let nets = timeline.span("networks of the host", || {
        let journal = journal(config);
        net::open(name, config.machine.all(), journal.as_ref())
    })?;
    let saved = config.start.saved();
    let has_command = saved.is_some_and(|saved| !saved.is_template());
    let networks = devices::assigned(&nets, has_command);
    if !has_command && let Some(exec) = exec(&config.machine, &networks, WindowSize::default()) {
        exec.check()?;
    }
    let machine = builder::build(config, nets, place.machines(), &timeline, &story)?;
    Ok(ReadyMachine {
        machine,
        place,
        timeline,
        networks,
        story,
    })
}

/// The file in which it is told what left the machine and what was refused: of one in the background.
fn journal(config: &Config) -> Option<File> {
    let name = config.machine.name.as_deref();
    let kept = name.filter(|_| config.attachments.started.is_some());
    let has_rules = |net: &net::Config| net.is_held();
    let kept = kept.filter(|_| config.machine.all().any(has_rules))?;
    Kept::open(kept).ok()?.journal().ok()
}

impl ReadyMachine {
    /// Listen on the machine's control socket, if it has a name.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(&self) -> io::Result<Option<OwnedFd>> {
        self.place.listen()
    }

    /// The answer to [`crate::control::Action::Status`].
    pub fn status(&self) -> Status {
        actions::status(State::Ready, &self.machine.shared.events, &self.machine.own)
    }

    /// Run the machine until it ends. `config` is that of [`build`], but for the command. This process is to
    /// end soon after a machine that ended in good order.
    ///
    /// # Errors
    /// A thread cannot be started, or the guest did not end in good order.
    pub fn run(
        mut self,
        config: &Config,
        streams: Streams,
        signals: Signals,
        debugger: Option<&mut dyn Debugger>,
    ) -> Result<(End, Report), VmmError> {
        let size = streams.window_size().unwrap_or_default();
        let exec = exec(&config.machine, &self.networks, size);
        let link = exec.map(|exec| link::connect(config, exec, &self.machine));
        let link = link.transpose()?;
        let vcpus = std::mem::take(&mut self.machine.vcpus);
        let profile = config.attachments.profile.clone();
        let sampler = profile.map(|profile| Sampler::new(profile, vcpus.len()));
        let (sampler, samples) = sampler.unzip();
        let machine = &self.machine;
        let vcpus = Vcpus::new(vcpus, machine.shared.clone(), sampler.clone());
        let life = Arc::new(Life::new(vcpus.clone()));
        let inspector = Inspector::new(machine, vcpus.clone(), config);
        let actions = Arc::new(Actions::new(machine, inspector, life.clone()));
        let streams = (streams, signals);
        let mut event_loop = EventLoop::new(machine, &vcpus, config, link, streams, life.clone());
        let mut debugger = Attached(debugger);
        debugger.attach(machine, &vcpus, &actions)?;
        self.story.tell(|| story::run(&machine.added_words));
        let paused = config.paused;
        let _ = life.make(Transition::Start { paused }); // allowed: it is ready
        let tracing = TraceThread::start(&config.attachments)?;
        // Until this thread, too, may make no other system calls than those on its list: it must have
        // started all others before.
        let held = vcpus.pause();
        let sampling = start_threads(&self.timeline, sampler.zip(samples), machine, &vcpus)?;
        let trace = config.attachments.trace.iter();
        trace.for_each(|trace| self.timeline.record(trace));
        // Without a control socket the machine runs as well, only out of reach.
        let control = Control::start(config, self.place, actions);
        restrict(&mut event_loop, &self.story);
        drop(held);
        if config.start.saved().is_none() {
            // A boot takes a while, and needs little of hull.
            program::release();
        }
        let (cpus, mib) = (config.machine.cpus, config.machine.memory_bytes >> 20);
        log::info!("started: {cpus} vCPUs, {mib} MiB of memory");
        let ending = event_loop.run();
        let ending = ending.inspect(|ending| log::info!("stopped: {ending:?}"));
        drop(control);
        vcpus.stop();
        event_loop.flush_explanations();
        let _ = sampling.map(JoinHandle::join);
        drop(tracing);

        let report = Report::new(machine, &vcpus, &event_loop);
        let end = outcome::end(ending?, &event_loop, &vcpus, config)?;
        name_written(config, machine);
        debugger.ended(Some(&end));
        let _ = machine.vm.end_after_exit(); // after an error this process waits itself
        Ok((end, report))
    }
}

/// Add to the template that the run of `machine` has made, if it has, which pages it has written since.
fn name_written(config: &Config, machine: &Machine) {
    if let Start::Template(dir) = &config.start {
        let memory = machine.vm.memory();
        let touched = Pages::touched(memory, machine.own.pagemap.as_ref());
        if let Err(error) = add_written(dir, memory, &touched) {
            log::info!("the template does not name the pages that runs write: {error}");
        }
    }
}

/// Restrict the calling thread, if its time has come.
fn restrict(event_loop: &mut EventLoop, story: &Story) {
    event_loop.restrict();
    if is_restricted() {
        story.tell_all(story::restricted);
    }
}

/// Whether another machine may be built after one that has run: what that needs is on no list, and in a jail
/// there are no files.
pub fn may_build() -> bool {
    !is_restricted() && !is_jailed()
}

/// Start the threads of the vCPUs and of a profile, if there is one. If that fails the vCPUs are stopped.
fn start_threads(
    timeline: &Timeline,
    sampler: Option<(Arc<Sampler>, Receiver<Sample>)>,
    machine: &Machine,
    vcpus: &Arc<Vcpus>,
) -> Result<Option<JoinHandle<()>>, VmmError> {
    timeline
        .span("vCPU threads", || vcpus.start())
        .map_err(VmmError::Thread)?;
    let Some((sampler, samples)) = sampler else {
        return Ok(None);
    };
    let memory = machine.vm.memory().clone();
    let events = machine.shared.events.clone();
    let kicked = vcpus.clone();
    let kick = move |index| kicked.kick(index);
    let thread = sampler::start(sampler, samples, kick, events, memory);
    thread.map(Some).map_err(|error| {
        vcpus.stop();
        VmmError::Thread(error)
    })
}
