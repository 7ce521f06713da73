//! The file system that a guest reaches: the files of one folder, without what a guest must not do.
//! The operations on names are in `names`, those on open files in `data`, those on attributes in
//! `attributes`, those on locks in `locks`.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, Statx};
use rustix::process::Resource;
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::config::Config;
use super::listing::Listing;
use super::owners::Owners;
use super::tree::{Entry, REACH, Tree};
use super::wire::errno;
use super::wire::{ATTR_SUBMOUNT, Attr, EntryOut, InHeader, StatfsOut, init};

/// Seconds for which the guest may cache names and attributes, and so how late it sees changes of the
/// host. Data is read again at every open.
pub const FRESH: u64 = 1;

/// Descriptors that the guest must leave for the server itself.
const SPARE: u64 = 32;
/// Most descriptors by which files are reached, and the part of all that they may be.
const MAX_REACHED: u64 = 1024;
const REACHED_PART: u64 = 8;

/// Bits of a mode: set-user-ID and set-group-ID, which a guest cannot give to a file of the host.
const SET_ID: u32 = 0o6000;

/// Flags of open(2) that are passed on: the others only matter to the guest's kernel, or would open
/// another object than the requested one.
const OPEN_FLAGS: OFlags = OFlags::RWMODE
    .union(OFlags::APPEND)
    .union(OFlags::TRUNC)
    .union(OFlags::EXCL)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC);

/// A file that the guest has open.
pub(super) struct Handle {
    pub node: u64,
    pub file: Arc<OwnedFd>,
    /// Its file description has O_APPEND.
    pub appends: bool,
    /// What was read of a folder.
    pub listing: Listing,
}

/// Who asks: user and group in the guest.
#[derive(Clone, Copy)]
pub struct Caller {
    uid: u32,
    gid: u32,
}

impl From<&InHeader> for Caller {
    fn from(header: &InHeader) -> Self {
        Self {
            uid: header.uid,
            gid: header.gid,
        }
    }
}

/// The file system of one shared folder.
pub struct Files {
    pub(super) tree: Tree,
    pub(super) config: Config,
    pub(super) handles: HashMap<u64, Handle>,
    last_handle: u64,
    /// Bytes of all listings.
    pub(super) listed: usize,
    /// The open file by which each of the guest's owners of locks holds them: by node and owner.
    pub(super) lockers: HashMap<(u64, u64), OwnedFd>,
    /// The folder itself.
    folder: OwnedFd,
    /// The limit of open files of the process.
    pub(super) limit: u64,
    /// The guest was refused because no descriptor was left.
    full: bool,
    /// The warning about that was given for this mount.
    warned: bool,
    /// Between FUSE_INIT and FUSE_DESTROY.
    mounted: bool,
}

impl Files {
    /// The file system of `folder`, which may be renamed, with the options of `config`.
    ///
    /// # Errors
    /// /proc is not mounted, or no descriptor is left.
    pub fn new(folder: OwnedFd, config: &Config) -> io::Result<Self> {
        // The guest's kernel has applied its own.
        rustix::process::umask(Mode::empty());
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let limit = limit.current.unwrap_or(u64::MAX);
        let reached = (limit / REACHED_PART).min(MAX_REACHED) as usize;
        Ok(Self {
            tree: Tree::new(
                folder.try_clone()?,
                NonZeroUsize::new(reached).unwrap_or(NonZeroUsize::MIN),
                Owners::of(rustix::process::geteuid()),
            )?,
            config: config.clone(),
            handles: HashMap::new(),
            last_handle: 0,
            listed: 0,
            lockers: HashMap::new(),
            folder,
            limit,
            full: false,
            warned: false,
            mounted: false,
        })
    }

    /// The guest mounts the folder; returns which of the `offered` features are used (FUSE_INIT).
    pub fn mount(&mut self, offered: u32) -> u32 {
        self.mounted = true;
        let locks = if self.config.host_locks {
            init::POSIX_LOCKS | init::FLOCK_LOCKS
        } else {
            0
        };
        let wanted = init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::AUTO_INVAL_DATA
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES
            | init::SUBMOUNTS;
        offered & (wanted | locks)
    }

    /// Close and forget all that the guest has opened.
    ///
    /// # Errors
    /// The folder has gone.
    pub fn unmount(&mut self) -> io::Result<()> {
        self.handles.clear();
        self.lockers.clear();
        self.listed = 0;
        (self.full, self.warned, self.mounted) = (false, false, false);
        self.tree.reset()
    }

    /// Whether the guest may hold files.
    pub fn is_mounted(&self) -> bool {
        self.mounted
    }

    /// A warning for the user, once a mount.
    pub fn warning(&mut self) -> Option<String> {
        if !self.full || std::mem::replace(&mut self.warned, true) {
            return None;
        }
        Some(format!(
            "the guest has as many files open as hull may ({}); raise the limit (ulimit -Hn), or \
             close some in the guest",
            self.limit
        ))
    }

    /// Refuse a change of a folder that is shared for reading.
    pub(super) fn writable(&self) -> io::Result<()> {
        if self.config.read_only {
            return Err(errno(libc::EROFS));
        }
        Ok(())
    }

    /// Refuse to open another file when too few descriptors are left. To be called right before that,
    /// when what is needed for it is open.
    pub(super) fn room(&mut self) -> io::Result<()> {
        loop {
            // The kernel gives the lowest free number, here and to the file.
            let next = rustix::io::dup(&self.folder).map(|next| next.as_raw_fd() as u64);
            if next.is_ok_and(|next| next + SPARE < self.limit) {
                return Ok(());
            }
            if !self.tree.close_unused() {
                self.full = true;
                return Err(errno(libc::EMFILE));
            }
        }
    }

    /// Open a file or folder, if there is room for that.
    pub(super) fn open_node(&mut self, node: u64, flags: OFlags) -> io::Result<OwnedFd> {
        let reached = self.tree.reach(node)?;
        self.room()?;
        self.tree.reopen(node, &reached, flags)
    }

    /// The flags to open a file with, if the guest may open it so.
    pub(super) fn open_flags(&self, flags: u32) -> io::Result<OFlags> {
        let flags = OFlags::from_bits_retain(flags) & OPEN_FLAGS;
        let access = flags & OFlags::RWMODE;
        if access == OFlags::RWMODE {
            return Err(errno(libc::EINVAL));
        }
        if access != OFlags::RDONLY || flags.contains(OFlags::TRUNC) {
            self.writable()?;
        }
        Ok(flags)
    }

    /// Keep `file` open for the guest; returns its handle.
    pub(super) fn keep(&mut self, node: u64, file: OwnedFd, flags: OFlags) -> u64 {
        self.last_handle += 1;
        let file = Arc::new(file);
        self.tree.nodes.opened(node, self.last_handle, file.clone());
        let handle = Handle {
            node,
            file,
            appends: flags.contains(OFlags::APPEND),
            listing: Listing::default(),
        };
        self.handles.insert(self.last_handle, handle);
        self.last_handle
    }

    /// The open file with this handle.
    ///
    /// # Errors
    /// EBADF if the node has no such.
    pub(super) fn handle(&self, node: u64, handle: u64) -> io::Result<&Handle> {
        let found = self.handles.get(&handle);
        found
            .filter(|open| open.node == node)
            .ok_or(errno(libc::EBADF))
    }

    /// Make something in the host's folder as the guest's user, where hull may act as one.
    pub(super) fn as_caller<T>(
        &self,
        caller: Caller,
        make: impl FnOnce() -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        if !self.tree.owners.are_hosts() || (caller.uid, caller.gid) == (0, 0) {
            return Ok(make()?);
        }
        let _acting = Acting::start(caller)?;
        Ok(make()?)
    }

    /// Make `caller` the owner of the new file `name` in `folder`, unless the host has done so.
    pub(super) fn give_named(&self, caller: Caller, folder: &OwnedFd, name: &CStr) {
        if !self.tree.owners.are_hosts()
            && let Ok(file) = rustix::fs::openat(folder, name, REACH, Mode::empty())
        {
            self.give(caller, &file);
        }
    }

    /// The same for the open `file`. What cannot have an owner in the guest stays the host's user's.
    pub(super) fn give(&self, caller: Caller, file: &OwnedFd) {
        if !self.tree.owners.are_hosts()
            && let (Ok(user), Ok(group)) = (user(caller.uid), group(caller.gid))
        {
            let _ = self.tree.owners.set(file, Some(user), Some(group));
        }
    }

    /// Look `child` up in the folder `parent`.
    ///
    /// # Errors
    /// Those of the host.
    pub fn look_up(&mut self, parent: u64, child: &CStr) -> io::Result<EntryOut> {
        let child = name(child)?;
        let folder = self.tree.reach(parent)?;
        let found = self.tree.look_up(parent, &folder, child)?;
        Ok(entry(&found))
    }

    /// The guest forgets a node.
    pub fn forget(&mut self, node: u64, count: u64) {
        self.tree.forget(node, count);
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// Those of the host.
    pub fn read_link(&mut self, node: u64) -> io::Result<Vec<u8>> {
        let link = self.tree.reach(node)?;
        let target = rustix::fs::readlinkat(&*link, c"", Vec::new())?;
        Ok(target.into_bytes())
    }

    /// The space of the file system on which a node is.
    ///
    /// # Errors
    /// Those of the host.
    pub fn space(&mut self, node: u64) -> io::Result<StatfsOut> {
        let file = self.tree.reach(node)?;
        let space = rustix::fs::fstatvfs(&*file)?;
        Ok(StatfsOut {
            blocks: space.f_blocks,
            bfree: space.f_bfree,
            bavail: space.f_bavail,
            files: space.f_files,
            ffree: space.f_ffree,
            bsize: space.f_bsize as u32,
            namelen: space.f_namemax as u32,
            frsize: space.f_frsize as u32,
            ..StatfsOut::default()
        })
    }
}

/// The calling thread acts as a guest's user until this is dropped.
struct Acting;

impl Acting {
    fn start(caller: Caller) -> io::Result<Self> {
        let (uid, gid) = (user(caller.uid)?, group(caller.gid)?);
        let acting = Self;
        rustix::thread::set_thread_res_gid(None, gid, None)?;
        rustix::thread::set_thread_res_uid(None, uid, None)?;
        // The guest's kernel has checked the permissions, with groups that hull does not know.
        let now = rustix::thread::capabilities(None)?;
        let effective = now.permitted & CapabilitySet::DAC_OVERRIDE;
        rustix::thread::set_capabilities(None, CapabilitySets { effective, ..now })?;
        Ok(acting)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        // Cannot fail: the real user and group are the superuser's.
        let _ = rustix::thread::set_thread_res_uid(None, rustix::fs::Uid::ROOT, None);
        let _ = rustix::thread::set_thread_res_gid(None, rustix::fs::Gid::ROOT, None);
        // With another group alone the user is still the superuser, who gets nothing back.
        if let Ok(now) = rustix::thread::capabilities(None) {
            let effective = now.permitted;
            let _ = rustix::thread::set_capabilities(None, CapabilitySets { effective, ..now });
        }
    }
}

/// A user's number; -1, which stands for "no change", is none.
pub(super) fn user(raw: u32) -> io::Result<rustix::fs::Uid> {
    match raw {
        u32::MAX => Err(errno(libc::EINVAL)),
        raw => Ok(rustix::fs::Uid::from_raw(raw)),
    }
}

/// A group's number, as for [`user`].
pub(super) fn group(raw: u32) -> io::Result<rustix::fs::Gid> {
    match raw {
        u32::MAX => Err(errno(libc::EINVAL)),
        raw => Ok(rustix::fs::Gid::from_raw(raw)),
    }
}

/// Refuse a name that leads out of its folder.
pub(super) fn name(name: &CStr) -> io::Result<&CStr> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(errno(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(errno(libc::EINVAL)),
        _ => Ok(name),
    }
}

/// The permissions of a mode, without what a guest cannot give.
pub(super) fn permissions(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777 & !SET_ID)
}

/// An entry as the guest is told.
pub(super) fn entry(found: &Entry) -> EntryOut {
    let mut attr = attributes(&found.stat, found.alias);
    if found.submount {
        attr.flags = ATTR_SUBMOUNT;
    }
    EntryOut {
        node: found.number,
        entry_valid: FRESH,
        attr_valid: FRESH,
        attr,
        ..EntryOut::default()
    }
}

/// A file's attributes.
pub(super) fn attributes(stat: &Statx, alias: u64) -> Attr {
    let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
    Attr {
        ino: stat.stx_ino ^ alias,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: stat.stx_atime.tv_sec,
        mtime: stat.stx_mtime.tv_sec,
        ctime: stat.stx_ctime.tv_sec,
        atime_nsec: stat.stx_atime.tv_nsec,
        mtime_nsec: stat.stx_mtime.tv_nsec,
        ctime_nsec: stat.stx_ctime.tv_nsec,
        mode: stat.stx_mode.into(),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        // As new_encode_dev() of linux/kdev_t.h.
        rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        blksize: stat.stx_blksize,
        flags: 0,
    }
}
