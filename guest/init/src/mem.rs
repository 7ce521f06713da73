//! The memory functions that the compiler calls, which a C library would provide.
//!
//! They use `rep movsb` and `rep stosb` (Intel SDM 2B, REP), because the compiler would turn a loop in
//! Rust into a call of the function itself.

use core::arch::asm;

/// memcpy(3).
///
/// # Safety
/// As memcpy(3): both ranges valid, not overlapping.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

/// memmove(3).
///
/// # Safety
/// As memmove(3): both ranges valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: a copy upwards is right, because `to` does not lie inside the source.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: the caller's promise; downwards from the last byte, the flag cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") len => _,
             inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _, options(nostack));
    }
    to
}

/// memset(3).
///
/// # Safety
/// As memset(3): the range valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8,
             options(nostack, preserves_flags));
    }
    to
}

/// memcmp(3).
///
/// # Safety
/// As memcmp(3): both ranges valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    for i in 0..len {
        // SAFETY: the caller's promise, and i < len.
        let (x, y) = unsafe { (*a.add(i), *b.add(i)) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// bcmp(3), which the compiler calls for comparisons for equality.
///
/// # Safety
/// As memcmp(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, len) }
}

/// strlen(3).
///
/// # Safety
/// As strlen(3): a NUL ends the string.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: the caller's promise: no byte after the NUL is read.
    while unsafe { *string.add(len) } != 0 {
        len += 1;
    }
    len
}
