//! Frames: one byte of type, three of length (little endian), one of process, then that many bytes of payload.

use crate::{Error, MAX_PROCESSES};

/// Length of the header in bytes.
pub const HEADER: usize = 5;

/// Maximum length of a payload in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// A complete frame, borrowed from the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Which message it is.
    pub kind: u8,
    /// The process that it is about, below [`MAX_PROCESSES`]; 0 is the machine's main command.
    pub process: u8,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Length on the stream, with the header, in bytes.
    pub fn wire_len(&self) -> usize {
        HEADER + self.payload.len()
    }
}

/// The header of a frame about `process` with `len` bytes of payload, which the caller keeps at or below
/// [`MAX_PAYLOAD`].
pub fn header(kind: u8, process: u8, len: usize) -> [u8; HEADER] {
    let [a, b, c, _] = (len as u32).to_le_bytes();
    [kind, a, b, c, process]
}

/// The first frame in `bytes`, or `None` when its end has not arrived yet.
///
/// # Errors
/// [`Error::FrameTooLong`] and [`Error::UnknownProcess`], as soon as the header is there.
pub fn first(bytes: &[u8]) -> Result<Option<Frame<'_>>, Error> {
    let Some((&[kind, a, b, c, process], rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes([a, b, c, 0]);
    if len as usize > MAX_PAYLOAD {
        return Err(Error::FrameTooLong { len });
    }
    if usize::from(process) >= MAX_PROCESSES {
        return Err(Error::UnknownProcess { process });
    }
    let payload = rest.get(..len as usize);
    Ok(payload.map(|payload| Frame {
        kind,
        process,
        payload,
    }))
}
