//! The initial RAM disk: where it goes, and cpio archives to append to it.
//!
//! Linux unpacks concatenated archives one after the other, later entries replacing earlier ones
//! (Documentation/driver-api/early-userspace/buffer-format.rst), so hull appends a command's own
//! files as one more [`cpio()`] archive.

use std::io::{self, Write};
use std::ops::Range;

use thiserror::Error;

use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::image::Image;
use crate::memory::layout::{HIGH_MEMORY, PAGE_SIZE};

/// Every archive starts at a multiple of this many bytes.
const ARCHIVE_ALIGN: u64 = 4;

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
