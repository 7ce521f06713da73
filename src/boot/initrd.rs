//! The initial RAM disk: where it goes, and cpio archives to append to it.
//!
//! Linux unpacks concatenated archives one after the other, later entries replacing earlier ones
//! (Documentation/driver-api/early-userspace/buffer-format.rst), so hull appends a command's own
//! files as one more [`cpio()`] archive. Compressed ones are unpacked here ([`unpack`]), whichever of
//! the compressions the kernel has.

use std::borrow::Cow;
use std::io::{self, Write};
use std::ops::Range;

use thiserror::Error;

use super::decompress::{Compression, StreamError};
use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::image::Image;
use crate::memory::layout::{HIGH_MEMORY, PAGE_SIZE};

/// Every archive starts at a multiple of this many bytes.
const ARCHIVE_ALIGN: u64 = 4;

/// What a "newc" header begins with; its last digit tells whether there are checksums.
const CPIO_MAGIC: &[u8] = b"07070";
/// Bytes of such a header.
const CPIO_HEADER: usize = 110;

/// Why an initrd cannot be placed or built.
#[derive(Debug, Error)]
pub enum InitrdError {
    /// There is no room for it above the kernel.
    #[error(
        "the initrd of {size} bytes does not fit: {free} bytes are free between the kernel's end {kernel_end:#x} and {top:#x}; give the machine more memory"
    )]
    TooBig {
        /// Size of all parts in bytes.
        size: u64,
        /// Bytes between the kernel and `top`.
        free: u64,
        /// GPA of the first byte after the kernel.
        kernel_end: u64,
        /// The end of low memory, or the kernel's own limit for an initrd.
        top: u64,
    },
    /// Its content is none that Linux reads.
    #[error(
        "the initrd is no initramfs: at byte {at} there is neither a cpio archive nor one compressed with gzip, bzip2, lzma, xz, lz4 or zstd; make one with: find . | cpio -o -H newc > FILE"
    )]
    NotAnArchive {
        /// Offset in the file.
        at: usize,
    },
    /// It is compressed in a way that hull cannot unpack.
    #[error("the initrd is compressed with {compression}, which hull does not unpack; {remedy}")]
    Unsupported {
        /// Name of the compression.
        compression: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// It does not unpack.
    #[error("the {compression}-compressed initrd is damaged: {reason}; copy or build it again")]
    Damaged {
        /// The compression of the part that is.
        compression: &'static str,
        /// The message of the decoder.
        reason: String,
    },
    /// It unpacks to more than guest memory.
    #[error(
        "the {compression}-compressed initrd unpacks to more than the machine's low memory of {limit} bytes; give the machine more memory"
    )]
    UnpacksTooBig {
        /// The compression of the part that does.
        compression: &'static str,
        /// Bytes of memory.
        limit: u64,
    },
    /// A file is too large for cpio, which has 32-bit sizes.
    #[error("{path} is {size} bytes long; a file in an initramfs has at most 4 GiB less one byte")]
    FileTooBig {
        /// The file's path in the archive.
        path: String,
        /// Size of the content in bytes.
        size: usize,
    },
    /// The archive could not be written.
    #[error("cannot build the archive for the initramfs")]
    Archive(#[source] io::Error),
}

/// Copy `parts` one after the other, each at a multiple of 4 bytes and the first at a page, to
/// the top of low RAM: above `kernel_end`, below the device area, and with no byte above
/// `address_max` (the setup header's `initrd_addr_max`). `None` when there are no bytes.
///
/// # Errors
/// [`InitrdError::TooBig`] and [`BootError::Image`].
pub fn place(
    memory: &GuestMemory,
    parts: &[Image],
    kernel_end: u64,
    address_max: u64,
) -> Result<Option<Range<u64>>, BootError> {
    let size = parts.iter().fold(0, |end: u64, part| {
        end.next_multiple_of(ARCHIVE_ALIGN)
            .saturating_add(part.len())
    });
    if size == 0 {
        return Ok(None);
    }
    let kernel_end = kernel_end.max(HIGH_MEMORY);
    let top = ram::low_end(memory).min(address_max.saturating_add(1));
    let free = top.saturating_sub(kernel_end);
    let too_big = || InitrdError::TooBig {
        size,
        free,
        kernel_end,
        top,
    };
    let start = top.checked_sub(size).ok_or_else(too_big)? / PAGE_SIZE * PAGE_SIZE;
    if start < kernel_end {
        return Err(too_big().into());
    }
    let mut gpa = start;
    for part in parts {
        gpa = gpa.next_multiple_of(ARCHIVE_ALIGN);
        part.copy_to(0, part.len(), memory, gpa)?;
        gpa += part.len();
    }
    Ok(Some(start..gpa))
}

/// `parts` for a Linux kernel, with the compressed ones unpacked.
///
/// # Errors
/// [`InitrdError`], [`BootError::Image`].
pub fn unpack(memory: &GuestMemory, parts: &[Image]) -> Result<Vec<Image>, BootError> {
    let limit = ram::low_end(memory);
    let unpack = |part: &Image| match part {
        // hull's own.
        Image::Packed(_) | Image::Kept { .. } => Ok(part.clone()),
        _ => Ok(unpack_part(part.read(0, usize::MAX)?, limit)?.into()),
    };
    parts.iter().map(unpack).collect()
}

/// Archives, compressed ones and zeros between them one after the other, as Linux takes them
/// (init/initramfs.c, `unpack_to_rootfs`).
fn unpack_part(bytes: Cow<'_, [u8]>, limit: u64) -> Result<Vec<u8>, InitrdError> {
    let mut out = Vec::new();
    let mut rest = &*bytes;
    while let Some(first) = rest.iter().position(|byte| *byte != 0) {
        rest = rest.get(first..).unwrap_or_default();
        let at = bytes.len() - rest.len();
        let before = out.len();
        if rest.starts_with(CPIO_MAGIC) {
            let archive = archive_len(rest);
            if out.is_empty()
                && rest
                    .get(archive..)
                    .is_none_or(|rest| rest.iter().all(|b| *b == 0))
            {
                return Ok(bytes.into_owned());
            }
            let (archive, after) = rest.split_at(archive);
            out.extend_from_slice(archive);
            rest = after;
        } else {
            let found = Compression::detect(rest).ok_or_else(|| unknown(rest, at))?;
            let compression = found.name();
            found
                .unpack_stream(&mut rest, &mut out, limit)
                .map_err(|error| match error {
                    StreamError::TooBig => InitrdError::UnpacksTooBig { compression, limit },
                    StreamError::Unknown => InitrdError::Unsupported {
                        compression,
                        remedy: "unpack it with: lzop -d",
                    },
                    StreamError::Damaged(reason) => InitrdError::Damaged {
                        compression,
                        reason,
                    },
                })?;
        }
        // An archive begins at a multiple of 4 bytes; a stream may go on with the one before.
        let padding = before.next_multiple_of(ARCHIVE_ALIGN as usize) - before;
        if padding > 0
            && out
                .get(before..)
                .is_some_and(|new| new.starts_with(CPIO_MAGIC))
        {
            out.splice(before..before, std::iter::repeat_n(0, padding));
        }
    }
    Ok(out)
}

/// The error for what no compression of Linux's begins with.
fn unknown(rest: &[u8], at: usize) -> InitrdError {
    /// lz4's frame since 2013.
    const LZ4_FRAME: &[u8] = b"\x04\x22\x4d\x18";
    if rest.starts_with(LZ4_FRAME) {
        return InitrdError::Unsupported {
            compression: "lz4's newer frame",
            remedy: "nor does Linux; compress it with: lz4 -l",
        };
    }
    InitrdError::NotAnArchive { at }
}

/// Bytes of the archive at the beginning of `bytes`, its last entry TRAILER!!! included; all of them if
/// it has none.
fn archive_len(bytes: &[u8]) -> usize {
    let mut at: usize = 0;
    loop {
        let header = bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk::<CPIO_HEADER>());
        // Sizes of the content and of the name with its NUL are the 7th and the 12th number.
        let number = |index: usize| {
            let digits = header?.get(6 + 8 * index..6 + 8 * index + 8)?;
            usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let (Some(size), Some(name_size)) = (number(6), number(11)) else {
            return bytes.len();
        };
        let name = at + CPIO_HEADER;
        let end = (name + name_size).next_multiple_of(ARCHIVE_ALIGN as usize);
        let end = (end + size).next_multiple_of(ARCHIVE_ALIGN as usize);
        let is_trailer = bytes
            .get(name..)
            .is_some_and(|name| name.starts_with(b"TRAILER!!!\0"));
        if is_trailer || end >= bytes.len() {
            return end.min(bytes.len());
        }
        at = end;
    }
}

/// A file, folder or link for an archive.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// Its path without a leading slash; its parent folders must come first.
    pub path: &'a str,
    /// Type and permission bits as in `stat`: 0o100644, 0o040755, ...
    pub mode: u32,
    /// A file's content, a link's target, nothing for a folder.
    pub content: &'a [u8],
}

/// A "newc" archive of `files`, owned by root, dated 1970.
///
/// # Errors
/// [`InitrdError::FileTooBig`] beyond 4 GiB.
pub fn cpio(files: &[File]) -> Result<Vec<u8>, InitrdError> {
    let mut archive = Vec::new();
    for (index, file) in (1..).zip(files) {
        let size = u32::try_from(file.content.len()).map_err(|_| InitrdError::FileTooBig {
            path: file.path.to_string(),
            size: file.content.len(),
        })?;
        let header = cpio::newc::Builder::new(file.path)
            .ino(index)
            .mode(file.mode);
        let mut entry = header.write(&mut archive, size);
        entry
            .write_all(file.content)
            .map_err(InitrdError::Archive)?;
        entry.finish().map_err(InitrdError::Archive)?;
    }
    cpio::newc::trailer(&mut archive).map_err(InitrdError::Archive)?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::decompress::tests::stream;
    use super::super::ram::tests::{memory, read};
    use super::*;

    const MIB: u64 = 1 << 20;

    fn parts<const N: usize>(parts: [&[u8]; N]) -> [Image; N] {
        parts.map(Image::from)
    }

    #[test]
    fn parts_lie_page_aligned_at_the_top_of_memory() {
        let memory = memory(4);
        let range = place(&memory, &parts([b"abcde", b"", b"fg"]), 2 * MIB, u64::MAX)
            .unwrap()
            .unwrap();
        assert_eq!(range, 4 * MIB - PAGE_SIZE..4 * MIB - PAGE_SIZE + 10);
        assert_eq!(read(&memory, range.start, 10), b"abcde\0\0\0fg");
    }

    #[test]
    fn the_kernels_own_limit_is_respected() {
        let range = place(&memory(4), &parts([&[1; 4096]]), 0, 3 * MIB - 1)
            .unwrap()
            .unwrap();
        assert_eq!(range.end, 3 * MIB);
    }

    #[test]
    fn one_byte_too_many_is_refused_with_figures() {
        let memory = memory(4);
        let initrd = |size| parts([&vec![1; size]]);
        assert!(place(&memory, &initrd(MIB as usize), 3 * MIB, u64::MAX).is_ok());
        let error = place(&memory, &initrd(MIB as usize + 1), 3 * MIB, u64::MAX).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("the initrd of 1048577 bytes does not fit: 1048576 bytes are free")
        );
        assert!(place(&memory, &initrd(1), 5 * MIB, u64::MAX).is_err());
        assert!(place(&memory, &[], 5 * MIB, u64::MAX).unwrap().is_none());
    }

    /// An archive with one file of 5000 bytes.
    fn archive(path: &str) -> Vec<u8> {
        cpio(&[File {
            path,
            mode: 0o100644,
            content: &[7; 5000],
        }])
        .unwrap()
    }

    #[test]
    fn compressed_archives_are_unpacked_and_others_left_alone() {
        use Compression::{Bzip2, Gzip, Lz4, Lzma, Xz, Zstd};
        let (early, main) = (archive("early"), archive("main"));
        let unpacked = |bytes: &[u8]| unpack_part(bytes.into(), 1 << 20).unwrap();
        assert_eq!(unpacked(&early), early);
        for compression in [Gzip, Bzip2, Lzma, Xz, Lz4, Zstd] {
            let packed = stream(compression, &main);
            assert_eq!(unpacked(&packed), main, "{compression}");
            // As distributions have it: microcode, then the rest, padded; and one more archive.
            let padding = vec![0; 512];
            let file = [&early, &padding, &packed, &padding[..3], &early].concat();
            let expected = [&early[..], &main, &early].concat();
            assert_eq!(unpacked(&file), expected, "{compression}");
        }
        // Two streams of one archive, as zstd and pigz make them.
        let halves = [&main[..1111], &main[1111..]].map(|half| stream(Zstd, half));
        assert_eq!(unpacked(&halves.concat()), main);
    }

    #[test]
    fn an_initrd_that_linux_cannot_read_is_refused_by_name() {
        let main = archive("main");
        let refused =
            |bytes: &[u8], limit| unpack_part(bytes.into(), limit).unwrap_err().to_string();
        let lzo = refused(b"\x89LZO\0\r\n\x1a\n....", 1 << 20);
        assert!(
            lzo.contains("compressed with lzo") && lzo.contains("lzop -d"),
            "{lzo}"
        );
        let lz4 = refused(b"\x04\x22\x4d\x18....", 1 << 20);
        assert!(lz4.contains("lz4 -l"), "{lz4}");
        let text = refused(&[&main[..], b"hello"].concat(), 1 << 20);
        assert!(text.contains(&format!("at byte {}", main.len())), "{text}");
        for compression in [
            Compression::Gzip,
            Compression::Xz,
            Compression::Zstd,
            Compression::Lz4,
        ] {
            let packed = stream(compression, &main);
            let cut = refused(&packed[..packed.len() / 2], 1 << 20);
            assert!(cut.contains("initrd is damaged"), "{compression}: {cut}");
            let bomb = refused(&packed, 1000);
            assert!(
                bomb.contains("give the machine more memory"),
                "{compression}: {bomb}"
            );
        }
    }

    #[test]
    fn an_archive_reads_back() {
        let files = [
            File {
                path: "run",
                mode: 0o040755,
                content: b"",
            },
            File {
                path: "run/ä b",
                mode: 0o100644,
                content: b"x\ny",
            },
        ];
        let archive = cpio(&files).unwrap();
        assert_eq!(archive.len() % 4, 0);
        let mut rest = archive.as_slice();
        for file in files {
            let reader = cpio::newc::Reader::new(rest).unwrap();
            assert_eq!(
                (reader.entry().name(), reader.entry().mode()),
                (file.path, file.mode)
            );
            let mut content = Vec::new();
            rest = reader.to_writer(&mut content).unwrap();
            assert_eq!(content, file.content);
        }
        assert!(cpio::newc::Reader::new(rest).unwrap().entry().is_trailer());
    }

    proptest! {
        #[test]
        fn a_placed_initrd_is_between_the_kernel_and_the_top(
            sizes in prop::collection::vec(0usize..0x30_0000, 0..4),
            kernel_end in 0..8 * MIB,
            address_max in 0..8 * MIB,
        ) {
            let parts: Vec<Image> = sizes.iter().map(|size| vec![1; *size].into()).collect();
            if let Ok(Some(range)) = place(&memory(4), &parts, kernel_end, address_max) {
                prop_assert!(range.start >= kernel_end.max(HIGH_MEMORY));
                prop_assert!(range.end <= (address_max + 1).min(4 * MIB));
                prop_assert!(range.start % PAGE_SIZE == 0);
            }
        }
    }
}
