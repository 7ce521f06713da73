//! Flat payloads: a few instructions behind a 16-byte header (guest/payloads/header.inc).
//!
//! ```text
//! 0..2   eb 0e      a jump over the header, because the file is entered at its first byte
//! 2..10  HULLFLAT
//! 10     16|32|64   the CPU mode to enter in
//! 11..16 zero
//! ```

use thiserror::Error;

use super::error::BootError;
use super::{Entry, Mode, ram};
use crate::memory::GuestMemory;
use crate::memory::layout::{FLAT_PAYLOAD, PAGE_TABLES};

/// What a flat payload begins with.
pub const MAGIC: &[u8] = b"\xeb\x0eHULLFLAT";
const MODE_AT: usize = 10;
const HEADER_SIZE: usize = 16;

/// What is wrong with a flat payload.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FlatError {
    /// The file ends inside its header.
    #[error("the flat payload has {size} bytes, fewer than its header's 16; assemble it again")]
    Truncated {
        /// Bytes of the file.
        size: usize,
    },
    /// The mode byte.
    #[error("the flat payload asks for CPU mode {mode} at offset 10; it may be 16, 32 or 64")]
    Mode {
        /// The byte found.
        mode: u8,
    },
    /// It would run into the page tables.
    #[error("the flat payload has {size} bytes; at most {most} fit below the page tables")]
    TooLarge {
        /// Bytes of the file.
        size: usize,
        /// The most that fits.
        most: usize,
    },
}

/// Copy the payload to [`FLAT_PAYLOAD`].
pub fn load(memory: &GuestMemory, bytes: &[u8]) -> Result<Entry, BootError> {
    let size = bytes.len();
    if size < HEADER_SIZE {
        return Err(FlatError::Truncated { size }.into());
    }
    let mode = match bytes.get(MODE_AT).copied().unwrap_or_default() {
        16 => Mode::Flat16,
        32 => Mode::Flat32,
        64 => Mode::Flat64,
        mode => return Err(FlatError::Mode { mode }.into()),
    };
    let most = (PAGE_TABLES - FLAT_PAYLOAD) as usize;
    if size > most {
        return Err(FlatError::TooLarge { size, most }.into());
    }
    ram::write(memory, "the flat payload", FLAT_PAYLOAD, bytes)?;
    Ok(Entry {
        mode,
        rip: FLAT_PAYLOAD,
        params: 0,
    })
}
