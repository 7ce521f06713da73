//! A machine in the background: the process that keeps its log and its status.
//!
//! ```text
//!   hull run -d ──fork──> keeper, in a session of its own ──fork──> the machine's hull
//!        │                  │   <── standard output and error, "it runs", its end ──'
//!        │ <── it runs ─────┤
//!        '─ prints its name '── log, end ──> the machine's folder (see `fleet::kept`)
//! ```
//! If the keeper is killed, so is the machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use thiserror::Error;

use crate::fleet::kept::{Kept, KeptError};
use crate::fleet::log::{LogWriter, MAX_LINE};
use crate::sandbox::{fork_keeper, fork_kept};

/// Most bytes of the machine's errors that are told to the process that started it: a pipe takes them at
/// once.
const MAX_TOLD: usize = 32 << 10;
/// Bytes read at once.
const BATCH: usize = 64 << 10;
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
    let log = LogWriter::open(kept.path(), &record.name, record.driver, record.rotation);
    let log = log.map_err(KeeperError::Log)?;
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    if fork_keeper()?.is_some() {
        drop((lock, tell, log));
        let mut message = Vec::new();
        File::from(told).read_to_end(&mut message)?;
        return match message.split_first() {
            None => Err(KeeperError::Killed),
            Some((0, _)) => Ok(Kind::Started),
            Some((_, [status, errors @ ..])) => Ok(Kind::Failed(*status, errors.to_vec())),
            Some((_, [])) => Err(KeeperError::Killed),
        };
    }
    drop(told);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let [(output, stdout), (error, stderr), (started, runs)] = [pipe()?, pipe()?, pipe()?];
    dup2_stdin(&null).map_err(io::Error::from)?;
    let Some(process) = fork_kept()? else {
        dup2_stdout(stdout).map_err(io::Error::from)?;
        dup2_stderr(stderr).map_err(io::Error::from)?;
        drop((lock, tell, log));
        return Ok(Kind::Machine(runs));
    };
    drop((stdout, stderr, runs));
    dup2_stdout(&null).map_err(io::Error::from)?;
    dup2_stderr(&null).map_err(io::Error::from)?;
    let keeper = Keeper {
        kept,
        log,
        output: Stream::new("stdout", output),
        error: Stream::new("stderr", error),
        started: Some(started),
        tell: Some(File::from(tell)),
        errors: Vec::new(),
    };
    keeper.run(process)?;
    // Until here the machine counts as running.
    drop(lock);
    Ok(Kind::Keeper)
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
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

    /// What is to be read, if it is ready.
    fn read(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; BATCH];
        let read = self.fd.as_ref().map(|fd| rustix::io::read(fd, &mut bytes));
        match read {
            Some(Ok(len @ 1..)) => bytes.truncate(len),
            Some(Err(Errno::INTR)) => bytes.clear(),
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
    log: LogWriter,
    output: Stream,
    error: Stream,
    started: Option<OwnedFd>,
    tell: Option<File>,
    /// The beginning of the machine's errors, until it runs.
    errors: Vec<u8>,
}

impl Keeper<'_> {
    fn run(mut self, process: Pid) -> Result<(), KeeperError> {
        let end = pidfd_open(process, PidfdFlags::empty()).map_err(io::Error::from)?;
        loop {
            let ended = self.turn(&end)?;
            if ended {
                break;
            }
        }
        // Others may hold its streams for ever: what is there now is its.
        while self.take_ready()? {}
        for stream in [&mut self.output, &mut self.error] {
            stream.fd = None;
            stream.log(b"", &mut self.log);
        }
        let status = status_of(process)?;
        let ran = self.tell.is_none();
        let _ = self.kept.write_end(status);
        if self.kept.record.remove || !ran {
            let _ = self.kept.remove_all();
        }
        let errors = std::mem::take(&mut self.errors);
        self.tell(&[&[1, status][..], &errors].concat());
        Ok(())
    }

    /// Wait, and take what is ready. Returns whether the machine has ended.
    fn turn(&mut self, end: &OwnedFd) -> Result<bool, KeeperError> {
        let mut fds = vec![PollFd::new(end, PollFlags::IN)];
        let streams = [&self.output.fd, &self.error.fd, &self.started];
        fds.extend(
            streams
                .into_iter()
                .flatten()
                .map(|fd| PollFd::new(fd, PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let ended = fds.first().is_some_and(|fd| !fd.revents().is_empty());
        self.take_ready()?;
        Ok(ended)
    }

    /// Take what the streams have now. Returns whether there was something.
    fn take_ready(&mut self) -> Result<bool, KeeperError> {
        let mut any = false;
        for stream in [&mut self.output, &mut self.error] {
            if !is_ready(&stream.fd)? {
                continue;
            }
            any = true;
            let bytes = stream.read();
            stream.log(&bytes, &mut self.log);
            if stream.name == "stderr" && self.tell.is_some() {
                let room = MAX_TOLD.saturating_sub(self.errors.len());
                self.errors.extend(bytes.iter().take(room));
            }
        }
        if is_ready(&self.started)? {
            let mut byte = [0];
            let read = self
                .started
                .as_ref()
                .map(|fd| rustix::io::read(fd, &mut byte));
            self.started = None;
            if let Some(Ok(1..)) = read {
                self.tell(&[0]);
            }
        }
        Ok(any)
    }

    /// Tell the process that started this one, once. It may be gone.
    fn tell(&mut self, message: &[u8]) {
        if let Some(mut tell) = self.tell.take() {
            let _ = tell.write_all(message);
        }
    }
}

/// Whether a descriptor can be read now.
fn is_ready(fd: &Option<OwnedFd>) -> Result<bool, KeeperError> {
    let Some(fd) = fd else {
        return Ok(false);
    };
    let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
    let now = rustix::event::Timespec::default();
    match poll(&mut fds, Some(&now)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

fn status_of(process: Pid) -> io::Result<u8> {
    let waited = rustix::io::retry_on_intr(|| waitpid(Some(process), WaitOptions::empty()))?;
    let status: Option<WaitStatus> = waited.map(|(_, status)| status);
    let exited = status.and_then(|status| status.exit_status());
    let signal = status.and_then(|status| status.terminating_signal());
    Ok(exited.or(signal.map(|signal| 128 + signal)).unwrap_or(125) as u8)
}
