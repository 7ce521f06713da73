//! bzImage: the setup header, the compressed kernel inside, and the code that unpacks it.
//!
//! ```text
//! 0            real-mode code with the setup header at 0x1f1; not used here
//! setup size   protected-mode code: 32-bit entry at its start, 64-bit entry at 0x200
//!   + payload_offset   the compressed kernel, payload_length bytes
//! ```
//!
//! [`BzImage::unpack`] unpacks the kernel on the host, which linux-loader does not do.
//! [`BzImage::load`] has linux-loader copy the protected-mode code: the kernel unpacks itself in the
//! guest, or is not Linux and not packed (memtest86+). linux-loader does not check that the header
//! stays inside of the file, nor that `init_size` bytes of RAM are there; both is done here.
//! Source: Documentation/arch/x86/boot.rst; field names are from there.

use std::io::Cursor;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage as Loader, KernelLoader};
use thiserror::Error;
use vm_memory::GuestAddress;

use super::decompress::{Compression, DecompressError};
use super::elf;
use super::entry::{Entry, Kernel, Mode};
use super::error::BootError;
use super::linux64::{self, LOADED_HIGH, XLF_KERNEL_64};
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::layout::{BOOT_PARAMS, HIGH_MEMORY, MMIO_HOLE};

/// Sectors of real-mode code when `setup_sects` is 0.
const SETUP_SECTS_DEFAULT: u8 = 4;
const SECTOR: usize = 512;
/// Offset of the 64-bit entry in the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// Largest unpacked kernel in bytes; Debian's has some 60 MiB.
const MAX_UNPACKED: u64 = 1 << 30;

/// The boot protocol from which on a field exists.
const WITH_CMDLINE_SIZE: u16 = 0x206;
const WITH_PAYLOAD: u16 = 0x208;
const WITH_INIT_SIZE: u16 = 0x20a;
const WITH_XLOADFLAGS: u16 = 0x20c;

/// Why a bzImage cannot be loaded.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BzImageError {
    /// The file has another format.
    #[error("not a bzImage: there is no setup header (\"HdrS\" at byte 0x202)")]
    NoHeader,
    /// The kernel is older than Linux 2.6.22.
    #[error(
        "the kernel has boot protocol {}.{:02}, the oldest that hull supports is 2.06 (Linux 2.6.22); use a newer kernel",
        version >> 8,
        version & 0xff
    )]
    TooOld {
        /// `version` of the setup header, 0xMMmm.
        version: u16,
    },
    /// The kernel is to be loaded below 640 KiB.
    #[error("a zImage, which is loaded below 1 MiB; build the kernel as bzImage")]
    NotHigh,
    /// A part of it would lie beyond the end of the file.
    #[error("the bzImage is truncated or damaged: {what} ends at byte {end}, the file has {size}")]
    Truncated {
        /// The part that is cut off.
        what: &'static str,
        /// Where it would end, in bytes from the start of the file.
        end: u64,
        /// Size of the file in bytes.
        size: u64,
    },
    /// linux-loader refuses it, although it passed the checks here.
    #[error("the bzImage cannot be loaded")]
    Loader(#[source] linux_loader::loader::Error),
    /// RAM does not back all of the bytes that the kernel needs.
    #[error(
        "the kernel needs {size:#x} bytes at {gpa:#x}, which are not all RAM between 1 MiB and 3 GiB in this guest of {memory_mib} MiB; {}",
        remedy(*gpa, *size)
    )]
    OutsideMemory {
        /// GPA at which it would be loaded or unpack itself.
        gpa: u64,
        /// Bytes needed from there on.
        size: u64,
        /// Guest memory in MiB.
        memory_mib: u64,
    },
}

/// Whether more memory helps a kernel that needs `size` bytes at `gpa`.
fn remedy(gpa: u64, size: u64) -> String {
    match gpa.checked_add(size) {
        Some(end) if gpa >= HIGH_MEMORY && end <= MMIO_HOLE => {
            format!("give it at least {} MiB", end.div_ceil(1 << 20))
        }
        _ => "no guest of hull's has RAM there: use a kernel that can be loaded elsewhere".into(),
    }
}

/// A bzImage whose header was checked.
#[derive(Debug)]
pub struct BzImage<'a> {
    /// Its setup header, with 0 in fields that its protocol does not have.
    pub header: setup_header,
    /// The file up to the end of the protected-mode code; a signature may follow.
    file: &'a [u8],
    /// The protected-mode code, payload included.
    code: &'a [u8],
    /// The compressed kernel; empty when there is none.
    payload: &'a [u8],
}

impl<'a> BzImage<'a> {
    /// Find the parts of the file.
    ///
    /// # Errors
    /// [`BzImageError`] for a file that is cut off or whose header points outside of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BzImageError> {
        let header = linux64::parse(bytes).ok_or(BzImageError::NoHeader)?;
        let version = header.version;
        if version < WITH_CMDLINE_SIZE {
            return Err(BzImageError::TooOld { version });
        }
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(BzImageError::NotHigh);
        }
        let sectors = match header.setup_sects {
            0 => SETUP_SECTS_DEFAULT,
            sectors => sectors,
        };
        let start = (usize::from(sectors) + 1) * SECTOR;
        let truncated = |what, end: usize| BzImageError::Truncated {
            what,
            end: end as u64,
            size: bytes.len() as u64,
        };
        // In units of 16 bytes, to which the file is not always padded; a signature may follow.
        let end = start + header.syssize as usize * 16;
        let code = bytes
            .get(start..end.min(bytes.len()))
            .filter(|code| !code.is_empty() && start + code.len() + 16 > end)
            .ok_or_else(|| truncated("its code", end))?;
        let payload = if version < WITH_PAYLOAD {
            &[]
        } else {
            let offset = header.payload_offset as usize;
            let end = offset + header.payload_length as usize;
            code.get(offset..end)
                .ok_or_else(|| truncated("its payload", start + end))?
        };
        Ok(Self {
            header,
            file: bytes.get(..start + code.len()).unwrap_or_default(),
            code,
            payload,
        })
    }

    /// The ELF file inside, unpacked. `None` when there is none or its compression is unknown, so
    /// that only the guest can unpack it.
    ///
    /// # Errors
    /// [`DecompressError`] when it is damaged, or larger than the header's `init_size` and guest
    /// memory allow.
    pub fn unpack(&self, memory: &GuestMemory) -> Result<Option<Vec<u8>>, DecompressError> {
        let Some(compression) = Compression::detect(self.payload) else {
            return Ok(None);
        };
        // A kernel unpacks itself within `init_size`, so it is not larger.
        let limit = match self.init_size() {
            0 => MAX_UNPACKED,
            size => MAX_UNPACKED.min(size),
        };
        let unpacked = compression.unpack(self.payload, limit.min(ram::size(memory)))?;
        Ok(Some(unpacked).filter(|unpacked| unpacked.starts_with(elf::MAGIC)))
    }

    /// Copy the protected-mode code to its load address, where it starts.
    ///
    /// # Errors
    /// [`BzImageError::OutsideMemory`].
    pub fn load(mut self, memory: &GuestMemory) -> Result<Kernel, BootError> {
        let outside = |gpa, size| BzImageError::OutsideMemory {
            gpa,
            size,
            memory_mib: ram::size(memory) >> 20,
        };
        let fits = |gpa: u64, size: u64| {
            let end = gpa
                .checked_add(size)
                .filter(|end| gpa >= HIGH_MEMORY && *end <= ram::low_end(memory));
            end.ok_or_else(|| outside(gpa, size))
        };
        let (load, run) = self.addresses();
        let size = self.code.len() as u64;
        let kernel = load.min(run)..fits(load, size)?.max(fits(run, self.init_size().max(1))?);
        let mut file = Cursor::new(self.file);
        Loader::load(memory, Some(GuestAddress(load)), &mut file, None)
            .map_err(BzImageError::Loader)?;

        self.header.code32_start = load as u32; // below 4 GiB: `fits`
        let version = self.header.version;
        let entry_64 = version >= WITH_XLOADFLAGS && self.header.xloadflags & XLF_KERNEL_64 != 0;
        let (mode, rip) = if entry_64 && size > ENTRY_64 {
            (Mode::Linux64, load + ENTRY_64)
        } else {
            (Mode::Linux32, load)
        };
        Ok(Kernel {
            entry: Entry {
                mode,
                rip,
                params: BOOT_PARAMS,
            },
            range: kernel,
            linked_at: None,
            unpacked: None,
            header: self.header,
        })
    }

    /// GPAs of the code and of the running kernel ("kernel runtime start address" in boot.rst). A
    /// relocatable kernel is loaded where it prefers to run, which saves it a copy.
    fn addresses(&self) -> (u64, u64) {
        let header = &self.header;
        let preferred = match header.pref_address {
            0 => HIGH_MEMORY,
            _ if header.version < WITH_INIT_SIZE => HIGH_MEMORY,
            preferred => preferred,
        };
        if header.relocatable_kernel == 0 {
            return (header.code32_start.into(), preferred);
        }
        let alignment = u64::from(header.kernel_alignment).max(1);
        // An address that overflows stays as it is and is outside of memory.
        let run = preferred
            .checked_next_multiple_of(alignment)
            .unwrap_or(preferred);
        (run, run)
    }

    /// Bytes that the kernel needs before it reads the memory map; 0 if the header has no such field.
    fn init_size(&self) -> u64 {
        match self.header.version {
            ..WITH_INIT_SIZE => 0,
            _ => self.header.init_size.into(),
        }
    }
}

#[cfg(test)]
pub mod tests;
