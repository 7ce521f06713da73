//! Messages: what a frame means, by direction.

use crate::frame::{Frame, HEADER, MAX_PAYLOAD, header};
use crate::{Error, Interface, Mount, Resumed, Root, WindowSize};

const MAGIC: [u8; 4] = *b"HULL";

/// Instead of an errno in an [`Exit`]: an [`FromGuest::Error`] before it has said why.
pub const SAID: u32 = 0;

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this status.
    Exited(u8),
    /// Signal 1 to 64 ended it.
    Signalled(u8),
    /// It exists but cannot be run; execve's errno, or [`SAID`].
    NotExecutable(u32),
    /// It does not exist; execve's errno.
    NotFound(u32),
    /// The guest could not prepare it (a pipe, terminal or process failed); the errno, or [`SAID`].
    Error(u32),
}

impl Exit {
    /// The status as a container engine reports it: 128+N for signal N, 126 for a command that cannot
    /// be run, 127 for one that does not exist, 125 for a failure that is not the command's.
    pub fn status(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Signalled(signal) => signal.saturating_add(128),
            Self::NotExecutable(_) => 126,
            Self::NotFound(_) => 127,
            Self::Error(_) => 125,
        }
    }
}

/// A message from the guest to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromGuest<'a> {
    /// The first message.
    Hello {
        /// [`crate::VERSION`] of the guest.
        version: u32,
    },
    /// The guest waits for a command.
    Ready,
    /// The command wrote to its standard output or its terminal.
    Stdout(&'a [u8]),
    /// The command wrote to its standard error.
    Stderr(&'a [u8]),
    /// This many bytes of standard input have left the guest's buffer.
    StdinAck(u32),
    /// The last message.
    Exit(Exit),
    /// An error message for the user.
    Error(&'a [u8]),
    /// The suspend character was typed on the command's terminal, where it would stop no process.
    Suspend,
    /// The command runs; sent if it asks for that ([`crate::CommandHeader::report_start`]).
    Started,
}

/// An output of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output, or its terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A message from the host to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromHost<'a> {
    /// A part of a [`crate::Command`]; more follow.
    ExecPart(&'a [u8]),
    /// The last part of a [`crate::Command`]: run it.
    Exec(&'a [u8]),
    /// Bytes for the command's standard input.
    Stdin(&'a [u8]),
    /// The end of the command's standard input.
    StdinClose,
    /// The terminal's size changed.
    Resize(WindowSize),
    /// Send signal 1 to 64 to the command's process group.
    Signal(u8),
    /// The main command's `Exit` has arrived; the guest may power off.
    Goodbye,
    /// Mount a folder before the command runs.
    Mount(Mount<'a>),
    /// Configure a network interface; before the command, or in a restored machine at any time.
    Interface(Interface),
    /// The machine was restored from a snapshot.
    Resumed(Resumed),
    /// What the command writes there has no reader any more.
    OutputClose(Output),
    /// This much of the command's output has left the host's buffers, in the measure of
    /// [`crate::output_cost`].
    OutputAck(u32),
    /// Make an image the root file system, before the command and all mounts.
    Root(Root<'a>),
}

impl<'a> FromGuest<'a> {
    /// The type of [`FromGuest::Stdout`], for filling a frame in place.
    pub const STDOUT: u8 = 0x03;
    /// The type of [`FromGuest::Stderr`].
    pub const STDERR: u8 = 0x04;

    /// Decode the message of a frame.
    ///
    /// # Errors
    /// Every [`Error`] except those of frames and commands.
    pub fn decode(frame: Frame<'a>) -> Result<Self, Error> {
        let message = Self::of(frame)?;
        let process = frame.process;
        match message {
            Self::Hello { .. } | Self::Ready if process != 0 => {
                Err(Error::UnknownProcess { process })
            }
            message => Ok(message),
        }
    }

    fn of(frame: Frame<'a>) -> Result<Self, Error> {
        let Frame { kind, payload, .. } = frame;
        let wrong_length = Error::WrongLength {
            kind,
            len: payload.len(),
        };
        Ok(match (kind, payload) {
            (0x01, &[m0, m1, m2, m3, a, b, c, d]) => {
                if [m0, m1, m2, m3] != MAGIC {
                    return Err(Error::WrongMagic);
                }
                let version = u32::from_le_bytes([a, b, c, d]);
                Self::Hello { version }
            }
            (0x02, []) => Self::Ready,
            (Self::STDOUT, bytes) => Self::Stdout(bytes),
            (Self::STDERR, bytes) => Self::Stderr(bytes),
            (0x05, &[a, b, c, d]) => Self::StdinAck(u32::from_le_bytes([a, b, c, d])),
            (0x06, &[how, a, b, c, d]) => {
                let value = u32::from_le_bytes([a, b, c, d]);
                Self::Exit(match (how, u8::try_from(value)) {
                    (0, Ok(status)) => Exit::Exited(status),
                    (1, Ok(signal @ 1..=64)) => Exit::Signalled(signal),
                    (2, _) => Exit::NotExecutable(value),
                    (3, _) => Exit::NotFound(value),
                    (4, _) => Exit::Error(value),
                    _ => return Err(Error::WrongExit),
                })
            }
            (0x07, text) => Self::Error(text),
            (0x08, []) => Self::Suspend,
            (0x09, []) => Self::Started,
            (0x01..=0x09, _) => return Err(wrong_length),
            _ => return Err(Error::UnknownKind { kind }),
        })
    }

    /// Write the main command's frame to the front of `out` and return its length. `None` if it does not fit
    /// there or into a frame.
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        match self {
            Self::Hello { version } => write(out, 0x01, &MAGIC, &version.to_le_bytes()),
            Self::Ready => write(out, 0x02, &[], &[]),
            Self::Stdout(bytes) => write(out, Self::STDOUT, &[], bytes),
            Self::Stderr(bytes) => write(out, Self::STDERR, &[], bytes),
            Self::StdinAck(count) => write(out, 0x05, &[], &count.to_le_bytes()),
            Self::Exit(exit) => {
                let (how, value) = match *exit {
                    Exit::Exited(status) => (0, status.into()),
                    Exit::Signalled(signal) => (1, signal.into()),
                    Exit::NotExecutable(errno) => (2, errno),
                    Exit::NotFound(errno) => (3, errno),
                    Exit::Error(errno) => (4, errno),
                };
                write(out, 0x06, &[how], &value.to_le_bytes())
            }
            Self::Error(text) => write(out, 0x07, &[], text),
            Self::Suspend => write(out, 0x08, &[], &[]),
            Self::Started => write(out, 0x09, &[], &[]),
        }
    }

    /// As [`FromGuest::encode`], about `process`.
    pub fn encode_for(&self, process: u8, out: &mut [u8]) -> Option<usize> {
        address(self.encode(out), process, out)
    }
}

impl<'a> FromHost<'a> {
    /// Decode the message of a frame.
    ///
    /// # Errors
    /// Every [`Error`] except those of frames, greetings, exits and commands.
    pub fn decode(frame: Frame<'a>) -> Result<Self, Error> {
        let message = Self::of(frame)?;
        let process = frame.process;
        match message {
            Self::Goodbye | Self::Mount(_) | Self::Interface(_) | Self::Resumed(_)
                if process != 0 =>
            {
                Err(Error::UnknownProcess { process })
            }
            message => Ok(message),
        }
    }

    fn of(frame: Frame<'a>) -> Result<Self, Error> {
        let Frame { kind, payload, .. } = frame;
        Ok(match (kind, payload) {
            (0x81, bytes) => Self::ExecPart(bytes),
            (0x82, bytes) => Self::Exec(bytes),
            (0x83, bytes) => Self::Stdin(bytes),
            (0x84, []) => Self::StdinClose,
            (0x85, &[r0, r1, c0, c1]) => Self::Resize(WindowSize {
                rows: u16::from_le_bytes([r0, r1]),
                cols: u16::from_le_bytes([c0, c1]),
            }),
            (0x86, &[signal @ 1..=64]) => Self::Signal(signal),
            (0x87, []) => Self::Goodbye,
            (0x88, bytes) => Self::Mount(Mount::decode(bytes)?),
            (0x89, bytes) => Self::Interface(Interface::decode(bytes)?),
            (0x8a, bytes) => Self::Resumed(Resumed::decode(bytes)?),
            (0x8b, &[1]) => Self::OutputClose(Output::Stdout),
            (0x8b, &[2]) => Self::OutputClose(Output::Stderr),
            (0x8c, bytes) => Self::Root(Root::decode(bytes)?),
            (0x90, &[a, b, c, d]) => Self::OutputAck(u32::from_le_bytes([a, b, c, d])),
            (0x81..=0x87 | 0x8b | 0x90, _) => {
                let len = payload.len();
                return Err(Error::WrongLength { kind, len });
            }
            _ => return Err(Error::UnknownKind { kind }),
        })
    }

    /// Write the main command's frame to the front of `out` and return its length. `None` if it does not fit
    /// there or into a frame.
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        match self {
            Self::ExecPart(bytes) => write(out, 0x81, &[], bytes),
            Self::Exec(bytes) => write(out, 0x82, &[], bytes),
            Self::Stdin(bytes) => write(out, 0x83, &[], bytes),
            Self::StdinClose => write(out, 0x84, &[], &[]),
            Self::Resize(WindowSize { rows, cols }) => {
                write(out, 0x85, &rows.to_le_bytes(), &cols.to_le_bytes())
            }
            Self::Signal(signal) => write(out, 0x86, &[], &[*signal]),
            Self::Goodbye => write(out, 0x87, &[], &[]),
            Self::Mount(mount) => mount.encode(out, 0x88),
            Self::Interface(interface) => write(out, 0x89, &[], &interface.encode()),
            Self::Resumed(resumed) => write(out, 0x8a, &[], &resumed.encode()),
            Self::OutputClose(Output::Stdout) => write(out, 0x8b, &[], &[1]),
            Self::OutputClose(Output::Stderr) => write(out, 0x8b, &[], &[2]),
            Self::OutputAck(cost) => write(out, 0x90, &[], &cost.to_le_bytes()),
            Self::Root(root) => root.encode(out, 0x8c),
        }
    }

    /// As [`FromHost::encode`], about `process`.
    pub fn encode_for(&self, process: u8, out: &mut [u8]) -> Option<usize> {
        address(self.encode(out), process, out)
    }
}

/// Make a frame of `len` bytes that was written to `out` be about `process`.
fn address(len: Option<usize>, process: u8, out: &mut [u8]) -> Option<usize> {
    *out.get_mut(HEADER - 1)? = process;
    len
}

pub(crate) fn write(out: &mut [u8], kind: u8, fixed: &[u8], rest: &[u8]) -> Option<usize> {
    let len = fixed.len() + rest.len();
    if len > MAX_PAYLOAD {
        return None;
    }
    let (head, payload) = out.get_mut(..HEADER + len)?.split_at_mut(HEADER);
    head.copy_from_slice(&header(kind, 0, len));
    let (front, back) = payload.split_at_mut(fixed.len());
    front.copy_from_slice(fixed);
    back.copy_from_slice(rest);
    Some(HEADER + len)
}
