//! From the bytes of a kernel to an [`Entry`]: guest memory filled, and where to start.
//!
//! [`place`] detects what the file is ([`mod@detect`]) and copies it into guest memory (`elf`,
//! `bzimage` after `decompress`), with the initrd. [`Placed::finish`] puts beside it what it will
//! ask for: command line, boot parameters (`linux64`, `pvh`), GDT and page tables (`tables`), MP
//! and ACPI tables.
//! This module writes bytes into guest memory and knows nothing of KVM: `kvm::regs` turns an
//! [`Entry`] into registers.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

use std::borrow::Cow;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::memory::GuestMemory;
use crate::memory::image::Image;
use crate::memory::layout::{BOOT_PARAMS, MmioSlot, PVH_START_INFO};
use serde::{Deserialize, Serialize};

mod acpi;
mod bzimage;
pub mod cmdline;
mod decompress;
pub mod detect;
mod elf;
mod error;
mod flat;
pub mod initrd;
mod linux64;
mod mptable;
mod pvh;
mod ram;
pub mod tables;

pub use detect::{Format, detect};
pub use error::*;

use bzimage::BzImage;
use elf::Elf;
use linux64::SetupHeader;

/// How the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// 64-bit Linux boot protocol: long mode, paging on, RSI = boot_params.
    Linux64,
    /// 32-bit Linux boot protocol: flat protected mode, paging off, ESI = boot_params.
    Linux32,
    /// PVH: flat protected mode, paging off, EBX = hvm_start_info.
    Pvh,
    /// A flat payload in real mode, CS base 0, IP = entry.
    Flat16,
    /// A flat payload in protected mode, flat segments.
    Flat32,
    /// A flat payload in long mode, identity-mapped.
    Flat64,
}

/// Where the first vCPU starts, and what was put where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The CPU mode and register convention.
    pub mode: Mode,
    /// GPA of the first instruction.
    pub rip: u64,
    /// GPA of boot_params or hvm_start_info; 0 for flat payloads.
    pub params: u64,
}

/// What a loader needs to know of the machine beside its memory.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// vCPUs, 1 to [`crate::memory::layout::MAX_CPUS`].
    pub cpus: u8,
    /// Whether there is a second UART.
    pub com2: bool,
    /// The virtio-mmio windows in use.
    pub virtio: &'a [MmioSlot],
}

/// What the tables say wrong on purpose (`vmm::fault`); by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lies {
    /// No word of processors and interrupt controllers: no MP table and no MADT.
    pub no_processors: bool,
    /// The memory map names RAM that is not there.
    pub phantom_ram: bool,
}

/// Which way into the kernel to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Via {
    /// The shortest: a bzImage is unpacked on the host, Linux is entered in 64-bit mode, another
    /// kernel with a PVH note through that.
    #[default]
    Auto,
    /// The PVH entry, also for Linux.
    Pvh,
    /// A bzImage unpacks itself inside the guest.
    Guest,
}

/// What to put into guest memory beside the kernel and the initrd.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// The command line without the virtio devices.
    pub cmdline: cmdline::Cmdline,
    /// Whether to name the virtio devices on the command line too, for kernels that do not read
    /// the DSDT (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES). One that reads both warns about each twice.
    pub virtio_on_cmdline: bool,
    /// What the tables describe.
    pub machine: Machine<'a>,
    /// Where they do not tell the truth.
    pub lies: Lies,
}

/// What was put into guest memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Loaded {
    /// Where to start.
    pub entry: Entry,
    /// What the file was.
    pub format: Format,
    /// GPAs of the kernel, .bss included.
    pub kernel: Range<u64>,
    /// The linear address of the kernel's first byte under its own page tables, where it lies in
    /// memory as it is linked; not for one that unpacks itself, nor for a payload.
    pub linked_at: Option<u64>,
    /// How long the host took to unpack the kernel, if it did.
    pub unpacked: Option<Duration>,
    /// GPAs of the initrd.
    pub initrd: Option<Range<u64>>,
    /// The command line as the kernel sees it; empty for flat payloads.
    pub cmdline: String,
}

/// A kernel and its initrd in guest memory, which still lack all that stands around them.
#[derive(Debug)]
pub enum Placed {
    /// A kernel, above 1 MiB.
    Kernel {
        /// What the file was.
        format: Format,
        /// The kernel.
        kernel: Kernel,
        /// GPAs of the initrd.
        initrd: Option<Range<u64>>,
    },
    /// A flat payload, not there yet: its place is below 1 MiB.
    Flat(Mode, Vec<u8>),
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Kernel {
    entry: Entry,
    range: Range<u64>,
    linked_at: Option<u64>,
    /// How long the host took to unpack it, if it did.
    unpacked: Option<Duration>,
    /// The bzImage's own, or one that stands in for it.
    header: SetupHeader,
}

/// Fill `memory` with the kernel, which `via` says how to enter, and behind one another the
/// parts of the initrd, which there may be none of.
///
/// `memory` must be fresh (all zero): bytes that must be 0 are not written. Nothing is written
/// below 1 MiB and nothing global touched, so this may run on a thread of its own while KVM is
/// being set up and runs instructions down there.
///
/// # Errors
/// [`BootError`]; what was written into `memory` until then stays there.
pub fn place(
    memory: &GuestMemory,
    kernel: &Image,
    via: Via,
    initrd: &[Image],
) -> Result<Placed, BootError> {
    let format = detect(kernel)?;
    log::debug!("the kernel's format is {format:?}; entry: {via:?}");
    let kernel = match format {
        Format::Flat(mode) => return Ok(Placed::Flat(mode, whole(kernel)?.into_owned())),
        Format::Vmlinux | Format::Pvh => {
            let elf = Elf::parse(kernel)?;
            place_elf(memory, &elf, via, SetupHeader::for_vmlinux())?
        }
        Format::BzImage | Format::BootProtocol => place_bzimage(memory, &whole(kernel)?, via)?,
    };
    let address_max = kernel.header.initrd_addr_max.get().into();
    let initrd = initrd::place(memory, initrd, kernel.range.end, address_max)?;
    Ok(Placed::Kernel {
        format,
        kernel,
        initrd,
    })
}

impl Placed {
    /// Write what stands around the kernel, as `plan` says, and say where to start.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn finish(self, memory: &GuestMemory, plan: &Plan) -> Result<Loaded, BootError> {
        let (format, kernel, initrd) = match self {
            Self::Kernel {
                format,
                kernel,
                initrd,
            } => (format, kernel, initrd),
            Self::Flat(mode, payload) => return load_flat(memory, &payload, mode),
        };
        let Kernel {
            entry,
            range: kernel,
            linked_at,
            unpacked,
            header,
        } = kernel;
        let mut line = plan.cmdline.clone();
        if plan.virtio_on_cmdline {
            line = line.with_virtio(plan.machine.virtio);
        }
        let cmdline = line.finish(header.cmdline_size.get() as usize)?;
        cmdline::write(memory, &cmdline)?;
        if !plan.lies.no_processors {
            mptable::write(memory, plan.machine.cpus)?;
        }
        let rsdp = acpi::write(memory, &plan.machine, !plan.lies.no_processors)?;
        tables::write(memory, entry.mode)?;
        let mut map = ram::map(memory);
        if plan.lies.phantom_ram {
            ram::add_phantom(&mut map);
        }
        let initrd_range = initrd.as_ref();
        match entry.mode {
            Mode::Pvh => pvh::write(memory, &map, initrd_range, rsdp)?,
            _ => {
                let params = linux64::Params {
                    header,
                    initrd: initrd_range,
                    rsdp,
                    map: &map,
                };
                linux64::write(memory, &params)?;
            }
        }
        Ok(Loaded {
            entry,
            format,
            kernel,
            linked_at,
            unpacked,
            initrd,
            cmdline,
        })
    }
}

/// The guest's memory map, in ascending order, as the e820 table of an unharmed machine has it:
/// ranges of GPAs, and whether each is RAM to use.
pub fn memory_map(memory: &GuestMemory) -> Vec<(Range<u64>, bool)> {
    let map = ram::map(memory).into_iter();
    map.map(|(range, kind)| (range, kind == ram::Kind::Usable))
        .collect()
}

/// All bytes of a file that cannot be loaded segment by segment.
fn whole(image: &Image) -> Result<Cow<'_, [u8]>, BootError> {
    Ok(image.read(0, usize::MAX)?)
}

fn load_flat(memory: &GuestMemory, payload: &[u8], mode: Mode) -> Result<Loaded, BootError> {
    let entry = flat::load(memory, payload)?;
    tables::write(memory, entry.mode)?;
    let kernel = entry.rip..entry.rip + payload.len() as u64;
    Ok(Loaded {
        entry,
        format: Format::Flat(mode),
        kernel,
        linked_at: None,
        unpacked: None,
        initrd: None,
        cmdline: String::new(),
    })
}

fn place_elf(
    memory: &GuestMemory,
    elf: &Elf,
    via: Via,
    header: SetupHeader,
) -> Result<Kernel, BootError> {
    let entry = if via == Via::Pvh || detect::elf_format(elf) == Format::Pvh {
        let rip = elf.check_entry(elf.pvh_entry().ok_or(BootError::NoPvhEntry)?.into())?;
        Entry {
            mode: Mode::Pvh,
            rip,
            params: PVH_START_INFO,
        }
    } else {
        Entry {
            mode: Mode::Linux64,
            rip: elf.check_entry(elf.entry())?,
            params: BOOT_PARAMS,
        }
    };
    Ok(Kernel {
        entry,
        range: elf.load(memory)?,
        linked_at: elf.linked_at(),
        unpacked: None,
        header,
    })
}

/// Unpacked on the host, if that can be done and is wanted; otherwise as it is.
fn place_bzimage(memory: &GuestMemory, bytes: &[u8], via: Via) -> Result<Kernel, BootError> {
    let image = BzImage::parse(bytes)?;
    let start = Instant::now();
    if via != Via::Guest
        && let Some(vmlinux) = image.unpack(memory)?
    {
        let unpacked = Some(start.elapsed());
        match Elf::parse(&vmlinux.into()) {
            // A 32-bit kernel without a PVH note has no other way in.
            Err(BootError::Elf(ElfError::ThirtyTwoBit)) => {}
            elf => {
                let kernel = place_elf(memory, &elf?, via, image.header)?;
                return Ok(Kernel { unpacked, ..kernel });
            }
        }
    }
    match via {
        Via::Pvh => Err(BootError::NoPvhEntry),
        Via::Auto | Via::Guest => image.load(memory),
    }
}

#[cfg(test)]
mod tests;
