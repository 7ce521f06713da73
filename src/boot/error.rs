//! Everything that can keep a kernel from being loaded, each with what to do about it.
//!
//! One enum a file of this module, gathered in [`BootError`]. Addresses are guest-physical.

use thiserror::Error;

pub use super::bzimage::BzImageError;
pub use super::cmdline::CmdlineError;
pub use super::decompress::DecompressError;
pub use super::detect::DetectError;
pub use super::elf::ElfError;
pub use super::flat::FlatError;
pub use super::initrd::InitrdError;
use crate::memory::image::ImageError;

/// Why no kernel could be put into guest memory.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel or the initial RAM disk cannot be read.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The file is no kernel.
    #[error(transparent)]
    Detect(#[from] DetectError),
    /// The ELF file, or the one inside a bzImage, is damaged or does not fit.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The bzImage is damaged or does not fit.
    #[error(transparent)]
    BzImage(#[from] BzImageError),
    /// The kernel inside a bzImage did not unpack.
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
        /// What was asked for.
        cpus: u8,
        /// [`crate::memory::layout::MAX_CPUS`].
        max: u8,
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
    /// A table outgrew the area that the layout gives it.
    #[error("{what} takes {size} bytes at {gpa:#x}, where {room} are free; attach fewer devices")]
    NoRoom {
        /// Which table.
        what: &'static str,
        /// Its GPA.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
        /// Bytes set aside for it.
        room: u64,
    },
}
