//! `struct boot_params`, the "zero page" that Linux reads on its way up.
//!
//! Sources: Documentation/arch/x86/zero-page.rst and boot.rst; arch/x86/include/uapi/asm/bootparam.h.

use std::ops::Range;

use super::error::BootError;
use super::ram;
use crate::memory::GuestMemory;
use crate::memory::layout::{BOOT_PARAMS, CMDLINE, HIGH_MEMORY, PAGE_SIZE};

/// Most bytes of the command line without its NUL: `COMMAND_LINE_SIZE` of x86, less one.
pub const CMDLINE_MOST: usize = 2047;

const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const CMDLINE_SIZE: usize = 0x238;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;
/// "No identifier of its own".
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1;

/// Place the initrd page-aligned at the top of low memory, above the kernel.
pub fn place_initrd(
    memory: &GuestMemory,
    kernel: &Range<u64>,
    initrd: &[u8],
) -> Result<Range<u64>, BootError> {
    let size = initrd.len() as u64;
    let low_end = ram::low_end(memory);
    let kernel_end = kernel.end.max(HIGH_MEMORY);
    let start = low_end.saturating_sub(size) & !(PAGE_SIZE - 1);
    if size > low_end || start < kernel_end {
        return Err(BootError::InitrdTooBig {
            size,
            kernel_end,
            low_end,
        });
    }
    ram::write(memory, "the initrd", start, initrd)?;
    Ok(start..start + size)
}

/// Write the command line and the zero page.
pub fn write(memory: &GuestMemory, cmdline: &str, initrd: &Range<u64>) -> Result<(), BootError> {
    let length = cmdline.len();
    if length > CMDLINE_MOST {
        return Err(BootError::CmdlineTooLong {
            length,
            most: CMDLINE_MOST,
        });
    }
    if let Some(at) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(BootError::CmdlineNul { at });
    }
    ram::write(
        memory,
        "the command line",
        CMDLINE,
        &[cmdline.as_bytes(), &[0]].concat(),
    )?;

    let map = ram::map(memory);
    let mut page = Page(vec![0; PAGE_SIZE as usize]);
    page.put(E820_ENTRIES, &[map.len() as u8]);
    page.put(BOOT_FLAG, &0xaa55u16.to_le_bytes());
    page.put(HEADER, b"HdrS");
    page.put(VERSION, &0x020fu16.to_le_bytes());
    page.put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    page.put(LOADFLAGS, &[LOADED_HIGH]);
    page.put(RAMDISK_IMAGE, &(initrd.start as u32).to_le_bytes());
    page.put(
        RAMDISK_SIZE,
        &((initrd.end - initrd.start) as u32).to_le_bytes(),
    );
    page.put(CMD_LINE_PTR, &(CMDLINE as u32).to_le_bytes());
    page.put(CMDLINE_SIZE, &(CMDLINE_MOST as u32).to_le_bytes());
    for (index, (range, kind)) in map.iter().enumerate() {
        let at = E820_TABLE + index * E820_ENTRY_SIZE;
        page.put(at, &range.start.to_le_bytes());
        page.put(at + 8, &(range.end - range.start).to_le_bytes());
        page.put(at + 16, &(*kind as u32).to_le_bytes());
    }
    ram::write(memory, "the zero page", BOOT_PARAMS, &page.0)
}

/// The page while it is filled in.
struct Page(Vec<u8>);

impl Page {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ram::tests::{memory, read};
    use super::*;

    #[test]
    fn the_zero_page_says_where_everything_is() {
        let memory = memory(16);
        write(&memory, "quiet", &(0x10_0000..0x10_0123)).unwrap();
        let page = read(&memory, BOOT_PARAMS, 4096);
        assert_eq!(&page[HEADER..HEADER + 4], b"HdrS");
        assert_eq!(page[RAMDISK_SIZE..RAMDISK_SIZE + 4], 0x123u32.to_le_bytes());
        assert_eq!(page[E820_ENTRIES], 4);
        assert_eq!(read(&memory, CMDLINE, 6), b"quiet\0");
    }

    #[test]
    fn command_lines_that_do_not_fit_are_refused_with_figures() {
        let memory = memory(2);
        write(&memory, &"x".repeat(CMDLINE_MOST), &(0..0)).unwrap();
        let error = write(&memory, &"x".repeat(CMDLINE_MOST + 1), &(0..0)).unwrap_err();
        assert!(error.to_string().contains("2048 bytes"), "{error}");
        let error = write(&memory, "a\0b", &(0..0)).unwrap_err();
        assert!(error.to_string().contains("offset 1"), "{error}");
    }

    #[test]
    fn an_initrd_lies_at_the_top_or_is_refused() {
        let memory = memory(16);
        let range = place_initrd(&memory, &(0x10_0000..0x20_0000), &[1; 5000]).unwrap();
        assert_eq!(range, 0xff_e000..0xff_e000 + 5000);
        let error = place_initrd(&memory, &(0x10_0000..0xff_f000), &[1; 5000]).unwrap_err();
        assert!(error.to_string().contains("5000 bytes"), "{error}");
    }
}
