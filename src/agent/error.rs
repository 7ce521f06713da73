//! What ends a session before the command has ended.

use thiserror::Error;

/// A command that cannot be sent, or a guest that does not keep to the protocol.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AgentError {
    /// The command has no arguments.
    #[error("the command is empty; name a program after --")]
    NoCommand,
    /// A NUL ends a string for execve(2), so none can contain one.
    #[error("{what} {text:?} contains a NUL byte; remove it")]
    Nul {
        /// Which string: "argument", "variable" or "directory".
        what: &'static str,
        /// The string, made readable.
        text: String,
    },
    /// More than the guest's init takes.
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
    /// What no guest can mount.
    #[error("nothing can be mounted at {path}: {reason}; name another path in the guest")]
    Mount {
        /// Where.
        path: String,
        /// Why not.
        reason: hull_agent::Error,
    },
    /// The guest sent bytes that are no message.
    #[error("the guest's init does not speak hull's protocol; is /init hull's own?")]
    Protocol(#[from] hull_agent::Error),
    /// The guest's init was built with another hull.
    #[error(
        "the guest's init speaks version {version} of the protocol, this hull version {}; \
         build both from one source",
        hull_agent::VERSION
    )]
    Version {
        /// What the guest named.
        version: u32,
    },
    /// A message at a time when it cannot come.
    #[error("the guest's init sent {message} out of turn; is /init hull's own?")]
    OutOfTurn {
        /// The message's name.
        message: &'static str,
    },
    /// The guest acknowledged more standard input than it was sent.
    #[error("the guest acknowledged {acked} bytes of input, {sent} were on their way")]
    FalseAck {
        /// Bytes it acknowledged.
        acked: u32,
        /// Bytes that were sent and not acknowledged.
        sent: usize,
    },
    /// Bytes were handed in that [`super::Session::receive_room`] did not allow.
    #[error("{len} bytes arrived with room for {room}; take events out before reading on")]
    NoRoom {
        /// Bytes handed in.
        len: usize,
        /// Bytes there was room for.
        room: usize,
    },
    /// A session of a snapshot that no session can have been.
    #[error("the snapshot's session with the guest's init is wrong: {what}; take it anew")]
    Saved {
        /// What is wrong.
        what: &'static str,
    },
    /// An earlier error ended the session.
    #[error("the session with the guest's init has ended by an earlier error")]
    Ended,
}
