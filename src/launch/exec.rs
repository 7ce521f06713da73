//! Runs a command beside the own one of a machine that runs: `hull exec`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use signal_hook::consts::{SIGINT, SIGTERM, SIGTSTP, SIGWINCH};
use thiserror::Error;

use super::detach_keys::{DetachKeys, MAX_KEYS as HELD_BACK};
use crate::agent::{self, AgentError, Event, Exec, STDIN_WINDOW, Session};
use crate::control::{self, Action, Answer, ControlError, Surroundings};
use crate::fleet::Found;
use crate::vmm::{Output, Signals, Streams, Tty};

/// Time for the machine to take the command.
const ADMISSION: Duration = Duration::from_secs(60);
/// Bytes read at once.
const BATCH: usize = 64 << 10;
/// Most of a stream's standard error that is kept.
const MAX_SAID: usize = 4096;
/// SIGINTs and SIGTERMs after which hull leaves a command that makes nothing of them.
const FORCE_STOP_SIGNALS: u32 = 3;

/// Why a command does not run in a machine, or its end is not known.
#[derive(Debug, Error)]
pub enum ExecError {
    /// The machine cannot be reached.
    #[error(transparent)]
    Control(ControlError),
    /// The machine refuses.
    #[error("no command can be run in machine {name}: {reason}")]
    Refused {
        /// The name of the machine.
        name: String,
        /// Its reason.
        reason: String,
    },
    /// The machine's hull answers something else.
    #[error(
        "machine {name} runs hull {version}, which this hull does not understand; use that hull"
    )]
    Foreign {
        /// The name of the machine.
        name: String,
        /// The version of its hull.
        version: String,
    },
    /// The command cannot be sent, or init broke the protocol.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The system refuses something.
    #[error("cannot {what}")]
    System {
        /// What it refuses.
        what: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

/// How a command beside the main one ended for its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this status, as container engines have it.
    Exited(u8),
    /// It runs, and nothing waits for it.
    Detached,
    /// The machine ended before it.
    WithMachine,
    /// The user has left it with this signal; it goes on.
    Left(i32),
}

/// What a command gets of the standard streams.
pub struct Wanted {
    /// The streams.
    pub streams: Streams,
    /// Give it standard input.
    pub stdin: bool,
    /// Leave it as soon as it runs.
    pub detach: bool,
    /// The keys by which the user leaves it.
    pub keys: Option<DetachKeys>,
    /// Whether signals are the command's; otherwise they end this hull alone.
    pub pass_signals: bool,
}

/// A connection to a machine that expects a command.
pub struct Connection {
    pub(super) socket: OwnedFd,
    /// What the machine's own command has.
    pub surroundings: Surroundings,
}

/// Connect to `machine`.
///
/// # Errors
/// It takes no command.
pub fn connect(machine: &Found) -> Result<Connection, ExecError> {
    connect_within(machine, ADMISSION)
}

/// As [`connect`], if `machine` takes the command within this time.
///
/// # Errors
/// As [`connect`].
pub fn connect_within(machine: &Found, timeout: Duration) -> Result<Connection, ExecError> {
    let name = || machine.record.name.clone();
    // The machine's end: it must not wait for this one.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let (socket, theirs) = pair.map_err(system("make a connection"))?;
    let files = [theirs.as_fd()];
    match control::ask_with(machine, Action::Exec, &files, timeout) {
        Ok(Answer::Admitted(surroundings)) => Ok(Connection {
            socket,
            surroundings,
        }),
        Ok(_) => Err(ExecError::Foreign {
            name: name(),
            version: machine.record.version.clone(),
        }),
        Err(ControlError::Refused(reason)) => Err(ExecError::Refused {
            name: name(),
            reason,
        }),
        Err(error) => Err(ExecError::Control(error)),
    }
}

impl Connection {
    /// Give `exec` what it does not say itself and the machine's own command has.
    pub fn complete(&self, exec: &mut Exec) {
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let own = &self.surroundings;
        let name = |variable: &[u8]| {
            variable
                .split(|byte| *byte == b'=')
                .next()
                .map(<[u8]>::to_vec)
        };
        let given: Vec<_> = exec
            .env
            .iter()
            .map(|it| name(it.as_encoded_bytes()))
            .collect();
        let missing = own.env.iter().filter(|it| !given.contains(&name(it)));
        exec.env
            .splice(0..0, missing.map(|it| text(it)).collect::<Vec<_>>());
        if exec.cwd.is_empty() {
            exec.cwd = text(&own.cwd);
        }
        exec.privileges.groups.clone_from(&own.groups);
        match (
            exec.user.is_empty(),
            own.user.iter().position(|it| *it == b','),
        ) {
            (true, _) => exec.user = text(&own.user),
            // Another user has the groups of --group-add, too, as docker has it.
            (false, Some(groups)) => exec.user.push(text(&own.user[groups..])),
            (false, None) => {}
        }
        exec.privileges.capabilities &= own.capabilities;
    }

    /// Run `exec` with the streams of `wanted`. `tell` is called with each line that the user should read.
    ///
    /// # Errors
    /// The command cannot be sent, or the connection fails.
    pub fn run(
        self,
        exec: Exec,
        wanted: Wanted,
        signals: Signals,
        tell: &dyn Fn(&str),
    ) -> Result<Ended, ExecError> {
        let tty = exec.tty.is_some();
        let exec = Exec {
            report_start: wanted.detach,
            ..exec
        };
        let mut client = Client::new(Session::beside(exec)?, self.socket, wanted, signals, tty);
        if !client.stdin && !tty {
            client.session.close_stdin();
        }
        client.run(tell)
    }
}

/// Attach the streams of `wanted` to the command of a machine in the background, over a connection to its
/// keeper; the command is on a terminal if `tty`.
///
/// # Errors
/// The connection fails.
pub fn attach(
    socket: OwnedFd,
    wanted: Wanted,
    signals: Signals,
    tty: bool,
) -> Result<Ended, ExecError> {
    let mut client = Client::new(Session::attached(), socket, wanted, signals, tty);
    if tty && let Some(size) = client.wanted.streams.window_size() {
        client.session.resize(size);
    }
    client.run(&|_| {})
}

impl Connection {
    /// Run `exec` with its standard input and output as a stream.
    ///
    /// # Errors
    /// The command cannot be sent.
    pub fn stream(self, exec: Exec) -> Result<Stream, ExecError> {
        Ok(Stream {
            session: Session::beside(exec)?,
            socket: self.socket,
            output: VecDeque::new(),
            said: Vec::new(),
            status: None,
            open: true,
            until: None,
        })
    }
}

/// A command as a stream: what is written is its input, what is read its output.
pub struct Stream {
    session: Session,
    socket: OwnedFd,
    output: VecDeque<u8>,
    /// The beginning of its standard error.
    said: Vec<u8>,
    status: Option<u8>,
    /// Whether the machine has not closed the connection.
    open: bool,
    /// Until when the guest is waited for.
    until: Option<Instant>,
}

impl Stream {
    /// From now on wait no longer than this for the guest, at each call: it fails then.
    pub fn within(mut self, time: Duration) -> Self {
        self.until = Some(Instant::now() + time);
        self
    }

    /// Wait until the connection is ready.
    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        let left = self
            .until
            .map(|until| until.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(&self.socket, flags)];
        rustix::io::retry_on_intr(|| poll(&mut fds, left.as_ref()))?;
        Ok(())
    }

    /// End its input, and wait for its end: its status, and what it wrote to standard error.
    ///
    /// # Errors
    /// The connection fails.
    pub fn finish(mut self) -> Result<(Option<u8>, String), ExecError> {
        self.session.close_stdin();
        while !self.is_over() {
            self.output.clear();
            self.turn().map_err(system("reach the machine"))?;
        }
        Ok(self.result())
    }

    /// As [`Stream::finish`] if it has ended, which is why it failed; otherwise it is left.
    ///
    /// # Errors
    /// The connection fails.
    pub fn reason(self) -> Result<(Option<u8>, String), ExecError> {
        match self.is_over() {
            true => self.finish(),
            false => Ok((None, String::new())),
        }
    }

    fn result(&self) -> (Option<u8>, String) {
        let said: String = String::from_utf8_lossy(&self.said)
            .trim_end()
            .chars()
            .map(|it| if it.is_control() { ' ' } else { it })
            .collect();
        (self.status, said)
    }

    fn is_over(&self) -> bool {
        self.status.is_some() || !self.open
    }

    /// Send and receive what is possible; wait if there is nothing.
    fn turn(&mut self) -> io::Result<()> {
        while let Some(event) = self.session.next_event() {
            let room = MAX_SAID.saturating_sub(self.said.len());
            match event {
                Event::Stdout(bytes) => self.output.extend(bytes),
                Event::Stderr(bytes) => self.said.extend(bytes.iter().take(room)),
                Event::Error(text) => self.said.extend(text.bytes().take(room)),
                Event::Exited(status) => self.status = Some(status),
                Event::Ready | Event::Started | Event::Suspend => {}
            }
        }
        while !self.session.outgoing().is_empty() {
            match rustix::io::write(&self.socket, self.session.outgoing()) {
                Ok(sent) => self.session.sent(sent),
                Err(_) => break,
            }
        }
        if self.is_over() || !self.output.is_empty() || self.session.stdin_room() > STDIN_WINDOW / 2
        {
            return Ok(());
        }
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, !self.session.outgoing().is_empty());
        self.wait(flags)?;
        self.receive()
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(self.session.receive_room().min(BATCH));
        match rustix::io::read(&self.socket, spare_capacity(&mut bytes)) {
            Ok(0) | Err(Errno::CONNRESET) => self.open = false,
            Ok(_) => self.session.receive(&bytes).map_err(io::Error::other)?,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.output.is_empty() && !self.is_over() {
            self.turn()?;
            if self.output.is_empty() && !self.is_over() && self.session.is_empty() {
                self.wait(PollFlags::IN)?;
                self.receive()?;
            }
        }
        self.output.read(into)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.session.send_stdin(bytes) {
                _ if self.is_over() => return Err(io::ErrorKind::BrokenPipe.into()),
                0 if !bytes.is_empty() => self.turn()?,
                taken => {
                    self.turn()?;
                    return Ok(taken);
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.session.outgoing().is_empty() && !self.is_over() {
            self.turn()?;
            if !self.session.outgoing().is_empty() {
                self.wait(PollFlags::OUT)?;
            }
        }
        Ok(())
    }
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> ExecError {
    move |error| ExecError::System {
        what,
        source: error.into(),
    }
}

/// The loop between the streams and the machine.
struct Client {
    session: Session,
    socket: OwnedFd,
    stdout: Output,
    stderr: Output,
    /// Whether standard input is read.
    stdin: bool,
    wanted: Wanted,
    signals: Signals,
    /// Whether the command is on a terminal.
    tty: bool,
    /// Whether the machine has not closed the connection.
    open: bool,
    ended: Option<Ended>,
    /// SIGINTs and SIGTERMs so far.
    asked: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Machine,
    Signals,
    Stdin,
    Stdout,
    Stderr,
}

impl Client {
    fn new(session: Session, socket: OwnedFd, wanted: Wanted, signals: Signals, tty: bool) -> Self {
        Self {
            session,
            socket,
            stdout: Output::new(wanted.streams.stdout),
            stderr: Output::new(wanted.streams.stderr),
            stdin: wanted.stdin && !wanted.detach,
            wanted,
            signals,
            tty,
            open: true,
            ended: None,
            asked: 0,
        }
    }

    fn run(mut self, tell: &dyn Fn(&str)) -> Result<Ended, ExecError> {
        loop {
            self.take_events(tell);
            self.send()?;
            let written = self.stdout.pending().is_none() && self.stderr.pending().is_none();
            if let Some(ended) = self.ended.filter(|_| written) {
                return Ok(ended);
            }
            if !self.open && self.session.is_empty() {
                self.ended = self.ended.or(Some(Ended::WithMachine));
                continue;
            }
            for source in self.poll()? {
                match source {
                    Source::Machine => self.receive()?,
                    Source::Signals => self.take_signals(),
                    Source::Stdin => self.read_stdin(),
                    Source::Stdout => {
                        if self.stdout.write_some().is_err() {
                            self.session.close_output(agent::Output::Stdout);
                        }
                    }
                    Source::Stderr => {
                        if self.stderr.write_some().is_err() {
                            self.session.close_output(agent::Output::Stderr);
                        }
                    }
                }
            }
        }
    }

    /// Carry out what the guest's init reported, while the outputs have room.
    fn take_events(&mut self, tell: &dyn Fn(&str)) {
        while self.stdout.room() > 0
            && self.stderr.room() > 0
            && let Some(event) = self.session.next_event()
        {
            match event {
                Event::Stdout(bytes) if !self.wanted.detach => self.stdout.push(&bytes),
                Event::Stderr(bytes) if !self.wanted.detach => self.stderr.push(&bytes),
                Event::Stdout(_) | Event::Stderr(_) | Event::Suspend | Event::Ready => {}
                Event::Error(text) => tell(&text),
                Event::Started => self.ended = Some(Ended::Detached),
                Event::Exited(status) => self.ended = Some(Ended::Exited(status)),
            }
        }
    }

    /// Send what waits, as far as the connection takes it.
    fn send(&mut self) -> Result<(), ExecError> {
        while self.open && !self.session.outgoing().is_empty() {
            match rustix::io::write(&self.socket, self.session.outgoing()) {
                Ok(sent) => self.session.sent(sent),
                Err(Errno::AGAIN | Errno::INTR) => break,
                // What it has sent before is still read.
                Err(Errno::PIPE | Errno::CONNRESET) => break,
                Err(error) => return Err(system("send to the machine")(error)),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), ExecError> {
        let room = self.session.receive_room().min(BATCH);
        let mut bytes = Vec::with_capacity(room);
        match rustix::io::read(&self.socket, spare_capacity(&mut bytes)) {
            Ok(0) | Err(Errno::CONNRESET) => self.open = false,
            Ok(_) => self.session.receive(&bytes)?,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(system("receive from the machine")(error)),
        }
        Ok(())
    }

    fn read_stdin(&mut self) {
        // Keys that were held back come with the next.
        let room = self
            .session
            .stdin_room()
            .min(BATCH)
            .saturating_sub(HELD_BACK);
        let mut typed = Vec::with_capacity(room);
        match rustix::io::read(self.wanted.streams.stdin, spare_capacity(&mut typed)) {
            Ok(1..) => {
                if let Some(keys) = &mut self.wanted.keys {
                    let (bytes, left) = keys.filter(&typed);
                    typed = bytes;
                    self.ended = left.then_some(Ended::Detached);
                }
                _ = self.session.send_stdin(&typed);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => {
                self.stdin = false;
                self.session.close_stdin();
            }
        }
    }

    fn take_signals(&mut self) {
        for signal in self.signals.take() {
            match signal {
                SIGWINCH => {
                    let size = self.wanted.streams.window_size().filter(|_| self.tty);
                    size.into_iter().for_each(|size| self.session.resize(size));
                }
                SIGTSTP => {}
                _ if self.wanted.pass_signals => self.session.signal(signal as u8),
                _ => self.ended = Some(Ended::Left(signal)),
            }
            if signal == SIGINT || signal == SIGTERM {
                self.asked += 1;
                if self.asked >= FORCE_STOP_SIGNALS {
                    self.ended = Some(Ended::Left(signal));
                }
            }
        }
    }

    fn poll(&self) -> Result<Vec<Source>, ExecError> {
        let mut machine = PollFlags::empty();
        machine.set(PollFlags::IN, self.session.receive_room() > 0);
        machine.set(PollFlags::OUT, !self.session.outgoing().is_empty());
        let mut watched: Vec<(Source, BorrowedFd<'_>, PollFlags)> =
            vec![(Source::Signals, self.signals.fd(), PollFlags::IN)];
        if self.open {
            watched.push((Source::Machine, self.socket.as_fd(), machine));
        }
        let streams = &self.wanted.streams;
        if self.stdin && self.session.stdin_room() > HELD_BACK && !streams.in_background() {
            watched.push((Source::Stdin, streams.stdin, PollFlags::IN));
        }
        let outputs = [
            (Source::Stdout, &self.stdout),
            (Source::Stderr, &self.stderr),
        ];
        for (source, output) in outputs {
            watched.extend(output.watched().map(|(fd, flags)| (source, fd, flags)));
        }
        let fds = watched.iter();
        let fds = fds.map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags));
        let mut fds: Vec<PollFd<'_>> = fds.collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(system("wait")(error)),
        }
        let ready = watched.iter().zip(&fds);
        let ready = ready.filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((source, ..), _)| *source).collect())
    }
}

/// The terminal whose keys the command gets: `None` if standard input is none.
///
/// # Errors
/// Its mode cannot be set.
pub fn terminal() -> Result<Option<Arc<Tty>>, ExecError> {
    let is_terminal = rustix::termios::isatty(rustix::stdio::stdin());
    let opened = is_terminal.then(Tty::open).transpose();
    let opened = opened.map_err(system("set the terminal to raw mode"))?;
    Ok(opened.map(Arc::new))
}
