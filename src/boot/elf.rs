//! ELF kernels: parsing, notes, and copying the loadable segments into guest memory.
//!
//! [`Elf::parse`] accepts what can start at all (an executable for x86, 32- or 64-bit) and reads
//! headers and notes as `object` defines them; [`Elf::load`] checks the segments and has
//! linux-loader copy them. Sources: System V ABI, chapters 4 and 5; AMD64 ABI supplement;
//! xen/elfnote.h.
//!
//! This module does what linux-loader does not do; `tests` has a test for each:
//! - it does not check that segments do not overlap and that they are in RAM, above the boot tables
//!   and outside of the device area ([`Segment::place`], [`Elf::place`]);
//! - it does not map a file ([`Elf::load`]);
//! - it reads only 64-bit files, and refuses a file with a note that is damaged or aligned to 8 bytes
//!   ([`Elf::load`]);
//! - it reports the PVH entry only after it has loaded the kernel, and does not look for Linux's
//!   notes, but both decide how the kernel is entered ([`Elf::pvh_entry`], [`Elf::is_linux`]).

use std::ops::Range;

use linux_loader::loader::{Elf as Loader, KernelLoader};
use object::LittleEndian as LE;
use object::elf::{self, FileHeader32, FileHeader64, FileType, Machine, ProgramType};
use object::pod;
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader};
use thiserror::Error;

use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::image::{Image, Reader};
use crate::memory::layout::{HIGH_MEMORY, MMIO_HOLE, MMIO_HOLE_END};

/// The first bytes of every ELF file.
pub const MAGIC: &[u8] = &elf::ELFMAG;
/// Most program headers of a kernel; Linux has 5.
const MAX_SEGMENTS: u16 = 128;
/// Most bytes of notes that are read; Linux has about 500.
const MAX_NOTES_BYTES: usize = 1 << 20;

/// `XEN_ELFNOTE_PHYS32_ENTRY` of the owner "Xen" (xen/include/public/elfnote.h).
const PHYS32_ENTRY: u32 = 18;

/// Why an ELF file cannot be loaded.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ElfError {
    /// A part of it would lie beyond the end of the file.
    #[error("the ELF file is truncated: {what} ends at byte {end}, the file has {size}")]
    Truncated {
        /// The part that is cut off.
        what: String,
        /// Where it would end, in bytes from the start of the file.
        end: u64,
        /// Size of the file in bytes.
        size: u64,
    },
    /// EI_DATA is not little-endian.
    #[error("the ELF file is big-endian, made for another CPU; hull runs x86-64 kernels")]
    BigEndian,
    /// `e_machine` is neither EM_386 nor EM_X86_64.
    #[error("the ELF file is made for {name} (e_machine {machine}); hull runs x86-64 kernels")]
    Machine {
        /// The name of that CPU.
        name: &'static str,
        /// `e_machine` as in the file.
        machine: u16,
    },
    /// A 32-bit file without a PVH note has no entry that hull knows.
    #[error("a 32-bit ELF file without a PVH entry; use a 64-bit kernel, or one with a PVH note")]
    ThirtyTwoBit,
    /// An object, a library or a core dump.
    #[error("the ELF file is {name}, not a kernel; pass vmlinux or bzImage")]
    NotExecutable {
        /// Its `e_type` in words.
        name: &'static str,
    },
    /// A program of an operating system, as its program headers show.
    #[error("the ELF file is a program for Linux, not a kernel; pass vmlinux or bzImage")]
    Program,
    /// A header field with an impossible value.
    #[error("the ELF header is damaged: {field} is {value}, expected {expected}")]
    Header {
        /// The field's name in the ABI.
        field: &'static str,
        /// The value in the file.
        value: u64,
        /// The values that hull accepts.
        expected: &'static str,
    },
    /// No program header has type PT_LOAD.
    #[error("the ELF file has no loadable segment; pass vmlinux as the kernel's build made it")]
    NothingToLoad,
    /// `p_filesz` is greater than `p_memsz`.
    #[error("ELF segment {index} is damaged: {filesz} bytes in the file, {memsz} in memory")]
    FileLargerThanMemory {
        /// Index of its program header.
        index: usize,
        /// `p_filesz` of the segment, in bytes.
        filesz: u64,
        /// `p_memsz` of the segment, in bytes.
        memsz: u64,
    },
    /// The end of the segment passes 2^64.
    #[error("ELF segment {index} at {gpa:#x} of {size:#x} bytes wraps around the address space")]
    Wraps {
        /// Index of its program header.
        index: usize,
        /// `p_paddr` of the segment, a GPA.
        gpa: u64,
        /// `p_memsz` of the segment, in bytes.
        size: u64,
    },
    /// The segment starts where hull writes the boot tables.
    #[error(
        "ELF segment {index} at {gpa:#x} of {size:#x} bytes is below 1 MiB, where hull keeps its tables; link it at 0x100000 or above"
    )]
    TooLow {
        /// Index of its program header.
        index: usize,
        /// `p_paddr` of the segment, a GPA.
        gpa: u64,
        /// `p_memsz` of the segment, in bytes.
        size: u64,
    },
    /// The segment reaches into the device area.
    #[error(
        "ELF segment {index} at {gpa:#x} of {size:#x} bytes is in the device area 0xc0000000-0xffffffff; link it below"
    )]
    InHole {
        /// Index of its program header.
        index: usize,
        /// `p_paddr` of the segment, a GPA.
        gpa: u64,
        /// `p_memsz` of the segment, in bytes.
        size: u64,
    },
    /// RAM does not back all of the segment.
    #[error(
        "ELF segment {index} at {gpa:#x} of {size:#x} bytes is outside of the guest's {memory_mib} MiB of memory; a guest with more memory may hold it ({need_mib} MiB and room for the rest)"
    )]
    OutsideMemory {
        /// Index of its program header.
        index: usize,
        /// `p_paddr` of the segment, a GPA.
        gpa: u64,
        /// `p_memsz` of the segment, in bytes.
        size: u64,
        /// Guest memory in MiB.
        memory_mib: u64,
        /// Where the last segment ends, in MiB.
        need_mib: u64,
    },
    /// Two segments share bytes of memory.
    #[error("ELF segments {first} and {second} overlap at {gpa:#x}; the file is damaged")]
    Overlap {
        /// The lower segment's index.
        first: usize,
        /// The higher segment's index.
        second: usize,
        /// GPA at which the higher one starts.
        gpa: u64,
    },
    /// linux-loader refuses it, although it passed the checks here.
    #[error("the ELF file cannot be loaded")]
    Loader(#[source] linux_loader::loader::Error),
    /// No segment contains the entry point.
    #[error("the kernel's entry point {entry:#x} is in none of its segments")]
    EntryOutside {
        /// The GPA of the first instruction.
        entry: u64,
    },
}

/// A parsed ELF executable for x86.
#[derive(Debug)]
pub struct Elf<'a> {
    image: &'a Image,
    is_64_bit: bool,
    entry: u64,
    segments: Vec<Segment>,
    pvh_entry: Option<u32>,
    is_linux: bool,
    /// Whether linux-loader can read the headers and the notes, too.
    is_plain: bool,
}

/// The fields of a program header that are used here.
#[derive(Clone, Copy, Debug)]
struct Segment {
    index: usize,
    kind: ProgramType,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
    is_writable: bool,
}

impl<'a> Elf<'a> {
    /// Parse the header, the program headers and the notes of an executable for x86.
    ///
    /// # Errors
    /// [`ElfError`] for whatever can never start: another CPU, an object file, a truncated file;
    /// and [`BootError::Image`].
    pub fn parse(image: &'a Image) -> Result<Self, BootError> {
        let head = image.read(0, size_of::<FileHeader64<LE>>())?;
        let ident: &[u8; 16] = head
            .first_chunk()
            .ok_or_else(|| truncated("its header", 16, image))?;
        if ident[5] != elf::ELFDATA2LSB.0 {
            return Err(ElfError::BigEndian.into());
        }
        let elf = match elf::FileClass(ident[4]) {
            elf::ELFCLASS64 => Self::parse_class::<FileHeader64<LE>>(image, &head)?,
            elf::ELFCLASS32 => Self::parse_class::<FileHeader32<LE>>(image, &head)?,
            class => {
                let expected = "1 (32-bit) or 2 (64-bit)";
                return Err(BootError::Elf(ElfError::Header {
                    field: "EI_CLASS",
                    value: class.0.into(),
                    expected,
                }));
            }
        };
        // Loaded by a dynamic linker, or with variables of each thread, which no kernel is.
        let of_program = |part: &Segment| matches!(part.kind, elf::PT_INTERP | elf::PT_TLS);
        if elf.pvh_entry.is_none() && !elf.is_linux && elf.segments.iter().any(of_program) {
            return Err(ElfError::Program.into());
        }
        if !elf.is_64_bit && elf.pvh_entry.is_none() {
            return Err(ElfError::ThirtyTwoBit.into());
        }
        Ok(elf)
    }

    fn parse_class<H: FileHeader<Endian = LE>>(
        image: &'a Image,
        head: &[u8],
    ) -> Result<Self, BootError> {
        let (header, _) = pod::from_bytes::<H>(head)
            .map_err(|()| truncated("its header", size_of::<H>() as u64, image))?;
        check_machine(header.e_machine(LE))?;
        check_kind(header.e_type(LE))?;
        let is_64_bit = header.is_type_64();
        let (count, entry_size) = (header.e_phnum(LE), size_of::<H::ProgramHeader>());
        if count > 0 && usize::from(header.e_phentsize(LE)) != entry_size {
            let expected = if is_64_bit { "56" } else { "32" };
            let value = header.e_phentsize(LE).into();
            return Err(BootError::Elf(ElfError::Header {
                field: "e_phentsize",
                value,
                expected,
            }));
        }
        if count > MAX_SEGMENTS {
            return Err(BootError::Elf(ElfError::Header {
                field: "e_phnum",
                value: count.into(),
                expected: "at most 128",
            }));
        }
        let (phoff, size) = (header.e_phoff(LE).into(), entry_size * usize::from(count));
        check_inside(image, phoff, size as u64, || {
            "its program header table".to_string()
        })?;
        let table = image.read(phoff, size)?;
        let headers = pod::slice_from_all_bytes::<H::ProgramHeader>(&table).unwrap_or_default();
        let mut elf = Self {
            image,
            is_64_bit,
            entry: header.e_entry(LE).into(),
            segments: headers.iter().enumerate().map(Segment::new).collect(),
            pvh_entry: None,
            is_linux: false,
            is_plain: is_64_bit && phoff >= size_of::<H>() as u64,
        };
        elf.read_notes()?;
        Ok(elf)
    }

    /// Look for a PVH entry and for signs of Linux (include/linux/elfnote-lto.h, build-salt.h: the
    /// owner "Linux", in every vmlinux since 4.18) in the notes that are in the file, up to
    /// [`MAX_NOTES_BYTES`].
    fn read_notes(&mut self) -> Result<(), BootError> {
        let mut room = MAX_NOTES_BYTES;
        for segment in self
            .segments
            .iter()
            .filter(|part| part.kind == elf::PT_NOTE)
        {
            let Segment {
                offset,
                filesz,
                align,
                ..
            } = *segment;
            let size = room.min(usize::try_from(filesz).unwrap_or(usize::MAX));
            if check_inside(self.image, offset, filesz, String::new).is_err() {
                self.is_plain = false;
                continue;
            }
            self.is_plain &= align != 8 && size as u64 == filesz;
            room -= size;
            let bytes = self.image.read(offset, size)?;
            let align = if align == 8 { 8 } else { 4 };
            // Both classes have the same notes.
            let notes = NoteIterator::<FileHeader64<LE>>::new(LE, align, &bytes);
            for note in notes.into_iter().flatten() {
                let Ok(note) = note else {
                    self.is_plain = false;
                    continue;
                };
                self.is_linux |= note.name() == b"Linux";
                if note.name() == b"Xen" && note.n_type(LE).0 == PHYS32_ENTRY {
                    let entry = address(note.desc());
                    self.is_plain &= entry.is_some();
                    self.pvh_entry = self.pvh_entry.or(entry);
                }
            }
        }
        Ok(())
    }

    /// Whether it is a 64-bit file.
    pub fn is_64_bit(&self) -> bool {
        self.is_64_bit
    }

    /// GPA of the 64-bit entry point (Linux's `phys_startup_64`).
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// GPA of the PVH entry point, if a note names one.
    pub fn pvh_entry(&self) -> Option<u32> {
        self.pvh_entry
    }

    /// Whether a note says that this is Linux.
    pub fn is_linux(&self) -> bool {
        self.is_linux
    }

    /// Copy every loadable segment to its `p_paddr`, or map it there, and return the range from the lowest to the
    /// end of the highest one.
    ///
    /// Guest memory must be fresh: the bytes of a segment that the file does not hold (.bss) are
    /// left alone, because writing zeros would only make the host allocate the pages.
    ///
    /// # Errors
    /// [`ElfError`] when a segment is damaged, overlaps another, or is where no RAM is; and
    /// [`BootError::Image`].
    pub fn load(&self, memory: &GuestMemory) -> Result<Range<u64>, BootError> {
        let placed = self.place(memory)?;
        // linux-loader only copies.
        let is_mapped = matches!(self.image, Image::Kept { .. });
        if self.is_plain && !is_mapped {
            let mut reader = Reader::new(self.image);
            Loader::load(memory, None, &mut reader, None).map_err(|error| match reader.error {
                Some(cause) => BootError::Image(cause),
                None => ElfError::Loader(error).into(),
            })?;
        } else {
            for (segment, _) in &placed {
                let Segment {
                    offset,
                    filesz,
                    paddr,
                    ..
                } = *segment;
                if segment.is_writable {
                    self.image.copy_to(offset, filesz, memory, paddr)?;
                } else {
                    self.image.map_to(offset, filesz, memory, paddr)?;
                }
            }
        }
        match (placed.first(), placed.last()) {
            (Some((_, first)), Some((_, last))) => Ok(first.start..last.end),
            _ => Err(ElfError::NothingToLoad.into()),
        }
    }

    /// The linear address for which the lowest loadable segment is linked.
    pub fn linked_at(&self) -> Option<u64> {
        let lowest = self.loadable().min_by_key(|segment| segment.paddr);
        lowest.map(|segment| segment.vaddr)
    }

    /// Check that `gpa` is in a loadable segment.
    ///
    /// # Errors
    /// [`ElfError::EntryOutside`] when it does not.
    pub fn check_entry(&self, gpa: u64) -> Result<u64, ElfError> {
        self.loadable()
            .any(|segment| {
                gpa.checked_sub(segment.paddr)
                    .is_some_and(|at| at < segment.memsz)
            })
            .then_some(gpa)
            .ok_or(ElfError::EntryOutside { entry: gpa })
    }

    /// The loadable segments and their GPAs, ascending, checked against the file, memory and each
    /// other.
    fn place(&self, memory: &GuestMemory) -> Result<Vec<(Segment, Range<u64>)>, ElfError> {
        let mut placed = Vec::new();
        let ends = self
            .loadable()
            .map(|part| part.paddr.saturating_add(part.memsz));
        let need = ends.max().unwrap_or_default();
        for segment in self.loadable() {
            placed.push((*segment, segment.place(memory, need)?));
            check_inside(self.image, segment.offset, segment.filesz, || {
                format!("segment {}", segment.index)
            })?;
        }
        placed.sort_by_key(|(_, range)| range.start);
        for ((first, low), (second, high)) in placed.iter().zip(placed.iter().skip(1)) {
            if low.end > high.start {
                let (first, second) = (first.index, second.index);
                return Err(ElfError::Overlap {
                    first,
                    second,
                    gpa: high.start,
                });
            }
        }
        Ok(placed)
    }

    fn loadable(&self) -> impl Iterator<Item = &Segment> {
        self.segments
            .iter()
            .filter(|part| part.kind == elf::PT_LOAD && part.memsz.max(part.filesz) > 0)
    }
}

impl Segment {
    fn new<P: ProgramHeader<Endian = LE>>((index, header): (usize, &P)) -> Self {
        Self {
            index,
            kind: header.p_type(LE),
            offset: header.p_offset(LE).into(),
            vaddr: header.p_vaddr(LE).into(),
            paddr: header.p_paddr(LE).into(),
            filesz: header.p_filesz(LE).into(),
            memsz: header.p_memsz(LE).into(),
            align: header.p_align(LE).into(),
            is_writable: header.p_flags(LE).contains(elf::PF_W),
        }
    }

    /// Its GPAs, if a kernel that ends at `need` may be loaded there.
    fn place(&self, memory: &GuestMemory, need: u64) -> Result<Range<u64>, ElfError> {
        let Segment {
            index,
            paddr: gpa,
            memsz: size,
            filesz,
            ..
        } = *self;
        if filesz > size {
            return Err(ElfError::FileLargerThanMemory {
                index,
                filesz,
                memsz: size,
            });
        }
        let end = gpa
            .checked_add(size)
            .ok_or(ElfError::Wraps { index, gpa, size })?;
        if gpa < HIGH_MEMORY {
            return Err(ElfError::TooLow { index, gpa, size });
        }
        if gpa < MMIO_HOLE_END && end > MMIO_HOLE {
            return Err(ElfError::InHole { index, gpa, size });
        }
        if !ram::contains(memory, gpa, size) {
            return Err(self.outside(memory, need));
        }
        Ok(gpa..end)
    }

    fn outside(&self, memory: &GuestMemory, need: u64) -> ElfError {
        ElfError::OutsideMemory {
            index: self.index,
            gpa: self.paddr,
            size: self.memsz,
            memory_mib: ram::size(memory) >> 20,
            need_mib: need.div_ceil(1 << 20),
        }
    }
}

/// The address in a descriptor of 4 or 8 bytes, if it has 32 bits.
fn address(descriptor: &[u8]) -> Option<u32> {
    let mut bytes = [0; 8];
    let size = Some(descriptor.len()).filter(|size| [4, 8].contains(size))?;
    bytes.get_mut(..size)?.copy_from_slice(descriptor);
    u64::from_le_bytes(bytes).try_into().ok()
}

/// Whether the file has `size` bytes from `offset` on, or an error that names them.
fn check_inside(
    image: &Image,
    offset: u64,
    size: u64,
    what: impl Fn() -> String,
) -> Result<(), ElfError> {
    match offset.saturating_add(size) {
        end if end > image.len() => Err(truncated(what(), end, image)),
        _ => Ok(()),
    }
}

fn truncated(what: impl Into<String>, end: u64, image: &Image) -> ElfError {
    ElfError::Truncated {
        what: what.into(),
        end,
        size: image.len(),
    }
}

fn check_machine(machine: Machine) -> Result<(), ElfError> {
    let machine = match machine {
        elf::EM_X86_64 | elf::EM_386 => return Ok(()),
        Machine(other) => other,
    };
    let name = match machine {
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "S/390",
        40 => "ARM",
        183 => "64-bit ARM",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => "another CPU",
    };
    Err(ElfError::Machine { name, machine })
}

fn check_kind(kind: FileType) -> Result<(), ElfError> {
    let name = match kind.0 {
        2 => return Ok(()),
        1 => "a relocatable object (.o or .ko)",
        3 => "a shared library or a position-independent program",
        4 => "a core dump",
        _ => "of an unknown type",
    };
    Err(ElfError::NotExecutable { name })
}

#[cfg(test)]
pub mod tests;
