//! The structures of an ELF file as they lie in it, 32- and 64-bit, and the fields that matter.
//!
//! Field names are those of the System V ABI, chapters 4 and 5, without their prefixes.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::Segment;

/// The header fields that matter, of either class.
pub struct HeaderFields {
    pub kind: u16,
    pub machine: u16,
    pub entry: u64,
    pub phoff: u64,
    pub phentsize: u16,
    pub phnum: u16,
}

pub trait Header: FromBytes {
    fn fields(&self) -> HeaderFields;
}

pub trait ProgramHeader: FromBytes {
    fn segment(&self, index: usize) -> Segment;
}

/// `Elf64_Ehdr`.
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header64 {
    ident: [u8; 16],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    phoff: U64,
    shoff: U64,
    flags: U32,
    ehsize: U16,
    phentsize: U16,
    phnum: U16,
    shentsize: U16,
    shnum: U16,
    shstrndx: U16,
}

/// `Elf32_Ehdr`.
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header32 {
    ident: [u8; 16],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U32,
    phoff: U32,
    shoff: U32,
    flags: U32,
    ehsize: U16,
    phentsize: U16,
    phnum: U16,
    shentsize: U16,
    shnum: U16,
    shstrndx: U16,
}

/// `Elf64_Phdr`.
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ProgramHeader64 {
    kind: U32,
    flags: U32,
    offset: U64,
    vaddr: U64,
    paddr: U64,
    filesz: U64,
    memsz: U64,
    align: U64,
}

/// `Elf32_Phdr`.
#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ProgramHeader32 {
    kind: U32,
    offset: U32,
    vaddr: U32,
    paddr: U32,
    filesz: U32,
    memsz: U32,
    flags: U32,
    align: U32,
}

impl Header for Header64 {
    fn fields(&self) -> HeaderFields {
        HeaderFields {
            kind: self.kind.get(),
            machine: self.machine.get(),
            entry: self.entry.get(),
            phoff: self.phoff.get(),
            phentsize: self.phentsize.get(),
            phnum: self.phnum.get(),
        }
    }
}

impl Header for Header32 {
    fn fields(&self) -> HeaderFields {
        HeaderFields {
            kind: self.kind.get(),
            machine: self.machine.get(),
            entry: self.entry.get().into(),
            phoff: self.phoff.get().into(),
            phentsize: self.phentsize.get(),
            phnum: self.phnum.get(),
        }
    }
}

impl ProgramHeader for ProgramHeader64 {
    fn segment(&self, index: usize) -> Segment {
        Segment {
            index,
            kind: self.kind.get(),
            offset: self.offset.get(),
            vaddr: self.vaddr.get(),
            paddr: self.paddr.get(),
            filesz: self.filesz.get(),
            memsz: self.memsz.get(),
            align: self.align.get(),
        }
    }
}

impl ProgramHeader for ProgramHeader32 {
    fn segment(&self, index: usize) -> Segment {
        Segment {
            index,
            kind: self.kind.get(),
            offset: self.offset.get().into(),
            vaddr: self.vaddr.get().into(),
            paddr: self.paddr.get().into(),
            filesz: self.filesz.get().into(),
            memsz: self.memsz.get().into(),
            align: self.align.get().into(),
        }
    }
}
