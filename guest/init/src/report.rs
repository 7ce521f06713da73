//! The guest's end of `hull top` and `hull stats`: files of /proc, each ended by a NUL, from a process of its
//! own. /proc/meminfo comes first, and then three of each process: status, stat and cmdline, whose arguments
//! have spaces between them.
//!
//! Left out are init, this process, and those without arguments: the kernel's threads.

use core::ffi::CStr;

use crate::sys;
use crate::text::{each_entry, join, write_all};

/// Bytes of each file.
const MAX_FILE: usize = 4096;
const INIT: &[u8] = b"1";

/// Write the files to standard output; the status to exit with.
pub fn run() -> i32 {
    match all() {
        Ok(()) => 0,
        Err(sys::Errno(errno)) => errno,
    }
}

fn all() -> sys::Result<()> {
    let mut file = [0; MAX_FILE];
    send(c"/proc/meminfo", &mut file)?;
    let folder = sys::open(c"/proc", sys::O_DIRECTORY)?;
    each_entry(folder, |name| {
        let number = core::str::from_utf8(name).ok().and_then(|it| it.parse().ok());
        let left_out = number.is_none_or(|it: usize| it == sys::pid()) || name == INIT;
        if left_out { Ok(()) } else { process(name, &mut file) }
    })
}

/// Send what there is of a process; nothing if it has ended.
fn process(name: &[u8], file: &mut [u8; MAX_FILE]) -> sys::Result<()> {
    let mut paths = [[0; 64]; 3];
    let [status, stat, arguments] = &mut paths;
    let path = |space, last| join(space, &[b"/proc/", name, last]).ok_or(sys::ENAMETOOLONG);
    let arguments = path(arguments, &b"/cmdline"[..])?;
    if read(arguments, file) == 0 {
        return Ok(());
    }
    send(path(status, b"/status")?, file)?;
    send(path(stat, b"/stat")?, file)?;
    send(arguments, file)
}

fn send(path: &CStr, file: &mut [u8; MAX_FILE]) -> sys::Result<()> {
    let len = read(path, file);
    let bytes = file.get_mut(..len).unwrap_or_default();
    for byte in bytes.iter_mut().filter(|byte| **byte == 0) {
        *byte = b' ';
    }
    write_all(bytes)?;
    write_all(b"\0")
}

/// The beginning of a file; 0 bytes of one that cannot be read.
fn read(path: &CStr, file: &mut [u8; MAX_FILE]) -> usize {
    let Ok(fd) = sys::open(path, sys::O_RDONLY) else {
        return 0;
    };
    let mut len = 0;
    while let Some(space) = file.get_mut(len..).filter(|space| !space.is_empty()) {
        match sys::read(fd, space) {
            Ok(more @ 1..) => len += more,
            _ => break,
        }
    }
    sys::close(fd);
    len
}
