//! From the bytes of a kernel to an [`Entry`]: guest memory filled, and where to start.
//!
//! This module writes bytes into guest memory and knows nothing of KVM: `kvm::regs` turns an
//! [`Entry`] into registers.

use crate::memory::layout::MmioSlot;

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

/// What a loader needs to know of the machine beside its memory.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// vCPUs, 1 to [`crate::memory::layout::MAX_CPUS`].
    pub cpus: u8,
    /// The virtio-mmio windows in use.
    pub virtio: &'a [MmioSlot],
}
