//! Compare and exchange of 8 or 16 bytes of guest memory, atomic towards other vCPUs.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileMemory};

use crate::memory::GuestMemory;
use crate::memory::dirty;

/// Stores `new` if memory holds `expected`, and returns what it held; `None` if the aligned
/// `size` bytes (8 or 16) at `gpa` are not RAM.
pub fn compare_exchange(
    memory: &GuestMemory,
    gpa: u64,
    size: usize,
    expected: u128,
    new: u128,
) -> Option<u128> {
    let (region, offset) = memory.to_region_addr(GuestAddress(gpa))?;
    let slice = region.get_slice(offset, size).ok()?;
    // What follows goes past vm-memory, which would mark it.
    dirty::mark(memory, GuestAddress(gpa), size);
    if size == 8 {
        let word = slice.get_atomic_ref::<AtomicU64>(0).ok()?;
        let (expected, new) = (expected as u64, new as u64);
        let found = word.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst);
        return Some(u128::from(found.unwrap_or_else(|found| found)));
    }
    let pointer = slice.ptr_guard_mut().as_ptr().cast::<u128>();
    if !pointer.is_aligned() || !std::arch::is_x86_feature_detected!("cmpxchg16b") {
        return None;
    }
    // SAFETY: the slice covers 16 bytes of a live mapping, aligned, and the host has the
    // instruction. Guest memory is only ever touched through volatile and atomic accesses.
    Some(unsafe { exchange_16(pointer, expected, new) })
}

/// LOCK CMPXCHG16B (Intel SDM 2A). `core::arch`'s own needs a C library function when it is not
/// inlined, which a static program does not have.
///
/// # Safety
/// `pointer` is valid for 16 bytes, aligned to 16, and shared only with atomic accesses; the host
/// has the instruction.
unsafe fn exchange_16(pointer: *mut u128, expected: u128, new: u128) -> u128 {
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: the caller's promise; RBX, which the compiler keeps for itself, is put back.
    unsafe {
        std::arch::asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") pointer,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}
