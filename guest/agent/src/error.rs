//! Errors in bytes from the other end.

use core::fmt;

/// The other end sent an invalid message. The stream cannot be used further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A frame announces more than [`crate::frame::MAX_PAYLOAD`] bytes.
    FrameTooLong {
        /// The announced length.
        len: u32,
    },
    /// A frame is about a process that cannot be.
    UnknownProcess {
        /// The process.
        process: u8,
    },
    /// No message of this direction has this type.
    UnknownKind {
        /// The type byte.
        kind: u8,
    },
    /// The payload is shorter or longer than its message.
    WrongLength {
        /// The type byte.
        kind: u8,
        /// Bytes of payload.
        len: usize,
    },
    /// `Hello` does not begin with "HULL".
    WrongMagic,
    /// `Exit` names a kind, status or signal that does not exist.
    WrongExit,
    /// `Interface` is too short, too long, or has no address.
    WrongInterface,
    /// `Resumed` has the wrong length, or slots that cannot exist.
    WrongResumed,
    /// Not a valid [`crate::Command`]; the text says why.
    WrongCommand(&'static str),
    /// Not a valid [`crate::Mount`]; the text says why.
    WrongMount(&'static str),
    /// Not a valid [`crate::Root`]; the text says why.
    WrongRoot(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FrameTooLong { len } => write!(f, "a frame announces {len} bytes"),
            Self::UnknownProcess { process } => {
                write!(f, "a frame is about process {process}, which cannot be")
            }
            Self::UnknownKind { kind } => write!(f, "message type {kind:#04x} does not exist"),
            Self::WrongLength { kind, len } => {
                write!(f, "message type {kind:#04x} cannot have {len} bytes")
            }
            Self::WrongMagic => f.write_str("the greeting does not begin with HULL"),
            Self::WrongInterface => f.write_str("the network interface is invalid"),
            Self::WrongResumed => f.write_str("the restore message is invalid"),
            Self::WrongExit => f.write_str("the exit status is invalid"),
            Self::WrongMount(why) => write!(f, "the mount cannot be read: {why}"),
            Self::WrongRoot(why) => write!(f, "the root file system cannot be read: {why}"),
            Self::WrongCommand(why) => write!(f, "the command cannot be read: {why}"),
        }
    }
}

impl core::error::Error for Error {}
