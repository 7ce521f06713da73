//! Builds paths and numbers in a buffer.

use core::ffi::CStr;

/// Concatenate `parts` to a C string. `None` if they do not fit into `buffer` or contain a NUL.
pub fn join<'a>(buffer: &'a mut [u8], parts: &[&[u8]]) -> Option<&'a CStr> {
    let mut len = 0;
    for part in parts.iter().chain(&[&b"\0"[..]]) {
        buffer.get_mut(len..len + part.len())?.copy_from_slice(part);
        len += part.len();
    }
    CStr::from_bytes_with_nul(buffer.get(..len)?).ok()
}

/// `number` in decimal, and the number of leading zeros to skip.
pub fn decimal(number: u8) -> ([u8; 3], usize) {
    let digits = [number / 100, number / 10 % 10, number % 10].map(|digit| b'0' + digit);
    let zeros = match number {
        0..10 => 2,
        10..100 => 1,
        _ => 0,
    };
    (digits, zeros)
}
