//! What kind of kernel a file is, by its content alone.
//!
//! [`detect`] looks at the first bytes (and an ELF file's notes). A file that is not a kernel is
//! refused with a guess at what it is.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::elf::{self, Elf};
use super::entry::Mode;
use super::error::BootError;
use super::{flat, linux64};
use crate::memory::image::Image;

/// A kind of kernel that hull starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// A 64-bit ELF file for the 64-bit Linux boot protocol; it may have a PVH entry too.
    Vmlinux,
    /// An ELF file, 32- or 64-bit, with a PVH entry and no sign of Linux.
    Pvh,
    /// Linux with a compressed kernel inside.
    BzImage,
    /// Another kernel that follows Linux's boot protocol, without a compressed payload (memtest86+).
    BootProtocol,
    /// A flat payload, with the mode it starts in.
    Flat(Mode),
}

impl Format {
    /// Whether it is Linux, as far as can be seen: only Linux runs an init from an initrd.
    pub fn is_linux(self) -> bool {
        matches!(self, Self::Vmlinux | Self::BzImage)
    }
}

/// Why a file is not a kernel.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DetectError {
    /// The file has no bytes.
    #[error("the kernel file is empty")]
    Empty,
    /// The file has another format.
    #[error("not a kernel: {found}; pass a vmlinux, a bzImage or an ELF file with a PVH note")]
    NotAKernel {
        /// A guess at its format.
        found: String,
    },
}

/// The kind of kernel that `image` is.
///
/// # Errors
/// [`BootError::Detect`], and [`BootError::Elf`] or [`BootError::Flat`] for files of the right
/// kind that are damaged or made for another machine.
pub fn detect(image: &Image) -> Result<Format, BootError> {
    parse(image).map(|(format, _)| format)
}

/// The kind of kernel that `image` is, and the parsed file if it is ELF.
pub fn parse(image: &Image) -> Result<(Format, Option<Elf<'_>>), BootError> {
    let bytes = &*image.read(0, HEAD)?;
    if bytes.is_empty() {
        return Err(DetectError::Empty.into());
    }
    if bytes.starts_with(elf::MAGIC) {
        let elf = Elf::parse(image)?;
        return Ok((elf_format(&elf), Some(elf)));
    }
    let format = if let Some(header) = linux64::parse(bytes) {
        match header.payload_length {
            0 => Format::BootProtocol,
            _ => Format::BzImage,
        }
    } else if bytes.starts_with(flat::MAGIC) {
        Format::Flat(flat::mode(bytes)?)
    } else {
        let found = looks_like(bytes);
        return Err(DetectError::NotAKernel { found }.into());
    };
    Ok((format, None))
}

/// Linux is entered in 64-bit mode even when it has a PVH entry: from there it does not set up
/// paging itself, which a software KVM would emulate instruction by instruction.
pub fn elf_format(elf: &Elf) -> Format {
    match elf.pvh_entry() {
        Some(_) if !elf.is_linux() || !elf.is_64_bit() => Format::Pvh,
        _ => Format::Vmlinux,
    }
}

/// Bytes from the start of a file that decide; [`KNOWN`] reaches farthest.
const HEAD: usize = 0x8800;

/// Magic numbers of files that users pass by mistake: offset, bytes, name.
const KNOWN: &[(usize, &[u8], &str)] = &[
    (56, b"ARM\x64", "a 64-bit ARM Linux image"),
    (0x24, &[0x18, 0x28, 0x6f, 0x01], "an ARM Linux zImage"),
    (0x30, b"RISCV", "a RISC-V Linux image"),
    (0, b"\x1f\x8b", "gzip-compressed data (unpack it first)"),
    (0, b"BZh", "bzip2-compressed data (unpack it first)"),
    (0, b"\xfd7zXZ\0", "xz-compressed data (unpack it first)"),
    (
        0,
        &[0x28, 0xb5, 0x2f, 0xfd],
        "zstd-compressed data (unpack it first)",
    ),
    (
        0,
        &[0x02, 0x21, 0x4c, 0x18],
        "lz4-compressed data (unpack it first)",
    ),
    (
        0,
        &[0x04, 0x22, 0x4d, 0x18],
        "lz4-compressed data (unpack it first)",
    ),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"070701", "a cpio archive (pass it as the initrd)"),
    (0, b"070702", "a cpio archive (pass it as the initrd)"),
    (0, b"!<arch>\n", "an ar archive or a Debian package"),
    (257, b"ustar", "a tar archive"),
    (0, b"hsqs", "a squashfs image"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0x438, &[0x53, 0xef], "an ext4 image"),
    (0, b"MZ", "an EFI program without a Linux setup header"),
    (510, &[0x55, 0xaa], "a boot sector or a disk image"),
];

fn looks_like(bytes: &[u8]) -> String {
    let is = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((_, _, name)) = KNOWN.iter().find(|(at, magic, _)| is(*at, magic)) {
        return (*name).to_string();
    }
    let head = bytes.get(..512).unwrap_or(bytes);
    if head.iter().all(|byte| *byte == 0) {
        return "it starts with zeros only".to_string();
    }
    if is_text(head) {
        return "a text file".to_string();
    }
    let first: Vec<String> = head
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("unknown data that starts with {}", first.join(" "))
}

/// UTF-8, perhaps cut off in the middle of a character, without control characters.
fn is_text(head: &[u8]) -> bool {
    let text = match str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            str::from_utf8(head.get(..error.valid_up_to()).unwrap_or_default()).unwrap_or("\0")
        }
        Err(_) => return false,
    };
    !text.contains(|c: char| c.is_control() && !"\n\r\t\x0c\x1b".contains(c))
}

#[cfg(test)]
mod tests {
    use super::super::bzimage::tests::image;
    use super::super::elf::tests::{linux, pvh32};
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        detect(&bytes.into()).unwrap_err().to_string()
    }

    #[test]
    fn linux_is_distinguished_from_similar_files() {
        let format = |bytes: &[u8]| detect(&bytes.into()).unwrap();
        assert_eq!(format(&linux().build()), Format::Vmlinux);
        assert_eq!(format(&pvh32().build()), Format::Pvh);
        assert_eq!(format(&image(b"packed")), Format::BzImage);
        assert_eq!(format(&image(b"")), Format::BootProtocol);
        assert!(Format::BzImage.is_linux() && !Format::BootProtocol.is_linux());
    }

    #[test]
    fn other_files_are_refused_by_name() {
        assert_eq!(refusal(b""), "the kernel file is empty");
        assert!(refusal(b"#!/bin/sh\n\xc3\xa4").contains("a text file"));
        assert!(refusal("ä".repeat(300).as_bytes()).contains("a text file"));
        assert!(refusal("xä".repeat(300).as_bytes()).contains("a text file"));
        assert!(refusal(b"\x1f\x8b\x08\0").contains("gzip-compressed"));
        assert!(refusal(&[0; 700]).contains("zeros only"));
        assert!(refusal(b"\x01\xff").contains("unknown data that starts with 01 ff"));
        assert!(refusal(b"07070100").contains("as the initrd"));
        let arm64 = [b"MZ".as_slice(), &[0; 54], b"ARM\x64"].concat();
        assert!(refusal(&arm64).contains("64-bit ARM"));
    }
}
