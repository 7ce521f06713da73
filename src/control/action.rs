//! What can be done to a machine and what comes back: [`Action`] and [`Answer`], for the control
//! socket, gdb and the event loop alike.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::inspect::{Inspection, Topic};

/// Version of the protocol.
pub const VERSION: u32 = 1;
/// Most descriptors that come with a request.
pub const MAX_FILES: usize = 2;
/// Longest request, in bytes.
pub const MAX_REQUEST_BYTES: usize = 4096;

/// An action with the version of the protocol that it is written in.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The [`VERSION`] of the sender.
    pub version: u32,
    /// What the machine is to do.
    #[serde(rename = "request")]
    pub action: Action,
}

/// What a machine can be asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Show what the machine holds now.
    Inspect {
        /// Which part of it.
        topic: Topic,
        /// The index of the only vCPU to show; all if `None`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vcpu: Option<usize>,
    },
    /// Report the state, resident memory and uptime.
    Status,
    /// Stop all vCPUs until [`Action::Resume`].
    Pause,
    /// Let the vCPUs run again.
    Resume,
    /// Save the machine to two files, memory and state, whose descriptors come with the request: a machine
    /// opens no files that it is told of.
    Snapshot {
        /// Absolute path of the snapshot's folder, for messages.
        dir: PathBuf,
        /// The snapshot's id.
        id: [u8; 16],
        /// Save only the memory that has changed since the last snapshot of this run.
        diff: bool,
        /// Leave the machine paused, and end it at [`Action::Keep`]: it never again writes to a disk that the
        /// snapshot names.
        #[serde(default)]
        stop: bool,
    },
    /// A snapshot is complete: later ones may be differences to it, or the machine ends.
    Keep {
        /// The snapshot's id.
        id: [u8; 16],
    },
    /// Ask the guest to end, and kill it when the time is over.
    Stop {
        /// Seconds that the guest has.
        seconds: u32,
    },
    /// End the machine at once, without asking the guest.
    Kill,
    /// Send a signal to the machine's own command.
    Signal {
        /// Its number, 1 to 64.
        number: u8,
    },
    /// Run a command beside the machine's own. One end of a pair of stream sockets comes with the request
    /// and does not block; over it go the frames of the agent's protocol (see [`crate::agent`]).
    Exec,
    /// Run a command, if the machine waits for one in a pool: the command follows the request (see
    /// [`crate::pool`]).
    Take {
        /// Length of the command in bytes.
        bytes: u32,
    },
}

/// What a machine answers to an [`Action`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The answer to [`Action::Inspect`].
    Inspection(Box<Inspection>),
    /// The answer to [`Action::Status`].
    Status(Status),
    /// The answer to [`Action::Pause`], [`Action::Resume`], [`Action::Keep`],
    /// [`Action::Signal`] and [`Action::Kill`].
    Done {
        /// False if the machine was in the wanted state before.
        changed: bool,
    },
    /// The answer to [`Action::Snapshot`].
    Saved(SaveReport),
    /// The answer to [`Action::Stop`], when the guest has ended.
    Stopped {
        /// Whether the guest had to be killed.
        killed: bool,
    },
    /// The answer to [`Action::Exec`]: the command is expected.
    Admitted(Surroundings),
    /// Nothing was done, for this reason.
    Refused(String),
}

/// What the machine's own command has, and one beside it, if that says nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// `NAME=value` each, as bytes.
    pub env: Vec<Vec<u8>>,
    /// The working directory; empty for the root directory.
    pub cwd: Vec<u8>,
    /// The user; empty for root.
    pub user: Vec<u8>,
    /// Additional groups.
    pub groups: Vec<u32>,
    /// The capabilities (capabilities(7)), bit N for capability N.
    pub capabilities: u64,
}

/// What saving a machine cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveReport {
    /// Bytes of memory written.
    pub memory_bytes: u64,
    /// How long the vCPUs were stopped, in microseconds.
    pub stood_still_us: u64,
}

/// The answer to [`Action::Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// A state's name ([`crate::vmm::life::State`]); newer versions may have others.
    pub state: String,
    /// Resident memory of the process in bytes, the guest's included; `None` if the host does not say.
    pub resident_bytes: Option<u64>,
    /// Seconds since hull's process started.
    pub uptime_seconds: u64,
}
