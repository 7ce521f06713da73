//! An x86_64 processor as gdb sees it: its registers, their order and their encoding.
//!
//! Sources: gdb's manual, "i386 Features" of "Target Descriptions"; the numbers of `$cr0` and the
//! like are not standardized: gdb reads them, and their flags, from the description.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::sync::LazyLock;

use gdbstub::arch::{Arch, RegId, Registers};

use crate::kvm::debug;
use crate::kvm::walk::CR0_PE;

/// Size of the largest register in bytes.
pub const LARGEST: usize = 16;

const RIP: usize = 16;
const EFLAGS: usize = 17;
const CS: usize = 18;
const GS: usize = 23;
const ST0: usize = 24;
const ST7: usize = 31;
const FCTRL: usize = 32;
const FTAG: usize = 34;
const FOP: usize = 39;
const XMM0: usize = 40;
const XMM15: usize = 55;
const MXCSR: usize = 56;
const FS_BASE: usize = 57;
const EFER: usize = 65;
/// Number of registers in the description.
const COUNT: usize = EFER + 1;

/// Names by register number.
const NAMES: [&str; COUNT] = [
    "rax",
    "rbx",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "rbp",
    "rsp",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rip",
    "eflags",
    "cs",
    "ss",
    "ds",
    "es",
    "fs",
    "gs",
    "st0",
    "st1",
    "st2",
    "st3",
    "st4",
    "st5",
    "st6",
    "st7",
    "fctrl",
    "fstat",
    "ftag",
    "fiseg",
    "fioff",
    "foseg",
    "fooff",
    "fop",
    "xmm0",
    "xmm1",
    "xmm2",
    "xmm3",
    "xmm4",
    "xmm5",
    "xmm6",
    "xmm7",
    "xmm8",
    "xmm9",
    "xmm10",
    "xmm11",
    "xmm12",
    "xmm13",
    "xmm14",
    "xmm15",
    "mxcsr",
    "fs_base",
    "gs_base",
    "k_gs_base",
    "cr0",
    "cr2",
    "cr3",
    "cr4",
    "cr8",
    "efer",
];

/// A type of flags: its name, its size in bytes, and its fields with their bits.
type Flags = (&'static str, usize, &'static [(&'static str, u32)]);

/// Flags and their bits, for `info registers`.
const FLAGS: [Flags; 5] = [
    (
        "eflags_flags",
        4,
        &[
            ("CF", 0),
            ("", 1),
            ("PF", 2),
            ("AF", 4),
            ("ZF", 6),
            ("SF", 7),
            ("TF", 8),
            ("IF", 9),
            ("DF", 10),
            ("OF", 11),
            ("NT", 14),
            ("RF", 16),
            ("VM", 17),
            ("AC", 18),
            ("VIF", 19),
            ("VIP", 20),
            ("ID", 21),
        ],
    ),
    (
        "cr0_flags",
        8,
        &[
            ("PE", 0),
            ("MP", 1),
            ("EM", 2),
            ("TS", 3),
            ("ET", 4),
            ("NE", 5),
            ("WP", 16),
            ("AM", 18),
            ("NW", 29),
            ("CD", 30),
            ("PG", 31),
        ],
    ),
    (
        "cr4_flags",
        8,
        &[
            ("VME", 0),
            ("PVI", 1),
            ("TSD", 2),
            ("DE", 3),
            ("PSE", 4),
            ("PAE", 5),
            ("MCE", 6),
            ("PGE", 7),
            ("PCE", 8),
            ("OSFXSR", 9),
            ("OSXMMEXCPT", 10),
            ("UMIP", 11),
            ("LA57", 12),
            ("FSGSBASE", 16),
            ("PCIDE", 17),
            ("OSXSAVE", 18),
            ("SMEP", 20),
            ("SMAP", 21),
            ("PKE", 22),
        ],
    ),
    (
        "efer_flags",
        8,
        &[
            ("SCE", 0),
            ("LME", 8),
            ("LMA", 10),
            ("NXE", 11),
            ("SVME", 12),
        ],
    ),
    (
        "mxcsr_flags",
        4,
        &[
            ("IE", 0),
            ("DE", 1),
            ("ZE", 2),
            ("OE", 3),
            ("UE", 4),
            ("PE", 5),
            ("DAZ", 6),
            ("IM", 7),
            ("DM", 8),
            ("ZM", 9),
            ("OM", 10),
            ("UM", 11),
            ("PM", 12),
            ("FZ", 15),
        ],
    ),
];

/// The architecture, for gdbstub.
pub enum X86_64 {}

impl Arch for X86_64 {
    type Usize = u64;
    type Registers = Values;
    type BreakpointKind = usize;
    type RegId = Register;

    fn target_description_xml() -> Option<&'static str> {
        static XML: LazyLock<String> = LazyLock::new(description);
        Some(&XML)
    }
}

/// A register, by its number.
#[derive(Clone, Copy, Debug)]
pub struct Register(usize);

impl RegId for Register {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        (id < COUNT).then(|| (Self(id), NonZeroUsize::new(size(id))))
    }
}

/// Size of a register in bytes.
const fn size(id: usize) -> usize {
    match id {
        EFLAGS..=GS | FCTRL..=FOP | MXCSR => 4,
        ST0..=ST7 => 10,
        XMM0..=XMM15 => 16,
        _ => 8,
    }
}

/// Size of all registers in bytes.
const ALL: usize = {
    let (mut all, mut id) = (0, 0);
    while id < COUNT {
        all += size(id);
        id += 1;
    }
    all
};

/// All registers, in the encoding of the `g` packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Values([u8; ALL]);

impl Default for Values {
    fn default() -> Self {
        Self([0; ALL])
    }
}

impl Registers for Values {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.0
            .get(RIP * 8..)
            .and_then(|bytes| bytes.first_chunk())
            .map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().for_each(|byte| write_byte(Some(*byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.0 = bytes.try_into().map_err(|_| ())?;
        Ok(())
    }
}

impl Values {
    /// The values of a vCPU's registers.
    pub fn of(registers: &debug::Registers) -> Self {
        let mut values = Self::default();
        let mut rest = &mut values.0[..];
        for id in 0..COUNT {
            let Some((to, behind)) = rest.split_at_mut_checked(size(id)) else {
                break;
            };
            let bytes = read(registers, Register(id));
            to.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
            rest = behind;
        }
        values
    }

    /// Change the registers that differ. Registers that cannot be set are skipped.
    pub fn apply(&self, registers: &mut debug::Registers) {
        let mut rest = &self.0[..];
        for id in 0..COUNT {
            let Some((bytes, behind)) = rest.split_at_checked(size(id)) else {
                break;
            };
            let _ = write(registers, Register(id), bytes);
            rest = behind;
        }
    }
}

/// A register's value; the first [`bytes_of`] bytes are valid.
pub fn read(registers: &debug::Registers, Register(id): Register) -> [u8; LARGEST] {
    let mut bytes = [0; LARGEST];
    let from = match legacy(id) {
        Some(at) => registers.fxsave.get(at..at + legacy_size(id)),
        None => None,
    };
    match from {
        Some(from) => bytes.iter_mut().zip(from).for_each(|(to, b)| *to = *b),
        None => bytes[..8].copy_from_slice(&value(registers, id).to_le_bytes()),
    }
    if id == FTAG {
        // A bit a register to two, empty or not (Intel SDM 1, 10.5.1.1).
        let tags = (0..8).filter(|tag| bytes[0] >> tag & 1 == 0);
        let tags: u16 = tags.map(|tag| 3 << (2 * tag)).sum();
        bytes[..2].copy_from_slice(&tags.to_le_bytes());
    }
    bytes
}

/// Size of a register in bytes.
pub fn bytes_of(Register(id): Register) -> usize {
    size(id)
}

/// Set a register.
///
/// # Errors
/// Outside of real mode, a selector other than the current one: gdb does not read the descriptor
/// table that has its base and limit.
pub fn write(
    registers: &mut debug::Registers,
    Register(id): Register,
    bytes: &[u8],
) -> Result<(), ()> {
    if bytes.len() != size(id) {
        return Err(());
    }
    if let Some(at) = legacy(id) {
        let mut bytes = bytes.to_vec();
        if let (FTAG, Some(two)) = (id, bytes.first_chunk()) {
            let tags = u16::from_le_bytes(*two);
            let used = (0..8).filter(|tag| tags >> (2 * tag) & 3 != 3);
            bytes = vec![used.map(|tag| 1 << tag).sum()];
        }
        let to = registers.fxsave.get_mut(at..at + legacy_size(id));
        let to = to.unwrap_or_default();
        to.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
        return Ok(());
    }
    let value = bytes.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
    if let CS..=GS = id {
        let real_mode = registers.special.cr0 & CR0_PE == 0;
        let segment = segment(registers, id);
        if u64::from(segment.selector) == value {
            return Ok(());
        }
        if !real_mode {
            return Err(());
        }
        segment.selector = value as u16;
        segment.base = u64::from(segment.selector) << 4;
        return Ok(());
    }
    *place(registers, id) = value;
    Ok(())
}

/// Offset of a register in the FXSAVE area (Intel SDM 1, table 10-2).
fn legacy(id: usize) -> Option<usize> {
    Some(match id {
        ST0..=ST7 => 32 + 16 * (id - ST0),
        // FCW, FSW, FTW, FCS, FIP, FDS, FDP, FOP
        FCTRL..=FOP => *[0, 2, 4, 12, 8, 20, 16, 6].get(id - FCTRL)?,
        XMM0..=XMM15 => 160 + 16 * (id - XMM0),
        MXCSR => 24,
        _ => return None,
    })
}

fn legacy_size(id: usize) -> usize {
    match id {
        FCTRL..=FOP => *[2, 2, 1, 2, 4, 2, 4, 2].get(id - FCTRL).unwrap_or(&2),
        _ => size(id),
    }
}

fn value(registers: &debug::Registers, id: usize) -> u64 {
    // A copy: `place` borrows mutably.
    let mut registers = registers.clone();
    match id {
        CS..=GS => segment(&mut registers, id).selector.into(),
        _ => *place(&mut registers, id),
    }
}

fn segment(registers: &mut debug::Registers, id: usize) -> &mut kvm_bindings::kvm_segment {
    let special = &mut registers.special;
    match id - CS {
        0 => &mut special.cs,
        1 => &mut special.ss,
        2 => &mut special.ds,
        3 => &mut special.es,
        4 => &mut special.fs,
        _ => &mut special.gs,
    }
}

fn place(registers: &mut debug::Registers, id: usize) -> &mut u64 {
    let (general, special) = (&mut registers.general, &mut registers.special);
    match id {
        0 => &mut general.rax,
        1 => &mut general.rbx,
        2 => &mut general.rcx,
        3 => &mut general.rdx,
        4 => &mut general.rsi,
        5 => &mut general.rdi,
        6 => &mut general.rbp,
        7 => &mut general.rsp,
        8 => &mut general.r8,
        9 => &mut general.r9,
        10 => &mut general.r10,
        11 => &mut general.r11,
        12 => &mut general.r12,
        13 => &mut general.r13,
        14 => &mut general.r14,
        15 => &mut general.r15,
        RIP => &mut general.rip,
        EFLAGS => &mut general.rflags,
        FS_BASE => &mut special.fs.base,
        58 => &mut special.gs.base,
        59 => &mut registers.kernel_gs_base,
        60 => &mut special.cr0,
        61 => &mut special.cr2,
        62 => &mut special.cr3,
        63 => &mut special.cr4,
        64 => &mut special.cr8,
        _ => &mut special.efer,
    }
}

/// The target description in XML.
fn description() -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>\
         <architecture>i386:x86-64</architecture><feature name=\"org.gnu.gdb.i386.core\">",
    );
    for (id, name) in NAMES.iter().enumerate() {
        xml += match id {
            XMM0 => {
                "</feature><feature name=\"org.gnu.gdb.i386.sse\">\
                 <vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/>\
                 <vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/>\
                 <vector id=\"v16i8\" type=\"int8\" count=\"16\"/>\
                 <vector id=\"v8i16\" type=\"int16\" count=\"8\"/>\
                 <vector id=\"v4i32\" type=\"int32\" count=\"4\"/>\
                 <vector id=\"v2i64\" type=\"int64\" count=\"2\"/><union id=\"vec128\">\
                 <field name=\"v4_float\" type=\"v4f\"/><field name=\"v2_double\" type=\"v2d\"/>\
                 <field name=\"v16_int8\" type=\"v16i8\"/><field name=\"v8_int16\" type=\"v8i16\"/>\
                 <field name=\"v4_int32\" type=\"v4i32\"/><field name=\"v2_int64\" type=\"v2i64\"/>\
                 <field name=\"uint128\" type=\"uint128\"/></union>"
            }
            FS_BASE => "</feature><feature name=\"org.gnu.gdb.i386.segments\">",
            59 => "</feature><feature name=\"hull.x86.system\">",
            _ => "",
        };
        // The scope of a type is its feature.
        let flags = format!("{name}_flags");
        if let Some((flags, size, fields)) = FLAGS.iter().find(|(id, ..)| *id == flags) {
            let _ = write!(xml, "<flags id=\"{flags}\" size=\"{size}\">");
            for (field, bit) in *fields {
                let _ = write!(
                    xml,
                    "<field name=\"{field}\" start=\"{bit}\" end=\"{bit}\"/>"
                );
            }
            xml += "</flags>";
        }
        let kind = match *name {
            "rip" => "code_ptr",
            "rsp" | "rbp" => "data_ptr",
            "eflags" | "mxcsr" | "cr0" | "cr4" | "efer" => &flags,
            _ => match id {
                ST0..=ST7 => "i387_ext",
                XMM0..=XMM15 => "vec128",
                _ if size(id) == 4 => "int32",
                _ => "int64",
            },
        };
        let bits = size(id) * 8;
        let group = match id {
            FCTRL..=FOP => " group=\"float\"",
            59.. => " group=\"system\"",
            _ => "",
        };
        let _ = write!(
            xml,
            "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"{group}/>"
        );
    }
    xml + "</feature></target>"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_number_has_a_register_of_its_own() {
        let mut registers = debug::Registers::default();
        registers.special.cr0 = 0; // real mode: segments can be set
        for id in 0..COUNT {
            let bytes = vec![id as u8 + 1; size(id)];
            if id != FTAG {
                write(&mut registers, Register(id), &bytes).unwrap();
            }
            if id == 60 {
                registers.special.cr0 = 0;
            }
        }
        for id in (0..COUNT).filter(|id| ![FTAG, FS_BASE, 58, 60].contains(id)) {
            let expected = match id {
                CS..=GS | 32..=33 | 35 | 37 | FOP => 2,
                _ => size(id),
            };
            let bytes = read(&registers, Register(id));
            assert_eq!(bytes[..expected], vec![id as u8 + 1; expected], "{id}");
        }
    }

    #[test]
    fn a_selector_needs_real_mode() {
        let mut registers = debug::Registers::default();
        write(&mut registers, Register(CS), &[0x34, 0x12, 0, 0]).unwrap();
        assert_eq!(registers.special.cs.base, 0x1_2340);
        registers.special.cr0 = CR0_PE;
        assert!(write(&mut registers, Register(CS), &[0x10, 0, 0, 0]).is_err());
        assert!(write(&mut registers, Register(CS), &[0x34, 0x12, 0, 0]).is_ok());
    }

    #[test]
    fn an_x87_tag_has_two_bits_for_gdb() {
        let mut registers = debug::Registers::default();
        assert_eq!(read(&registers, Register(FTAG))[..2], [0xff, 0xff]);
        registers.fxsave[4] = 0b1000_0001;
        assert_eq!(read(&registers, Register(FTAG))[..2], [0xfc, 0x3f]);
        write(&mut registers, Register(FTAG), &[0xff, 0x3f, 0, 0]).unwrap();
        assert_eq!(registers.fxsave[4], 0b1000_0000);
    }

    proptest! {
        #[test]
        fn values_that_gdb_reads_can_be_written_back(fxsave in any::<[u8; 32]>(), rax: u64, cr3: u64, gs: u64) {
            let mut registers = debug::Registers::default();
            registers.fxsave[..32].copy_from_slice(&fxsave);
            registers.fxsave[5] = 0;
            registers.general.rax = rax;
            registers.special.cr3 = cr3;
            registers.special.gs.base = gs;
            let mut bytes = Vec::new();
            Values::of(&registers).gdb_serialize(|byte| bytes.extend(byte));
            let mut values = Values::default();
            values.gdb_deserialize(&bytes).unwrap();
            let mut set = registers.clone();
            values.apply(&mut set);
            prop_assert_eq!(set, registers);
        }
    }
}
