//! Frames: one byte of type, four of length (little endian), then that many bytes of payload.

use crate::Error;

/// Length of the header in bytes.
pub const HEADER: usize = 5;

/// Maximum length of a payload in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// A complete frame, borrowed from the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Which message it is.
    pub kind: u8,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Length on the stream, with the header, in bytes.
    pub fn wire_len(&self) -> usize {
        HEADER + self.payload.len()
    }
}

/// The header of a frame with `len` bytes of payload, which the caller keeps at or below
/// [`MAX_PAYLOAD`].
pub fn header(kind: u8, len: usize) -> [u8; HEADER] {
    let [a, b, c, d] = (len as u32).to_le_bytes();
    [kind, a, b, c, d]
}

/// The first frame in `bytes`, or `None` when its end has not arrived yet.
///
/// # Errors
/// [`Error::FrameTooLong`], as soon as the header is there.
pub fn first(bytes: &[u8]) -> Result<Option<Frame<'_>>, Error> {
    let Some((&[kind, a, b, c, d], rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes([a, b, c, d]);
    if len as usize > MAX_PAYLOAD {
        return Err(Error::FrameTooLong { len });
    }
    let payload = rest.get(..len as usize);
    Ok(payload.map(|payload| Frame { kind, payload }))
}
