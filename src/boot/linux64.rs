//! Linux's `struct boot_params`, the "zero page" that RSI (or ESI) points to at the entry.
//!
//! [`SetupHeader`] is the part of it that a bzImage carries and fills in; for a bare vmlinux
//! [`SetupHeader::for_vmlinux`] stands in. Sources: Documentation/arch/x86/boot.rst and
//! zero-page.rst; field names are theirs.

use std::mem::offset_of;
use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::layout::{BOOT_PARAMS, CMDLINE, PAGE_SIZE};

/// Where the setup header starts, in a bzImage and in `boot_params` alike.
pub const SETUP_HEADER: usize = 0x1f1;
/// `header`: the magic of a kernel with a setup header.
pub const HDRS: [u8; 4] = *b"HdrS";
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
const COMMAND_LINE_MAX: u32 = 2047;

/// `struct setup_header`, boot protocol 2.15.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SetupHeader {
    /// Size of the real-mode code in sectors of 512 bytes; 0 means 4.
    pub setup_sects: u8,
    root_flags: U16,
    /// Size of the protected-mode code in units of 16 bytes.
    pub syssize: U32,
    ram_size: U16,
    vid_mode: U16,
    root_dev: U16,
    boot_flag: U16,
    /// A jump over the header; its second byte tells where the header ends.
    jump: [u8; 2],
    /// [`HDRS`].
    pub header: [u8; 4],
    /// Boot protocol, 0xMMmm.
    pub version: U16,
    realmode_swtch: U32,
    start_sys_seg: U16,
    kernel_version: U16,
    type_of_loader: u8,
    /// [`LOADED_HIGH`] and others.
    pub loadflags: u8,
    setup_move_size: U16,
    /// Where the protected-mode code is entered in 32-bit mode.
    pub code32_start: U32,
    ramdisk_image: U32,
    ramdisk_size: U32,
    bootsect_kludge: U32,
    heap_end_ptr: U16,
    ext_loader_ver: u8,
    ext_loader_type: u8,
    cmd_line_ptr: U32,
    /// Highest address of an initrd byte.
    pub initrd_addr_max: U32,
    /// Alignment of a relocatable kernel in bytes.
    pub kernel_alignment: U32,
    /// Nonzero when the protected-mode code may be loaded anywhere.
    pub relocatable_kernel: u8,
    min_alignment: u8,
    /// [`XLF_KERNEL_64`] and others.
    pub xloadflags: U16,
    /// Longest command line in bytes without the NUL.
    pub cmdline_size: U32,
    hardware_subarch: U32,
    hardware_subarch_data: U64,
    /// Offset of the compressed kernel in the protected-mode code, in bytes.
    pub payload_offset: U32,
    /// Size of the compressed kernel in bytes.
    pub payload_length: U32,
    setup_data: U64,
    /// Where the kernel wants to run.
    pub pref_address: U64,
    /// Bytes that the kernel needs from where it runs before it reads the memory map.
    pub init_size: U32,
    handover_offset: U32,
    kernel_info_offset: U32,
}

/// `struct boot_params`, the fields used here.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct BootParams {
    screen_info: [u8; 0x70],
    acpi_rsdp_addr: U64,
    unused_78: [u8; 0x170],
    e820_entries: u8,
    unused_1e9: [u8; 8],
    hdr: SetupHeader,
    unused_26c: [u8; 0x64],
    e820_table: [E820Entry; ram::MAP_CAPACITY],
    unused_cd0: [u8; 0x330],
}

/// `struct boot_e820_entry`.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct E820Entry {
    addr: U64,
    size: U64,
    kind: U32,
}

const _: () = {
    assert!(size_of::<BootParams>() as u64 == PAGE_SIZE);
    assert!(offset_of!(BootParams, acpi_rsdp_addr) == 0x70);
    assert!(offset_of!(BootParams, e820_entries) == 0x1e8);
    assert!(offset_of!(BootParams, hdr) == SETUP_HEADER);
    assert!(offset_of!(BootParams, hdr.header) == 0x202);
    assert!(offset_of!(BootParams, hdr.cmd_line_ptr) == 0x228);
    assert!(offset_of!(BootParams, hdr.cmdline_size) == 0x238);
    assert!(offset_of!(BootParams, hdr.init_size) == 0x260);
    assert!(offset_of!(BootParams, e820_table) == 0x2d0);
};

impl SetupHeader {
    /// The header of a kernel that came without one: a vmlinux of any version.
    pub fn for_vmlinux() -> Self {
        let mut header = Self::new_zeroed();
        header.header = HDRS;
        header.version = U16::new(0x020f);
        header.loadflags = LOADED_HIGH;
        header.kernel_alignment = U32::new(0x20_0000);
        header.cmdline_size = U32::new(COMMAND_LINE_MAX);
        header.initrd_addr_max = U32::new(u32::MAX);
        header.boot_flag = U16::new(BOOT_FLAG);
        header
    }

    /// The header in a bzImage's first sectors. Bytes past the end that the header itself states
    /// (the jump's target) are code, and read as 0 here; `None` without the magic.
    pub fn parse(image: &[u8]) -> Option<Self> {
        const JUMP_END: usize = 0x202;
        let jump = usize::from(*image.get(JUMP_END - 1)?);
        let end = (JUMP_END + jump).min(SETUP_HEADER + size_of::<Self>());
        let mut header = Self::new_zeroed();
        let bytes = image.get(SETUP_HEADER..end)?;
        header
            .as_mut_bytes()
            .get_mut(..bytes.len())?
            .copy_from_slice(bytes);
        (header.header == HDRS).then_some(header)
    }
}

/// What `boot_params` tells the kernel beside its own header.
#[derive(Debug)]
pub struct Params<'a> {
    /// The kernel's header, or [`SetupHeader::for_vmlinux`].
    pub header: SetupHeader,
    /// Where the initrd lies.
    pub initrd: Option<&'a Range<u64>>,
    /// GPA of the ACPI root pointer.
    pub rsdp: u64,
    /// The memory map.
    pub map: &'a [(Range<u64>, ram::Kind)],
}

/// Write `boot_params` at [`BOOT_PARAMS`]; the command line is expected at [`CMDLINE`].
///
/// # Errors
/// [`BootError::OutsideMemory`] when guest memory is smaller than the layout's low part.
pub fn write(memory: &GuestMemory, params: &Params) -> Result<(), BootError> {
    let mut page = BootParams::new_zeroed();
    page.acpi_rsdp_addr = U64::new(params.rsdp);
    page.hdr = params.header;
    page.hdr.type_of_loader = TYPE_UNDEFINED;
    page.hdr.loadflags &= !CAN_USE_HEAP;
    page.hdr.cmd_line_ptr = U32::new(CMDLINE as u32);
    if let Some(initrd) = params.initrd {
        // Below MMIO_HOLE (boot::initrd), so both halves fit 32 bits.
        page.hdr.ramdisk_image = U32::new(initrd.start as u32);
        page.hdr.ramdisk_size = U32::new((initrd.end - initrd.start) as u32);
    }
    for ((range, kind), entry) in params.map.iter().zip(&mut page.e820_table) {
        *entry = E820Entry {
            addr: U64::new(range.start),
            size: U64::new(range.end - range.start),
            kind: U32::new(*kind as u32),
        };
        page.e820_entries += 1;
    }
    ram::write(memory, "the zero page", BOOT_PARAMS, page.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::ram::tests::{memory, read};
    use super::*;
    use crate::memory::layout::{ACPI, EBDA};

    #[test]
    fn the_zero_page_holds_what_zero_page_rst_says() {
        let memory = memory(16);
        let header = SetupHeader::for_vmlinux();
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
        let header = SetupHeader::parse(&image).unwrap();
        assert_eq!(header.cmdline_size.get(), 0xeeee_eeee);
        assert_eq!(header.payload_offset.get(), 0);
        assert!(SetupHeader::parse(&image[..0x210]).is_none());
        image[0x203] = 0;
        assert!(SetupHeader::parse(&image).is_none());
    }
}
