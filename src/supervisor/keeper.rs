//! A machine in the background: the process that keeps its log and its status.
//!
//! ```text
//!   hull run -d ──fork──> keeper, in a session of its own ──fork──> the machine's hull
//!        │                  │   <── standard output and error, "it runs", its end ──'
//!        │ <── it runs ─────┤   ──> standard input: nothing, a pipe, or with the output a terminal
//!        '─ prints its name '── log, end ──> the machine's folder (see `fleet::kept`)
//!                           '── output <──> hull attach (see `attached`)
//! ```
//! The keeper starts the machine again as its policy says: by one more fork, so that the new hull begins with what
//! the first one began with. If the keeper is killed, so is the machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_current_process_group, kill_process,
    pidfd_open, waitpid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{Winsize, tcsetwinsize};
use thiserror::Error;

use super::attached::{self, Clients};
use super::checks::{Checks, Probe};
use super::streams::{Stream, channels, null, pipe};
use crate::agent::{Output, Request};
use crate::fleet::events;
use crate::fleet::kept::{Kept, KeptEnd, KeptError, KeptState, Phase, now};
use crate::fleet::log::LogWriter;
use crate::fleet::restart::Backoff;
use crate::fleet::state::boot_id;
use crate::sandbox::{fork_keeper, fork_kept};

/// Most bytes of the machine's errors that are told to the process that started it: a pipe takes them at
/// once.
const MAX_TOLD: usize = 32 << 10;
/// The signals that hull passes on to the command: another would end it.
const PASSED_ON: [Signal; 6] = [
    Signal::INT,
    Signal::TERM,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
];
/// The status of a machine for which there is no process or descriptor.
const NO_PROCESS: u8 = 125;
/// What the machine's hull writes when its command runs.
pub const RUNS: &[u8] = b"s";

/// Why a machine is not in the background.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// No folder for it.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// No log.
    #[error("its log cannot be written")]
    Log(#[source] io::Error),
    /// No socket for those that attach to it.
    #[error("its socket for hull attach cannot be made")]
    Listen(#[source] io::Error),
    /// No process or descriptor is left.
    #[error("it cannot be put into the background")]
    System(#[from] io::Error),
    /// The keeper ended without a word.
    #[error("its keeper was killed")]
    Killed,
}

/// Which process this is after [`keep`].
pub enum Kind {
    /// The one that was started: the machine runs.
    Started,
    /// The same: the machine ended before its command ran, with this status and these errors.
    Failed(u8, Vec<u8>),
    /// The keeper, which has nothing left to do.
    Keeper,
    /// The hull of the machine that is now called so; it is to write [`RUNS`] when its command runs.
    Machine(String, OwnedFd),
}

/// Put the machine of `kept`, which is locked by `lock`, into the background, where `probe` checks its health. The
/// caller has one thread.
///
/// # Errors
/// It cannot be: there is no machine then.
pub fn keep(kept: &Kept, lock: File, probe: Probe) -> Result<Kind, KeeperError> {
    let record = &kept.record;
    let log = LogWriter::open(&kept.here(), &record.name, record.driver, record.rotation);
    let log = log.map_err(KeeperError::Log)?;
    let listener = kept.listen().map_err(KeeperError::Listen)?;
    let (told, tell) = pipe()?;
    if fork_keeper()?.is_some() {
        drop((lock, tell, log, listener));
        return await_start(told);
    }
    drop(told);
    let mut keeper = Keeper::new(kept, log, listener, tell, probe);
    loop {
        let mut run = match keeper.begin() {
            Ok(Begun::Machine(name, runs)) => return Ok(Kind::Machine(name, runs)),
            Ok(Begun::Run(run)) => run,
            Err(error) if keeper.tell.is_some() => return Err(error.into()),
            Err(_) => {
                keeper.end(NO_PROCESS);
                return Ok(Kind::Keeper);
            }
        };
        let status = keeper.serve(&mut run)?;
        if !keeper.waits_for_next(status) {
            keeper.end(status);
            // Until here the machine counts as running.
            drop(lock);
            run.clients.finish(status);
            return Ok(Kind::Keeper);
        }
        run.clients.finish(status);
    }
}

/// Wait until the machine runs, or has failed.
fn await_start(told: OwnedFd) -> Result<Kind, KeeperError> {
    let mut message = Vec::new();
    File::from(told).read_to_end(&mut message)?;
    match message.split_first() {
        None => Err(KeeperError::Killed),
        Some((0, _)) => Ok(Kind::Started),
        Some((_, [status, errors @ ..])) => Ok(Kind::Failed(*status, errors.to_vec())),
        Some((_, [])) => Err(KeeperError::Killed),
    }
}

/// What outlives a run of the machine.
struct Keeper<'a> {
    kept: &'a Kept,
    log: LogWriter,
    listener: OwnedFd,
    /// Tells the process that started the machine that it runs; `None` once it has run.
    tell: Option<File>,
    /// The beginning of the machine's errors, until it runs.
    errors: Vec<u8>,
    /// Whether its command has never run.
    new: bool,
    probe: Probe,
    state: KeptState,
    backoff: Backoff,
    /// How long its command ran the last time.
    ran_for: Duration,
}

/// The machine from a start to its end.
struct Run {
    output: Stream,
    error: Stream,
    clients: Clients,
    terminal: Option<OwnedFd>,
    /// The machine's hull.
    process: Pid,
    /// Where that tells that the command runs.
    started: Option<OwnedFd>,
    /// When it did.
    since: Option<Instant>,
    /// Of its health, since then.
    checks: Option<Checks>,
}

/// Which process this is after [`Keeper::begin`].
enum Begun {
    Machine(String, OwnedFd),
    Run(Box<Run>),
}

/// What the keeper waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    End,
    Output,
    Error,
    Started,
    Check,
    Clients(attached::Source),
}

impl<'a> Keeper<'a> {
    fn new(kept: &'a Kept, log: LogWriter, listener: OwnedFd, tell: OwnedFd, probe: Probe) -> Self {
        let before = kept.state();
        Self {
            kept,
            log,
            listener,
            tell: Some(File::from(tell)),
            errors: Vec::new(),
            new: before.started.is_none(),
            probe,
            state: KeptState {
                boot: boot_id(),
                keeper: std::process::id(),
                started: before.started,
                ..KeptState::default()
            },
            backoff: Backoff::default(),
            ran_for: Duration::ZERO,
        }
    }

    /// Start the machine.
    fn begin(&mut self) -> io::Result<Begun> {
        self.note(Phase::Starting);
        let (theirs, ours) = channels(&self.kept.record)?;
        let (started, runs) = pipe()?;
        let listener = self.listener.try_clone()?;
        let Some(process) = fork_kept()? else {
            dup2_stdin(theirs.stdin)?;
            dup2_stdout(theirs.stdout)?;
            dup2_stderr(theirs.stderr)?;
            return Ok(Begun::Machine(self.kept.renamed().record.name, runs));
        };
        let null = null()?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        Ok(Begun::Run(Box::new(Run {
            output: Stream::new("stdout", ours.output),
            error: Stream::new("stderr", ours.error),
            clients: Clients::new(listener, ours.input, ours.terminal.is_some()),
            terminal: ours.terminal,
            process,
            started: Some(started),
            since: None,
            checks: None,
        })))
    }

    /// Record where the machine is. What cannot be written is lost, and the machine goes on.
    fn note(&mut self, phase: Phase) {
        self.state.phase = phase;
        let _ = self.kept.write_state(&self.state);
    }

    /// Serve the machine until its end; its status.
    fn serve(&mut self, run: &mut Run) -> Result<u8, KeeperError> {
        let end = pidfd_open(run.process, PidfdFlags::empty()).map_err(io::Error::from)?;
        let mut ended = false;
        loop {
            let ready = run.wait(&end, ended)?;
            ended |= ready.contains(&Source::End);
            let took = ready
                .iter()
                .filter(|source| self.handle(run, **source))
                .count();
            self.check(run, ready.contains(&Source::Check));
            run.clients.sweep();
            // Others may hold its streams for ever: what is there now is its.
            if ended && took == 0 && run.clients.room().is_some() {
                break;
            }
        }
        for stream in [&mut run.output, &mut run.error] {
            stream.fd = None;
            stream.log(b"", &mut self.log);
        }
        run.checks = None;
        let status = status_of(run.process)?;
        self.state.last = Some(KeptEnd {
            status,
            finished: now(),
        });
        let ran = run.since.map(|since| since.elapsed());
        self.ran_for = ran.unwrap_or_default();
        let code = status.to_string();
        let name = self.kept.renamed().record.name;
        events::record("die", &name, &[("exitCode", &code)]);
        Ok(status)
    }

    /// Wait until the machine that has ended with `status` is to be started again: whether it is.
    fn waits_for_next(&mut self, status: u8) -> bool {
        // One that has never run was a mistake, which the process that started it reports.
        if self.tell.is_some() || !self.restarts(status) {
            return false;
        }
        let until = Instant::now() + self.backoff.next(self.ran_for);
        self.state.health = None;
        self.note(Phase::Restarting);
        while let left @ 1.. = until.saturating_duration_since(Instant::now()).as_nanos() {
            let left = Duration::from_nanos(left as u64);
            let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
            // A client that connects now has changed what is to be done, or is too early to be attached.
            while accept_with(&self.listener, SocketFlags::CLOEXEC).is_ok() {}
            if !self.restarts(status) {
                return false;
            }
        }
        self.state.restarts = self.state.restarts.saturating_add(1);
        true
    }

    fn restarts(&self, status: u8) -> bool {
        let kept = self.kept.renamed();
        let policy = kept.record.restart;
        !self.kept.is_removed() && policy.restarts(status, kept.is_stopped(), self.state.restarts)
    }

    /// The machine has ended for good.
    fn end(&mut self, status: u8) {
        self.note(Phase::Exited);
        let kept = self.kept.renamed();
        kept.stop_listening();
        let finished = now();
        let _ = kept.write_end(KeptEnd { status, finished });
        if kept.record.remove || (self.new && self.tell.is_some()) {
            let _ = kept.remove_all();
        }
        let errors = std::mem::take(&mut self.errors);
        self.tell(&[&[1, status][..], &errors].concat());
    }

    /// Take what is there. Returns whether it was something of the machine's.
    fn handle(&mut self, run: &mut Run, source: Source) -> bool {
        match source {
            Source::End | Source::Check => false,
            Source::Output | Source::Error => self.take_output(run, source),
            Source::Started => {
                let mut byte = [0];
                let read = run
                    .started
                    .as_ref()
                    .map(|fd| rustix::io::read(fd, &mut byte));
                run.started = None;
                if let Some(Ok(1..)) = read {
                    run.since = Some(Instant::now());
                    self.state.started = Some(now());
                    let check = self.kept.check();
                    run.checks = check.map(|check| Checks::new(check, self.probe));
                    self.state.health = run.checks.as_ref().map(|it| it.health().clone());
                    self.note(Phase::Running);
                    events::record("start", &self.kept.renamed().record.name, &[]);
                    self.tell(&[0]);
                }
                true
            }
            Source::Clients(source) => {
                for request in run.clients.handle(source) {
                    run.fulfil(request);
                }
                false
            }
        }
    }

    /// Check the health of the machine, if it is time.
    fn check(&mut self, run: &mut Run, ready: bool) {
        let name = || self.kept.renamed().record.name;
        let Some(checks) = &mut run.checks else {
            return;
        };
        let Some(changed) = checks.turn(name, ready) else {
            return;
        };
        let health = checks.health().clone();
        if changed {
            let action = format!("health_status: {}", health.status.name());
            events::record(&action, &name(), &[]);
        }
        self.state.health = Some(health);
        self.note(Phase::Running);
    }

    fn take_output(&mut self, run: &mut Run, source: Source) -> bool {
        // The other stream may have taken the room since.
        let Some(room) = run.clients.room() else {
            return true;
        };
        let (stream, output) = match source {
            Source::Output => (&mut run.output, Output::Stdout),
            _ => (&mut run.error, Output::Stderr),
        };
        let bytes = stream.read(room);
        stream.log(&bytes, &mut self.log);
        run.clients.push(output, &bytes);
        if output == Output::Stderr && self.tell.is_some() {
            let room = MAX_TOLD.saturating_sub(self.errors.len());
            self.errors.extend(bytes.iter().take(room));
        }
        true
    }

    /// Tell the process that started this one, once. It may be gone.
    fn tell(&mut self, message: &[u8]) {
        if let Some(mut tell) = self.tell.take() {
            let _ = tell.write_all(message);
        }
    }
}

impl Run {
    /// What is ready; after the machine's end without waiting for more, unless one that is attached is slow.
    fn wait(&self, end: &OwnedFd, ended: bool) -> Result<Vec<Source>, KeeperError> {
        let takes = self.clients.room().is_some();
        let own = [
            (Source::End, Some(end).filter(|_| !ended)),
            (Source::Output, self.output.fd.as_ref().filter(|_| takes)),
            (Source::Error, self.error.fd.as_ref().filter(|_| takes)),
            (Source::Started, self.started.as_ref()),
        ];
        let own = own.iter();
        let own = own.filter_map(|(source, fd)| Some((*source, (*fd)?.as_fd(), PollFlags::IN)));
        let mut watched: Vec<(Source, BorrowedFd<'_>, PollFlags)> = own.collect();
        let answer = self.checks.as_ref().and_then(Checks::answer);
        watched.extend(answer.map(|fd| (Source::Check, fd, PollFlags::IN)));
        let clients = self.clients.watched().into_iter();
        watched.extend(clients.map(|(source, fd, flags)| (Source::Clients(source), fd, flags)));
        let patience = match ended && takes {
            true => Some(Duration::ZERO),
            false => {
                let checks = self.checks.as_ref().map(Checks::patience);
                self.clients.patience().into_iter().chain(checks).min()
            }
        };
        let patience = patience.and_then(|time| Timespec::try_from(time).ok());
        let mut fds: Vec<_> = watched
            .iter()
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
            .collect();
        match poll(&mut fds, patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let ready = watched.iter().zip(&fds);
        let ready = ready.filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|((source, ..), _)| *source).collect())
    }

    /// Do what one that is attached wants. Nobody learns of a failure: the machine has just ended then.
    fn fulfil(&self, request: Request) {
        match request {
            Request::Signal(number) => {
                if let Some(signal) = Signal::from_named_raw(number.into())
                    && PASSED_ON.contains(&signal)
                {
                    let _ = kill_process(self.process, signal);
                }
            }
            Request::Resize(size) => {
                if let Some(terminal) = &self.terminal {
                    let size = Winsize {
                        ws_row: size.rows,
                        ws_col: size.cols,
                        ws_xpixel: 0,
                        ws_ypixel: 0,
                    };
                    let _ = tcsetwinsize(terminal, size);
                    // It is nobody's controlling terminal.
                    let _ = kill_current_process_group(Signal::WINCH);
                }
            }
        }
    }
}

fn status_of(process: Pid) -> io::Result<u8> {
    let waited = rustix::io::retry_on_intr(|| waitpid(Some(process), WaitOptions::empty()))?;
    let status: Option<WaitStatus> = waited.map(|(_, status)| status);
    let exited = status.and_then(|status| status.exit_status());
    let signal = status.and_then(|status| status.terminating_signal());
    Ok(exited.or(signal.map(|signal| 128 + signal)).unwrap_or(125) as u8)
}
