//! The main thread while a guest runs: moves bytes between hull's streams and the guest, and
//! waits for the end.
//!
//! One `poll` over the descriptors that can make progress now: a stream that is full or a guest
//! that has no room is not polled, which is all the back pressure there is. [`Stdio`], [`Consoles`]
//! and [`CommandLink`] are the two ends of those bytes, `actions` what front ends ask of the loop,
//! and [`Leaving`] its end.

mod actions;
mod clients;
mod command;
mod consoles;
mod ending;
mod health;
mod job;
mod standstill;
mod stdio;
mod stops;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGCONT, SIGINT, SIGPIPE, SIGTERM, SIGTSTP, SIGUSR1, SIGWINCH};

use super::config::Config;
use super::console_log::ConsoleLog;
use super::error::VmmError;
use super::events::{Events, GuestEnd};
use super::keys::Command;
use super::life::{Life, Transition};
use super::link::Link;
use super::machine::Machine;
use super::outbox::Outbox;
use super::signals::Signals;
use super::streams::Streams;
use super::vcpus::Vcpus;
use crate::agent::{Event, Output};
use crate::memory::program;
use crate::sandbox::{self, Role};
use crate::snapshot::Id;
use crate::trace::Trace;
use clients::{Clients, Early};
use command::{CommandLink, Silence};
use consoles::Consoles;
pub use ending::Ending;
use ending::Leaving;
use standstill::Standstill;
use stdio::Stdio;
use stops::Stops;

/// SIGINTs and SIGTERMs that end the machine, whatever the command makes of them.
const FORCE_STOP_SIGNALS: u32 = 3;
/// How long after a SIGTERM a command may still run, as for `hull stop`.
const TERM_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a machine in the background looks whether the shell has given it the terminal: a job that
/// runs is not told.
const FOREGROUND_POLL: Duration = Duration::from_millis(250);
/// A command that has run so long is not a short one.
const LASTING: Duration = Duration::from_millis(500);

/// The state of the loop.
pub struct EventLoop<'a> {
    machine: &'a Machine,
    vcpus: &'a Arc<Vcpus>,
    config: &'a Config,
    life: Arc<Life>,
    signals: Signals,
    stdio: Stdio,
    consoles: Consoles,
    /// The command in the guest; `None` if the consoles are hull's streams.
    command: Option<CommandLink>,
    /// Those of the commands beside it.
    clients: Clients,
    early: Early,
    stops: Stops,
    leaving: Leaving,
    standstill: Standstill,
    /// The snapshot since which changes are logged, if it is complete.
    last_saved: Option<Id>,
    /// The one whose files were written last, and whether the machine ends once it is complete.
    written: Option<(Id, bool)>,
    /// When code that only the start needed is released: a short command must not pay for bringing
    /// some of it in again.
    release_at: Option<Instant>,
    /// This thread is not restricted yet.
    restricts_later: bool,
}

/// What the loop polls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Wake,
    Signals,
    Devices,
    Stdin,
    Stdout,
    Stderr,
    Client(u8),
}

impl<'a> EventLoop<'a> {
    /// A loop for `machine` and its `vcpus`, whose console or command is connected to `streams`.
    pub fn new(
        machine: &'a Machine,
        vcpus: &'a Arc<Vcpus>,
        config: &'a Config,
        link: Option<Link>,
        (streams, signals): (Streams, Signals),
        life: Arc<Life>,
    ) -> Self {
        let mut signals = signals;
        // If they cannot be caught, the kernel stops and continues this process as any other.
        let _ = signals.catch_stops();
        let began = machine.shared.events.now();
        let restored = config.start.saved().is_some();
        let mut event_loop = Self {
            machine,
            vcpus,
            config,
            life,
            signals,
            stdio: Stdio::new(streams),
            consoles: Consoles::new(machine.consoles.clone(), &config.machine),
            command: link.map(|link| CommandLink::new(link, began, restored)),
            clients: Clients::default(),
            early: Early::default(),
            stops: Stops::default(),
            leaving: Leaving::default(),
            standstill: Standstill::new(),
            last_saved: None,
            written: None,
            release_at: None,
            restricts_later: false,
        };
        if event_loop.stdio.stdout.is_closed() {
            event_loop.close_output(Output::Stdout);
        }
        event_loop
    }

    /// Restrict the calling thread to the files and system calls of an event loop: now, or when the guest's init is
    /// about to get its command. Until then a template of hull's own kernel has run nothing of the user's,
    /// and if it does not continue as it was saved, this process boots another machine.
    pub fn restrict(&mut self) {
        let saved = self.config.start.saved();
        let own = self.config.machine.kernel.is_own();
        if own && saved.is_some_and(|saved| saved.is_template()) {
            self.restricts_later = true;
        } else {
            sandbox::restrict(Role::Main);
        }
    }

    /// Whether there is a command that the guest's init has not asked for yet.
    pub fn waits_for_init(&self) -> bool {
        let command = self.command.as_ref();
        command.is_some_and(|command| !command.link.greeted())
    }

    /// Run until the machine is to end and all that the guest had written is out.
    ///
    /// # Errors
    /// Polling failed, or the guest's init broke the protocol.
    pub fn run(&mut self) -> Result<Ending, VmmError> {
        let result = self.take_turns();
        // It is allowed in every state.
        let _ = self.life.make(Transition::End);
        self.end_actions();
        result
    }

    fn take_turns(&mut self) -> Result<Ending, VmmError> {
        if self.consoles.are_stdio() {
            self.resize();
        }
        if self.command.is_none() {
            self.report_start();
        }
        loop {
            // The end is read before the bytes: what was written before it is still moved.
            let guest_end = self.events().end();
            self.take_actions();
            self.look_for_standstill();
            self.follow_foreground();
            self.release_start_code();
            self.process_devices();
            self.move_consoles(false);
            self.receive();
            self.move_command_events(false);
            self.move_input();
            if let Some(command) = &mut self.command {
                self.clients.send(&mut command.link.session);
                command.link.send();
            }
            self.move_explanations();
            self.note_guest_end(guest_end);
            if self.leaving.begun() {
                self.consoles.end_line(&mut self.stdio);
            }
            if let Some(result) = self.leaving.result(self.stdio.is_written()) {
                self.events().stop();
                return result;
            }
            self.wait()?;
        }
    }

    /// Write the explanations of the exits that ended the guest, which may come after the loop has
    /// ended; until a signal comes.
    pub fn flush_explanations(&mut self) {
        self.move_explanations();
        let until = self.leaving.deadline();
        while let Some(fd) = self.stdio.stderr.pending() {
            let left = until.map(|at| at.saturating_duration_since(Instant::now()));
            let mut fds = [
                PollFd::from_borrowed_fd(fd, PollFlags::OUT),
                PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN),
            ];
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let ready = poll(&mut fds, left.as_ref());
            if matches!(ready, Ok(0)) || !fds[1].revents().is_empty() {
                break;
            }
            if !fds[0].revents().is_empty() && self.stdio.stderr.write_some().is_err() {
                break;
            }
        }
    }

    /// Why standard output could not take all that the guest wrote, if it could not.
    pub fn lost_output(&self) -> Option<Errno> {
        self.stdio.stdout.loss()
    }

    /// The end of the console's output.
    pub fn log(&self) -> &ConsoleLog {
        self.consoles.log()
    }

    /// When the console's first byte came.
    pub fn first_output(&self) -> Option<Duration> {
        self.consoles.first_output()
    }

    /// When the guest's init was told the command, and when that ended.
    pub fn command(&self) -> (Option<Duration>, Option<Duration>) {
        let command = self.command.as_ref();
        command.map_or((None, None), |command| command.times)
    }

    fn events(&self) -> &'a Events {
        &self.machine.shared.events
    }

    fn trace(&self) -> Option<&'a Trace> {
        self.machine.shared.trace.as_deref()
    }

    /// The explanations of exits, for `--explain=exits`.
    fn explained(&self) -> Option<&'a Outbox> {
        let explain = self.machine.shared.explain.as_ref();
        explain.map(|explain| &*explain.outbox)
    }

    fn release_start_code(&mut self) {
        if self.release_at.is_some_and(|at| at <= Instant::now()) {
            self.release_at = None;
            program::release();
        }
    }

    fn process_devices(&self) {
        self.machine.devices.slots.process();
    }

    fn move_consoles(&mut self, drain: bool) {
        let (trace, events) = (self.trace(), self.events());
        self.consoles
            .move_output(&mut self.stdio, trace, drain, || events.now());
        self.take_news();
    }

    /// Give what was typed to the command or to the console, as far as there is room.
    fn move_input(&mut self) {
        let consoles = &self.consoles;
        match &mut self.command {
            None => self.stdio.move_typed(|typed| consoles.put(typed)),
            Some(CommandLink { link, .. }) => {
                self.stdio
                    .move_typed(|typed| link.session.send_stdin(typed));
                if self.stdio.input_ended() {
                    link.session.close_stdin();
                }
            }
        }
    }

    fn receive(&mut self) {
        let waits_for_init = self.waits_for_init();
        let Some(command) = &mut self.command else {
            return;
        };
        if self.leaving.begun() {
            return;
        }
        if let Err(fault) = command.link.receive() {
            let restored = self.config.start.saved().is_some();
            self.leaving.fail(if restored && waits_for_init {
                VmmError::Unanswered(format!("does not continue as it was saved: {fault}"))
            } else {
                VmmError::Agent(fault)
            });
        }
    }

    /// Carry out what the guest's init reported, while both outputs have room or to `drain` it all.
    fn move_command_events(&mut self, drain: bool) {
        let events = self.events();
        while (drain || self.stdio.has_room())
            && let Some(command) = &mut self.command
            && let Some(event) = command.link.next_event()
        {
            match event {
                Event::Ready => {
                    command.times.0 = Some(events.now());
                    if std::mem::take(&mut self.restricts_later) {
                        sandbox::restrict(Role::Main);
                    }
                    self.keep_template();
                    self.resize();
                    self.release_at = Some(Instant::now() + LASTING);
                    for reply in self.early.take() {
                        self.admit(reply);
                    }
                }
                Event::Stdout(bytes) => self.stdio.stdout.push(&bytes),
                Event::Stderr(bytes) => self.stdio.stderr.push(&bytes),
                Event::Error(text) => self.stdio.say(&text),
                Event::Suspend => self.suspend_job(),
                Event::Started => self.report_start(),
                Event::Exited(status) => {
                    command.times.1 = Some(events.now());
                    self.leaving.end(Ending::Exited(status));
                    // What the kernel wrote until now is part of the run.
                    self.move_consoles(true);
                }
            }
        }
    }

    /// Tell the keeper, if there is one.
    fn report_start(&self) {
        if let Some(started) = &self.config.attachments.started {
            // It may have been killed, and this process with it.
            let _ = rustix::io::write(started, b"s");
        }
    }

    fn move_explanations(&mut self) {
        if let Some(explained) = self.explained() {
            self.stdio.move_explanations(explained);
        }
    }

    /// The guest's end is the loop's once everything that it wrote has been moved.
    fn note_guest_end(&mut self, guest_end: Option<GuestEnd>) {
        let command = self.command.as_ref();
        if let Some(end) = guest_end
            && self.consoles.are_empty()
            && command
                .is_none_or(|command| command.link.session.is_empty() && !command.link.has_more())
            && self.explained().is_none_or(Outbox::is_empty)
        {
            self.leaving.end_unless_begun(Ending::Guest(end));
        }
    }

    fn wait(&mut self) -> Result<(), VmmError> {
        let timeout = self.timeout();
        for source in self.poll(timeout)? {
            match source {
                // Nonblocking: an error says that nothing was there.
                Source::Wake => _ = self.events().waker().lower(),
                Source::Signals => self.take_signals(),
                // Their state is read in the next turn.
                Source::Devices => {}
                Source::Stdin => self.read_stdin(),
                Source::Stdout => {
                    if let Err(fault) = self.stdio.stdout.write_some() {
                        self.output_closed(fault);
                    }
                }
                Source::Client(number) => {
                    if let Some(command) = &mut self.command {
                        self.clients.receive(number, &mut command.link.session);
                    }
                }
                Source::Stderr => {
                    if self.stdio.stderr.write_some().is_err() {
                        self.close_output(Output::Stderr);
                    }
                }
            }
        }
        Ok(())
    }

    /// Wait for something to do; what it is.
    fn poll(&self, timeout: Option<Duration>) -> Result<Vec<Source>, VmmError> {
        let devices = &self.machine.devices;
        let input = PollFlags::IN;
        let waker = self.events().waker().as_fd();
        let mut watched: Vec<(Source, BorrowedFd<'_>, PollFlags)> = vec![
            (Source::Wake, waker, input),
            (Source::Signals, self.signals.fd(), input),
            (Source::Devices, devices.slots.as_fd(), input),
        ];
        if self.stdio.stdin_open()
            && !self.leaving.begun()
            && self.stdin_room() > 0
            && !self.stdio.streams().in_background()
            && !self.stdio.streams().is_taken()
        {
            watched.push((Source::Stdin, self.stdio.streams().stdin, input));
        }
        let outputs = [
            (Source::Stdout, &self.stdio.stdout),
            (Source::Stderr, &self.stdio.stderr),
        ];
        for (source, stream) in outputs {
            watched.extend(stream.watched().map(|(fd, flags)| (source, fd, flags)));
        }
        if let Some(command) = &self.command {
            let clients = self.clients.watched(&command.link.session);
            watched.extend(clients.map(|(number, fd, flags)| (Source::Client(number), fd, flags)));
        }
        let fds = watched.iter();
        let fds = fds.map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags));
        let mut fds: Vec<PollFd<'_>> = fds.collect();
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(VmmError::Poll(error.into())),
        }
        let ready = watched.iter().zip(&fds);
        let ready = ready.filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((source, ..), _)| *source).collect())
    }

    /// Zero while the guest's init has sent more than one turn takes; until the next deadline; forever
    /// without one.
    fn timeout(&mut self) -> Option<Duration> {
        let more = self.command.as_ref().is_some_and(|it| it.link.has_more());
        if more && !self.leaving.begun() {
            return Some(Duration::ZERO);
        }
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        if let Some(at) = self.leaving.deadline() {
            return Some(until(at));
        }
        let kill = self.stops.kill_at().map(until);
        let term = self.stops.term_at().map(until);
        let release = self.release_at.map(until);
        let foreground = self.stdio.streams().in_background();
        let foreground = foreground.then_some(FOREGROUND_POLL);
        let look = Some(until(self.standstill.next()));
        [kill, term, release, foreground, look, self.init_time_left()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Until an init that is silent has consequences.
    fn init_time_left(&mut self) -> Option<Duration> {
        let now = self.events().now();
        let paused = self.life.state().is_paused();
        match self.command.as_mut()?.silence(now, paused)? {
            Silence::Left(left) => return Some(left),
            Silence::Unanswered => self.leaving.end(Ending::Unanswered),
            Silence::Warn => self.stdio.say(
                "the guest's init has not reported after 60 s; \
                 --kernel-log shows how far its kernel is",
            ),
        }
        Some(Duration::ZERO)
    }

    fn stdin_room(&self) -> usize {
        let command = self.command.as_ref();
        let guest_room = command.map(|command| command.link.session.stdin_room());
        self.stdio.stdin_room(guest_room)
    }

    fn read_stdin(&mut self) {
        // Another program may have taken the terminal since the poll began.
        if self.stdio.streams().is_taken() {
            return;
        }
        let room = self.stdin_room();
        let up = !self.waits_for_init();
        for command in self.stdio.read_stdin(room, up) {
            match command {
                Command::Quit => self.leaving.end(Ending::Quit),
                Command::Interrupt => self.end_by(SIGINT),
                Command::Suspend => self.suspend_job(),
                Command::Help => self.stdio.say_help(),
            }
        }
    }

    fn take_signals(&mut self) {
        let trace = self.trace();
        for signal in self.signals.take() {
            match (&mut self.command, signal) {
                (_, SIGWINCH) => self.resize(),
                (_, SIGTSTP) => self.suspend(),
                (_, SIGCONT) => self.vcpus.pause().tell_guest(),
                (_, SIGUSR1) if trace.is_some() => trace.into_iter().for_each(Trace::ask),
                (Some(command), signal) if command.runs() && !self.leaving.begun() => {
                    // As a container engine does: the command decides what a signal means to it.
                    command.link.session.signal(signal as u8);
                }
                _ => self.end_by(signal),
            }
            if signal == SIGTERM || signal == SIGINT {
                // A paused guest would never receive it.
                let _ = self.life.make(Transition::Resume);
                if self.stops.count_signal() >= FORCE_STOP_SIGNALS {
                    self.end_by(signal);
                }
            }
            if signal == SIGTERM {
                self.stops.end_at(Instant::now() + TERM_TIMEOUT);
            }
        }
    }

    /// A signal ends the machine.
    fn end_by(&mut self, signal: i32) {
        self.leaving.end(Ending::Signalled(signal));
        self.leaving.hurry();
    }

    /// Tell the guest's terminal the size of hull's.
    fn resize(&mut self) {
        let Some(size) = self.stdio.window_size() else {
            return;
        };
        match &mut self.command {
            Some(command) => command.link.session.resize(size),
            None => self.consoles.resize(size),
        }
    }

    /// Standard output takes no more: neither does the pipe or terminal of the command.
    fn output_closed(&mut self, fault: Errno) {
        if fault != Errno::PIPE {
            self.stdio.say(&format!(
                "standard output cannot be written: {fault}; the rest of the output is lost"
            ));
        }
        match self.command {
            Some(_) => self.close_output(Output::Stdout),
            None => self.leaving.end_unless_begun(Ending::Signalled(SIGPIPE)),
        }
    }

    fn close_output(&mut self, output: Output) {
        if let Some(command) = &mut self.command {
            command.link.session.close_output(output);
        }
    }
}
