//! Files inside the program's own file, compressed with LZ4.
//!
//! Each `CHUNK` bytes are a separate block, so that a part can be unpacked without the rest and
//! without a buffer as large as the whole. See [`crate::guest`].

use std::fmt;
use std::ops::Range;

use thiserror::Error;

/// The guest that build.rs found: kernel, initramfs, function symbols.
pub(crate) const EMBEDDED: Option<[Packed; 3]> = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Bytes of one block when unpacked; the last block may have fewer. The same in build.rs.
pub(super) const CHUNK: usize = 256 << 10;

/// One packed file inside the program.
#[derive(Clone, Copy)]
pub struct Packed {
    /// The blocks, one after the other.
    blocks: &'static [u8],
    /// Where each block ends in `blocks`.
    ends: &'static [u32],
    length: usize,
}

/// Why packed bytes cannot be unpacked.
#[derive(Debug, Error)]
pub enum PackedError {
    /// The caller's buffer has the wrong size.
    #[error("a buffer of {buffer} bytes for {length} unpacked ones; it must be of that size")]
    Buffer {
        /// Size of that buffer in bytes.
        buffer: usize,
        /// The unpacked size in bytes, [`Packed::len`].
        length: usize,
    },
    /// The program's file is damaged.
    #[error("the guest inside this program is damaged ({reason}); copy or build the program again")]
    Damaged {
        /// The message of the decoder.
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
        self.blocks.len()
    }

    /// Unpack into a new buffer.
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
        for (index, chunk) in buffer.chunks_mut(CHUNK).enumerate() {
            self.unpack_chunk(index, chunk)?;
        }
        Ok(())
    }

    /// Pass the bytes of `range` to `take`, in order, in pieces of at most `CHUNK` bytes.
    ///
    /// # Errors
    /// The range does not exist or cannot be unpacked, or `take` returns an error.
    pub fn pieces<E: From<PackedError>>(
        &self,
        range: Range<usize>,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = vec![0; CHUNK.min(self.length)];
        let mut at = range.start;
        while at < range.end {
            let (index, within) = (at / CHUNK, at % CHUNK);
            let size = self.length.saturating_sub(index * CHUNK).min(CHUNK);
            let chunk = buffer.get_mut(..size).unwrap_or_default();
            self.unpack_chunk(index, chunk)?;
            let end = size.min(within + (range.end - at));
            let piece = chunk.get(within..end).filter(|piece| !piece.is_empty());
            let piece = piece.ok_or_else(|| damaged("a part beyond the end"))?;
            take(piece)?;
            at += piece.len();
        }
        Ok(())
    }

    /// Unpack the block `index` into `chunk`, which is of its size.
    fn unpack_chunk(&self, index: usize, chunk: &mut [u8]) -> Result<(), PackedError> {
        let end = |index: usize| self.ends.get(index).map(|end| *end as usize);
        let start = index.checked_sub(1).map_or(Some(0), end);
        let block = start
            .zip(end(index))
            .and_then(|(start, end)| self.blocks.get(start..end));
        let block = block.ok_or_else(|| damaged("a block is missing"))?;
        match lz4_flex::block::decompress_into(block, chunk) {
            Ok(length) if length == chunk.len() => Ok(()),
            Ok(length) => Err(damaged(format!(
                "{length} bytes instead of {}",
                chunk.len()
            ))),
            Err(error) => Err(damaged(error.to_string())),
        }
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({} of {} bytes)", self.packed_len(), self.len())
    }
}

fn damaged(reason: impl Into<String>) -> PackedError {
    PackedError::Damaged {
        reason: reason.into(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// As build.rs does it, by another encoder.
    pub fn packed(bytes: &[u8]) -> Packed {
        let (mut blocks, mut ends) = (Vec::new(), Vec::new());
        for chunk in bytes.chunks(CHUNK) {
            blocks.extend(lz4_flex::block::compress(chunk));
            ends.push(blocks.len() as u32);
        }
        Packed {
            blocks: blocks.leak(),
            ends: ends.leak(),
            length: bytes.len(),
        }
    }

    #[test]
    fn packed_bytes_unpack_to_the_original() {
        let bytes: Vec<u8> = (0..100_000u32)
            .flat_map(|i| (i / 7).to_le_bytes())
            .collect();
        let packed = packed(&bytes);
        assert_eq!(packed.len(), bytes.len());
        assert!(packed.packed_len() < bytes.len());
        assert_eq!(packed.unpack().expect("unpacks"), bytes);
    }

    #[test]
    fn a_part_unpacks_without_the_rest() {
        let bytes: Vec<u8> = (0..300_000u32).flat_map(|i| i.to_le_bytes()).collect();
        let packed = packed(&bytes);
        for range in [0..1, CHUNK - 1..CHUNK + 1, 5..bytes.len(), 7..7] {
            let mut part = Vec::new();
            let took = packed.pieces(range.clone(), |piece| {
                part.extend_from_slice(piece);
                Ok::<(), PackedError>(())
            });
            took.expect("unpacks");
            assert_eq!(part, bytes[range]);
        }
        for beyond in [
            0..bytes.len() + 1,
            bytes.len()..bytes.len() + 1,
            9_000_000..9_000_001,
        ] {
            assert!(
                packed
                    .pieces(beyond, |_| Ok::<(), PackedError>(()))
                    .is_err()
            );
        }
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
        for blocks in [&whole.blocks[..whole.blocks.len() - 1], &[], &[0xff; 400]] {
            let damaged = Packed { blocks, ..whole };
            assert!(matches!(damaged.unpack(), Err(PackedError::Damaged { .. })));
        }
        for length in [4999, 5001, 2 * CHUNK] {
            let damaged = Packed { length, ..whole };
            assert!(matches!(damaged.unpack(), Err(PackedError::Damaged { .. })));
        }
    }
}
