//! `struct hvm_start_info`, which EBX points to at a PVH entry.
//!
//! One page at [`PVH_START_INFO`]: the structure, one module (the initrd), the memory map.
//! The types and the way into guest memory are linux-loader's.
//! Sources: Xen's public/arch-x86/hvm/start_info.h, docs/misc/pvh.pandoc; names are theirs.

use std::ops::Range;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::GuestAddress;

use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::layout::{BOOT_PARAMS, CMDLINE, PVH_START_INFO};

/// The first version with a memory map.
const VERSION: u32 = 1;

const MODULES: u64 = PVH_START_INFO + size_of::<hvm_start_info>() as u64;
const MEMORY_MAP: u64 = MODULES + size_of::<hvm_modlist_entry>() as u64;

const _: () = {
    let map = ram::MAP_CAPACITY * size_of::<hvm_memmap_table_entry>();
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
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: MODULES,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32, // at most ram::MAP_CAPACITY
        ..Default::default()
    };
    let entry = |(range, kind): &(Range<u64>, ram::Kind)| hvm_memmap_table_entry {
        addr: range.start,
        size: range.end - range.start,
        type_: *kind as u32,
        reserved: 0,
    };
    let map: Vec<_> = map.iter().map(entry).collect();
    let module = |initrd: &Range<u64>| hvm_modlist_entry {
        paddr: initrd.start,
        size: initrd.end - initrd.start,
        ..Default::default()
    };
    let modules: Vec<_> = initrd.into_iter().map(module).collect();
    let mut params = BootParams::new(&info, GuestAddress(PVH_START_INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    params.set_modules(&modules, GuestAddress(MODULES));
    let size = MEMORY_MAP - PVH_START_INFO + size_of_val(map.as_slice()) as u64;
    PvhBootConfigurator::write_bootparams(&params, memory)
        .map_err(|_| ram::outside("the PVH start info", PVH_START_INFO, size))
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
