//! ELF files, mostly correct.

use arbitrary::Arbitrary;

const HEADER: usize = 64;
const HEADER_32: usize = 52;
const PROGRAM: usize = 56;
const PROGRAM_32: usize = 32;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PVH: u32 = 18;

/// An executable.
#[derive(Arbitrary, Debug)]
pub struct Elf {
    is_32_bit: bool,
    kind: Option<u16>,
    machine: Option<u16>,
    entry: u16,
    segments: Vec<Segment>,
    notes: Vec<Note>,
    content: Vec<u8>,
}

/// A program header; the addresses are mostly where a kernel can be.
#[derive(Arbitrary, Debug)]
struct Segment {
    kind: Option<u8>,
    offset: u16,
    address: Address,
    in_file: u16,
    more: u32,
    flags: u8,
    align: u8,
}

/// A loadable segment.
pub struct Load {
    pub gpa: u64,
    /// Bytes in memory.
    pub size: u64,
    /// Its bytes in the file, if that has them all.
    pub bytes: Option<Vec<u8>>,
}

#[derive(Arbitrary, Debug)]
enum Address {
    Kernel(u16),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
struct Note {
    owner: Owner,
    kind: Option<u8>,
    content: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Owner {
    Linux,
    Xen,
    Other(u8),
}

impl Address {
    fn value(&self) -> u64 {
        match self {
            Self::Kernel(page) => 0x10_0000 + u64::from(*page) * 16,
            Self::Any(address) => *address,
        }
    }
}

impl Elf {
    /// A vmlinux with this code, or a kernel that is entered by its PVH note.
    pub fn plain(pvh: bool) -> Self {
        let note = Note {
            owner: if pvh { Owner::Xen } else { Owner::Linux },
            kind: None,
            content: 0x10_0000u32.to_le_bytes().to_vec(),
        };
        let segment = Segment {
            kind: None,
            offset: 0,
            address: Address::Kernel(0),
            in_file: 16,
            more: 0,
            flags: 5,
            align: 0,
        };
        Self {
            is_32_bit: false,
            kind: None,
            machine: None,
            entry: 0,
            segments: vec![segment],
            notes: vec![note],
            content: Vec::new(),
        }
    }

    /// The loadable segments that are not empty.
    pub fn loads(&self) -> Vec<Load> {
        let file = self.bytes();
        let load = |one: &Segment| {
            let start = usize::from(one.offset);
            let bytes = file.get(start..start + usize::from(one.in_file));
            // As wide as the fields of the file are.
            let field = |value: u64| {
                if self.is_32_bit {
                    value as u32 as u64
                } else {
                    value
                }
            };
            Load {
                gpa: field(one.address.value()),
                size: field(u64::from(one.in_file) + u64::from(one.more)),
                bytes: bytes.map(<[u8]>::to_vec),
            }
        };
        let is_load = |one: &&Segment| one.kind.is_none_or(|kind| u32::from(kind) == PT_LOAD);
        let loads = self.segments.iter().filter(is_load);
        loads.map(load).filter(|load| load.size > 0).collect()
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let notes: Vec<u8> = self.notes.iter().flat_map(Note::bytes).collect();
        let count = self.segments.len() + usize::from(!notes.is_empty());
        let (header, program) = match self.is_32_bit {
            true => (HEADER_32, PROGRAM_32),
            false => (HEADER, PROGRAM),
        };
        let mut file = b"\x7fELF".to_vec();
        file.extend([if self.is_32_bit { 1 } else { 2 }, 1, 1]);
        file.resize(16, 0);
        file.extend(self.kind.unwrap_or(2).to_le_bytes());
        let machine = if self.is_32_bit { 3 } else { 62 };
        file.extend(self.machine.unwrap_or(machine).to_le_bytes());
        file.extend(1u32.to_le_bytes());
        self.word(&mut file, 0x10_0000 + u64::from(self.entry));
        self.word(&mut file, header as u64);
        self.word(&mut file, 0);
        file.extend(0u32.to_le_bytes());
        for half in [header, program, count, 0, 0, 0] {
            file.extend((half as u16).to_le_bytes());
        }
        let notes_at = header + count * program;
        for one in &self.segments {
            let kind = one.kind.map_or(PT_LOAD, u32::from);
            let size = u64::from(one.in_file);
            let place = (u64::from(one.offset), one.address.value());
            let sizes = (size, size + u64::from(one.more));
            self.header(&mut file, (kind, one.flags), place, sizes, one.align);
        }
        if !notes.is_empty() {
            let size = notes.len() as u64;
            self.header(
                &mut file,
                (PT_NOTE, 4),
                (notes_at as u64, 0),
                (size, size),
                4,
            );
        }
        file.extend(notes);
        file.extend(&self.content);
        file
    }

    fn word(&self, file: &mut Vec<u8>, value: u64) {
        match self.is_32_bit {
            true => file.extend((value as u32).to_le_bytes()),
            false => file.extend(value.to_le_bytes()),
        }
    }

    fn header(
        &self,
        file: &mut Vec<u8>,
        (kind, flags): (u32, u8),
        (offset, address): (u64, u64),
        (in_file, in_memory): (u64, u64),
        align: u8,
    ) {
        let flags = u32::from(flags).to_le_bytes();
        file.extend(kind.to_le_bytes());
        if !self.is_32_bit {
            file.extend(flags);
        }
        for value in [offset, address, address, in_file, in_memory] {
            self.word(file, value);
        }
        if self.is_32_bit {
            file.extend(flags);
        }
        self.word(file, align.into());
    }
}

impl Note {
    fn bytes(&self) -> Vec<u8> {
        let other;
        let owner: &[u8] = match &self.owner {
            Owner::Linux => b"Linux\0",
            Owner::Xen => b"Xen\0",
            Owner::Other(byte) => {
                other = [*byte, 0];
                &other
            }
        };
        let kind = self.kind.map_or(PVH, u32::from);
        let mut bytes = (owner.len() as u32).to_le_bytes().to_vec();
        bytes.extend((self.content.len() as u32).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        for part in [owner, &self.content] {
            bytes.extend(part);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }
}
