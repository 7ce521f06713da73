//! Descriptor tables: GDT and IDT (Intel SDM 3A, 3.4.5, 3.5 and 6.11).
//!
//! The guest chooses where both are; a bounded part of what can be read is shown.

use kvm_bindings::{kvm_dtable, kvm_sregs};
use serde::{Deserialize, Serialize};

use super::symbol::symbol;
use crate::devices::register::Hex;
use crate::kvm::walk::{CR0_PE, EFER_LMA, Paging};
use crate::memory::GuestMemory;
use crate::symbols::Symbols;

/// Limit of shown GDT descriptors.
const MAX_DESCRIPTORS: usize = 64;
/// Number of interrupt vectors.
const VECTORS: usize = 256;

/// A descriptor table (GDT or IDT).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table<T> {
    /// Linear address of the table.
    pub base: Hex,
    /// Offset of the last byte of the table.
    pub limit: Hex,
    /// The entries that are not empty.
    pub entries: Vec<T>,
}

/// A descriptor of a GDT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// The selector that names it, with RPL 0.
    pub selector: Hex,
    /// Linear address of offset 0.
    pub base: Hex,
    /// The highest valid offset in bytes.
    pub limit: Hex,
    /// Type, size, privilege and presence in words.
    pub kind: String,
}

/// Consecutive gates of an IDT that differ only in their offset, by the same step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gates {
    /// The first vector of the run.
    pub first: u16,
    /// The last vector of the run.
    pub last: u16,
    /// Code segment of the handlers.
    pub selector: Hex,
    /// Offset of the first handler in it.
    pub offset: Hex,
    /// Distance between the handlers of two neighbouring gates.
    pub step: u64,
    /// The symbol at or below the first offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// Type of the gates, such as `interrupt`.
    pub kind: String,
    /// Lowest privilege level whose INT instruction may use the gate.
    pub dpl: u8,
    /// Index of the stack in the TSS; 0 switches to none.
    pub ist: u8,
}

/// The attributes of a segment: everything but base and limit.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// The type field, 4 bits.
    pub kind: u8,
    /// S: the segment is code or data, not a system segment.
    pub code_or_data: bool,
    /// DPL: descriptor privilege level.
    pub dpl: u8,
    /// P: the segment is present.
    pub present: bool,
    /// L: the segment is 64-bit code.
    pub long: bool,
    /// D/B: the default operand size is 32 bits.
    pub default_32: bool,
}

/// A segment's type and attributes in words (Intel SDM 3A, tables 3-1 and 3-2).
pub fn kind(attributes: &Attributes) -> String {
    let Attributes { kind, dpl, .. } = *attributes;
    let size = match (attributes.long, attributes.default_32) {
        (true, _) => "64-bit",
        (false, true) => "32-bit",
        (false, false) => "16-bit",
    };
    let bit = |bit: u8, word: &'static str| if kind & bit != 0 { word } else { "" };
    let words = match (attributes.code_or_data, kind & 8 != 0) {
        (true, true) => format!(
            "{size} code, execute{}{}{}",
            bit(2, "/read"),
            bit(4, ", conforming"),
            bit(1, ", accessed")
        ),
        (true, false) => format!(
            "data, read{}{}{}",
            bit(2, "/write"),
            bit(4, ", expand-down"),
            bit(1, ", accessed")
        ),
        (false, _) => match kind {
            1 => "16-bit TSS, available",
            2 => "LDT",
            3 => "16-bit TSS, busy",
            4 => "16-bit call gate",
            5 => "task gate",
            9 => "TSS, available",
            11 => "TSS, busy",
            12 => "call gate",
            _ => "reserved type",
        }
        .into(),
    };
    let absent = if attributes.present {
        ""
    } else {
        ", not present"
    };
    format!("{words}, DPL {dpl}{absent}")
}

/// The entries of `size` bytes that can be read, at most `most`.
fn read(
    table: &kvm_dtable,
    size: usize,
    most: usize,
    paging: &Paging,
    memory: &GuestMemory,
) -> Vec<u8> {
    let bytes = usize::from(table.limit) + 1;
    let mut entries = vec![0; bytes.min(size * most)];
    let read = paging.look(memory, table.base, &mut entries);
    entries.truncate(read);
    entries
}

/// The GDT; empty in real mode, which does not use it.
pub fn gdt(sregs: &kvm_sregs, paging: &Paging, memory: &GuestMemory) -> Table<Descriptor> {
    let table = &sregs.gdt;
    let mut entries = Vec::new();
    let bytes = match sregs.cr0 & CR0_PE {
        0 => Vec::new(),
        _ => read(table, 8, MAX_DESCRIPTORS, paging, memory),
    };
    let long = sregs.efer & EFER_LMA != 0;
    let words: Vec<u64> = bytes
        .as_chunks()
        .0
        .iter()
        .map(|&raw| u64::from_le_bytes(raw))
        .collect();
    let mut words = words.into_iter().enumerate().skip(1);
    while let Some((index, raw)) = words.next() {
        if raw == 0 {
            continue;
        }
        let attributes = Attributes {
            kind: (raw >> 40) as u8 & 15,
            code_or_data: raw >> 44 & 1 == 1,
            dpl: (raw >> 45) as u8 & 3,
            present: raw >> 47 & 1 == 1,
            long: raw >> 53 & 1 == 1,
            default_32: raw >> 54 & 1 == 1,
        };
        let limit = raw & 0xffff | raw >> 32 & 0xf_0000;
        let mut base = raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000;
        if long && !attributes.code_or_data {
            // 16 bytes: the second half is the upper half of the base.
            base |= words.next().map_or(0, |(_, upper)| upper << 32);
        }
        entries.push(Descriptor {
            selector: Hex(8 * index as u64),
            base: Hex(base),
            limit: Hex(match raw >> 55 & 1 {
                0 => limit,
                _ => limit << 12 | 0xfff,
            }),
            kind: kind(&attributes),
        });
    }
    Table {
        base: Hex(table.base),
        limit: Hex(table.limit.into()),
        entries,
    }
}

/// Decodes the bytes of an entry; `None` for an empty one.
type Decode = fn(&[u8]) -> Option<Gates>;

/// The IDT, or in real mode the interrupt vector table.
pub fn idt(
    sregs: &kvm_sregs,
    paging: &Paging,
    memory: &GuestMemory,
    symbols: &Symbols,
) -> Table<Gates> {
    let table = &sregs.idt;
    let long = sregs.efer & EFER_LMA != 0;
    let (size, gate): (_, Decode) = match (sregs.cr0 & CR0_PE != 0, long) {
        (true, true) => (16, long_gate),
        (true, false) => (8, gate),
        (false, _) => (4, vector),
    };
    let bytes = read(table, size, VECTORS, paging, memory);
    let mut entries: Vec<Gates> = Vec::new();
    for (number, raw) in (0..).zip(bytes.chunks_exact(size)) {
        let Some(gate) = gate(raw) else { continue };
        let gate = Gates {
            first: number,
            last: number,
            ..gate
        };
        if entries.last_mut().is_some_and(|run| run.take(&gate)) {
            continue;
        }
        entries.push(gate);
    }
    for run in &mut entries {
        run.symbol = symbol(symbols, run.offset.0);
    }
    Table {
        base: Hex(table.base),
        limit: Hex(table.limit.into()),
        entries,
    }
}

impl Gates {
    /// Extend the run by `next`, if that continues it.
    fn take(&mut self, next: &Self) -> bool {
        let step = match self.last - self.first {
            0 => next.offset.0.wrapping_sub(self.offset.0),
            _ => self.step,
        };
        let count = u64::from(next.first - self.first);
        let fits = self.last + 1 == next.first
            && next.offset.0 == self.offset.0.wrapping_add(step.wrapping_mul(count))
            // Handlers further apart are not a table of stubs.
            && step <= 16
            && (self.selector, self.dpl, self.ist) == (next.selector, next.dpl, next.ist)
            && self.kind == next.kind;
        if fits {
            (self.last, self.step) = (next.last, step);
        }
        fits
    }
}

fn number(raw: &[u8], at: usize, bytes: usize) -> u64 {
    let mut value = [0; 8];
    let part = raw.get(at..at + bytes).unwrap_or_default();
    value
        .iter_mut()
        .zip(part)
        .for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(value)
}

fn protected(raw: &[u8], offset: u64, ist: u8, names: [&str; 2]) -> Option<Gates> {
    let attributes = number(raw, 5, 1) as u8;
    let kind = match attributes & 0x1f {
        5 => "task",
        6 => "16-bit interrupt",
        7 => "16-bit trap",
        14 => names[0],
        15 => names[1],
        _ => "reserved type",
    };
    (attributes & 0x80 != 0).then(|| Gates {
        first: 0,
        last: 0,
        selector: Hex(number(raw, 2, 2)),
        offset: Hex(offset),
        step: 0,
        symbol: None,
        kind: kind.into(),
        dpl: attributes >> 5 & 3,
        ist,
    })
}

fn long_gate(raw: &[u8]) -> Option<Gates> {
    let offset = number(raw, 0, 2) | number(raw, 6, 2) << 16 | number(raw, 8, 4) << 32;
    let ist = number(raw, 4, 1) as u8 & 7;
    protected(raw, offset, ist, ["interrupt", "trap"])
}

fn gate(raw: &[u8]) -> Option<Gates> {
    let offset = number(raw, 0, 2) | number(raw, 6, 2) << 16;
    protected(raw, offset, 0, ["32-bit interrupt", "32-bit trap"])
}

/// An entry of the real-mode vector table: offset and segment.
fn vector(raw: &[u8]) -> Option<Gates> {
    let (offset, segment) = (number(raw, 0, 2), number(raw, 2, 2));
    (offset | segment != 0).then(|| Gates {
        first: 0,
        last: 0,
        selector: Hex(segment),
        offset: Hex(offset),
        step: 0,
        symbol: None,
        kind: "real mode".into(),
        dpl: 0,
        ist: 0,
    })
}
