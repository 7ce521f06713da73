//! From the bytes of a kernel to an [`Entry`]: it fills guest memory and says where to start.
//!
//! [`place`] detects the format of the file ([`mod@detect`]) and has linux-loader copy it into guest
//! memory (`elf`, `bzimage` after `decompress`), with the initrd. [`Placed::finish`] writes what the
//! kernel reads when it starts: command line, boot parameters (`linux64`, `pvh`), GDT and page
//! tables (`tables`), MP and ACPI tables.
//! This module writes bytes into guest memory and does not know KVM: `kvm::regs` turns an [`Entry`]
//! into registers.
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
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::memory::GuestMemory;
use crate::memory::image::Image;
use crate::memory::layout::{BOOT_PARAMS, PVH_START_INFO};
use serde::{Deserialize, Serialize};

mod acpi;
mod bzimage;
pub mod cmdline;
mod decompress;
pub mod detect;
mod elf;
mod entry;
mod error;
mod flat;
pub mod initrd;
mod linux64;
mod mptable;
mod pvh;
mod ram;
pub mod tables;
mod topology;

pub use detect::{Format, detect};
pub use entry::{Entry, Kernel, Machine, Mode};
pub use error::*;
pub use topology::Topology;

use bzimage::BzImage;
use elf::Elf;

/// Faults that the tables have on purpose (`vmm::fault`); by default none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableFaults {
    /// They leave out processors and interrupt controllers: no MP table and no MADT.
    pub no_processors: bool,
    /// The memory map names RAM that is not there.
    pub phantom_ram: bool,
}

/// The entry point to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// The fastest: hull unpacks a bzImage on the host and enters Linux in 64-bit mode, and another
    /// kernel by its PVH note.
    #[default]
    Auto,
    /// The PVH entry, for Linux as well.
    Pvh,
    /// A bzImage unpacks itself inside the guest.
    Guest,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Pvh => "pvh",
            Self::Guest => "guest",
        })
    }
}

impl FromStr for Via {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "pvh" => Ok(Self::Pvh),
            "guest" => Ok(Self::Guest),
            _ => Err("a kernel is entered by auto, pvh or guest".into()),
        }
    }
}

/// What to write into guest memory besides the kernel and the initrd.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// The command line without the virtio devices.
    pub cmdline: cmdline::Cmdline,
    /// Whether to put the virtio devices on the command line too, for kernels that do not read the
    /// DSDT (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES). A kernel that reads both warns about duplicates.
    pub virtio_on_cmdline: bool,
    /// The machine that the tables describe.
    pub machine: Machine<'a>,
    /// Faults to build into them.
    pub faults: TableFaults,
}

/// What was put into guest memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Loaded {
    /// The state in which the first vCPU starts.
    pub entry: Entry,
    /// The format of the file.
    pub format: Format,
    /// GPAs of the kernel, .bss included.
    pub kernel: Range<u64>,
    /// The linear address of the kernel's first byte under its own page tables, for a kernel that
    /// runs where it is linked: not one that unpacks itself, and not a flat payload.
    pub linked_at: Option<u64>,
    /// How long the host took to unpack the kernel, if it did.
    pub unpacked: Option<Duration>,
    /// GPAs of the initrd.
    pub initrd: Option<Range<u64>>,
    /// The command line as the kernel sees it; empty for flat payloads.
    pub cmdline: String,
}

/// A kernel and its initrd in guest memory, still without tables and command line.
#[derive(Debug)]
pub enum Placed {
    /// A kernel, above 1 MiB.
    Kernel {
        /// The format of the file.
        format: Format,
        /// The kernel, and how to enter it.
        kernel: Kernel,
        /// GPAs of the initrd.
        initrd: Option<Range<u64>>,
    },
    /// A flat payload, not yet copied, because its place is below 1 MiB.
    Flat(Mode, Vec<u8>),
}

/// Copy the kernel, to be entered by `via`, and the parts of the initrd, if there are any, into
/// `memory`.
///
/// `memory` must be fresh (all zero): bytes that must be 0 are not written. Nothing is written
/// below 1 MiB, so this may run on its own thread while another one sets up KVM and runs probes
/// there.
///
/// # Errors
/// [`BootError`]; what was written into `memory` until then stays there.
pub fn place(
    memory: &GuestMemory,
    kernel: &Image,
    via: Via,
    initrd: &[Image],
) -> Result<Placed, BootError> {
    let (format, elf) = detect::parse(kernel)?;
    log::debug!("the kernel's format is {format:?}; entry: {via:?}");
    let kernel = match (format, elf) {
        (Format::Flat(mode), _) => return Ok(Placed::Flat(mode, whole(kernel)?.into_owned())),
        (_, Some(elf)) => place_elf(memory, &elf, via, linux64::for_vmlinux())?,
        (_, None) => place_bzimage(memory, &whole(kernel)?, via)?,
    };
    let address_max = kernel.header.initrd_addr_max.into();
    let unpacked;
    let initrd = match format.is_linux() {
        true => {
            unpacked = initrd::unpack(memory, initrd)?;
            &unpacked
        }
        false => initrd,
    };
    let initrd = initrd::place(memory, initrd, kernel.range.end, address_max)?;
    Ok(Placed::Kernel {
        format,
        kernel,
        initrd,
    })
}

impl Placed {
    /// Write the tables and the command line of `plan`, and return where to start.
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
            cmdline::add_virtio(&mut line, plan.machine.virtio)?;
        }
        let cmdline = cmdline::write(memory, &line, header.cmdline_size as usize)?;
        if !plan.faults.no_processors {
            mptable::write(memory, plan.machine.cpus)?;
        }
        let rsdp = acpi::write(memory, &plan.machine, !plan.faults.no_processors)?;
        tables::write(memory, entry.mode)?;
        let mut map = ram::map(memory);
        if plan.faults.phantom_ram {
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

/// The guest's memory map in ascending order, as in the e820 table without faults: ranges of GPAs,
/// and whether each is usable RAM.
pub fn memory_map(memory: &GuestMemory) -> Vec<(Range<u64>, bool)> {
    let map = ram::map(memory).into_iter();
    map.map(|(range, kind)| (range, kind == ram::Kind::Usable))
        .collect()
}

/// All bytes of a file, for formats that are not loaded by segments.
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
    header: linux_loader::loader::bootparam::setup_header,
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

/// Place the kernel inside, unpacked here, unless `via` or its format forbids it; otherwise place
/// the bzImage as it is.
fn place_bzimage(memory: &GuestMemory, bytes: &[u8], via: Via) -> Result<Kernel, BootError> {
    let image = BzImage::parse(bytes)?;
    let start = Instant::now();
    if via != Via::Guest
        && let Some(vmlinux) = image.unpack(memory)?
    {
        let unpacked = Some(start.elapsed());
        match Elf::parse(&vmlinux.into()) {
            // A 32-bit kernel without a PVH note can only be entered through the bzImage.
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
