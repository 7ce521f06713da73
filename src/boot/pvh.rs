//! `struct hvm_start_info`, which EBX points to at a PVH entry.
//!
//! One page at [`PVH_START_INFO`]: the structure, one module (the initrd), the memory map.
//! Sources: Xen's public/arch-x86/hvm/start_info.h, docs/misc/pvh.pandoc; names are theirs.

use std::ops::Range;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::layout::{BOOT_PARAMS, CMDLINE, PVH_START_INFO};

/// "xEn3" with the high bit of the E set.
const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;

const MODULES: u64 = PVH_START_INFO + size_of::<StartInfo>() as u64;
const MEMORY_MAP: u64 = MODULES + size_of::<Module>() as u64;

/// `struct hvm_start_info`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StartInfo {
    magic: U32,
    version: U32,
    flags: U32,
    nr_modules: U32,
    modlist_paddr: U64,
    cmdline_paddr: U64,
    rsdp_paddr: U64,
    memmap_paddr: U64,
    memmap_entries: U32,
    reserved: U32,
}

/// `struct hvm_modlist_entry`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Module {
    paddr: U64,
    size: U64,
    cmdline_paddr: U64,
    reserved: U64,
}

/// `struct hvm_memmap_table_entry`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MemoryMapEntry {
    addr: U64,
    size: U64,
    kind: U32,
    reserved: U32,
}

const _: () = {
    assert!(size_of::<StartInfo>() == 56);
    let map = ram::MAP_CAPACITY * size_of::<MemoryMapEntry>();
    assert!(MEMORY_MAP + map as u64 <= BOOT_PARAMS);
};

/// Write the start info with the memory `map`, with the command line expected at [`CMDLINE`] and ACPI's root pointer
/// at `rsdp`.
///
/// # Errors
/// [`BootError::OutsideMemory`] when guest memory is smaller than the layout's low part.
pub fn write(
    memory: &GuestMemory,
    map: &[(Range<u64>, ram::Kind)],
    initrd: Option<&Range<u64>>,
    rsdp: u64,
) -> Result<(), BootError> {
    let info = StartInfo {
        magic: U32::new(MAGIC),
        version: U32::new(VERSION),
        flags: U32::ZERO,
        nr_modules: U32::new(initrd.is_some().into()),
        modlist_paddr: U64::new(MODULES),
        cmdline_paddr: U64::new(CMDLINE),
        rsdp_paddr: U64::new(rsdp),
        memmap_paddr: U64::new(MEMORY_MAP),
        memmap_entries: U32::new(map.len() as u32), // at most ram::MAP_CAPACITY
        reserved: U32::ZERO,
    };
    let module = Module {
        paddr: U64::new(initrd.map_or(0, |initrd| initrd.start)),
        size: U64::new(initrd.map_or(0, |initrd| initrd.end - initrd.start)),
        cmdline_paddr: U64::ZERO,
        reserved: U64::ZERO,
    };
    let mut bytes = [info.as_bytes(), module.as_bytes()].concat();
    for (range, kind) in map {
        let entry = MemoryMapEntry {
            addr: U64::new(range.start),
            size: U64::new(range.end - range.start),
            kind: U32::new(*kind as u32),
            reserved: U32::ZERO,
        };
        bytes.extend_from_slice(entry.as_bytes());
    }
    ram::write(memory, "the PVH start info", PVH_START_INFO, &bytes)
}

#[cfg(test)]
mod tests {
    use super::super::ram::tests::{memory, read};
    use super::*;
    use crate::memory::layout::{ACPI, EBDA};

    /// Follow the pointers as a kernel does.
    struct Seen(GuestMemory);

    impl Seen {
        fn u32(&self, gpa: u64) -> u32 {
            u32::from_le_bytes(read(&self.0, gpa, 4).try_into().unwrap())
        }

        fn u64(&self, gpa: u64) -> u64 {
            u64::from_le_bytes(read(&self.0, gpa, 8).try_into().unwrap())
        }
    }

    #[test]
    fn a_kernel_that_follows_the_pointers_finds_everything() {
        let seen = Seen(memory(16));
        let initrd = 0x80_0000..0x80_1234;
        write(&seen.0, &ram::map(&seen.0), Some(&initrd), ACPI).unwrap();
        let info = PVH_START_INFO;
        assert_eq!([seen.u32(info), seen.u32(info + 4)], [0x336e_c578, 1]);
        assert_eq!(seen.u32(info + 12), 1, "modules");
        let module = seen.u64(info + 16);
        assert_eq!(
            [seen.u64(module), seen.u64(module + 8)],
            [0x80_0000, 0x1234]
        );
        assert_eq!(seen.u64(info + 24), CMDLINE);
        assert_eq!(seen.u64(info + 32), ACPI);
        let (map, entries) = (seen.u64(info + 40), u64::from(seen.u32(info + 48)));
        assert_eq!(entries, 4);
        assert_eq!(
            [seen.u64(map), seen.u64(map + 8), seen.u64(map + 16)],
            [0, EBDA, 1],
        );
        let last = map + 3 * 24;
        assert_eq!([seen.u64(last), seen.u64(last + 8)], [1 << 20, 15 << 20]);
    }

    #[test]
    fn without_an_initrd_there_is_no_module() {
        let seen = Seen(memory(16));
        write(&seen.0, &ram::map(&seen.0), None, 0).unwrap();
        assert_eq!(seen.u32(PVH_START_INFO + 12), 0);
    }
}
