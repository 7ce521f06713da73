//! Locks that the guest shares with the host (`lock=host`).
//!
//! A lock of flock(2) belongs to an open file, which is one on the host, too. One of fcntl(2) belongs
//! to a process, which in the guest is an owner's number: each owner that locks a file has an open
//! file of its own on the host, and there locks that belong to it (F_OFD_SETLK, fcntl(2)).

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::FcntlArg;
use rustix::fs::{FlockOperation, OFlags};

use super::files::Files;
use super::wire::errno;
use super::wire::{LK_FLOCK, LkIn, Lock};

/// The end of a lock to the end of the file (OFFSET_MAX, linux/fs.h).
const END: u64 = i64::MAX as u64;

impl Files {
    /// A lock that is in the way of one of fcntl(2); its kind is F_UNLCK if there is none.
    ///
    /// # Errors
    /// ENOSYS if the share has no locks of the host; EINVAL for a range or kind that there is not;
    /// EMFILE, and those of the host; also below.
    pub fn lock_in_the_way(&mut self, node: u64, asked: &LkIn) -> io::Result<Lock> {
        let mut lock = self.checked(asked)?;
        let locker = self.locker(node, asked.owner)?;
        nix::fcntl::fcntl(locker, FcntlArg::F_OFD_GETLK(&mut lock))?;
        let start = lock.l_start as u64;
        Ok(Lock {
            start,
            end: match lock.l_len {
                0 => END,
                len => start + len as u64 - 1,
            },
            kind: lock.l_type as u32,
            pid: 0, // of the host
        })
    }

    /// Set or remove a lock.
    ///
    /// # Errors
    /// EAGAIN: another one is in the way.
    pub fn lock(&mut self, node: u64, asked: &LkIn) -> io::Result<()> {
        let lock = self.checked(asked)?;
        if asked.lk_flags & LK_FLOCK != 0 {
            let operation = match i32::from(lock.l_type) {
                libc::F_RDLCK => FlockOperation::NonBlockingLockShared,
                libc::F_WRLCK => FlockOperation::NonBlockingLockExclusive,
                _ => FlockOperation::NonBlockingUnlock,
            };
            let file = &self.handle(node, asked.fh)?.file;
            return Ok(rustix::fs::flock(file, operation)?);
        }
        if i32::from(lock.l_type) == libc::F_UNLCK
            && !self.lockers.contains_key(&(node, asked.owner))
        {
            return Ok(());
        }
        let locker = self.locker(node, asked.owner)?;
        nix::fcntl::fcntl(locker, FcntlArg::F_OFD_SETLK(&lock))?;
        Ok(())
    }

    /// An owner has closed the file: its locks of fcntl(2) end.
    ///
    /// # Errors
    /// ENOSYS if the share has no locks of the host: nothing else is left to do at a close.
    pub fn unlock_all(&mut self, node: u64, owner: u64) -> io::Result<()> {
        if !self.config.host_locks {
            return Err(errno(libc::ENOSYS));
        }
        self.lockers.remove(&(node, owner));
        Ok(())
    }

    fn checked(&self, asked: &LkIn) -> io::Result<libc::flock> {
        if !self.config.host_locks {
            return Err(errno(libc::ENOSYS));
        }
        let Lock {
            start, end, kind, ..
        } = asked.lock;
        let kind = kind as i32;
        let known = matches!(kind, libc::F_RDLCK | libc::F_WRLCK | libc::F_UNLCK);
        if !known || start > end || end > END {
            return Err(errno(libc::EINVAL));
        }
        Ok(libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: start as i64,
            l_len: match end {
                END => 0,
                end => (end - start + 1) as i64,
            },
            l_pid: 0,
        })
    }

    /// The open file by which `owner` locks the node.
    fn locker(&mut self, node: u64, owner: u64) -> io::Result<&OwnedFd> {
        if !self.lockers.contains_key(&(node, owner)) {
            let mut file = Err(errno(libc::EROFS));
            if self.writable().is_ok() {
                file = self.open_node(node, OFlags::RDWR);
            }
            let file = file.or_else(|_| self.open_node(node, OFlags::RDONLY))?;
            self.lockers.insert((node, owner), file);
        }
        self.lockers.get(&(node, owner)).ok_or(errno(libc::EBADF))
    }
}
