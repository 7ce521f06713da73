//! Operations on names: make, remove, rename, link.

use std::ffi::CStr;
use std::io;

use rustix::fs::{AtFlags, FileType, OFlags, RenameFlags};

use super::files::{Caller, Files, entry, name, permissions};
use super::wire::errno;
use super::wire::{CreateIn, EntryOut, OpenOut};

/// What a guest may do by renameat2(2): not RENAME_WHITEOUT, which makes a device node.
const RENAMES: RenameFlags = RenameFlags::NOREPLACE.union(RenameFlags::EXCHANGE);

impl Files {
    /// Make a symbolic link `child` in `parent`.
    ///
    /// # Errors
    /// EROFS, EINVAL for a name that leads elsewhere, and those of the host; also below.
    pub fn symlink(
        &mut self,
        caller: Caller,
        target: &CStr,
        parent: u64,
        child: &CStr,
    ) -> io::Result<EntryOut> {
        self.writable()?;
        let child = name(child)?;
        let folder = self.tree.reach(parent)?;
        self.as_caller(caller, || rustix::fs::symlinkat(target, &*folder, child))?;
        self.look_up(parent, child)
    }

    /// Make a regular file, a FIFO or a socket.
    ///
    /// # Errors
    /// EPERM for other types.
    pub fn make_node(
        &mut self,
        caller: Caller,
        parent: u64,
        child: &CStr,
        mode: u32,
    ) -> io::Result<EntryOut> {
        self.writable()?;
        let kind = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => FileType::RegularFile,
            libc::S_IFIFO => FileType::Fifo,
            libc::S_IFSOCK => FileType::Socket,
            _ => return Err(errno(libc::EPERM)),
        };
        let child = name(child)?;
        let folder = self.tree.reach(parent)?;
        self.as_caller(caller, || {
            rustix::fs::mknodat(&*folder, child, kind, permissions(mode), 0)
        })?;
        self.give_named(caller, &folder, child);
        self.look_up(parent, child)
    }

    /// Make a folder.
    ///
    /// # Errors
    /// EROFS, EINVAL for a name that leads elsewhere, and the errno of the host's system call.
    pub fn make_folder(
        &mut self,
        caller: Caller,
        parent: u64,
        child: &CStr,
        mode: u32,
    ) -> io::Result<EntryOut> {
        self.writable()?;
        let child = name(child)?;
        let folder = self.tree.reach(parent)?;
        self.as_caller(caller, || {
            rustix::fs::mkdirat(&*folder, child, permissions(mode))
        })?;
        self.give_named(caller, &folder, child);
        self.look_up(parent, child)
    }

    /// Make a file and open it; or open the existing one, unless the guest asks for a new one.
    ///
    /// # Errors
    /// As above; EMFILE if too few descriptors are left.
    pub fn create(
        &mut self,
        caller: Caller,
        parent: u64,
        child: &CStr,
        asked: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)> {
        self.writable()?;
        let (flags, child) = (self.open_flags(asked.flags)?, name(child)?);
        let folder = self.tree.reach(parent)?;
        self.room()?;
        let new = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = self.as_caller(caller, || {
            rustix::fs::openat(&*folder, child, new, permissions(asked.mode))
        });
        let (found, file) = match made {
            Ok(file) => {
                self.give(caller, &file);
                (self.tree.made(parent, child, &file)?, file)
            }
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && !flags.contains(OFlags::EXCL) =>
            {
                let found = self.tree.look_up(parent, &folder, child)?;
                let opened = self.open_node(found.number, flags);
                let file = opened.inspect_err(|_| self.tree.forget(found.number, 1))?;
                (found, file)
            }
            Err(error) => return Err(error),
        };
        let fh = self.keep(found.number, file, flags);
        let opened = OpenOut {
            fh,
            ..OpenOut::default()
        };
        Ok((entry(&found), opened))
    }

    /// Make a file without a name, and open it (O_TMPFILE).
    ///
    /// # Errors
    /// EROFS, EINVAL for a name that leads elsewhere, and the errno of the host's system call.
    pub fn create_nameless(
        &mut self,
        caller: Caller,
        parent: u64,
        asked: &CreateIn,
    ) -> io::Result<(EntryOut, OpenOut)> {
        self.writable()?;
        let flags = self.open_flags(asked.flags)?;
        let folder = self.tree.reach(parent)?;
        self.room()?;
        let new = flags | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = self.as_caller(caller, || {
            rustix::fs::openat(&*folder, c".", new, permissions(asked.mode))
        })?;
        self.give(caller, &file);
        let found = self.tree.adopt(&file)?;
        let fh = self.keep(found.number, file, flags);
        let opened = OpenOut {
            fh,
            ..OpenOut::default()
        };
        Ok((entry(&found), opened))
    }

    /// Remove a file.
    ///
    /// # Errors
    /// EROFS, EINVAL for a name that leads elsewhere, and the errno of the host's system call.
    pub fn unlink(&mut self, parent: u64, child: &CStr) -> io::Result<()> {
        self.remove(parent, child, AtFlags::empty())
    }

    /// Remove an empty folder.
    ///
    /// # Errors
    /// EROFS, EINVAL for a name that leads elsewhere, and the errno of the host's system call.
    pub fn remove_folder(&mut self, parent: u64, child: &CStr) -> io::Result<()> {
        self.remove(parent, child, AtFlags::REMOVEDIR)
    }

    fn remove(&mut self, parent: u64, child: &CStr, flags: AtFlags) -> io::Result<()> {
        self.writable()?;
        let child = name(child)?;
        let folder = self.tree.reach(parent)?;
        let known = self.tree.before_removal(parent, &folder, child);
        rustix::fs::unlinkat(&*folder, child, flags)?;
        if let Some(known) = known {
            self.tree.after_removal(known);
        }
        Ok(())
    }

    /// Rename, within the shared folder.
    ///
    /// # Errors
    /// EINVAL for other flags than RENAME_NOREPLACE and RENAME_EXCHANGE; as above.
    pub fn rename(
        &mut self,
        (from, old): (u64, &CStr),
        (to, new): (u64, &CStr),
        flags: u32,
    ) -> io::Result<()> {
        self.writable()?;
        let flags = RenameFlags::from_bits_retain(flags);
        if !RENAMES.contains(flags) {
            return Err(errno(libc::EINVAL));
        }
        let (old, new) = (name(old)?, name(new)?);
        let (source, target) = (self.tree.reach(from)?, self.tree.reach(to)?);
        let moved = self.tree.before_removal(from, &source, old);
        let replaced = self.tree.before_removal(to, &target, new);
        rustix::fs::renameat_with(&*source, old, &*target, new, flags)?;
        let number = moved.map(|(number, _)| number);
        match replaced {
            // Two names of one file: both stay.
            Some((replaced, _)) if Some(replaced) == number => return Ok(()),
            Some((replaced, _)) if flags.contains(RenameFlags::EXCHANGE) => {
                self.tree.nodes.move_to(replaced, Some((from, old)));
            }
            Some(replaced) => self.tree.after_removal(replaced),
            None => {}
        }
        if let Some(number) = number {
            self.tree.nodes.move_to(number, Some((to, new)));
        }
        Ok(())
    }

    /// Give the file `node` another name, `child` in `parent`.
    ///
    /// # Errors
    /// EROFS, EINVAL for a name that leads elsewhere, and the errno of the host's system call.
    pub fn link(&mut self, node: u64, parent: u64, child: &CStr) -> io::Result<EntryOut> {
        self.writable()?;
        let child = name(child)?;
        let folder = self.tree.reach(parent)?;
        let (links, _file, link) = self.tree.link(node)?;
        rustix::fs::linkat(links, link, &*folder, child, AtFlags::SYMLINK_FOLLOW)?;
        self.look_up(parent, child)
    }
}
