//! Flat payloads: a few instructions of assembly, loaded at one address and entered there.
//!
//! ```text
//! 0  eb 0e         jmp 16
//! 2  "HULLFLAT"
//! 10 16, 32 or 64  the mode in which to start
//! 11 00 00 00 00 00
//! 16 code
//! ```

use thiserror::Error;

use super::entry::{Entry, Mode};
use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::layout::{FLAT_PAYLOAD, PAGE_TABLES};

/// The first bytes of a flat payload: the jump and the magic.
pub const MAGIC: &[u8] = b"\xeb\x0eHULLFLAT";

const HEADER_SIZE: usize = 16;

/// Why a flat payload cannot be loaded.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FlatError {
    /// The file ends before the code.
    #[error("the flat payload is truncated: {size} bytes, the header alone has 16")]
    Truncated {
        /// Size of the file in bytes.
        size: usize,
    },
    /// The mode is unknown, or reserved bytes are not zero.
    #[error(
        "the flat payload's header is damaged: mode {mode} (16, 32 or 64 expected), then five zeros"
    )]
    Header {
        /// Byte 10 of the file.
        mode: u8,
    },
    /// The payload is larger than its area in the layout.
    #[error("the flat payload is {size} bytes long, {max} fit; move data to another address")]
    TooBig {
        /// Size of the file in bytes.
        size: usize,
        /// Size of the area in bytes.
        max: u64,
    },
}

/// The mode in which a file that begins with [`MAGIC`] has to be entered.
///
/// # Errors
/// [`FlatError`] for a header that is truncated or damaged.
pub fn mode(bytes: &[u8]) -> Result<Mode, FlatError> {
    let size = bytes.len();
    let header: &[u8; HEADER_SIZE] = bytes
        .first_chunk()
        .filter(|_| size > HEADER_SIZE)
        .ok_or(FlatError::Truncated { size })?;
    match header[10..] {
        [16, 0, 0, 0, 0, 0] => Ok(Mode::Flat16),
        [32, 0, 0, 0, 0, 0] => Ok(Mode::Flat32),
        [64, 0, 0, 0, 0, 0] => Ok(Mode::Flat64),
        _ => Err(FlatError::Header { mode: header[10] }),
    }
}

/// Copy the payload to [`FLAT_PAYLOAD`].
///
/// # Errors
/// [`FlatError`] and [`BootError::OutsideMemory`].
pub fn load(memory: &GuestMemory, bytes: &[u8]) -> Result<Entry, BootError> {
    let mode = mode(bytes)?;
    let max = PAGE_TABLES - FLAT_PAYLOAD;
    if bytes.len() as u64 > max {
        return Err(FlatError::TooBig {
            size: bytes.len(),
            max,
        }
        .into());
    }
    ram::write(memory, "the flat payload", FLAT_PAYLOAD, bytes)?;
    Ok(Entry {
        mode,
        rip: FLAT_PAYLOAD,
        params: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::super::ram::tests::{memory, read};
    use super::*;

    /// A payload that halts.
    fn payload(mode: u8, size: usize) -> Vec<u8> {
        let mut bytes = [MAGIC, &[mode, 0, 0, 0, 0, 0]].concat();
        bytes.resize(size, 0xf4);
        bytes
    }

    #[test]
    fn a_payload_is_copied_and_entered_at_its_first_byte() {
        for (bits, mode) in [(16, Mode::Flat16), (32, Mode::Flat32), (64, Mode::Flat64)] {
            let memory = memory(1);
            let bytes = payload(bits, 20);
            assert_eq!(
                load(&memory, &bytes).unwrap(),
                Entry {
                    mode,
                    rip: FLAT_PAYLOAD,
                    params: 0
                }
            );
            assert_eq!(read(&memory, FLAT_PAYLOAD, 20), bytes);
        }
    }

    #[test]
    fn damaged_payloads_are_refused() {
        assert_eq!(
            mode(&payload(64, 16)),
            Err(FlatError::Truncated { size: 16 })
        );
        assert_eq!(mode(&payload(8, 20)), Err(FlatError::Header { mode: 8 }));
        assert!(load(&memory(1), &payload(64, 4096)).is_ok());
        let error = load(&memory(1), &payload(64, 4097))
            .unwrap_err()
            .to_string();
        assert!(error.contains("4097 bytes long, 4096 fit"), "{error}");
    }
}
