//! Everything that can keep a kernel from being loaded, each with what to do about it.

use thiserror::Error;

pub use super::elf::ElfError;
pub use super::flat::FlatError;

/// Why [`super::load`] put no kernel into guest memory.
#[derive(Debug, Error)]
pub enum BootError {
    /// The file is empty.
    #[error("the file is empty; name an ELF vmlinux or a flat payload")]
    Empty,
    /// The file is nothing that starts here.
    #[error(
        "the file looks like {looks_like}, not like an ELF vmlinux or a flat payload; name one of these"
    )]
    Unknown {
        /// What its first bytes say.
        looks_like: &'static str,
    },
    /// The ELF file is damaged or does not fit.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The flat payload is damaged.
    #[error(transparent)]
    Flat(#[from] FlatError),
    /// The kernel command line does not fit.
    #[error(
        "the command line has {length} bytes; the kernel takes at most {most}: shorten --cmdline"
    )]
    CmdlineTooLong {
        /// Its length in bytes.
        length: usize,
        /// The most that fits.
        most: usize,
    },
    /// A NUL would end the command line early.
    #[error("the command line has a NUL byte at offset {at}; remove it from --cmdline")]
    CmdlineNul {
        /// Where, in bytes.
        at: usize,
    },
    /// The initial RAM disk does not fit between the kernel and the end of low memory.
    #[error(
        "the initrd of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and the end of low memory at {low_end:#x}; give the machine more --memory"
    )]
    InitrdTooBig {
        /// Bytes of the initrd.
        size: u64,
        /// GPA after the kernel.
        kernel_end: u64,
        /// GPA after the last byte of low memory.
        low_end: u64,
    },
    /// Guest memory ends below a table that every boot needs.
    #[error(
        "{what} of {size} bytes at {gpa:#x} lies outside of guest memory; give the machine at least 2 MiB of memory"
    )]
    OutsideMemory {
        /// Which table.
        what: &'static str,
        /// Its GPA.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
    },
}
