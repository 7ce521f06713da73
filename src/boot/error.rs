//! Why a kernel cannot be loaded, each reason with what to do about it.
//!
//! Each file of this module has its own enum; [`BootError`] holds all of them. Addresses are
//! guest-physical.

use thiserror::Error;

pub use super::bzimage::BzImageError;
pub use super::cmdline::CmdlineError;
pub use super::decompress::DecompressError;
pub use super::detect::DetectError;
pub use super::elf::ElfError;
pub use super::flat::FlatError;
pub use super::initrd::InitrdError;
use crate::memory::image::ImageError;

/// Why a kernel cannot be loaded into guest memory.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel or the initial RAM disk cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The file is not a kernel.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// The ELF file, or the one inside a bzImage, is damaged or does not fit.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The bzImage is damaged or does not fit.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// The kernel inside a bzImage cannot be unpacked.
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    /// The flat payload is damaged.
    #[error(transparent)]
    Flat(#[from] FlatError),
    /// The initial RAM disk does not fit.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The kernel command line does not fit.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// `via` asks for PVH and the kernel has no PVH entry.
    #[error(
        "the kernel has no PVH entry (no XEN_ELFNOTE_PHYS32_ENTRY note); build it with CONFIG_PVH=y or boot it without PVH"
    )]
    NoPvhEntry,
    /// A machine that the tables cannot describe.
    #[error("a machine has 1 to {max} CPUs, not {cpus}")]
    Cpus {
        /// The number asked for.
        cpus: u8,
        /// The largest number, [`crate::memory::layout::MAX_CPUS`].
        max: u8,
    },
    /// Guest memory ends below a table that every boot needs.
    #[error(
        "{what} of {size} bytes at {gpa:#x} is outside of guest memory; give the machine at least 2 MiB of memory"
    )]
    OutsideMemory {
        /// Name of the table.
        what: &'static str,
        /// GPA of its first byte.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// A table is larger than its area in the layout.
    #[error("{what} takes {size} bytes at {gpa:#x}, where {room} are free; attach fewer devices")]
    NoRoom {
        /// Name of the table.
        what: &'static str,
        /// GPA of its first byte.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
        /// Size of its area in bytes.
        room: u64,
    },
}
