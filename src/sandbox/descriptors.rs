//! The descriptors that this process inherits from the one that started it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

/// The folders whose entries are descriptors of the process that looks (proc(5)).
const FOLDERS: [&[u8]; 2] = [b"/dev/fd/", b"/proc/self/fd/"];

/// Close all descriptors but the standard streams and those that `arguments` name, as a shell's `<(...)`
/// does: /dev/fd/63. To be called before this process opens anything.
///
/// # Errors
/// The kernel cannot do it, before Linux 5.9.
pub fn close_inherited<T: AsRef<OsStr>>(arguments: impl Iterator<Item = T>) -> io::Result<()> {
    let named = arguments.flat_map(|argument| named(argument.as_ref().as_bytes()));
    let mut kept: Vec<RawFd> = named.filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        if first < fd {
            close_range(first, fd - 1)?;
        }
        first = fd.saturating_add(1);
    }
    close_range(first, RawFd::MAX)
}

/// The descriptors that an argument names.
fn named(argument: &[u8]) -> Vec<RawFd> {
    let found = FOLDERS.iter().flat_map(|folder| {
        let ends = argument.windows(folder.len()).enumerate();
        ends.filter(move |(_, part)| part == folder)
            .map(|(at, _)| &argument[at + folder.len()..])
    });
    let number = |rest: &[u8]| {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
        let digits: Vec<u8> = digits.copied().collect();
        String::from_utf8(digits).ok()?.parse().ok()
    };
    found.filter_map(number).collect()
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: no descriptor from `first` on is open by anything in this process, which has not opened
    // one yet.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_named_by_path_anywhere_in_an_argument() {
        assert_eq!(named(b"--json=/dev/fd/63"), [63]);
        assert_eq!(named(b"id=a,path=/proc/self/fd/7,ro"), [7]);
        assert_eq!(named(b"/dev/fd/3:/dev/fd/4"), [3, 4]);
        for none in [&b"/dev/fd/"[..], b"/dev/fd/x", b"", b"/dev/fd/99999999999"] {
            assert!(named(none).is_empty());
        }
    }
}
