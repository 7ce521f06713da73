//! What hull knows of its own process, from before it gives up the rights to find out.

use std::env;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::ancestors::Ancestors;

/// Longest text of /proc/self/statm: seven numbers.
const MAX_STATM: usize = 7 * 21;
const PROC: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Open files of /proc, `None` where there is none, and the rest.
#[derive(Debug)]
pub struct Own {
    statm: Option<File>,
    /// Which pages are there: 8 bytes each.
    pub pagemap: Option<File>,
    /// The working directory; `None` where it was removed.
    pub folder: Option<PathBuf>,
    /// The processes that could continue it after Ctrl-Z.
    pub ancestors: Ancestors,
    /// /proc/PID of itself: while it is open, the kernel keeps what it knows of it, which a rule of Landlock
    /// refers to.
    pub proc: Option<OwnedFd>,
}

impl Own {
    /// Open them.
    pub fn open() -> Self {
        let open = |name| File::open(format!("/proc/self/{name}")).ok();
        Self {
            statm: open("statm"),
            pagemap: open("pagemap"),
            folder: env::current_dir().ok(),
            ancestors: Ancestors::find(),
            proc: openat(CWD, "/proc/self", PROC, Mode::empty()).ok(),
        }
    }

    /// Resident memory of this process in bytes, its guest's included (proc_pid_statm(5)).
    ///
    /// # Errors
    /// There is no /proc.
    pub fn resident(&self) -> io::Result<u64> {
        let statm = self.statm.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut text = [0; MAX_STATM];
        let read = statm.read_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text[..read]).map_err(io::Error::other)?;
        let pages = text.split(' ').nth(1).and_then(|pages| pages.parse().ok());
        let pages: u64 = pages.ok_or(io::ErrorKind::InvalidData)?;
        Ok(pages * rustix::param::page_size() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_resident_memory() {
        let own = Own::open();
        let (first, again) = (own.resident().unwrap(), own.resident().unwrap());
        assert!(first > 1 << 16 && again > 1 << 16);
        let none = Own {
            statm: None,
            pagemap: None,
            folder: None,
            ancestors: Ancestors::default(),
            proc: None,
        };
        assert!(none.resident().is_err());
    }
}
