//! Unpacking the compressed kernel inside a bzImage, on the host.
//!
//! A payload is recognised by its first bytes ([`Compression::detect`]) and unpacked into a buffer
//! of exactly the size that it states, which the caller limits: data that unpacks to more is an
//! error before a byte too many is written. Sources: Documentation/arch/x86/boot.rst, "payload";
//! scripts/Makefile.lib (`size_append`); lib/decompress_*.c for the framing of lz4 and lzo.

use std::fmt;
use std::io::{self, Read};

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use liblzma::bufread::XzDecoder;
use liblzma::stream::Stream;
use thiserror::Error;
use zstd::stream::read::Decoder as ZstdDecoder;

/// Limit for the memory that xz or lzma takes besides its output, in bytes: `xz -9e` takes 65 MiB.
const LZMA_MEMORY: u64 = 192 << 20;
/// Bytes that a block of lz4's legacy frame unpacks to; only the last one is shorter.
const LZ4_BLOCK: usize = 8 << 20;
/// The magic number of lz4's legacy frame.
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// The first bytes of a file that lzop wrote.
const LZOP_MAGIC: [u8; 9] = *b"\x89LZO\0\r\n\x1a\n";

/// The compressions that Linux's build offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// CONFIG_KERNEL_GZIP: a gzip file, without the appended size.
    Gzip,
    /// CONFIG_KERNEL_BZIP2: a bzip2 file.
    Bzip2,
    /// CONFIG_KERNEL_LZMA: the format before xz, with a header of 13 bytes.
    Lzma,
    /// CONFIG_KERNEL_XZ, with a filter for x86 code.
    Xz,
    /// CONFIG_KERNEL_LZO: a file as lzop makes it.
    Lzo,
    /// CONFIG_KERNEL_LZ4: the legacy frame of lz4.
    Lz4,
    /// CONFIG_KERNEL_ZSTD: a zstd frame.
    Zstd,
}

/// Why a payload did not unpack.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecompressError {
    /// The stated size is wrong, or the kernel needs a larger machine.
    #[error(
        "the {compression}-compressed kernel states an unpacked size of {size} bytes, its header and the guest's memory allow {limit}; give the machine more memory, or a kernel that is not damaged"
    )]
    TooBig {
        /// The compression of the payload.
        compression: Compression,
        /// The unpacked size that it states, in bytes.
        size: u64,
        /// The largest size allowed, in bytes.
        limit: u64,
    },
    /// The unpacked size differs from the one in the payload's last four bytes.
    #[error(
        "the {compression}-compressed kernel unpacks to {found} bytes, not the {size} that it states; the file is damaged"
    )]
    Size {
        /// The compression of the payload.
        compression: Compression,
        /// "more" or a number of bytes.
        found: String,
        /// The unpacked size that it states, in bytes.
        size: usize,
    },
    /// The decoder found an error in the data.
    #[error("the {compression}-compressed kernel is damaged: {reason}; copy or build it again")]
    Damaged {
        /// The compression of the payload.
        compression: Compression,
        /// The message of the decoder.
        reason: String,
    },
}

/// Why a stream of unknown size did not unpack.
#[derive(Debug)]
pub enum StreamError {
    /// It unpacks to more than the limit.
    TooBig,
    /// Only what states its size is unpacked in this compression.
    Unknown,
    /// The decoder found an error in the data.
    Damaged(String),
}

impl StreamError {
    fn damaged(reason: impl fmt::Display) -> Self {
        Self::Damaged(reason.to_string())
    }
}

impl Compression {
    /// The compression that the first bytes show; `None` for one that this module cannot unpack.
    pub fn detect(payload: &[u8]) -> Option<Self> {
        const KNOWN: [(&[u8], Compression); 7] = [
            (b"\x1f\x8b", Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            // The size of the dictionary follows, which may be small (lib/decompress.c).
            (b"\x5d\0", Compression::Lzma),
            (b"\xfd7zXZ\0", Compression::Xz),
            (&LZOP_MAGIC, Compression::Lzo),
            (&LZ4_MAGIC, Compression::Lz4),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        KNOWN
            .iter()
            .find(|(magic, _)| payload.starts_with(magic))
            .map(|(_, compression)| *compression)
    }

    /// The name of its program.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Unpack a payload whose last four bytes are its unpacked size, at most `limit` bytes.
    ///
    /// # Errors
    /// [`DecompressError`].
    pub fn unpack(self, payload: &[u8], limit: u64) -> Result<Vec<u8>, DecompressError> {
        let (data, size) = payload
            .split_last_chunk()
            .ok_or_else(|| self.damaged("it is cut off"))?;
        let size = u32::from_le_bytes(*size);
        if u64::from(size) > limit {
            return Err(DecompressError::TooBig {
                compression: self,
                size: size.into(),
                limit,
            });
        }
        let mut unpacked = vec![0; size as usize];
        self.unpack_into(
            if self == Self::Gzip { payload } else { data },
            &mut unpacked,
        )?;
        Ok(unpacked)
    }

    /// Unpack the stream at the beginning of `rest`, which then begins behind it, and append it to
    /// `out`, which grows to `limit` bytes at most.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn unpack_stream(
        self,
        rest: &mut &[u8],
        out: &mut Vec<u8>,
        limit: u64,
    ) -> Result<(), StreamError> {
        let lzma = |stream: Result<Stream, _>| stream.map_err(StreamError::damaged);
        match self {
            Self::Gzip => read_all(GzDecoder::new(rest), out, limit),
            Self::Bzip2 => read_all(BzDecoder::new(rest), out, limit),
            Self::Lzma => {
                let stream = lzma(Stream::new_lzma_decoder(LZMA_MEMORY))?;
                read_all(XzDecoder::new_stream(rest, stream), out, limit)
            }
            Self::Xz => {
                let stream = lzma(Stream::new_stream_decoder(LZMA_MEMORY, 0))?;
                read_all(XzDecoder::new_stream(rest, stream), out, limit)
            }
            Self::Zstd => {
                let decoder = ZstdDecoder::with_buffer(rest).map_err(StreamError::damaged)?;
                read_all(decoder.single_frame(), out, limit)
            }
            Self::Lz4 => lz4_stream(rest, out, limit),
            Self::Lzo => Err(StreamError::Unknown),
        }
    }

    /// Unpack `data`, which must fill `out`. With gzip, `data` is the whole payload, because the
    /// size is part of gzip's own trailer.
    fn unpack_into(self, data: &[u8], out: &mut [u8]) -> Result<(), DecompressError> {
        let mut rest = data;
        match self {
            Self::Gzip => self.drain(GzDecoder::new(&mut rest), out)?,
            Self::Bzip2 => self.drain(BzDecoder::new(&mut rest), out)?,
            Self::Lzma => self.drain_lzma(Stream::new_lzma_decoder(LZMA_MEMORY), &mut rest, out)?,
            Self::Xz => {
                self.drain_lzma(Stream::new_stream_decoder(LZMA_MEMORY, 0), &mut rest, out)?;
            }
            Self::Lzo => self.lzo(&mut rest, out)?,
            Self::Lz4 => self.lz4(&mut rest, out)?,
            Self::Zstd => {
                let unpacked = zstd::bulk::decompress_to_buffer(data, out)
                    .map_err(|error| self.damaged(error))?;
                self.check_filled(unpacked, out.len())?;
                rest = &[];
            }
        }
        match rest.len() {
            0 => Ok(()),
            more => Err(self.damaged(format!("{more} bytes follow its end"))),
        }
    }

    fn drain_lzma(
        self,
        stream: Result<Stream, liblzma::stream::Error>,
        rest: &mut &[u8],
        out: &mut [u8],
    ) -> Result<(), DecompressError> {
        let stream = stream.map_err(|error| self.damaged(error))?;
        self.drain(XzDecoder::new_stream(rest, stream), out)
    }

    /// Read `decoder` to its end, which must also be the end of `out`.
    fn drain(self, mut decoder: impl Read, out: &mut [u8]) -> Result<(), DecompressError> {
        let mut read = |buffer: &mut [u8]| loop {
            match decoder.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map_err(|error| self.damaged(error)),
            }
        };
        let size = out.len();
        let mut filled = 0;
        while let Some(buffer) = out.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match read(buffer)? {
                0 => break,
                count => filled += count,
            }
        }
        self.check_filled(filled, size)?;
        match read(&mut [0])? {
            0 => Ok(()),
            _ => Err(self.too_much(size)),
        }
    }

    /// Frames of blocks, each with its packed size before it (lib/decompress_unlz4.c).
    fn lz4(self, rest: &mut &[u8], out: &mut [u8]) -> Result<(), DecompressError> {
        let size = out.len();
        let mut filled = 0;
        while !rest.is_empty() {
            let word = self.array(rest)?;
            if word == LZ4_MAGIC {
                continue;
            }
            let block = self.bytes(rest, u32::from_le_bytes(word))?;
            let end = (filled + LZ4_BLOCK).min(size);
            let buffer = out.get_mut(filled..end).unwrap_or_default();
            filled += lz4_flex::block::decompress_into(block, buffer)
                .map_err(|error| self.damaged(error))?;
        }
        self.check_filled(filled, size)
    }

    /// lzop's header and blocks (lib/decompress_unlzo.c); numbers are big-endian, and checksums
    /// are skipped, as Linux does it.
    fn lzo(self, rest: &mut &[u8], out: &mut [u8]) -> Result<(), DecompressError> {
        const ADLER32_UNPACKED: u32 = 1 << 0;
        const ADLER32_PACKED: u32 = 1 << 1;
        const CRC32_UNPACKED: u32 = 1 << 8;
        const CRC32_PACKED: u32 = 1 << 9;
        let size = out.len();
        let flags = self.lzop_flags(rest)?;
        let sum_bytes = |sums: u32| 4 * (flags & sums).count_ones();
        let mut filled: usize = 0;
        loop {
            let unpacked = u32::from_be_bytes(self.array(rest)?);
            if unpacked == 0 {
                return self.check_filled(filled, size);
            }
            let packed = u32::from_be_bytes(self.array(rest)?);
            self.bytes(rest, sum_bytes(ADLER32_UNPACKED | CRC32_UNPACKED))?;
            if packed < unpacked {
                self.bytes(rest, sum_bytes(ADLER32_PACKED | CRC32_PACKED))?;
            }
            let block = self.bytes(rest, packed)?;
            let end = filled.saturating_add(unpacked as usize);
            let buffer = out
                .get_mut(filled..end)
                .ok_or_else(|| self.too_much(size))?;
            if packed == unpacked {
                buffer.copy_from_slice(block); // stored
            } else {
                let count = lzokay::decompress::decompress(block, buffer)
                    .map_err(|error| self.damaged(error))?;
                self.check_filled(count, buffer.len())?;
            }
            filled = end;
        }
    }

    /// Skip the header of a file that lzop wrote and return its flags.
    fn lzop_flags(self, rest: &mut &[u8]) -> Result<u32, DecompressError> {
        const FIRST_WITH_LEVEL: u16 = 0x940;
        const HAS_FILTER: u32 = 1 << 11;
        self.array::<{ LZOP_MAGIC.len() }>(rest)?;
        let version = u16::from_be_bytes(self.array(rest)?);
        let library = 2;
        let with_level = version >= FIRST_WITH_LEVEL;
        // The version needed, the method, the level.
        self.bytes(rest, library + if with_level { 2 + 1 + 1 } else { 1 })?;
        let flags = u32::from_be_bytes(self.array(rest)?);
        let filter = if flags & HAS_FILTER != 0 { 4 } else { 0 };
        // The file's mode and time.
        self.bytes(rest, filter + if with_level { 4 + 8 } else { 4 + 4 })?;
        let [name] = self.array(rest)?;
        let checksum = 4;
        self.bytes(rest, u32::from(name) + checksum)?;
        Ok(flags)
    }

    fn array<const N: usize>(self, rest: &mut &[u8]) -> Result<[u8; N], DecompressError> {
        let (array, after) = rest
            .split_first_chunk()
            .ok_or_else(|| self.damaged("it is cut off"))?;
        *rest = after;
        Ok(*array)
    }

    fn bytes<'a>(self, rest: &mut &'a [u8], count: u32) -> Result<&'a [u8], DecompressError> {
        let (bytes, after) = rest
            .split_at_checked(count as usize)
            .ok_or_else(|| self.damaged("a block is cut off"))?;
        *rest = after;
        Ok(bytes)
    }

    fn check_filled(self, filled: usize, size: usize) -> Result<(), DecompressError> {
        if filled == size {
            return Ok(());
        }
        Err(DecompressError::Size {
            compression: self,
            found: filled.to_string(),
            size,
        })
    }

    fn too_much(self, size: usize) -> DecompressError {
        DecompressError::Size {
            compression: self,
            found: "more".to_string(),
            size,
        }
    }

    fn damaged(self, reason: impl fmt::Display) -> DecompressError {
        DecompressError::Damaged {
            compression: self,
            reason: reason.to_string(),
        }
    }
}

fn read_all(decoder: impl Read, out: &mut Vec<u8>, limit: u64) -> Result<(), StreamError> {
    let room = limit.saturating_sub(out.len() as u64);
    let read = decoder.take(room.saturating_add(1)).read_to_end(out);
    match read.map_err(StreamError::damaged)? as u64 {
        read if read > room => Err(StreamError::TooBig),
        _ => Ok(()),
    }
}

/// lz4's legacy frame up to its end, or to what is no block of it (lib/decompress_unlz4.c).
fn lz4_stream(rest: &mut &[u8], out: &mut Vec<u8>, limit: u64) -> Result<(), StreamError> {
    // What incompressible data of a block grows to.
    let largest = lz4_flex::block::get_maximum_output_size(LZ4_BLOCK);
    while let Some((word, after)) = rest.split_first_chunk() {
        let size = u32::from_le_bytes(*word) as usize;
        if *word == LZ4_MAGIC {
            *rest = after;
            continue;
        }
        if size == 0 || size > largest {
            break;
        }
        let cut_off = || StreamError::damaged("a block is cut off");
        let (block, after) = after.split_at_checked(size).ok_or_else(cut_off)?;
        let unpacked = lz4_flex::block::decompress(block, LZ4_BLOCK);
        out.extend(unpacked.map_err(StreamError::damaged)?);
        if out.len() as u64 > limit {
            return Err(StreamError::TooBig);
        }
        *rest = after;
    }
    Ok(())
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
pub mod tests;
