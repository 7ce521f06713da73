//! Errors that prevent a session or end it early.

use hull_agent::FromGuest;
use thiserror::Error;

/// The command cannot be sent, or the guest broke the protocol.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AgentError {
    /// The command has no arguments.
    #[error("the command is empty; name a program after --")]
    NoCommand,
    /// A string contains a NUL, which for execve(2) ends it.
    #[error("{what} {text:?} contains a NUL byte; remove it")]
    Nul {
        /// The kind of string: "argument", "variable", "directory", "user", "tag" or "path".
        what: &'static str,
        /// The string, with invalid UTF-8 replaced.
        text: String,
    },
    /// The command is longer than the guest's init accepts.
    #[error(
        "the command has {bytes} bytes in {strings} strings; at most {} bytes in {} strings \
         can be sent, so put long input into a file",
        hull_agent::MAX_COMMAND,
        hull_agent::MAX_STRINGS
    )]
    TooLong {
        /// Bytes of arguments and environment, their NULs and the header included.
        bytes: usize,
        /// Arguments and variables together.
        strings: usize,
    },
    /// More groups or limits than a command can have.
    #[error(
        "a command has at most {} additional groups and {} limits; name fewer",
        hull_agent::MAX_GROUPS,
        hull_agent::RESOURCES
    )]
    TooManyGroups,
    /// A mount that no guest can make.
    #[error("cannot mount at {path}: {reason}; name another path in the guest")]
    Mount {
        /// The path in the guest.
        path: String,
        /// What is wrong with it.
        reason: hull_agent::Error,
    },
    /// A root file system that no guest can have.
    #[error("cannot start from the image: {0}")]
    Root(hull_agent::Error),
    /// The guest sent bytes that are not a message.
    #[error("the guest's init does not speak hull's protocol; is /init hull's own?")]
    Protocol(#[from] hull_agent::Error),
    /// The guest's init was built with another version of hull.
    #[error(
        "the guest's init speaks version {version} of the protocol, this hull version {}; \
         build both from one source",
        hull_agent::VERSION
    )]
    Version {
        /// The guest's protocol version.
        version: u32,
    },
    /// A message that is not allowed in the session's state.
    #[error("the guest's init sent {message} out of turn; is /init hull's own?")]
    OutOfTurn {
        /// The name of the message.
        message: &'static str,
    },
    /// The guest acknowledged more standard input than was sent.
    #[error("the guest acknowledged {acked} bytes of input, but only {sent} were unacknowledged")]
    FalseAck {
        /// Bytes that it acknowledged.
        acked: u32,
        /// Bytes that were sent and not acknowledged.
        sent: usize,
    },
    /// The guest sent more output than there is room for, although it is told how much that is.
    #[error("the guest sent more output of process {process} than it may before it is read")]
    Flood {
        /// The process.
        process: u8,
    },
    /// The caller passed more bytes than `Session::receive_room` allows.
    #[error("{len} bytes arrived with room for {room}; take events before receiving more")]
    NoRoom {
        /// Bytes that were passed.
        len: usize,
        /// Bytes that are allowed.
        room: usize,
    },
    /// A snapshot holds a session in an impossible state.
    #[error("the snapshot's session with the guest's init is damaged: {what}; take a new snapshot")]
    Saved {
        /// What is wrong with it.
        what: &'static str,
    },
    /// An earlier error ended the session.
    #[error("the session with the guest's init was ended by an earlier error")]
    Ended,
}

impl AgentError {
    /// The guest sent `message` out of turn.
    pub(super) fn out_of_turn(message: &FromGuest<'_>) -> Self {
        let message = match message {
            FromGuest::Hello { .. } => "Hello",
            FromGuest::Ready => "Ready",
            FromGuest::Stdout(_) => "Stdout",
            FromGuest::Stderr(_) => "Stderr",
            FromGuest::StdinAck(_) => "StdinAck",
            FromGuest::Exit(_) => "Exit",
            FromGuest::Error(_) => "Error",
            FromGuest::Suspend => "Suspend",
            FromGuest::Started => "Started",
        };
        Self::OutOfTurn { message }
    }
}
