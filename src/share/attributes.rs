//! Operations on attributes, also on extended ones.

use std::ffi::CStr;
use std::io;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, XattrFlags};

use super::files::{FRESH, Files, attributes, group, permissions, user};
use super::owners::NAME;
use super::wire::errno;
use super::wire::{Attr, AttrOut, GETATTR_FH, GetattrIn, ROOT, SetattrIn, valid};

/// XATTR_SIZE_MAX and XATTR_LIST_MAX (uapi/linux/limits.h).
const MAX_XATTR: usize = 64 << 10;
/// The only extended attributes that a guest reaches: others have a meaning for the host.
const XATTRS: &[u8] = b"user.";

impl Files {
    /// A file's attributes.
    ///
    /// # Errors
    /// ESTALE if it is not where it was seen last, and those of the host; also below.
    pub fn attributes(&mut self, node: u64, asked: &GetattrIn) -> io::Result<AttrOut> {
        let stat = if asked.flags & GETATTR_FH != 0 {
            self.tree.shown(&*self.handle(node, asked.fh)?.file, c"")?
        } else {
            self.tree.stat(node)?
        };
        let attr = attributes(&stat, self.tree.nodes.get(node)?.alias);
        Ok(valid_for_now(attr))
    }

    /// Change those of a file's attributes that are marked as valid.
    ///
    /// # Errors
    /// EPERM for permissions and owners of devices, and for the shared folder itself; as above.
    pub fn set_attributes(&mut self, node: u64, asked: &SetattrIn) -> io::Result<AttrOut> {
        self.writable()?;
        let kind = self.tree.nodes.get(node)?.identity.kind;
        let has = |bits: u32| asked.valid & bits != 0;
        if has(valid::ATIME | valid::MTIME) {
            changeable(node)?;
        }
        // In an attribute the owner of the folder itself means nothing to the host.
        if has(valid::UID | valid::GID) && self.tree.owners.are_hosts() {
            changeable(node)?;
        }
        if has(valid::MODE) && !self.has_mode(node, permissions(asked.mode))? {
            changeable(node)?;
        }
        if has(valid::MODE | valid::UID | valid::GID)
            && matches!(kind, libc::S_IFCHR | libc::S_IFBLK)
        {
            // The guest must not change who may use a device.
            return Err(errno(libc::EPERM));
        }
        if has(valid::MODE) {
            self.set_mode(node, permissions(asked.mode))?;
        }
        if has(valid::UID | valid::GID) {
            let owner = has(valid::UID).then(|| user(asked.uid)).transpose()?;
            let group = has(valid::GID).then(|| group(asked.gid)).transpose()?;
            let file = self.tree.reach(node)?;
            self.tree.owners.set(&file, owner, group)?;
        }
        if has(valid::SIZE) {
            let own = has(valid::FH).then(|| self.handle(node, asked.fh));
            match own.transpose()? {
                Some(handle) => rustix::fs::ftruncate(&handle.file, asked.size)?,
                None => {
                    let file = self.tree.open(node, OFlags::WRONLY)?;
                    rustix::fs::ftruncate(file, asked.size)?;
                }
            }
        }
        if has(valid::ATIME | valid::MTIME) {
            let times = times(asked);
            let (links, _file, link) = self.tree.link(node)?;
            rustix::fs::utimensat(links, link, &times, AtFlags::empty())?;
        }
        self.attributes(node, &GetattrIn::default())
    }

    /// Whether the file has this mode already.
    fn has_mode(&mut self, node: u64, mode: Mode) -> io::Result<bool> {
        let now = self.tree.stat(node)?.stx_mode;
        Ok(u32::from(now) & 0o7777 == mode.bits())
    }

    fn set_mode(&mut self, node: u64, mode: Mode) -> io::Result<()> {
        let (links, _file, link) = self.tree.link(node)?;
        Ok(rustix::fs::chmodat(links, link, mode, AtFlags::empty())?)
    }

    /// The path of the node for calls on extended attributes, which take no O_PATH descriptor.
    fn attributed(
        &mut self,
        node: u64,
    ) -> io::Result<(std::sync::Arc<std::os::fd::OwnedFd>, String)> {
        if !self.config.xattrs {
            return Err(errno(libc::ENOSYS)); // the guest's kernel does not ask again
        }
        let (_, file, link) = self.tree.link(node)?;
        Ok((file, format!("/proc/self/fd/{link}")))
    }

    /// Set an extended attribute.
    ///
    /// # Errors
    /// ENOSYS if the share has none, EOPNOTSUPP for one that does not begin with `user.`; as above.
    pub fn set_xattr(
        &mut self,
        node: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        let (_file, path) = self.attributed(node)?;
        self.writable()?;
        changeable(node)?;
        let flags = XattrFlags::from_bits(flags).ok_or(errno(libc::EINVAL))?;
        Ok(rustix::fs::setxattr(path, users(name)?, value, flags)?)
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// ENOSYS if the share has none, EOPNOTSUPP outside of `user.`, and the errno of the host.
    pub fn xattr(&mut self, node: u64, name: &CStr) -> io::Result<Vec<u8>> {
        let (_file, path) = self.attributed(node)?;
        let mut value = Vec::with_capacity(MAX_XATTR);
        rustix::fs::getxattr(
            path,
            users(name)?,
            rustix::buffer::spare_capacity(&mut value),
        )?;
        Ok(value)
    }

    /// The names of a file's extended attributes, each with a NUL.
    ///
    /// # Errors
    /// ENOSYS if the share has none, EOPNOTSUPP outside of `user.`, and the errno of the host.
    pub fn xattrs(&mut self, node: u64) -> io::Result<Vec<u8>> {
        let (_file, path) = self.attributed(node)?;
        let mut names = Vec::with_capacity(MAX_XATTR);
        rustix::fs::listxattr(path, rustix::buffer::spare_capacity(&mut names))?;
        let names = names.split_inclusive(|byte| *byte == 0);
        Ok(names
            .filter(|name| name.starts_with(XATTRS) && *name != NAME.to_bytes_with_nul())
            .flatten()
            .copied()
            .collect())
    }

    /// Remove an extended attribute.
    ///
    /// # Errors
    /// ENOSYS if the share has none, EOPNOTSUPP outside of `user.`, and the errno of the host.
    pub fn remove_xattr(&mut self, node: u64, name: &CStr) -> io::Result<()> {
        let (_file, path) = self.attributed(node)?;
        self.writable()?;
        changeable(node)?;
        Ok(rustix::fs::removexattr(path, users(name)?)?)
    }
}

/// Refuse a change of the shared folder itself, which is the host's: only what is in it is the guest's.
fn changeable(node: u64) -> io::Result<()> {
    match node {
        ROOT => Err(errno(libc::EPERM)),
        _ => Ok(()),
    }
}

/// The name, unless it is hull's own: with that an owner of a file in the guest could give it away.
fn users(name: &CStr) -> io::Result<&CStr> {
    match name.to_bytes().starts_with(XATTRS) && name != NAME {
        true => Ok(name),
        false => Err(errno(libc::EOPNOTSUPP)),
    }
}

fn valid_for_now(attr: Attr) -> AttrOut {
    AttrOut {
        attr_valid: FRESH,
        attr,
        ..AttrOut::default()
    }
}

fn times(asked: &SetattrIn) -> Timestamps {
    let time = |given: u32, now: u32, tv_sec: i64, nsec: u32| {
        if asked.valid & now != 0 {
            Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_NOW,
            }
        } else if asked.valid & given != 0 {
            Timespec {
                tv_sec,
                tv_nsec: nsec.into(),
            }
        } else {
            Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_OMIT,
            }
        }
    };
    Timestamps {
        last_access: time(
            valid::ATIME,
            valid::ATIME_NOW,
            asked.atime,
            asked.atime_nsec,
        ),
        last_modification: time(
            valid::MTIME,
            valid::MTIME_NOW,
            asked.mtime,
            asked.mtime_nsec,
        ),
    }
}
