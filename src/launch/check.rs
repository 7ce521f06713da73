//! A check of a machine's health: a command as `hull exec` runs it, with an end at a time.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::SIGKILL;

use super::exec::{ExecError, connect_within};
use crate::agent::{Event, Exec, Session};
use crate::control::{self, Action, Answer, ControlError};
use crate::fleet::health::{Check, MAX_OUTPUT, Verdict};
use crate::fleet::{self, Found};

/// How long a machine's hull may take to say its state.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the guest may take to kill a command.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes read at once.
const BATCH: usize = 64 << 10;
/// Bytes of output that are kept: one more than is shown, so that it is seen that there were more.
const MAX_SAID: usize = MAX_OUTPUT + 1;

/// Check the health of the machine `name`. `None` if it cannot be checked now: it is paused, or has ended.
pub fn check(name: &str, check: &Check) -> Option<Verdict> {
    let found = fleet::find(name).ok()?;
    if stands_still(&found) {
        return None;
    }
    let failed = match Probe::run(&found, check) {
        Ok(Some(verdict)) => return Some(verdict),
        Ok(None) => return None,
        Err(error) => Verdict::failed(said(&error)),
    };
    // That may be why.
    (!stands_still(&found) && fleet::find(name).is_ok()).then_some(failed)
}

/// Whether it is paused, or its hull is stopped.
fn stands_still(machine: &Found) -> bool {
    match control::ask_within(machine, Action::Status, ANSWER_TIMEOUT) {
        Ok(Answer::Status(status)) => status.state == "paused",
        Err(ControlError::Stopped { .. }) => true,
        _ => machine.is_stopped(),
    }
}

/// The error with its sources.
fn said(error: &CheckError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// Why a check has no status.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    /// Its time has passed; docker's words.
    #[error("Health check exceeded timeout ({}){}{said}", humantime::format_duration(*timeout), if said.is_empty() { "" } else { ": " })]
    Timeout {
        /// The longest time of a check.
        timeout: Duration,
        /// What it wrote.
        said: String,
    },
    /// The command cannot be run.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The connection fails.
    #[error("the machine cannot be reached")]
    Lost(#[from] io::Error),
}

struct Probe {
    session: Session,
    socket: OwnedFd,
    /// The beginning of its output.
    said: Vec<u8>,
    status: Option<u8>,
    /// Whether the machine has not closed the connection.
    open: bool,
}

impl Probe {
    /// The verdict of the command; `None` if the machine ended before it.
    fn run(machine: &Found, check: &Check) -> Result<Option<Verdict>, CheckError> {
        let until = Instant::now() + check.timeout;
        let timeout = |said: String| CheckError::Timeout {
            timeout: check.timeout,
            said,
        };
        let connection = match connect_within(machine, check.timeout) {
            Err(ExecError::Control(ControlError::Lost { .. })) if until <= Instant::now() => {
                return Err(timeout(String::new()));
            }
            connected => connected?,
        };
        let mut exec = Exec {
            argv: check.test.argv().into_iter().map(Into::into).collect(),
            ..Exec::default()
        };
        connection.complete(&mut exec);
        let session = Session::beside(exec).map_err(ExecError::from)?;
        let mut probe = Self {
            session,
            socket: connection.socket,
            said: Vec::new(),
            status: None,
            open: true,
        };
        probe.session.close_stdin();
        if !probe.serve(until)? {
            // It would hang on; and the next check is not to meet this one.
            probe.session.signal(SIGKILL as u8);
            let _ = probe.serve(Instant::now() + KILL_TIMEOUT);
            return Err(timeout(probe.output()));
        }
        let output = probe.output();
        Ok(probe.status.map(|status| Verdict {
            exit_code: status.into(),
            output,
        }))
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }

    /// Send and receive until the command or the machine has ended: whether that was before this time.
    fn serve(&mut self, until: Instant) -> io::Result<bool> {
        loop {
            while let Some(event) = self.session.next_event() {
                let room = MAX_SAID.saturating_sub(self.said.len());
                match event {
                    Event::Stdout(bytes) | Event::Stderr(bytes) => {
                        self.said.extend(bytes.iter().take(room));
                    }
                    Event::Error(text) => self.said.extend(text.bytes().take(room)),
                    Event::Exited(status) => self.status = Some(status),
                    Event::Ready | Event::Started | Event::Suspend => {}
                }
            }
            if self.status.is_some() || !self.open {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.turn(left)?;
        }
    }

    /// Send and receive what is possible, and wait for that no longer than this.
    fn turn(&mut self, left: Duration) -> io::Result<()> {
        while !self.session.outgoing().is_empty() {
            match rustix::io::write(&self.socket, self.session.outgoing()) {
                Ok(sent) => self.session.sent(sent),
                Err(_) => break,
            }
        }
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, !self.session.outgoing().is_empty());
        let mut fds = [PollFd::new(&self.socket, flags)];
        match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
            Ok(1..) => {}
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
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
