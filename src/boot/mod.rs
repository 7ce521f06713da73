//! From the bytes of a kernel to an [`Entry`]: guest memory filled, and where to start.
//!
//! This module writes bytes into guest memory and knows nothing of KVM: `kvm::regs` turns an
//! [`Entry`] into registers.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )
)]

pub mod elf;
pub mod error;
pub mod flat;
pub mod linux64;
pub mod ram;
pub mod tables;

pub use error::BootError;

use crate::memory::GuestMemory;
use crate::memory::layout::BOOT_PARAMS;

/// How the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit Linux boot protocol: long mode, paging on, RSI = boot_params.
    Linux64,
    /// 32-bit Linux boot protocol: flat protected mode, paging off, ESI = boot_params.
    Linux32,
    /// PVH: flat protected mode, paging off, EBX = hvm_start_info.
    Pvh,
    /// A flat payload in real mode, CS base 0, IP = entry.
    Flat16,
    /// A flat payload in protected mode, flat segments.
    Flat32,
    /// A flat payload in long mode, identity-mapped.
    Flat64,
}

/// Where the first vCPU starts, and what was put where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The CPU mode and register convention.
    pub mode: Mode,
    /// GPA of the first instruction.
    pub rip: u64,
    /// GPA of boot_params or hvm_start_info; 0 for flat payloads.
    pub params: u64,
}

/// What a kernel gets beside itself.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// The initial RAM disk; empty for none.
    pub initrd: &'a [u8],
    /// The kernel command line.
    pub cmdline: &'a str,
}

/// Detect `kernel` by its content and load it into fresh guest memory, with all that it needs to
/// start: GDT, page tables and, for Linux, boot parameters. Flat payloads take no [`Plan`].
///
/// # Errors
/// [`BootError`] when the file is no kernel, is damaged, or does not fit.
pub fn load(memory: &GuestMemory, kernel: &[u8], plan: &Plan) -> Result<Entry, BootError> {
    let entry = if kernel.starts_with(flat::MAGIC) {
        flat::load(memory, kernel)?
    } else if kernel.starts_with(elf::MAGIC) {
        load_vmlinux(memory, kernel, plan)?
    } else {
        return Err(refusal(kernel));
    };
    tables::write(memory, entry.mode)?;
    Ok(entry)
}

fn load_vmlinux(memory: &GuestMemory, kernel: &[u8], plan: &Plan) -> Result<Entry, BootError> {
    let elf = elf::Elf::parse(kernel)?;
    if !elf.is_64_bit() {
        return Err(BootError::Unknown {
            looks_like: "a 32-bit ELF file",
        });
    }
    let rip = elf.check_entry(elf.entry())?;
    let range = elf.load(memory)?;
    let initrd = match plan.initrd {
        [] => 0..0,
        initrd => linux64::place_initrd(memory, &range, initrd)?,
    };
    linux64::write(memory, plan.cmdline, &initrd)?;
    Ok(Entry {
        mode: Mode::Linux64,
        rip,
        params: BOOT_PARAMS,
    })
}

/// Say what a file that is no kernel looks like.
fn refusal(bytes: &[u8]) -> BootError {
    let looks_like = match bytes {
        [] => return BootError::Empty,
        _ if bytes.get(0x202..0x206) == Some(b"HdrS") => "a bzImage (use the vmlinux inside it)",
        [0x1f, 0x8b, ..] => "a gzip file (unpack it first)",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a zstd file (unpack it first)",
        [0xfd, b'7', b'z', ..] => "an xz file (unpack it first)",
        _ if bytes
            .iter()
            .take(512)
            .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) =>
        {
            "a text file"
        }
        _ => "unknown data",
    };
    BootError::Unknown { looks_like }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::ram::tests::memory;
    use super::*;

    const NO_PLAN: Plan = Plan {
        initrd: &[],
        cmdline: "",
    };

    fn message(bytes: &[u8]) -> String {
        load(&memory(2), bytes, &NO_PLAN).unwrap_err().to_string()
    }

    /// A 64-bit ELF executable of one segment at 1 MiB with `code` in it.
    fn elf(code: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let (start, size) = (0x10_0000u64, code.len() as u64);
        for half in [2u16, 62] {
            file.extend(half.to_le_bytes());
        }
        file.extend(1u32.to_le_bytes());
        for word in [start, 64, 0] {
            file.extend(word.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, 1, 0, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for half in [1u32, 5] {
            file.extend(half.to_le_bytes());
        }
        for word in [120, start, start, size, size + 64, 4096] {
            file.extend(u64::to_le_bytes(word));
        }
        file.extend(code);
        file
    }

    #[test]
    fn files_that_are_no_kernel_are_named() {
        assert!(message(b"").contains("empty"));
        assert!(message(b"hello\n").contains("a text file"));
        assert!(message(&[0x1f, 0x8b, 8]).contains("gzip"));
        assert!(message(&[0, 1, 2, 3]).contains("unknown data"));
    }

    #[test]
    fn an_elf_file_is_loaded_at_its_physical_address() {
        let memory = memory(2);
        let entry = load(&memory, &elf(b"code"), &NO_PLAN).unwrap();
        assert_eq!(
            entry,
            Entry {
                mode: Mode::Linux64,
                rip: 0x10_0000,
                params: BOOT_PARAMS
            }
        );
        assert_eq!(ram::tests::read(&memory, 0x10_0000, 4), b"code");
    }

    #[test]
    fn an_elf_file_cut_anywhere_is_refused() {
        let whole = elf(b"code");
        for end in 0..whole.len() {
            assert!(
                load(&memory(2), &whole[..end], &NO_PLAN).is_err(),
                "cut at {end}"
            );
        }
    }

    proptest! {
        #[test]
        fn mutated_kernels_load_or_are_refused(
            changes in prop::collection::vec((0usize..124, any::<u8>()), 1..8)
        ) {
            let mut bytes = elf(b"code");
            for (at, value) in changes {
                bytes[at] = value;
            }
            let _ = load(&memory(2), &bytes, &NO_PLAN);
        }

        #[test]
        fn mutated_payloads_load_or_are_refused(rest in prop::collection::vec(any::<u8>(), 0..5000)) {
            let bytes = [flat::MAGIC, &rest].concat();
            let _ = load(&memory(2), &bytes, &NO_PLAN);
        }
    }
}
