//! Linux's `struct boot_params`, the "zero page" that RSI (or ESI) points to at the entry.
//!
//! The types and the way into guest memory are linux-loader's. [`parse`] finds the part that a
//! bzImage brings along; for a bare vmlinux [`for_vmlinux`] stands in. Sources:
//! Documentation/arch/x86/boot.rst and zero-page.rst; field names are theirs.

use std::ops::Range;

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, GuestAddress};

use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::layout::{BOOT_PARAMS, CMDLINE, PAGE_SIZE};

/// Offset of the setup header, in a bzImage and in `boot_params` alike.
const SETUP_HEADER: usize = 0x1f1;
/// `header`: "HdrS", the magic of a kernel with a setup header.
const HDRS: u32 = u32::from_le_bytes(*b"HdrS");
/// `loadflags` bit 0: the protected-mode code is loaded at 1 MiB.
pub const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags` bit 0: there is a 64-bit entry at 0x200.
pub const XLF_KERNEL_64: u16 = 1 << 0;

/// `loadflags` bit 7: `heap_end_ptr` is valid.
const CAN_USE_HEAP: u8 = 1 << 7;
/// `type_of_loader` of a loader without an assigned number.
const TYPE_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
/// Longest command line of an x86 kernel, COMMAND_LINE_SIZE without the NUL.
const MAX_COMMAND_LINE: u32 = 2047;

const _: () = assert!(size_of::<boot_params>() as u64 == PAGE_SIZE);

/// The setup header of a kernel that came without one: a vmlinux of any version.
pub fn for_vmlinux() -> setup_header {
    setup_header {
        header: HDRS,
        version: 0x020f,
        loadflags: LOADED_HIGH,
        kernel_alignment: 0x20_0000,
        cmdline_size: MAX_COMMAND_LINE,
        initrd_addr_max: u32::MAX,
        boot_flag: BOOT_FLAG,
        ..Default::default()
    }
}

/// The setup header in a bzImage's first sectors. The bytes past the end that the header itself
/// states (the jump's target) are code, which linux-loader takes for fields and which are read as
/// 0 here; `None` without the magic.
pub fn parse(image: &[u8]) -> Option<setup_header> {
    const JUMP_END: usize = 0x202;
    let jump = usize::from(*image.get(JUMP_END - 1)?);
    let end = (JUMP_END + jump).min(SETUP_HEADER + size_of::<setup_header>());
    let mut header = setup_header::default();
    let bytes = image.get(SETUP_HEADER..end)?;
    header
        .as_mut_slice()
        .get_mut(..bytes.len())?
        .copy_from_slice(bytes);
    (header.header == HDRS).then_some(header)
}

/// What `boot_params` tells the kernel.
#[derive(Debug)]
pub struct Params<'a> {
    /// The kernel's own setup header, or [`for_vmlinux`].
    pub header: setup_header,
    /// GPAs of the initrd.
    pub initrd: Option<&'a Range<u64>>,
    /// GPA of the ACPI root pointer.
    pub rsdp: u64,
    /// The memory map, for the e820 table.
    pub map: &'a [(Range<u64>, ram::Kind)],
}

/// Write `boot_params` at [`BOOT_PARAMS`]; the command line is expected at [`CMDLINE`].
///
/// # Errors
/// [`BootError::OutsideMemory`] when guest memory is smaller than the layout's low part.
pub fn write(memory: &GuestMemory, params: &Params) -> Result<(), BootError> {
    let mut page = boot_params {
        acpi_rsdp_addr: params.rsdp,
        hdr: params.header,
        ..Default::default()
    };
    page.hdr.type_of_loader = TYPE_UNDEFINED;
    page.hdr.loadflags &= !CAN_USE_HEAP;
    page.hdr.cmd_line_ptr = CMDLINE as u32;
    if let Some(initrd) = params.initrd {
        // Below MMIO_HOLE (boot::initrd), so both fit 32 bits.
        page.hdr.ramdisk_image = initrd.start as u32;
        page.hdr.ramdisk_size = (initrd.end - initrd.start) as u32;
    }
    let mut table = page.e820_table;
    for ((range, kind), entry) in params.map.iter().zip(&mut table) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.end - range.start,
            r#type: *kind as u32,
        };
        page.e820_entries += 1;
    }
    page.e820_table = table;
    let params = BootParams::new(&page, GuestAddress(BOOT_PARAMS));
    LinuxBootConfigurator::write_bootparams(&params, memory)
        .map_err(|_| ram::outside("the zero page", BOOT_PARAMS, PAGE_SIZE))
}

#[cfg(test)]
mod tests {
    use super::super::ram::tests::{memory, read};
    use super::*;
    use crate::memory::layout::{ACPI, EBDA};

    #[test]
    fn the_zero_page_holds_what_zero_page_rst_says() {
        let memory = memory(16);
        let header = for_vmlinux();
        let initrd = 0x80_0000..0x80_1234;
        write(
            &memory,
            &Params {
                header,
                initrd: Some(&initrd),
                rsdp: ACPI,
                map: &ram::map(&memory),
            },
        )
        .unwrap();
        let page = read(&memory, BOOT_PARAMS, PAGE_SIZE as usize);
        let u32_at = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        assert_eq!(u32_at(0x70), ACPI as u32);
        assert_eq!(page[0x1e8], 4, "e820 entries");
        assert_eq!(&page[0x1fe..0x200], [0x55, 0xaa]);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x210], 0xff, "type_of_loader");
        assert_eq!(page[0x211], LOADED_HIGH);
        assert_eq!([u32_at(0x218), u32_at(0x21c)], [0x80_0000, 0x1234]);
        assert_eq!(u32_at(0x228), CMDLINE as u32);
        assert_eq!(u32_at(0x238), 2047);
        assert_eq!(
            [u32_at(0x2d0), u32_at(0x2d8), u32_at(0x2e0)],
            [0, EBDA as u32, 1]
        );
    }

    #[test]
    fn a_header_ends_where_its_jump_says() {
        let mut image = vec![0xee; 0x400];
        image[0x200..0x206].copy_from_slice(b"\xeb\x3aHdrS");
        let header = parse(&image).unwrap();
        assert_eq!({ header.cmdline_size }, 0xeeee_eeee);
        assert_eq!({ header.payload_offset }, 0);
        assert!(parse(&image[..0x210]).is_none());
        image[0x203] = 0;
        assert!(parse(&image).is_none());
    }
}
