//! A machine in the background: the process that keeps its log and its status.
//!
//! ```text
//!   hull run -d ──fork──> keeper, in a session of its own ──fork──> the machine's hull
//!        │                  │   <── standard output and error, "it runs", its end ──'
//!        │ <── it runs ─────┤   ──> standard input: nothing, a pipe, or with the output a terminal
//!        '─ prints its name '── log, end ──> the machine's folder (see `fleet::kept`)
//!                           '── output <──> hull attach (see `attached`)
//! ```
//! If the keeper is killed, so is the machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_current_process_group, kill_process,
    pidfd_open, waitpid,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use thiserror::Error;

use super::attached::{self, Clients};
use crate::agent::{Output, Request};
use crate::fleet::events;
use crate::fleet::kept::{Kept, KeptError, KeptRecord};
use crate::fleet::log::{LogWriter, MAX_LINE};
use crate::sandbox::{fork_keeper, fork_kept};

/// Most bytes of the machine's errors that are told to the process that started it: a pipe takes them at
/// once.
const MAX_TOLD: usize = 32 << 10;
/// The size of a terminal to which nobody is attached.
const SIZE: Winsize = Winsize {
    ws_row: 24,
    ws_col: 80,
    ws_xpixel: 0,
    ws_ypixel: 0,
};
/// The signals that hull passes on to the command: another would end it.
const PASSED_ON: [Signal; 6] = [
    Signal::INT,
    Signal::TERM,
    Signal::HUP,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
];
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
    #[error("nobody can attach to it")]
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
    /// The machine's hull, which is to write [`RUNS`] when its command runs.
    Machine(OwnedFd),
}

/// Put the machine of `kept`, which is locked by `lock`, into the background. The caller has one thread.
///
/// # Errors
/// It cannot be: there is no machine then.
pub fn keep(kept: &Kept, lock: File) -> Result<Kind, KeeperError> {
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
    let (theirs, ours) = channels(record)?;
    let (started, runs) = pipe()?;
    let Some(process) = fork_kept()? else {
        dup2_stdin(theirs.stdin).map_err(io::Error::from)?;
        dup2_stdout(theirs.stdout).map_err(io::Error::from)?;
        dup2_stderr(theirs.stderr).map_err(io::Error::from)?;
        drop((lock, tell, log, listener, ours));
        return Ok(Kind::Machine(runs));
    };
    drop((theirs, runs));
    let null = null()?;
    dup2_stdin(&null).map_err(io::Error::from)?;
    dup2_stdout(&null).map_err(io::Error::from)?;
    dup2_stderr(&null).map_err(io::Error::from)?;
    let keeper = Keeper {
        kept,
        log,
        output: Stream::new("stdout", ours.output),
        error: Stream::new("stderr", ours.error),
        clients: Clients::new(listener, ours.input, ours.terminal.is_some()),
        terminal: ours.terminal,
        process,
        started: Some(started),
        tell: Some(File::from(tell)),
        errors: Vec::new(),
    };
    let (clients, status) = keeper.run()?;
    // Until here the machine counts as running.
    drop(lock);
    clients.finish(status);
    Ok(Kind::Keeper)
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

/// The machine's standard streams.
struct Theirs {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// The keeper's ends of them, which do not block.
struct Ours {
    input: Option<OwnedFd>,
    output: OwnedFd,
    error: OwnedFd,
    /// Of which the command's terminal follows the size.
    terminal: Option<OwnedFd>,
}

fn channels(record: &KeptRecord) -> io::Result<(Theirs, Ours)> {
    let (error, stderr) = pipe()?;
    if record.terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let output = openpt(flags)?;
        unlockpt(&output)?;
        let stdin = ioctl_tiocgptpeer(&output, flags)?;
        // Before hull does it: nothing that is typed may be echoed.
        let mut raw = tcgetattr(&stdin)?;
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        tcsetwinsize(&stdin, SIZE)?;
        ioctl_fionbio(&output, true)?;
        let stdout = stdin.try_clone()?;
        let ours = Ours {
            input: record.input.then(|| output.try_clone()).transpose()?,
            terminal: Some(output.try_clone()?),
            output,
            error,
        };
        let theirs = Theirs {
            stdin,
            stdout,
            stderr,
        };
        return Ok((theirs, ours));
    }
    let (output, stdout) = pipe()?;
    let (stdin, input) = match record.input {
        false => (null()?.into(), None),
        true => {
            let (stdin, input) = pipe()?;
            ioctl_fionbio(&input, true)?;
            (stdin, Some(input))
        }
    };
    let ours = Ours {
        input,
        output,
        error,
        terminal: None,
    };
    let theirs = Theirs {
        stdin,
        stdout,
        stderr,
    };
    Ok((theirs, ours))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

fn null() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/null")
}

/// A stream of the machine's, and the line that has no end yet.
struct Stream {
    name: &'static str,
    fd: Option<OwnedFd>,
    line: Vec<u8>,
}

impl Stream {
    fn new(name: &'static str, fd: OwnedFd) -> Self {
        Self {
            name,
            fd: Some(fd),
            line: Vec::new(),
        }
    }

    /// What is to be read, if it is ready, at most `most` bytes.
    fn read(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; most];
        let read = self.fd.as_ref().map(|fd| rustix::io::read(fd, &mut bytes));
        match read {
            Some(Ok(len @ 1..)) => bytes.truncate(len),
            Some(Err(Errno::INTR | Errno::AGAIN)) => bytes.clear(),
            _ => {
                bytes.clear();
                self.fd = None;
            }
        }
        bytes
    }

    /// Add `bytes` to the log, in whole lines; at the end of the stream also what is left.
    fn log(&mut self, bytes: &[u8], log: &mut LogWriter) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            for piece in part.chunks(MAX_LINE) {
                self.line.extend_from_slice(piece);
                if piece.ends_with(b"\n") || self.line.len() >= MAX_LINE {
                    // A full disk loses lines, and not the machine.
                    let _ = log.add(self.name, &std::mem::take(&mut self.line));
                }
            }
        }
        if self.fd.is_none() && !self.line.is_empty() {
            let _ = log.add(self.name, &std::mem::take(&mut self.line));
        }
    }
}

struct Keeper<'a> {
    kept: &'a Kept,
    /// The machine's.
    log: LogWriter,
    output: Stream,
    error: Stream,
    clients: Clients,
    terminal: Option<OwnedFd>,
    /// The machine's hull.
    process: Pid,
    started: Option<OwnedFd>,
    tell: Option<File>,
    /// The beginning of the machine's errors, until it runs.
    errors: Vec<u8>,
}

/// What the keeper waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    End,
    Output,
    Error,
    Started,
    Clients(attached::Source),
}

impl Keeper<'_> {
    /// Serve the machine until its end; those that are still attached, and its status.
    fn run(mut self) -> Result<(Clients, u8), KeeperError> {
        let end = pidfd_open(self.process, PidfdFlags::empty()).map_err(io::Error::from)?;
        let mut ended = false;
        loop {
            let ready = self.wait(&end, ended)?;
            ended |= ready.contains(&Source::End);
            let took = ready.iter().filter(|source| self.handle(**source)).count();
            self.clients.sweep();
            // Others may hold its streams for ever: what is there now is its.
            if ended && took == 0 && self.clients.room().is_some() {
                break;
            }
        }
        for stream in [&mut self.output, &mut self.error] {
            stream.fd = None;
            stream.log(b"", &mut self.log);
        }
        let status = status_of(self.process)?;
        let ran = self.tell.is_none();
        let kept = self.kept.renamed();
        kept.stop_listening();
        let _ = kept.write_end(status);
        if kept.record.remove || !ran {
            let _ = kept.remove_all();
        }
        let errors = std::mem::take(&mut self.errors);
        self.tell(&[&[1, status][..], &errors].concat());
        Ok((self.clients, status))
    }

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
        let clients = self.clients.watched().into_iter();
        watched.extend(clients.map(|(source, fd, flags)| (Source::Clients(source), fd, flags)));
        let patience = match ended && takes {
            true => Some(Duration::ZERO),
            false => self.clients.patience(),
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

    /// Take what is there. Returns whether it was something of the machine's.
    fn handle(&mut self, source: Source) -> bool {
        match source {
            Source::End => false,
            Source::Output | Source::Error => self.take_output(source),
            Source::Started => {
                let mut byte = [0];
                let read = self
                    .started
                    .as_ref()
                    .map(|fd| rustix::io::read(fd, &mut byte));
                self.started = None;
                if let Some(Ok(1..)) = read {
                    events::record("start", &self.kept.renamed().record.name, &[]);
                    self.tell(&[0]);
                }
                true
            }
            Source::Clients(source) => {
                for request in self.clients.handle(source) {
                    self.fulfil(request);
                }
                false
            }
        }
    }

    fn take_output(&mut self, source: Source) -> bool {
        // The other stream may have taken the room since.
        let Some(room) = self.clients.room() else {
            return true;
        };
        let (stream, output) = match source {
            Source::Output => (&mut self.output, Output::Stdout),
            _ => (&mut self.error, Output::Stderr),
        };
        let bytes = stream.read(room);
        stream.log(&bytes, &mut self.log);
        self.clients.push(output, &bytes);
        if output == Output::Stderr && self.tell.is_some() {
            let room = MAX_TOLD.saturating_sub(self.errors.len());
            self.errors.extend(bytes.iter().take(room));
        }
        true
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

    /// Tell the process that started this one, once. It may be gone.
    fn tell(&mut self, message: &[u8]) {
        if let Some(mut tell) = self.tell.take() {
            let _ = tell.write_all(message);
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
