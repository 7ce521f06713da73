//! ELF kernels: parsing, notes, and copying the loadable segments into guest memory.
//!
//! [`Elf::parse`] accepts what can start at all (an executable for x86, 32- or 64-bit),
//! [`Elf::load`] places its segments. Every offset and size comes from the file and is checked
//! before use. Sources: System V ABI, chapters 4 and 5; AMD64 ABI supplement; xen/elfnote.h.

use std::borrow::Cow;
use std::ops::Range;

use thiserror::Error;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::image::Image;
use crate::memory::layout::{HIGH_MEMORY, MMIO_HOLE, MMIO_HOLE_END};

mod raw;

use raw::{Header, Header32, Header64, ProgramHeader, ProgramHeader32, ProgramHeader64};

/// The first bytes of every ELF file.
pub const MAGIC: &[u8] = b"\x7fELF";
/// Most program headers of a kernel; Linux has 5.
const MAX_SEGMENTS: u16 = 128;
/// Most bytes of notes that are looked at; Linux has about 500.
const MAX_NOTES_BYTES: usize = 1 << 20;

const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const ET_EXEC: u16 = 2;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY` of the owner "Xen" (xen/include/public/elfnote.h).
const PHYS32_ENTRY: u32 = 18;

/// What is wrong with an ELF file, or does not fit about it.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ElfError {
    /// Something lies beyond the end of the file.
    #[error("the ELF file is truncated: {what} ends at byte {end}, the file has {size}")]
    Truncated {
        /// What is cut off.
        what: String,
        /// Where it would end, in bytes from the start of the file.
        end: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// Not little-endian.
    #[error("the ELF file is big-endian, made for another CPU; hull runs x86-64 kernels")]
    BigEndian,
    /// Not for x86.
    #[error("the ELF file is made for {name} (e_machine {machine}); hull runs x86-64 kernels")]
    Machine {
        /// The CPU's name.
        name: &'static str,
        /// The field `e_machine`.
        machine: u16,
    },
    /// 32-bit without another way in.
    #[error("a 32-bit ELF file without a PVH entry; use a 64-bit kernel, or one with a PVH note")]
    ThirtyTwoBit,
    /// An object, a library or a core dump.
    #[error("the ELF file is {name}, not a kernel; pass vmlinux or bzImage")]
    NotExecutable {
        /// What it is.
        name: &'static str,
    },
    /// A header field with an impossible value.
    #[error("the ELF header is damaged: {field} is {value}, expected {expected}")]
    Header {
        /// The field's name in the ABI.
        field: &'static str,
        /// What it holds.
        value: u64,
        /// What it may hold.
        expected: &'static str,
    },
    /// Nothing to load.
    #[error("the ELF file has no loadable segment; pass vmlinux as the kernel's build made it")]
    NothingToLoad,
    /// More bytes in the file than in memory.
    #[error("ELF segment {index} is damaged: {filesz} bytes in the file, {memsz} in memory")]
    FileLargerThanMemory {
        /// Its program header's index.
        index: usize,
        /// `p_filesz` in bytes.
        filesz: u64,
        /// `p_memsz` in bytes.
        memsz: u64,
    },
    /// The end of the segment passes 2^64.
    #[error("ELF segment {index} at {gpa:#x} of {size:#x} bytes wraps around the address space")]
    Wraps {
        /// Its program header's index.
        index: usize,
        /// `p_paddr`.
        gpa: u64,
        /// `p_memsz` in bytes.
        size: u64,
    },
    /// In the area of the boot tables.
    #[error(
        "ELF segment {index} at {gpa:#x} of {size:#x} bytes lies below 1 MiB, where hull keeps its tables; link it at 0x100000 or above"
    )]
    TooLow {
        /// Its program header's index.
        index: usize,
        /// `p_paddr`.
        gpa: u64,
        /// `p_memsz` in bytes.
        size: u64,
    },
    /// Where devices answer.
    #[error(
        "ELF segment {index} at {gpa:#x} of {size:#x} bytes lies in the device area 0xc0000000-0xffffffff; link it below"
    )]
    InHole {
        /// Its program header's index.
        index: usize,
        /// `p_paddr`.
        gpa: u64,
        /// `p_memsz` in bytes.
        size: u64,
    },
    /// No RAM there.
    #[error(
        "ELF segment {index} at {gpa:#x} of {size:#x} bytes lies outside of the guest's {memory_mib} MiB of memory; a larger --memory may hold it ({need_mib} MiB and room for the rest)"
    )]
    OutsideMemory {
        /// Its program header's index.
        index: usize,
        /// `p_paddr`.
        gpa: u64,
        /// `p_memsz` in bytes.
        size: u64,
        /// What the guest has.
        memory_mib: u64,
        /// Where the segment ends.
        need_mib: u64,
    },
    /// Two segments want the same bytes.
    #[error("ELF segments {first} and {second} overlap at {gpa:#x}; the file is damaged")]
    Overlap {
        /// The lower segment's index.
        first: usize,
        /// The higher segment's index.
        second: usize,
        /// Where the higher one starts.
        gpa: u64,
    },
    /// The entry point is not in the kernel.
    #[error("the kernel's entry point {entry:#x} lies in none of its segments")]
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
    /// The note segments that are in the file.
    notes: Vec<Notes<'a>>,
}

/// One program header, the fields that matter here.
#[derive(Clone, Copy, Debug)]
struct Segment {
    index: usize,
    kind: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

impl<'a> Elf<'a> {
    /// Parse the header and the program headers of an executable for x86.
    ///
    /// # Errors
    /// [`ElfError`] for whatever can never start: another CPU, an object file, a truncated file;
    /// and [`BootError::Image`].
    pub fn parse(image: &'a Image) -> Result<Self, BootError> {
        let head = image.read(0, size_of::<Header64>())?;
        let ident: &[u8; 16] = head
            .first_chunk()
            .ok_or_else(|| truncated("its header", 16, image))?;
        if ident[5] != DATA_LITTLE_ENDIAN {
            return Err(ElfError::BigEndian.into());
        }
        let elf = match ident[4] {
            CLASS_64 => Self::parse_class::<Header64, ProgramHeader64>(image, &head, true)?,
            CLASS_32 => Self::parse_class::<Header32, ProgramHeader32>(image, &head, false)?,
            class => {
                let expected = "1 (32-bit) or 2 (64-bit)";
                return Err(BootError::Elf(ElfError::Header {
                    field: "EI_CLASS",
                    value: class.into(),
                    expected,
                }));
            }
        };
        if !elf.is_64_bit && elf.pvh_entry().is_none() {
            return Err(ElfError::ThirtyTwoBit.into());
        }
        Ok(elf)
    }

    fn parse_class<H: Header, P: ProgramHeader>(
        image: &'a Image,
        head: &[u8],
        is_64_bit: bool,
    ) -> Result<Self, BootError> {
        let (header, _) = H::read_from_prefix(head)
            .map_err(|_| truncated("its header", size_of::<H>() as u64, image))?;
        let header = header.fields();
        check_machine(header.machine)?;
        check_kind(header.kind)?;
        let entry_size = size_of::<P>() as u64;
        if header.phnum > 0 && u64::from(header.phentsize) != entry_size {
            let expected = if is_64_bit { "56" } else { "32" };
            let value = header.phentsize.into();
            return Err(BootError::Elf(ElfError::Header {
                field: "e_phentsize",
                value,
                expected,
            }));
        }
        if header.phnum > MAX_SEGMENTS {
            let value = header.phnum.into();
            return Err(BootError::Elf(ElfError::Header {
                field: "e_phnum",
                value,
                expected: "at most 128",
            }));
        }
        let size = entry_size * u64::from(header.phnum);
        check_inside(image, header.phoff, size, || {
            "its program header table".to_string()
        })?;
        let segments: Vec<Segment> = image
            .read(header.phoff, size as usize)? // at most 128 headers
            .chunks_exact(size_of::<P>())
            .enumerate()
            .filter_map(|(index, chunk)| Some(P::read_from_bytes(chunk).ok()?.segment(index)))
            .collect();
        Ok(Self {
            image,
            is_64_bit,
            entry: header.entry,
            notes: read_notes(image, &segments)?,
            segments,
        })
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
        self.notes()
            .find(|note| note.owner == b"Xen" && note.kind == PHYS32_ENTRY)
            .and_then(|note| match note.descriptor.len() {
                4 => u32::read_from_bytes(note.descriptor).ok(),
                8 => u32::try_from(u64::read_from_bytes(note.descriptor).ok()?).ok(),
                _ => None,
            })
    }

    /// Whether a note says that this is Linux (include/linux/elfnote-lto.h, build-salt.h: the
    /// owner "Linux", in every vmlinux since 4.18).
    pub fn is_linux(&self) -> bool {
        self.notes().any(|note| note.owner == b"Linux")
    }

    /// Copy every loadable segment to its `p_paddr`, and return the range from the lowest to the
    /// end of the highest one.
    ///
    /// Guest memory must be fresh: the bytes of a segment that the file does not hold (.bss) are
    /// left alone, because writing zeros would only make the host allocate the pages.
    ///
    /// # Errors
    /// [`ElfError`] when a segment is damaged, overlaps another, or lies where no RAM is; and
    /// [`BootError::Image`].
    pub fn load(&self, memory: &GuestMemory) -> Result<Range<u64>, BootError> {
        let placed = self.place(memory)?;
        for (segment, _) in &placed {
            let Segment { offset, filesz, .. } = *segment;
            let what = || format!("segment {}", segment.index);
            check_inside(self.image, offset, filesz, what)?;
            self.image.copy_to(offset, filesz, memory, segment.paddr)?;
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

    /// Whether `gpa` lies in a loadable segment.
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

    /// The loadable segments and their GPAs, ascending and checked against each other.
    fn place(&self, memory: &GuestMemory) -> Result<Vec<(Segment, Range<u64>)>, ElfError> {
        let mut placed = Vec::new();
        for segment in self.loadable() {
            placed.push((*segment, segment.place(memory)?));
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
            .filter(|segment| segment.kind == PT_LOAD && segment.memsz > 0)
    }

    fn notes(&self) -> impl Iterator<Item = Note<'_>> {
        self.notes.iter().flat_map(Notes::iter)
    }
}

/// The note segments that are in the file, up to [`MAX_NOTES_BYTES`].
fn read_notes<'a>(image: &'a Image, segments: &[Segment]) -> Result<Vec<Notes<'a>>, BootError> {
    let mut notes = Vec::new();
    let mut room = MAX_NOTES_BYTES;
    for segment in segments.iter().filter(|segment| segment.kind == PT_NOTE) {
        let Segment { offset, filesz, .. } = *segment;
        if check_inside(image, offset, filesz, String::new).is_ok() {
            let size = room.min(usize::try_from(filesz).unwrap_or(usize::MAX));
            notes.push(Notes {
                bytes: image.read(offset, size)?,
                align: if segment.align == 8 { 8 } else { 4 },
            });
            room -= size;
        }
    }
    Ok(notes)
}

impl Segment {
    /// Where it goes, if it may go there.
    fn place(&self, memory: &GuestMemory) -> Result<Range<u64>, ElfError> {
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
            return Err(self.outside(memory, end));
        }
        Ok(gpa..end)
    }

    fn outside(&self, memory: &GuestMemory, end: u64) -> ElfError {
        ElfError::OutsideMemory {
            index: self.index,
            gpa: self.paddr,
            size: self.memsz,
            memory_mib: ram::size(memory) >> 20,
            need_mib: end.div_ceil(1 << 20),
        }
    }
}

/// One note (System V ABI, "Note Section").
struct Note<'a> {
    owner: &'a [u8],
    kind: u32,
    descriptor: &'a [u8],
}

/// The notes of one segment. Owner and descriptor are padded to `align` from the start of the
/// segment, except that with 8 only the descriptor's offset counts, as binutils does it.
#[derive(Debug)]
struct Notes<'a> {
    bytes: Cow<'a, [u8]>,
    align: usize,
}

impl Notes<'_> {
    fn iter(&self) -> NoteIter<'_> {
        NoteIter {
            rest: &self.bytes,
            align: self.align,
        }
    }
}

struct NoteIter<'a> {
    rest: &'a [u8],
    align: usize,
}

impl<'a> Iterator for NoteIter<'a> {
    type Item = Note<'a>;

    fn next(&mut self) -> Option<Note<'a>> {
        const HEADER: usize = 12;
        let (header, _) = <[U32; 3]>::read_from_prefix(self.rest).ok()?;
        let [owner_size, descriptor_size, kind] = header.map(U32::get);
        let owner_end = HEADER.checked_add(owner_size as usize)?;
        let start = owner_end.checked_next_multiple_of(self.align)?;
        let end = start.checked_add(descriptor_size as usize)?;
        let owner = self.rest.get(HEADER..owner_end)?;
        let descriptor = self.rest.get(start..end)?;
        let next = end.checked_next_multiple_of(self.align)?;
        self.rest = self.rest.get(next..).unwrap_or_default();
        Some(Note {
            owner: owner.strip_suffix(b"\0").unwrap_or(owner),
            kind,
            descriptor,
        })
    }
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

fn check_machine(machine: u16) -> Result<(), ElfError> {
    let name = match machine {
        EM_X86_64 | EM_386 => return Ok(()),
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

fn check_kind(kind: u16) -> Result<(), ElfError> {
    let name = match kind {
        ET_EXEC => return Ok(()),
        1 => "a relocatable object (.o or .ko)",
        3 => "a shared library or a position-independent program",
        4 => "a core dump",
        _ => "of an unknown type",
    };
    Err(ElfError::NotExecutable { name })
}

#[cfg(test)]
pub mod tests;
