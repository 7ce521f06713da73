//! What a `Resumed` says: `unix_ns u64 | entropy[32] | first_window u8 | windows u8`.

use crate::Error;

/// Bytes of it.
pub const RESUMED_LEN: usize = 42;

/// What a machine that goes on from a snapshot cannot know by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// The time by Unix' clock, in nanoseconds.
    pub unix_ns: u64,
    /// Random bytes that no other machine of this snapshot is given.
    pub entropy: [u8; 32],
    /// The first of the virtio-mmio windows in which a device has come into view, counted from 0
    /// as the kernel was told of them.
    pub first_window: u8,
    /// How many of them, one after the other; 0: none.
    pub windows: u8,
}

impl Resumed {
    /// The bytes.
    pub fn encode(&self) -> [u8; RESUMED_LEN] {
        let mut bytes = [0; RESUMED_LEN];
        bytes[..8].copy_from_slice(&self.unix_ns.to_le_bytes());
        bytes[8..40].copy_from_slice(&self.entropy);
        bytes[40] = self.first_window;
        bytes[41] = self.windows;
        bytes
    }

    /// What these bytes say.
    ///
    /// # Errors
    /// [`Error::WrongResumed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let wrong = Error::WrongResumed;
        let (unix_ns, rest) = bytes.split_first_chunk().ok_or(wrong)?;
        let (entropy, rest) = rest.split_first_chunk().ok_or(wrong)?;
        let &[first_window, windows] = rest else {
            return Err(wrong);
        };
        first_window.checked_add(windows).ok_or(wrong)?;
        Ok(Self {
            unix_ns: u64::from_le_bytes(*unix_ns),
            entropy: *entropy,
            first_window,
            windows,
        })
    }
}
