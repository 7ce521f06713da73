//! Bytes that the program carries in its own file, packed as one LZ4 block each.
//!
//! They are read-only pages of the executable: they become resident when unpacked, and
//! [`Packed::release`] lets them go again. It is the reason why this stands beside guest memory,
//! where `unsafe` may be, and why a [`Packed`] is made nowhere else. See [`crate::guest`].

use thiserror::Error;

/// The guest that build.rs found: kernel, initramfs, function symbols.
pub(crate) const EMBEDDED: Option<[Packed; 3]> = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Page size of x86_64.
const PAGE: usize = 4096;

/// One packed file inside the program.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// Part of the executable's read-only segment: [`Packed::release`] relies on it.
    block: &'static [u8],
    length: usize,
}

/// Packed bytes did not unpack.
#[derive(Debug, Error)]
pub enum PackedError {
    /// The caller's mistake.
    #[error("a buffer of {buffer} bytes for {length} unpacked ones; it must be of that size")]
    Buffer {
        /// Size of the caller's buffer.
        buffer: usize,
        /// What [`Packed::len`] says.
        length: usize,
    },
    /// The program's file is damaged.
    #[error("the guest inside this program is damaged ({reason}); copy or build the program again")]
    Damaged {
        /// What LZ4 says.
        reason: String,
    },
}

impl Packed {
    /// Size in bytes when unpacked.
    #[allow(clippy::len_without_is_empty)] // nothing empty is packed
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Size in bytes inside the program.
    pub const fn packed_len(&self) -> usize {
        self.block.len()
    }

    /// Unpack into memory of its own.
    pub fn unpack(&self) -> Result<Vec<u8>, PackedError> {
        let mut bytes = vec![0; self.length];
        self.unpack_into(&mut bytes)?;
        Ok(bytes)
    }

    /// Unpack into `buffer`, which is exactly [`Packed::len`] bytes.
    pub fn unpack_into(&self, buffer: &mut [u8]) -> Result<(), PackedError> {
        if buffer.len() != self.length {
            return Err(PackedError::Buffer {
                buffer: buffer.len(),
                length: self.length,
            });
        }
        match lz4_flex::block::decompress_into(self.block, buffer) {
            Ok(length) if length == self.length => Ok(()),
            Ok(length) => Err(PackedError::Damaged {
                reason: format!("{length} bytes instead of {}", self.length),
            }),
            Err(error) => Err(PackedError::Damaged {
                reason: error.to_string(),
            }),
        }
    }

    /// Give the packed pages back to the page cache; they come again when touched. Best effort.
    pub fn release(&self) {
        // Whole pages alone: what lies beside the block is none of ours.
        let inside = self.block.as_ptr().align_offset(PAGE);
        let length = self.block.len().saturating_sub(inside) & !(PAGE - 1);
        if length == 0 {
            return;
        }
        let start = self.block.as_ptr().wrapping_add(inside);
        // SAFETY: `start` and `length` are whole pages inside `block`, which maps the program's
        // own file, privately, and has never been written: read again, they hold the same bytes.
        let _ = unsafe {
            rustix::mm::madvise(
                start.cast_mut().cast(),
                length,
                rustix::mm::Advice::LinuxDontNeed,
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(bytes: &[u8]) -> Packed {
        Packed {
            block: lz4_flex::block::compress(bytes).leak(),
            length: bytes.len(),
        }
    }

    #[test]
    fn what_was_packed_is_what_comes_out() {
        let bytes: Vec<u8> = (0..100_000u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect();
        let packed = packed(&bytes);
        assert_eq!(packed.len(), bytes.len());
        assert!(packed.packed_len() < bytes.len());
        assert_eq!(packed.unpack().expect("unpacks"), bytes);
    }

    #[test]
    fn a_buffer_of_another_size_is_refused() {
        let packed = packed(b"seven b");
        for size in [0, 6, 8] {
            let error = packed.unpack_into(&mut vec![0; size]).expect_err("refused");
            assert!(matches!(error, PackedError::Buffer { length: 7, .. }));
        }
    }

    #[test]
    fn damage_is_an_error() {
        let whole = packed(&[7; 5000]);
        for block in [&whole.block[..whole.block.len() - 1], &[], &[0xff; 40]] {
            let damaged = Packed { block, ..whole };
            assert!(matches!(damaged.unpack(), Err(PackedError::Damaged { .. })));
        }
        let longer = Packed {
            length: 5001,
            ..whole
        };
        assert!(matches!(longer.unpack(), Err(PackedError::Damaged { .. })));
    }

    #[test]
    fn released_pages_come_back_with_the_same_bytes() {
        static FILE: &[u8] = include_bytes!("../../Cargo.lock");
        let before = FILE.to_vec();
        Packed {
            block: FILE,
            length: 0,
        }
        .release();
        assert_eq!(FILE, before);
    }
}
