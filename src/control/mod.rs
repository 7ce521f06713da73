//! Orders to a running machine: one line of JSON to its socket (see [`crate::fleet`]), one line
//! back, and the connection ends.
//!
//! [`ask`] is who orders, [`server`] the machine's end. A version that the other end does not speak
//! is refused in words; what is added to [`Request`] and [`Answer`] does not change it.

#![forbid(unsafe_code)]

pub mod server;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::fleet::Found;
use crate::inspect::{Inspection, Topic};

/// Of the protocol.
pub const VERSION: u32 = 1;
/// Most bytes of a request.
pub const REQUEST_MOST: usize = 4096;
/// Most bytes of an answer.
const ANSWER_MOST: u64 = 64 << 20;
/// How long a machine may take to answer what it can answer at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A request with the version that it is made in.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// [`VERSION`].
    pub version: u32,
    /// What is wanted.
    pub request: Request,
}

/// What a machine can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// What it holds now.
    Inspect {
        /// Of that, what.
        topic: Topic,
        /// Of one vCPU alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vcpu: Option<usize>,
    },
    /// How it is.
    Status,
    /// Let no vCPU run until [`Request::Resume`].
    Pause,
    /// Let them run again.
    Resume,
    /// Save it.
    Snapshot {
        /// Where to, from the root on.
        dir: PathBuf,
        /// Only the memory that has changed since the last time.
        diff: bool,
        /// End it then: it writes to no disk that the snapshot names any more.
        #[serde(default)]
        stop: bool,
    },
    /// End it: ask the guest to, and kill it if it has not ended in time.
    Stop {
        /// How long the guest has.
        seconds: u32,
    },
    /// Run a command, for a machine that waits for one: so many bytes of it follow (see
    /// [`crate::pool`]).
    Take {
        /// Of the command.
        bytes: u32,
    },
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// To [`Request::Inspect`].
    Inspection(Box<Inspection>),
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Pause`] and [`Request::Resume`]: it is so now.
    Done {
        /// Whether it was not so before.
        changed: bool,
    },
    /// To [`Request::Snapshot`].
    Saved(Saved),
    /// To [`Request::Stop`], when the guest has ended.
    Stopped {
        /// Whether it had to be killed.
        killed: bool,
    },
    /// Nothing was done, for this reason.
    Refused(String),
}

/// What saving a machine cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Bytes of memory written.
    pub memory_bytes: u64,
    /// How long the guest stood still, in microseconds.
    pub stood_still_us: u64,
}

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `running`, `paused` or `ready`; newer versions may have others.
    pub state: String,
    /// What the host has of hull and of its guest in memory.
    pub resident_bytes: u64,
    /// Since hull's process started.
    pub uptime_seconds: u64,
}

/// A machine did not do what it was asked to.
#[derive(Debug, Error)]
pub enum ControlError {
    /// It cannot be reached.
    #[error(
        "machine {name} (process {pid}) cannot be reached ({error}); it may just have started or ended"
    )]
    Connect {
        /// Its name.
        name: String,
        /// Its process.
        pid: u32,
        /// Why.
        error: io::Error,
    },
    /// The connection broke.
    #[error("machine {name} has not answered ({error})")]
    Lost {
        /// Its name.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// It ended.
    #[error("machine {name} ended before it answered")]
    Ended {
        /// Its name.
        name: String,
    },
    /// It does not speak as this hull does.
    #[error(
        "machine {name} runs hull {version}, whose answer this hull does not understand ({error}); use that hull"
    )]
    Foreign {
        /// Its name.
        name: String,
        /// Its version.
        version: String,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// It refused.
    #[error("{0}")]
    Refused(String),
}

/// Have a machine answer `request`. A `T` is an [`Answer`], or what is made of its JSON otherwise.
///
/// # Errors
/// It is gone, of another kind, or refuses.
pub fn ask<T: DeserializeOwned>(machine: &Found, request: Request) -> Result<T, ControlError> {
    ask_within(machine, request, PATIENCE)
}

/// As [`ask`], with no more than this time for each of its steps.
///
/// # Errors
/// As [`ask`].
pub fn ask_within<T: DeserializeOwned>(
    machine: &Found,
    request: Request,
    patience: Duration,
) -> Result<T, ControlError> {
    let name = || machine.record.name.clone();
    let stream = machine
        .connect(patience)
        .map_err(|error| ControlError::Connect {
            name: name(),
            pid: machine.record.pid,
            error,
        })?;
    let call = Call {
        version: VERSION,
        request,
    };
    let answer = exchange(stream.into(), &call, patience).map_err(|error| match error.kind() {
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
    // Told apart first, as a `T` may be anything.
    if let Ok(Refusal { refused }) = serde_json::from_slice(&answer) {
        return Err(ControlError::Refused(refused));
    }
    serde_json::from_slice(&answer).map_err(|error| ControlError::Foreign {
        name: name(),
        version: machine.record.version.clone(),
        error,
    })
}

/// [`Answer::Refused`] alone.
#[derive(Deserialize)]
struct Refusal {
    refused: String,
}

fn exchange(mut stream: UnixStream, call: &Call, patience: Duration) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(call)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MOST).read_to_end(&mut answer)?;
    Ok(answer)
}
