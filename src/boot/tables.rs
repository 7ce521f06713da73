//! The GDT and page tables with which a vCPU enters a kernel.
//!
//! [`Segment`] holds plain numbers: the GDT in guest memory and the hidden parts of the segment
//! registers, which `kvm::regs` loads, are both made from [`code`] and [`data`].
//! Sources: Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"; Intel SDM 3A, 3.4.5 and 4.5.

use super::entry::Mode;
use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::layout::{GDT, PAGE_SIZE, PAGE_TABLES, PAGE_TABLES_SIZE};

/// Selector of `__BOOT_CS`, the code segment of the boot protocol.
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of `__BOOT_DS`, the data segment of the boot protocol.
pub const DATA_SELECTOR: u16 = 0x18;
/// Limit of the GDT register: four descriptors of 8 bytes, less one.
pub const GDT_LIMIT: u16 = 4 * 8 - 1;
/// CR3 of a vCPU that starts in long mode.
pub const CR3: u64 = PAGE_TABLES;

/// A segment register, visible and hidden part (Intel SDM 3A, 3.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Index into the GDT; in real mode the base divided by 16.
    pub selector: u16,
    /// Linear address of offset 0.
    pub base: u32,
    /// Highest valid offset in bytes.
    pub limit: u32,
    /// The type field, 4 bits: 0xb is code (execute, read, accessed), 3 data (read, write, accessed).
    pub kind: u8,
    /// D/B: 32-bit default operand size.
    pub default_32: bool,
    /// L: the segment holds 64-bit code.
    pub long: bool,
    /// G: the descriptor's limit counts pages of 4 KiB.
    pub pages: bool,
}

/// The code segment of `mode`.
pub fn code(mode: Mode) -> Segment {
    let long = is_long(mode);
    Segment {
        kind: 0xb,
        long,
        default_32: !long && mode != Mode::Flat16,
        ..data_like(mode, CODE_SELECTOR)
    }
}

/// The segment of DS, ES, FS, GS and SS in `mode`.
pub fn data(mode: Mode) -> Segment {
    Segment {
        kind: 0x3,
        default_32: mode != Mode::Flat16,
        ..data_like(mode, DATA_SELECTOR)
    }
}

/// Whether `mode` starts in long mode, with paging on.
pub fn is_long(mode: Mode) -> bool {
    matches!(mode, Mode::Linux64 | Mode::Flat64)
}

fn data_like(mode: Mode, selector: u16) -> Segment {
    let real = mode == Mode::Flat16;
    Segment {
        selector: if real { 0 } else { selector },
        base: 0,
        limit: if real { 0xffff } else { u32::MAX },
        kind: 0,
        default_32: false,
        long: false,
        pages: !real,
    }
}

impl Segment {
    /// The 8 bytes of the GDT that describe this segment: present, DPL 0, code or data.
    pub fn descriptor(self) -> u64 {
        let limit = u64::from(if self.pages {
            self.limit >> 12
        } else {
            self.limit & 0xf_ffff
        });
        let base = u64::from(self.base);
        let bit = |set: bool, at: u32| u64::from(set) << at;
        (limit & 0xffff)
            | (base & 0xff_ffff) << 16
            | u64::from(self.kind & 0xf) << 40
            | bit(true, 44)
            | bit(true, 47)
            | (limit >> 16) << 48
            | bit(self.long, 53)
            | bit(self.default_32, 54)
            | bit(self.pages, 55)
            | (base >> 24) << 56
    }
}

/// Write the GDT of `mode` and, for long mode, the identity map of the first 4 GiB.
///
/// # Errors
/// [`BootError::OutsideMemory`] when guest memory is smaller than the layout's low part.
pub fn write(memory: &GuestMemory, mode: Mode) -> Result<(), BootError> {
    if mode == Mode::Flat16 {
        return Ok(());
    }
    let gdt = [0, 0, code(mode).descriptor(), data(mode).descriptor()];
    ram::write(memory, "the GDT", GDT, &gdt.map(u64::to_le_bytes).concat())?;
    if is_long(mode) {
        ram::write(memory, "the page tables", PAGE_TABLES, &identity_map())?;
    }
    Ok(())
}

/// PML4, PDPT and four page directories of 2 MiB pages, as they lie at [`PAGE_TABLES`].
fn identity_map() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = 1 << 7;
    const ENTRIES: u64 = 512;
    let table = |index: u64| PAGE_TABLES + index * PAGE_SIZE;

    let mut bytes = Vec::with_capacity(PAGE_TABLES_SIZE as usize);
    let mut put = |entry: u64| bytes.extend_from_slice(&entry.to_le_bytes());
    put(table(1) | PRESENT_WRITABLE);
    (1..ENTRIES).for_each(|_| put(0));
    (0..4).for_each(|gib| put(table(2 + gib) | PRESENT_WRITABLE));
    (4..ENTRIES).for_each(|_| put(0));
    (0..4 * ENTRIES).for_each(|page| put(page << 21 | PRESENT_WRITABLE | LARGE_PAGE));
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::ram::tests::{memory, read};
    use super::*;

    fn entry(memory: &GuestMemory, table: u64, index: u64) -> u64 {
        u64::from_le_bytes(read(memory, table + index * 8, 8).try_into().unwrap())
    }

    /// Walk the tables as the CPU does (Intel SDM 3A, 4.5.4).
    fn translate(memory: &GuestMemory, linear: u64) -> u64 {
        let pml4e = entry(memory, CR3, linear >> 39 & 511);
        let pdpte = entry(memory, pml4e & !0xfff, linear >> 30 & 511);
        let pde = entry(memory, pdpte & !0xfff, linear >> 21 & 511);
        assert_eq!([pml4e & 3, pdpte & 3, pde & 0x83], [3, 3, 0x83]);
        (pde & !0x1f_ffff) + (linear & 0x1f_ffff)
    }

    #[test]
    fn the_first_4_gib_are_mapped_to_themselves() {
        let memory = memory(1);
        write(&memory, Mode::Linux64).unwrap();
        for linear in [
            0,
            0x7000,
            0x1f_ffff,
            0x20_0000,
            0x3fff_ffff,
            0x4000_0000,
            0xffff_ffff,
        ] {
            assert_eq!(translate(&memory, linear), linear);
        }
        assert_eq!(identity_map().len() as u64, PAGE_TABLES_SIZE);
    }

    #[test]
    fn descriptors_are_the_ones_of_the_boot_protocol() {
        assert_eq!(code(Mode::Linux64).descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(code(Mode::Linux32).descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(data(Mode::Linux64).descriptor(), 0x00cf_9300_0000_ffff);
        let memory = memory(1);
        write(&memory, Mode::Pvh).unwrap();
        assert_eq!(entry(&memory, GDT, 2), code(Mode::Pvh).descriptor());
        assert_eq!(entry(&memory, GDT, 3), data(Mode::Pvh).descriptor());
    }

    #[test]
    fn real_mode_segments_start_at_zero_and_span_64_kib() {
        let code = code(Mode::Flat16);
        assert_eq!((code.selector, code.base, code.limit), (0, 0, 0xffff));
        assert!(!code.default_32 && !code.long && !code.pages);
    }
}
