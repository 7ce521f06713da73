//! The main thread while a guest runs: moves bytes between hull's streams and the guest, and
//! waits for the end.
//!
//! One `poll` over the descriptors that can make progress now: a stream that is full or a guest
//! that has no room is not polled, which is all the back pressure there is.

mod ordered;
mod saving;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGPIPE, SIGTERM, SIGUSR1, SIGWINCH};

use super::console_log::ConsoleLog;
use super::devices::vsock;
use super::devices::windows::Windows;
use super::events::{Events, GuestEnd};
use super::keys::{self, Command, Keys};
use super::link::Link;
use super::machine::Machine;
use super::outbox::Outbox;
use super::pipe::Pipe;
use super::signals::Signals;
use super::standstill::Standstill;
use super::streams::{Output, Streams};
use super::vcpus::Vcpus;
use super::{Config, Console, VmmError};
use crate::agent::{Event, WindowSize};
use crate::devices::legacy::power::Power;
use crate::kvm;
use crate::memory::program;
use crate::snapshot::Id;
use crate::trace::Trace;
use ordered::Stops;

/// Silence of the guest's init after which the user is told what hull waits for.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same of a machine from a template, after which another is booted. A tenth of a second is usual
/// where ring 0 is emulated.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// SIGINTs and SIGTERMs that end the machine, whatever the command makes of them.
const INSISTENT: u32 = 3;
/// How long output may still take after such a signal.
const GRACE: Duration = Duration::from_secs(1);
/// A command that runs so long is no short one.
const LASTING: Duration = Duration::from_millis(500);
/// Bytes read from standard input at once.
const BATCH: usize = 16 << 10;

/// Why the loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest ended by itself.
    Guest(GuestEnd),
    /// The command ended with this status.
    Exited(u8),
    /// A signal to hull ended the machine.
    Signalled(i32),
    /// The user left by Ctrl-A x.
    Quit,
    /// A machine of a template has not said that it goes on.
    Unanswered,
}

/// The state of the loop.
pub struct EventLoop<'a> {
    machine: &'a Machine,
    vcpus: &'a Arc<Vcpus>,
    config: &'a Config,
    events: &'a Events,
    windows: &'a Windows,
    vsock: Option<&'a vsock::Link>,
    /// What the kernel may print on. The first is the one to type on.
    consoles: Vec<Pipe>,
    /// Whether the consoles are standard input and output; otherwise the command is.
    console_is_stdio: bool,
    kernel_log: bool,
    link: Option<Link>,
    /// Events of the link that wait for room in an output.
    link_events: VecDeque<Event>,
    streams: Streams,
    stdin_open: bool,
    /// Bytes of standard input for which the guest had no room yet.
    typed: VecDeque<u8>,
    stdout: Output,
    stderr: Output,
    signals: Signals,
    keys: Keys,
    log: ConsoleLog,
    first_output: Option<Duration>,
    /// When the guest's init was told the command, and when that ended.
    command: (Option<Duration>, Option<Duration>),
    trace: Option<&'a Trace>,
    /// What is told of exits.
    explained: Option<&'a Outbox>,
    /// The snapshot since which changes are logged.
    last_saved: Option<Id>,
    /// When what only the start needed of hull's code is given back: a short command never pays for
    /// bringing some of it in again.
    release_at: Option<Instant>,
    /// No output is too full, for once.
    drains: bool,
    /// When the machine began to run; one of a pool has stood before.
    began: Duration,
    warned: bool,
    asked_to_stop: u32,
    ending: Option<Ending>,
    /// When a signal that ends the machine waits no longer for whoever reads the output.
    leave_at: Option<Instant>,
    /// Why the session failed, if it did.
    fault: Option<VmmError>,
    standstill: Arc<Standstill>,
    power: Arc<Mutex<Power>>,
    /// Who wants the machine to stop, and when that is made sure of.
    stops: Stops,
}

impl<'a> EventLoop<'a> {
    /// A loop for `machine` and its `vcpus`, whose console or command is connected to `streams`.
    pub fn new(
        machine: &'a Machine,
        vcpus: &'a Arc<Vcpus>,
        config: &'a Config,
        link: Option<Link>,
        streams: Streams,
        signals: Signals,
        standstill: Arc<Standstill>,
    ) -> Self {
        let console = &config.console;
        Self {
            machine,
            vcpus,
            config,
            events: &machine.shared.events,
            windows: &machine.devices.windows,
            vsock: machine.devices.vsock.as_ref(),
            consoles: machine.consoles.clone(),
            console_is_stdio: matches!(console, Console::Kernel),
            kernel_log: matches!(
                console,
                Console::Agent {
                    kernel_log: true,
                    ..
                }
            ),
            link,
            link_events: VecDeque::new(),
            streams,
            stdin_open: true,
            typed: VecDeque::new(),
            stdout: Output::new(streams.stdout),
            stderr: Output::new(streams.stderr),
            signals,
            keys: Keys::default(),
            log: ConsoleLog::default(),
            first_output: None,
            command: (None, None),
            trace: machine.shared.trace.as_deref(),
            explained: machine
                .shared
                .explain
                .as_ref()
                .map(|explain| &*explain.outbox),
            drains: false,
            release_at: None,
            last_saved: None,
            began: machine.shared.events.now(),
            warned: false,
            asked_to_stop: 0,
            ending: None,
            leave_at: None,
            fault: None,
            standstill,
            power: machine.power.clone(),
            stops: Stops::default(),
        }
    }

    /// Whether there is a command that the guest's init has not asked for yet.
    pub fn waits_for_init(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.greeted())
    }

    /// Run until the machine is to end and all that the guest had written is out.
    pub fn run(&mut self) -> Result<Ending, VmmError> {
        let result = self.take_turns();
        self.end_orders();
        result
    }

    fn take_turns(&mut self) -> Result<Ending, VmmError> {
        if self.console_is_stdio {
            self.resize();
        }
        loop {
            // Ends are looked at before the bytes: what was written before one is still moved.
            let guest_end = self.events.end();
            self.take_orders();
            if self.release_at.is_some_and(|at| at <= Instant::now()) {
                self.release_at = None;
                program::release();
            }
            self.windows.process();
            if let Some(vsock) = self.vsock {
                vsock.process();
            }
            self.move_consoles();
            self.receive();
            self.move_link_events();
            self.move_input();
            if let Some(link) = &mut self.link {
                link.send();
            }
            self.move_explanations();
            if self.ending.is_none()
                && let Some(end) = guest_end
                && self.consoles.iter().all(Pipe::is_empty)
                && self.link_events.is_empty()
                && self.explained.is_none_or(Outbox::is_empty)
            {
                self.ending = Some(Ending::Guest(end));
            }
            let written = self.stdout.pending().is_none() && self.stderr.pending().is_none();
            if let Some(ending) = self.ending.clone()
                && (written || self.leave_at.is_some_and(|at| at <= Instant::now()))
            {
                self.events.stop();
                return match self.fault.take() {
                    Some(fault) => Err(fault),
                    None => Ok(ending),
                };
            }
            self.wait()?;
        }
    }

    /// Write what was told of the exits that ended the guest, which is after the loop may have
    /// ended: for as long as a reader gets after a signal.
    pub fn tell_the_rest(&mut self) {
        self.move_explanations();
        let until = Instant::now() + GRACE;
        while let Some(fd) = self.stderr.pending() {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
            let ready = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
            if left.is_zero() || matches!(ready, Ok(0)) || !self.stderr.write_some() {
                break;
            }
        }
    }

    /// The end of the console's output.
    pub fn log(&self) -> &ConsoleLog {
        &self.log
    }

    /// When the console's first byte came.
    pub fn first_output(&self) -> Option<Duration> {
        self.first_output
    }

    /// When the guest's init was told the command, and when that ended.
    pub fn command(&self) -> (Option<Duration>, Option<Duration>) {
        self.command
    }

    fn move_consoles(&mut self) {
        for pipe in &self.consoles {
            let mut target = match (self.console_is_stdio, self.kernel_log) {
                (true, _) => Some(&mut self.stdout),
                (false, true) => Some(&mut self.stderr),
                (false, false) => None,
            };
            let room = target.as_ref().map_or(usize::MAX, |output| output.room());
            let bytes = pipe.take(if self.drains { usize::MAX } else { room });
            if let Some(trace) = self.trace {
                trace.console(&bytes);
            }
            if self.log.push(&bytes) {
                self.first_output = Some(self.events.now());
            }
            if let Some(output) = &mut target {
                output.push(&bytes);
            }
        }
    }

    /// What was typed, to the command or to the console, as far as there is room.
    fn move_input(&mut self) {
        // All of it, or what is left would wait for the next byte.
        let typed = self.typed.make_contiguous();
        let taken = match (&mut self.link, self.consoles.first()) {
            (Some(link), _) => link.session.send_stdin(typed),
            (None, Some(console)) if self.console_is_stdio => console.put(typed),
            _ => typed.len(),
        };
        self.typed.drain(..taken);
        if let Some(link) = &mut self.link
            && self.typed.is_empty()
            && !self.stdin_open
        {
            link.session.close_stdin();
        }
    }

    fn receive(&mut self) {
        // Events that wait for an output hold the link up, and so the guest.
        let Some(link) = &mut self.link else { return };
        if !self.link_events.is_empty() || self.ending.is_some() {
            return;
        }
        match link.receive() {
            Ok(events) => self.link_events = events,
            Err(fault) => {
                let restored = self.config.start.saved().is_some();
                self.fault = Some(match restored && self.waits_for_init() {
                    true => {
                        VmmError::Unanswered(format!("does not go on as it was saved: {fault}"))
                    }
                    false => VmmError::Agent(fault),
                });
                self.ending = Some(Ending::Quit);
            }
        }
    }

    fn move_link_events(&mut self) {
        while (self.drains || self.stdout.room() > 0 && self.stderr.room() > 0)
            && let Some(event) = self.link_events.pop_front()
        {
            match event {
                Event::Ready => {
                    self.command.0 = Some(self.events.now());
                    self.keep_template();
                    self.resize();
                    self.release_at = Some(Instant::now() + LASTING);
                }
                Event::Stdout(bytes) => self.stdout.push(&bytes),
                Event::Stderr(bytes) => self.stderr.push(&bytes),
                Event::Error(text) => self.say(&text),
                Event::Exited(status) => {
                    self.command.1 = Some(self.events.now());
                    self.ending = Some(Ending::Exited(status));
                }
            }
        }
    }

    fn wait(&mut self) -> Result<(), VmmError> {
        const STDIN: usize = 3;
        let timeout = self.timeout();
        let want_stdin = self.stdin_open && self.ending.is_none() && self.stdin_room() > 0;
        let mut fds = vec![
            PollFd::from_borrowed_fd(kvm::descriptor(self.events.waker()), PollFlags::IN),
            PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.windows.as_fd(), PollFlags::IN),
        ];
        if want_stdin {
            fds.push(PollFd::from_borrowed_fd(self.streams.stdin, PollFlags::IN));
        }
        let outputs = [&self.stdout, &self.stderr].map(Output::pending);
        for fd in outputs.iter().flatten() {
            fds.push(PollFd::from_borrowed_fd(*fd, PollFlags::OUT));
        }
        // Last: whether it is ready is found out in the next turn.
        if let Some(vsock) = self.vsock {
            fds.push(PollFd::from_borrowed_fd(vsock.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(VmmError::Poll(error.into())),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let ready = |index: usize| ready.get(index).copied().unwrap_or(false);

        if ready(0) {
            // Nonblocking: an error says that nothing was there.
            let _ = self.events.waker().read();
        }
        if ready(1) {
            self.take_signals();
        }
        let mut next = STDIN;
        if want_stdin {
            if ready(next) {
                self.read_stdin();
            }
            next += 1;
        }
        if outputs[0].is_some() {
            if ready(next) && !self.stdout.write_some() {
                self.reader_gone();
            }
            next += 1;
        }
        if outputs[1].is_some() && ready(next) {
            self.stderr.write_some();
        }
        Ok(())
    }

    /// No time while the guest's init has sent more than one turn takes; until the user is told
    /// that init is silent; forever when there is nothing to tell.
    fn timeout(&mut self) -> Option<Timespec> {
        let more = self.link.as_ref().is_some_and(Link::has_more);
        if more && self.link_events.is_empty() && self.ending.is_none() {
            return Some(Timespec::default());
        }
        let until = |at: Instant| at.saturating_duration_since(Instant::now());
        if let Some(at) = self.leave_at {
            return Timespec::try_from(until(at)).ok();
        }
        let kill = self.stops.kill_at().map(until);
        let release = self.release_at.map(until);
        let left = [kill, release, self.patience_left()];
        let left = left.into_iter().flatten().min();
        left.and_then(|left| Timespec::try_from(left).ok())
    }

    /// Until the user is told that init is silent.
    fn patience_left(&mut self) -> Option<Duration> {
        let waiting = self.waits_for_init();
        if waiting && self.config.start.saved().is_some() {
            let left = ANSWER_PATIENCE.saturating_sub(self.ran());
            if left.is_zero() {
                self.ending = Some(Ending::Unanswered);
            }
            return Some(left);
        }
        if !waiting || self.warned {
            return None;
        }
        let left = PATIENCE.saturating_sub(self.ran());
        if left.is_zero() {
            self.warned = true;
            self.say(
                "the guest's init has not reported after 60 s; \
                 --kernel-log shows how far its kernel is",
            );
        }
        Some(left)
    }

    fn ran(&self) -> Duration {
        self.events.now().saturating_sub(self.began)
    }

    /// Bytes to read ahead of the guest. A terminal is read even while the guest takes nothing,
    /// for the keys that are hull's.
    fn stdin_room(&self) -> usize {
        let ahead = BATCH.saturating_sub(self.typed.len());
        match &self.link {
            Some(link) if !self.streams.raw => ahead.min(link.session.stdin_room()),
            _ => ahead,
        }
    }

    fn read_stdin(&mut self) {
        let mut buffer = [0; BATCH];
        let room = self.stdin_room();
        let Some(space) = buffer.get_mut(..room) else {
            return;
        };
        match rustix::io::read(self.streams.stdin, &mut *space) {
            Ok(n) if n > 0 => {
                let bytes = space.get(..n).unwrap_or_default().to_vec();
                self.type_in(&bytes);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The end of input, or an input that can never be read: the same to a guest.
            _ => self.stdin_open = false,
        }
    }

    fn type_in(&mut self, typed: &[u8]) {
        let (bytes, commands) = if self.streams.raw {
            self.keys.filter(typed)
        } else {
            (typed.to_vec(), Vec::new())
        };
        for command in commands {
            match command {
                Command::Quit => self.ending = Some(Ending::Quit),
                Command::Help => keys::HELP.lines().for_each(|line| self.say(line)),
            }
        }
        self.typed.extend(bytes);
    }

    fn take_signals(&mut self) {
        for signal in self.signals.take() {
            match (&mut self.link, signal) {
                (_, SIGWINCH) => self.resize(),
                (_, SIGUSR1) if self.trace.is_some() => {
                    self.trace.into_iter().for_each(Trace::ask);
                }
                (Some(link), signal) if link.greeted() && self.ending.is_none() => {
                    // As a container engine does: the command decides what a signal means to it.
                    link.session.signal(signal as u8);
                }
                _ => self.end_by(signal),
            }
            if signal == SIGTERM || signal == SIGINT {
                // A guest that stands still would never hear of it.
                self.standstill.resume();
                self.asked_to_stop += 1;
            }
            if self.asked_to_stop >= INSISTENT {
                self.end_by(signal);
            }
        }
    }

    /// A signal ends the machine. What is not written by then may never be: a reader that has
    /// stopped would keep hull for ever.
    fn end_by(&mut self, signal: i32) {
        self.ending = Some(Ending::Signalled(signal));
        self.leave_at.get_or_insert_with(|| Instant::now() + GRACE);
    }

    /// Tell the guest's terminal the size of hull's.
    fn resize(&mut self) {
        let Ok(size) = rustix::termios::tcgetwinsize(self.streams.stdin) else {
            return;
        };
        let size = WindowSize {
            rows: size.ws_row,
            cols: size.ws_col,
        };
        match (&mut self.link, self.consoles.first()) {
            (Some(link), _) => link.session.resize(size),
            (None, Some(console)) => console.resize(size),
            (None, None) => {}
        }
    }

    /// Whoever read standard output has left: to the command that is SIGPIPE.
    fn reader_gone(&mut self) {
        match &mut self.link {
            Some(link) => link.session.signal(SIGPIPE as u8),
            None => self.ending = Some(Ending::Signalled(SIGPIPE)),
        }
    }

    fn move_explanations(&mut self) {
        let Some(outbox) = self.explained else { return };
        let text = outbox.take(self.stderr.room());
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(line) if self.streams.raw => self.stderr.push(&[line, b"\r\n"].concat()),
                _ => self.stderr.push(line),
            }
        }
    }

    /// One line of hull's own on stderr.
    fn say(&mut self, line: &str) {
        let end = if self.streams.raw { "\r\n" } else { "\n" };
        self.stderr.push(format!("hull: {line}{end}").as_bytes());
    }
}
