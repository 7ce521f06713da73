//! The side of `hull run`: finds a machine, hands it a command, and waits for its end.

use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Signal, pidfd_send_signal};

use super::protocol::{Command, MAX_COMMAND, Reply, STEP_TIMEOUT};
use crate::control::{Action, Request, VERSION};
use crate::fleet::{self, Found};

/// Timeout to connect to a machine: one that waits accepts at once.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// A machine that runs our command.
pub struct Taken {
    stream: UnixStream,
    process: OwnedFd,
    /// Process id of the machine's hull.
    pub pid: u32,
}

/// What became of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command ended with this status.
    Ended(u8),
    /// The guest was never told of the command.
    Unfit,
    /// The machine is gone without a report.
    Lost,
}

/// Machines of the template `key` that wait for a command, or have got one.
pub fn ready(key: &str) -> Vec<Found> {
    let mut found = fleet::list();
    found.retain(|machine| machine.record.ready_with.as_deref() == Some(key));
    found
}

/// Hand `command` and these streams to the first of `machines` that still waits. `None` if none took
/// them.
pub fn take(machines: &[Found], command: &Command, streams: [BorrowedFd<'_>; 3]) -> Option<Taken> {
    let body = postcard::to_allocvec(command).ok()?;
    let bytes = u32::try_from(body.len()).ok()?;
    if bytes > MAX_COMMAND {
        return None;
    }
    machines.iter().find_map(|machine| {
        let process = machine.process()?;
        let mut stream = UnixStream::from(machine.connect(CONNECT_TIMEOUT).ok()?);
        let taken = ask(&mut stream, bytes, &body, &streams).ok()?;
        (taken == Reply::Taken).then_some(Taken {
            stream,
            process,
            pid: machine.record.pid,
        })
    })
}

pub(super) fn ask(
    stream: &mut UnixStream,
    bytes: u32,
    body: &[u8],
    streams: &[BorrowedFd<'_>],
) -> io::Result<Reply> {
    stream.set_write_timeout(Some(STEP_TIMEOUT))?;
    stream.set_read_timeout(Some(STEP_TIMEOUT))?;
    let request = Request {
        version: VERSION,
        action: Action::Take { bytes },
    };
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(streams));
    let line = [IoSlice::new(&line)];
    let sent = sendmsg(&*stream, &line, &mut control, SendFlags::NOSIGNAL)?;
    if sent != line[0].len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    stream.write_all(body)?;
    let reply = Reply::read(stream)?;
    stream.set_read_timeout(None)?;
    Ok(reply)
}

impl Taken {
    /// Forward a signal to the machine's hull.
    pub fn signal(&self, number: i32) {
        if let Some(signal) = Signal::from_named_raw(number) {
            let _ = pidfd_send_signal(&self.process, signal); // it may just have ended
        }
    }

    /// Wait for the report; it is there once this is readable.
    pub fn outcome(mut self) -> Outcome {
        match Reply::read(&mut self.stream) {
            Ok(Reply::Ended(status)) => Outcome::Ended(status),
            Ok(Reply::Unfit) => Outcome::Unfit,
            Ok(Reply::Taken) | Err(_) => Outcome::Lost,
        }
    }
}

impl AsFd for Taken {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
