//! The payload of a `Resumed`: `unix_ns u64 | entropy[32] | first_slot u8 | slots u8`.

use crate::Error;

/// Length of the payload in bytes.
pub const RESUMED_LEN: usize = 42;

/// What a restored machine cannot know by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// The current time in nanoseconds since 1970.
    pub unix_ns: u64,
    /// Random bytes that no other machine restored from this snapshot gets.
    pub entropy: [u8; 32],
    /// The first virtio-mmio slot whose device was revealed by the restore, counted from 0 in the
    /// order of the kernel command line.
    pub first_slot: u8,
    /// How many consecutive slots were revealed, perhaps 0.
    pub slots: u8,
}

impl Resumed {
    /// Encode it as a payload.
    pub fn encode(&self) -> [u8; RESUMED_LEN] {
        let mut bytes = [0; RESUMED_LEN];
        bytes[..8].copy_from_slice(&self.unix_ns.to_le_bytes());
        bytes[8..40].copy_from_slice(&self.entropy);
        bytes[40] = self.first_slot;
        bytes[41] = self.slots;
        bytes
    }

    /// Decode a payload.
    ///
    /// # Errors
    /// [`Error::WrongResumed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let wrong = Error::WrongResumed;
        let (unix_ns, rest) = bytes.split_first_chunk().ok_or(wrong)?;
        let (entropy, rest) = rest.split_first_chunk().ok_or(wrong)?;
        let &[first_slot, slots] = rest else {
            return Err(wrong);
        };
        first_slot.checked_add(slots).ok_or(wrong)?;
        Ok(Self {
            unix_ns: u64::from_le_bytes(*unix_ns),
            entropy: *entropy,
            first_slot,
            slots,
        })
    }
}
