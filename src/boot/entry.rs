//! Where a guest starts, and what the tables describe to it: plain data that the loaders share.

use std::ops::Range;
use std::time::Duration;

use linux_loader::loader::bootparam::setup_header;
use serde::{Deserialize, Serialize};

use crate::memory::layout::MmioSlot;

/// The CPU mode and the register convention in which the first vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// The state in which the first vCPU starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The CPU mode, and what the registers hold.
    pub mode: Mode,
    /// GPA of the first instruction.
    pub rip: u64,
    /// GPA of boot_params or hvm_start_info; 0 for flat payloads.
    pub params: u64,
}

/// The machine as the tables describe it, besides its memory.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// vCPUs, 1 to [`crate::memory::layout::MAX_CPUS`].
    pub cpus: u8,
    /// Whether there is a second UART.
    pub com2: bool,
    /// The virtio-mmio slots in use.
    pub virtio: &'a [MmioSlot],
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Kernel {
    /// The state in which it starts.
    pub entry: Entry,
    /// GPAs of the kernel, .bss included.
    pub range: Range<u64>,
    /// The linear address of its first byte, as in `boot::Loaded`.
    pub linked_at: Option<u64>,
    /// How long the host took to unpack it, if it did.
    pub unpacked: Option<Duration>,
    /// The bzImage's setup header, or `linux64::for_vmlinux`.
    pub header: setup_header,
}
