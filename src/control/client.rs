//! A front end's end of the control socket: one line of JSON there, one back.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::action::{Action, MAX_FILES, Request, VERSION};
use crate::fleet::Found;

/// Longest answer, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// Time for what a machine can answer at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a machine did not do what it was asked to.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Its hull is stopped.
    #[error(
        "machine {name} is stopped, as by Ctrl-Z; `fg` in its shell or kill -CONT {pid} continues it"
    )]
    Stopped {
        /// The name of the machine.
        name: String,
        /// Process id of its hull.
        pid: u32,
    },
    /// No connection to its control socket.
    #[error(
        "machine {name} (process {pid}) cannot be reached ({error}); it may just have started or ended"
    )]
    Connect {
        /// The name of the machine.
        name: String,
        /// Process id of its hull.
        pid: u32,
        /// What the connection failed with.
        error: io::Error,
    },
    /// The connection broke, or the timeout passed.
    #[error("machine {name} has not answered ({error})")]
    Lost {
        /// The name of the machine.
        name: String,
        /// What reading or writing failed with.
        error: io::Error,
    },
    /// The machine ended before it answered.
    #[error("machine {name} ended before it answered")]
    Ended {
        /// The name of the machine.
        name: String,
    },
    /// The answer is of another version of hull.
    #[error(
        "machine {name} runs hull {version}, whose answer this hull does not understand ({error}); use that hull"
    )]
    Foreign {
        /// The name of the machine.
        name: String,
        /// The version of the machine's hull.
        version: String,
        /// What is wrong with the answer.
        error: serde_json::Error,
    },
    /// The machine refused, for this reason.
    #[error("{0}")]
    Refused(String),
}

/// Send `action` to a machine and wait for the answer: an [`Answer`](super::Answer), or any type that
/// its JSON deserializes to.
///
/// # Errors
/// The machine is gone, of another version, or refuses.
pub fn ask<T: DeserializeOwned>(machine: &Found, action: Action) -> Result<T, ControlError> {
    ask_within(machine, action, ANSWER_TIMEOUT)
}

/// As [`ask`], with this timeout for each step: connecting, sending, and every part of the answer.
///
/// # Errors
/// As [`ask`].
pub fn ask_within<T: DeserializeOwned>(
    machine: &Found,
    action: Action,
    timeout: Duration,
) -> Result<T, ControlError> {
    ask_with(machine, action, &[], timeout)
}

/// As [`ask_within`], with `files` for the machine, two at most.
///
/// # Errors
/// As [`ask`].
pub fn ask_with<T: DeserializeOwned>(
    machine: &Found,
    action: Action,
    files: &[BorrowedFd<'_>],
    timeout: Duration,
) -> Result<T, ControlError> {
    let name = || machine.record.name.clone();
    if machine.is_stopped() {
        return Err(ControlError::Stopped {
            name: name(),
            pid: machine.record.pid,
        });
    }
    let stream = machine
        .connect(timeout)
        .map_err(|error| ControlError::Connect {
            name: name(),
            pid: machine.record.pid,
            error,
        })?;
    let request = Request {
        version: VERSION,
        action,
    };
    let answer =
        exchange(stream.into(), &request, files, timeout).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                ControlError::Ended { name: name() }
            }
            io::ErrorKind::WouldBlock => ControlError::Lost {
                name: name(),
                error: io::ErrorKind::TimedOut.into(),
            },
            _ => ControlError::Lost {
                name: name(),
                error,
            },
        })?;
    if answer.last() != Some(&b'\n') {
        return Err(ControlError::Ended { name: name() });
    }
    // First: a `T` may accept a refusal, too.
    if let Ok(Refusal { refused }) = serde_json::from_slice(&answer) {
        return Err(ControlError::Refused(refused));
    }
    serde_json::from_slice(&answer).map_err(|error| ControlError::Foreign {
        name: name(),
        version: machine.record.version.clone(),
        error,
    })
}

/// The JSON of [`Answer::Refused`](super::Answer::Refused).
#[derive(Deserialize)]
struct Refusal {
    refused: String,
}

fn exchange(
    mut stream: UnixStream,
    request: &Request,
    files: &[BorrowedFd<'_>],
    timeout: Duration,
) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(files));
    }
    let begun = [IoSlice::new(&line)];
    let sent = sendmsg(&stream, &begun, &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(line.get(sent..).unwrap_or_default())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer)?;
    Ok(answer)
}
