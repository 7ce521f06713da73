//! bzImage: the setup header, the compressed kernel inside, and the code that would unpack it.
//!
//! ```text
//! 0            real-mode code with the setup header at 0x1f1; not used here
//! setup size   protected-mode code: 32-bit entry at its start, 64-bit entry at 0x200
//!   + payload_offset   the compressed kernel, payload_length bytes
//! ```
//!
//! [`BzImage::unpack`] takes the kernel out on the host; [`BzImage::load`] is the other way, which
//! leaves that to the guest, or starts a kernel that only looks like Linux (memtest86+).
//! Source: Documentation/arch/x86/boot.rst; names are its.

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::decompress::{Compression, DecompressError};
use super::elf;
use super::error::BootError;
use super::linux64::{LOADED_HIGH, SetupHeader, XLF_KERNEL_64};
use super::{Entry, Kernel, Mode, ram};
use crate::memory::GuestMemory;
use crate::memory::layout::{BOOT_PARAMS, HIGH_MEMORY};

/// Sectors of real-mode code when `setup_sects` is 0.
const SETUP_SECTS_DEFAULT: u8 = 4;
const SECTOR: usize = 512;
/// Offset of the 64-bit entry in the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// Largest unpacked kernel in bytes; Debian's has some 60 MiB.
const UNPACKED_MOST: u64 = 1 << 30;

/// Boot protocols that brought a field used here.
const WITH_CMDLINE_SIZE: u16 = 0x206;
const WITH_PAYLOAD: u16 = 0x208;
const WITH_INIT_SIZE: u16 = 0x20a;
const WITH_XLOADFLAGS: u16 = 0x20c;

/// What is wrong with a bzImage, or does not fit about it.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BzImageError {
    /// Another kind of file.
    #[error("no bzImage: there is no setup header (\"HdrS\" at byte 0x202)")]
    NoHeader,
    /// Before Linux 2.6.22.
    #[error(
        "the kernel speaks boot protocol {}.{:02}, 2.06 is the oldest that hull knows (Linux 2.6.22)",
        version >> 8,
        version & 0xff
    )]
    TooOld {
        /// `version`.
        version: u16,
    },
    /// For less than 640 KiB of memory.
    #[error("a zImage, which is loaded below 1 MiB; build the kernel as bzImage")]
    NotHigh,
    /// Something lies beyond the end of the file.
    #[error("the bzImage is truncated or damaged: {what} ends at byte {end}, the file has {size}")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Where it would end, in bytes from the start of the file.
        end: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// No RAM there.
    #[error(
        "the kernel needs {size:#x} bytes at {gpa:#x}, which are not all RAM between 1 MiB and 3 GiB in this guest of {memory_mib} MiB; give the machine more --memory"
    )]
    OutsideMemory {
        /// Where it would be loaded, or unpack itself to.
        gpa: u64,
        /// Bytes from there on.
        size: u64,
        /// What the guest has.
        memory_mib: u64,
    },
}

/// A parsed bzImage.
#[derive(Debug)]
pub struct BzImage<'a> {
    /// Its setup header, with 0 in fields that its protocol does not have.
    pub header: SetupHeader,
    /// The protected-mode code, payload included.
    code: &'a [u8],
    /// The compressed kernel; empty when there is none.
    payload: &'a [u8],
}

impl<'a> BzImage<'a> {
    /// Find the parts of a file.
    ///
    /// # Errors
    /// [`BzImageError`] for a file that is cut off or whose header points outside of it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BzImageError> {
        let header = SetupHeader::parse(bytes).ok_or(BzImageError::NoHeader)?;
        let version = header.version.get();
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
        // Counted in 16 bytes, and not always padded to them; a signature may follow.
        let end = start + header.syssize.get() as usize * 16;
        let code = bytes
            .get(start..end.min(bytes.len()))
            .filter(|code| !code.is_empty() && start + code.len() + 16 > end)
            .ok_or_else(|| truncated("its code", end))?;
        let payload = if version < WITH_PAYLOAD {
            &[]
        } else {
            let offset = header.payload_offset.get() as usize;
            let end = offset + header.payload_length.get() as usize;
            code.get(offset..end)
                .ok_or_else(|| truncated("its payload", start + end))?
        };
        Ok(Self {
            header,
            code,
            payload,
        })
    }

    /// The ELF file inside, unpacked; `None` when there is none or its compression is unknown,
    /// so that only the guest can start what is in there.
    ///
    /// # Errors
    /// [`DecompressError`] when it is damaged, or larger than the header's `init_size` and guest
    /// memory allow.
    pub fn unpack(&self, memory: &GuestMemory) -> Result<Option<Vec<u8>>, DecompressError> {
        let Some(compression) = Compression::detect(self.payload) else {
            return Ok(None);
        };
        // A kernel unpacks itself within `init_size`, so it is no larger.
        let limit = match self.init_size() {
            0 => UNPACKED_MOST,
            size => UNPACKED_MOST.min(size),
        };
        let unpacked = compression.unpack(self.payload, limit.min(ram::size(memory)))?;
        Ok(Some(unpacked).filter(|unpacked| unpacked.starts_with(elf::MAGIC)))
    }

    /// Copy the protected-mode code to where it belongs: it starts there and does the rest.
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
        memory
            .write_slice(self.code, GuestAddress(load))
            .map_err(|_| outside(load, size))?;

        self.header.code32_start.set(load as u32); // below 4 GiB: `fits`
        let version = self.header.version.get();
        let entry_64 =
            version >= WITH_XLOADFLAGS && self.header.xloadflags.get() & XLF_KERNEL_64 != 0;
        let (mode, rip) = match entry_64 && size > ENTRY_64 {
            true => (Mode::Linux64, load + ENTRY_64),
            false => (Mode::Linux32, load),
        };
        Ok(Kernel {
            entry: Entry {
                mode,
                rip,
                params: BOOT_PARAMS,
            },
            range: kernel,
            linked_at: None,
            header: self.header,
        })
    }

    /// Where the code is loaded, and where the kernel will run ("kernel runtime start address" in
    /// boot.rst). A relocatable one is loaded where it wants to run, which saves it a copy.
    fn addresses(&self) -> (u64, u64) {
        let header = &self.header;
        let preferred = match header.pref_address.get() {
            0 => HIGH_MEMORY,
            _ if header.version.get() < WITH_INIT_SIZE => HIGH_MEMORY,
            preferred => preferred,
        };
        if header.relocatable_kernel == 0 {
            return (header.code32_start.get().into(), preferred);
        }
        let alignment = u64::from(header.kernel_alignment.get()).max(1);
        // One that overflows stays where it is, which is outside of memory.
        let run = preferred
            .checked_next_multiple_of(alignment)
            .unwrap_or(preferred);
        (run, run)
    }

    /// Bytes that the kernel needs before it knows the memory map; 0 when it does not tell.
    fn init_size(&self) -> u64 {
        match self.header.version.get() {
            ..WITH_INIT_SIZE => 0,
            _ => self.header.init_size.get().into(),
        }
    }
}

#[cfg(test)]
pub mod tests;
