//! Builds paths and numbers in a buffer, reads files of lines and folders, and writes.

use core::ffi::CStr;

use crate::sys;

/// Longest line that is read, in bytes.
const MAX_LINE: usize = 4096;

/// Concatenate `parts` to a C string. `None` if they do not fit into `buffer` or contain a NUL.
pub fn join<'a>(buffer: &'a mut [u8], parts: &[&[u8]]) -> Option<&'a CStr> {
    let mut len = 0;
    for part in parts.iter().chain(&[&b"\0"[..]]) {
        buffer.get_mut(len..len + part.len())?.copy_from_slice(part);
        len += part.len();
    }
    CStr::from_bytes_with_nul(buffer.get(..len)?).ok()
}

/// Write `parts` to a descriptor.
pub fn say_to(fd: sys::Fd, parts: &[&[u8]]) {
    for part in parts {
        let _ = sys::write(fd, part);
    }
}

/// Write all of `bytes` to standard output.
pub fn write_all(mut bytes: &[u8]) -> sys::Result<()> {
    const STDOUT: sys::Fd = 1;
    while !bytes.is_empty() {
        match sys::write(STDOUT, bytes) {
            Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
            Err(sys::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Call `found` with each name in an open folder but `.` and `..`.
pub fn each_entry(
    folder: sys::Fd,
    mut found: impl FnMut(&[u8]) -> sys::Result<()>,
) -> sys::Result<()> {
    let mut entries = [0; 2048];
    loop {
        let read = sys::read_dir(folder, &mut entries)?;
        let mut rest = entries.get(..read).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        // struct linux_dirent64: its length is at 16, the name at 19.
        while let Some(&[a, b]) = rest.get(16..18) {
            let end = usize::from(u16::from_le_bytes([a, b]));
            let name = rest.get(19..end).unwrap_or_default();
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            rest = rest.get(end..).unwrap_or_default();
            if name != b"." && name != b".." {
                found(name)?;
            }
        }
    }
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

/// Call `found` with each line of a file until it returns true.
pub fn each_line(path: &CStr, mut found: impl FnMut(&[u8]) -> bool) {
    let Ok(file) = sys::open(path, sys::O_RDONLY) else {
        return;
    };
    let (mut buffer, mut len) = ([0; MAX_LINE], 0);
    'file: while let Some(space) = buffer.get_mut(len..).filter(|space| !space.is_empty()) {
        let read = sys::read(file, space).unwrap_or(0);
        if read == 0 {
            let _ = found(buffer.get(..len).unwrap_or_default());
            break;
        }
        len += read;
        while let Some(line) = buffer
            .get(..len)
            .and_then(|all| all.split(|&b| b == b'\n').next())
            && line.len() < len
        {
            let end = line.len();
            if found(line) {
                break 'file;
            }
            buffer.copy_within(end + 1..len, 0);
            len -= end + 1;
        }
    }
    sys::close(file);
}
