use object::elf::{EM_386, EM_X86_64};
use vm_memory::GuestAddress;

use super::super::ram::tests::{memory, read};
use super::*;

const MIB: u64 = 1 << 20;

/// An ELF executable to be written down.
#[derive(Clone)]
pub struct Builder {
    pub is_64_bit: bool,
    pub machine: Machine,
    pub entry: u64,
    pub segments: Vec<Part>,
}

/// A program header and its bytes.
#[derive(Clone)]
pub struct Part {
    pub kind: ProgramType,
    pub paddr: u64,
    pub memsz: u64,
    pub content: Vec<u8>,
}

/// A loadable segment of `content`, `memsz` bytes in memory.
pub fn load(paddr: u64, content: &[u8], memsz: u64) -> Part {
    Part {
        kind: elf::PT_LOAD,
        paddr,
        memsz,
        content: content.to_vec(),
    }
}

/// A segment with one note.
pub fn note(owner: &[u8], kind: u32, descriptor: &[u8]) -> Part {
    let mut content = Vec::new();
    for word in [owner.len() as u32, descriptor.len() as u32, kind] {
        content.extend(word.to_le_bytes());
    }
    for bytes in [owner, descriptor] {
        content.extend(bytes);
        content.resize(content.len().next_multiple_of(4), 0);
    }
    Part {
        kind: elf::PT_NOTE,
        paddr: 0,
        memsz: 0,
        content,
    }
}

/// The note that names a PVH entry.
pub fn pvh_note(entry: u32) -> Part {
    note(b"Xen\0", PHYS32_ENTRY, &entry.to_le_bytes())
}

/// A kernel like Linux: 64-bit, code and data, .bss, a PVH entry.
pub fn linux() -> Builder {
    Builder {
        is_64_bit: true,
        machine: EM_X86_64,
        entry: 2 * MIB,
        segments: vec![
            load(2 * MIB, &[0xf4; 0x300], 0x300),
            load(2 * MIB + 0x1000, &[0xda; 0x80], 0x5000),
            pvh_note(2 * MIB as u32 + 0x10),
            note(b"Linux\0", 257, &[1]),
        ],
    }
}

/// A 32-bit kernel with a PVH entry and nothing else.
pub fn pvh32() -> Builder {
    Builder {
        is_64_bit: false,
        machine: EM_386,
        entry: 0,
        segments: vec![load(MIB, &[0xf4; 64], 0x100), pvh_note(MIB as u32)],
    }
}

impl Builder {
    /// The file.
    pub fn build(&self) -> Vec<u8> {
        let (header_size, entry_size) = if self.is_64_bit { (64, 56) } else { (52, 32) };
        let class = if self.is_64_bit { 2 } else { 1 };
        let mut file = [MAGIC, &[class, 1, 1], &[0; 9]].concat();
        let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
        let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
        let address = |file: &mut Vec<u8>, value: u64| {
            let size = if self.is_64_bit { 8 } else { 4 };
            file.extend(&value.to_le_bytes()[..size]);
        };
        half(&mut file, 2); // ET_EXEC
        half(&mut file, self.machine.0);
        word(&mut file, 1);
        address(&mut file, self.entry);
        address(&mut file, header_size);
        address(&mut file, 0);
        word(&mut file, 0);
        let count = self.segments.len() as u16;
        for value in [header_size as u16, entry_size as u16, count, 0, 0, 0] {
            half(&mut file, value);
        }
        let mut offset = header_size + entry_size * self.segments.len() as u64;
        for part in &self.segments {
            let size = part.content.len() as u64;
            word(&mut file, part.kind.0);
            if self.is_64_bit {
                word(&mut file, 7);
            }
            for value in [offset, part.paddr, part.paddr, size, part.memsz] {
                address(&mut file, value);
            }
            if !self.is_64_bit {
                word(&mut file, 7);
            }
            address(&mut file, 4);
            offset += size;
        }
        for part in &self.segments {
            file.extend(&part.content);
        }
        file
    }
}

/// The error of a kernel like Linux with these segments instead, in 16 MiB.
fn refusal_of(segments: Vec<Part>) -> String {
    let file = Builder {
        segments,
        ..linux()
    };
    refusal(&file.build())
}

fn refusal(file: &[u8]) -> String {
    let file = file.into();
    let result = Elf::parse(&file).and_then(|elf| elf.load(&memory(16)));
    result.unwrap_err().to_string()
}

fn assert_says(text: &str, expected: &str) {
    assert!(text.contains(expected), "{text:?} lacks {expected:?}");
}

#[test]
fn segments_are_copied_to_their_physical_addresses() {
    for is_64_bit in [true, false] {
        let file = Builder {
            is_64_bit,
            ..linux()
        }
        .build();
        let file = file.into();
        let elf = Elf::parse(&file).unwrap();
        assert_eq!((elf.is_64_bit(), elf.entry()), (is_64_bit, 2 * MIB));
        assert_eq!(elf.pvh_entry(), Some(2 * MIB as u32 + 0x10));
        assert!(elf.is_linux());
        assert_eq!(elf.is_plain, is_64_bit, "what linux-loader loads");
        let memory = memory(16);
        assert_eq!(elf.load(&memory).unwrap(), 2 * MIB..2 * MIB + 0x6000);
        assert_eq!(read(&memory, 2 * MIB, 0x300), [0xf4; 0x300]);
        assert_eq!(read(&memory, 2 * MIB + 0x1000, 0x80), [0xda; 0x80]);
        assert_eq!(read(&memory, 2 * MIB + 0x1080, 0x80), [0; 0x80]);
    }
}

#[test]
fn files_for_other_machines_are_refused_by_name() {
    let file = |machine: u16| {
        let machine = Machine(machine);
        Builder { machine, ..linux() }.build()
    };
    assert_says(&refusal(&file(183)), "64-bit ARM");
    assert_says(&refusal(&file(40)), "made for ARM");
    assert_says(&refusal(&file(0x1234)), "another CPU (e_machine 4660)");
    let mut big_endian = file(62);
    big_endian[5] = 2;
    assert_says(&refusal(&big_endian), "big-endian");
    let mut no_class = file(62);
    no_class[4] = 0;
    assert_says(&refusal(&no_class), "EI_CLASS is 0");
}

#[test]
fn a_32_bit_file_needs_a_pvh_note() {
    let mut file = pvh32();
    assert_eq!(
        Elf::parse(&file.build().into()).unwrap().pvh_entry(),
        Some(MIB as u32)
    );
    file.segments.pop();
    assert_says(
        &refusal(&file.build()),
        "32-bit ELF file without a PVH entry",
    );
}

#[test]
fn other_elf_types_are_refused_by_name() {
    for (kind, name) in [
        (1, ".ko"),
        (3, "shared library"),
        (4, "core dump"),
        (9, "unknown"),
    ] {
        let mut file = linux().build();
        file[16] = kind;
        assert_says(&refusal(&file), name);
    }
}

#[test]
fn segments_that_overlap_wrap_or_lie_nowhere_each_have_their_message() {
    let data = [1; 16];
    let one = |paddr, memsz| refusal_of(vec![load(paddr, &data, memsz)]);
    assert_says(
        &refusal_of(vec![
            load(2 * MIB, &data, 32),
            load(2 * MIB + 31, &data, 16),
        ]),
        "segments 0 and 1 overlap at 0x20001f",
    );
    assert_says(&one(u64::MAX - 7, 16), "wraps around");
    assert_says(&one(2 * MIB, u64::MAX), "wraps around");
    assert_says(&one(MIB - 8, 16), "below 1 MiB");
    assert_says(&one(0xffff_fff0, 16), "in the device area");
    assert_says(&one(0xbfff_fff8, 16), "in the device area");
    assert_says(&one(2 * MIB, 1 << 40), "in the device area");
    assert_says(&one(16 * MIB - 8, 16), "(17 MiB and room for the rest)");
    assert_says(&one(1 << 32, 16), "outside of the guest's 16 MiB");
    assert_says(&one(2 * MIB, 15), "16 bytes in the file, 15 in memory");
    assert_says(&refusal_of(vec![]), "no loadable segment");
    let touching = vec![load(2 * MIB, &data, 16), load(2 * MIB + 16, &data, 16)];
    let file = Builder {
        segments: touching,
        ..linux()
    }
    .build();
    assert!(Elf::parse(&file.into()).unwrap().load(&memory(16)).is_ok());
}

#[test]
fn ram_above_4_gib_may_hold_a_segment() {
    let memory =
        GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20), (GuestAddress(1 << 32), 1 << 20)]);
    let file = Builder {
        segments: vec![load(1 << 32, b"high", 16)],
        ..linux()
    }
    .build();
    let memory = memory.unwrap();
    Elf::parse(&file.into()).unwrap().load(&memory).unwrap();
    assert_eq!(read(&memory, 1 << 32, 4), b"high");
}

#[test]
fn an_entry_outside_of_the_segments_is_refused() {
    let file = linux().build().into();
    let elf = Elf::parse(&file).unwrap();
    assert_eq!(elf.check_entry(2 * MIB + 0x5fff), Ok(2 * MIB + 0x5fff));
    for entry in [0, 2 * MIB - 1, 2 * MIB + 0x300, 2 * MIB + 0x6000, u64::MAX] {
        assert_eq!(
            elf.check_entry(entry),
            Err(ElfError::EntryOutside { entry })
        );
    }
}

#[test]
fn every_truncation_is_an_error() {
    let mut parts = linux().segments;
    parts.rotate_left(2); // the notes first, so that what is loaded ends the file
    let file = Builder {
        segments: parts,
        ..linux()
    }
    .build();
    for end in 0..file.len() {
        assert_says(&refusal(&file[..end]), "truncated");
    }
}

#[test]
fn impossible_header_fields_are_named() {
    let file = linux().build();
    let with = |at: usize, value: u16| {
        let mut file = file.clone();
        file[at..at + 2].copy_from_slice(&value.to_le_bytes());
        refusal(&file)
    };
    assert_says(&with(54, 55), "e_phentsize is 55, expected 56");
    assert_says(&with(56, 129), "e_phnum is 129, expected at most 128");
    assert_says(&with(56, 128), "truncated: its program header table");
}

#[test]
fn a_note_that_is_cut_off_names_no_entry() {
    for size in 0..20 {
        let mut part = pvh_note(MIB as u32);
        part.content.truncate(size);
        let file = Builder {
            segments: vec![load(MIB, &[0; 4], 4), part],
            ..linux()
        };
        let elf = file.build().into();
        assert_eq!(Elf::parse(&elf).unwrap().pvh_entry(), None);
    }
}

/// linux-loader would refuse these, and Linux's own build makes the second.
#[test]
fn damaged_and_wide_notes_do_not_keep_a_kernel_from_being_loaded() {
    let mut cut_off = pvh_note(0);
    cut_off.content.truncate(13);
    let mut short = note(b"Xen\0", PHYS32_ENTRY, &[0; 2]);
    short.content.truncate(18);
    let odd = note(b"GNU\0", 5, &[7; 9]);
    for (part, align) in [(cut_off, 4), (short, 4), (odd, 8)] {
        let segments = vec![load(2 * MIB, b"code", 16), part];
        let mut file = Builder {
            segments,
            ..linux()
        }
        .build();
        file[64 + 56 + 48] = align; // p_align of the note
        let file = file.into();
        let elf = Elf::parse(&file).unwrap();
        assert!(!elf.is_plain);
        let memory = memory(16);
        assert_eq!(elf.load(&memory).unwrap(), 2 * MIB..2 * MIB + 16);
        assert_eq!(read(&memory, 2 * MIB, 4), b"code");
    }
}

#[test]
fn a_segment_with_bytes_but_no_memory_is_refused() {
    let text = refusal_of(vec![load(2 * MIB, b"code", 16), load(0x7000, b"low", 0)]);
    assert_says(
        &text,
        "segment 1 is damaged: 3 bytes in the file, 0 in memory",
    );
}
