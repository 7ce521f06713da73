//! The files of the folder by the numbers of their nodes: each is opened from its place when it is
//! needed, and recognized by its identity. The descriptors used last stay open, a bounded number.
//!
//! Names are single ones, of files in a folder that is held by a descriptor, and no symbolic link is
//! followed, so that a change on the host leads at most to another file of the folder, which is then
//! told apart by its identity.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use lru::LruCache;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Statx, StatxFlags, makedev};

use super::nodes::{Identity, Nodes};
use super::owners::Owners;
use super::wire::ROOT;
use super::wire::errno;

/// OVERLAYFS_SUPER_MAGIC (uapi/linux/magic.h). A file's time of creation changes there when it is
/// copied up.
const OVERLAY: u64 = 0x794c_7630;
/// Most file systems below one folder that are told apart by [`Tree::alias`].
const MAX_DEVICES: usize = 0xffff;
/// Opens a file without access to its content; it is then reopened by [`Tree::open`].
pub(super) const REACH: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A file that was looked up.
pub struct Entry {
    /// Number of its node.
    pub number: u64,
    /// Its state on the host.
    pub stat: Statx,
    /// As in the node.
    pub alias: u64,
    /// Another file system than that of its folder begins at it.
    pub submount: bool,
}

/// A file system of the host.
#[derive(Clone, Copy)]
struct Device {
    /// From 1 on.
    number: u64,
    /// A file's time of creation never changes.
    has_births: bool,
}

/// The files of a folder.
pub struct Tree {
    pub nodes: Nodes,
    pub owners: Owners,
    folder: Arc<OwnedFd>,
    devices: HashMap<u64, Device>,
    /// Descriptors of nodes, opened with [`REACH`].
    reached: LruCache<u64, Arc<OwnedFd>>,
    /// /proc/self/fd, by which a descriptor is reopened.
    links: OwnedFd,
    /// One reference for each node with a pin.
    pins: Arc<()>,
}

impl Tree {
    /// The files in `folder`, with the `owners` that the guest sees. At most `most` descriptors are kept for reaching them, and as many for
    /// files that the guest removed and still uses.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn new(folder: OwnedFd, most: NonZeroUsize, owners: Owners) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut tree = Self {
            nodes: Nodes::default(),
            owners,
            folder: Arc::new(folder),
            devices: HashMap::new(),
            reached: LruCache::new(most),
            links: rustix::fs::openat(CWD, "/proc/self/fd", flags, Mode::empty())?,
            pins: Arc::new(()),
        };
        tree.reset()?;
        Ok(tree)
    }

    /// Forget all that was looked up.
    ///
    /// # Errors
    /// The folder has gone, for example with its disk.
    pub fn reset(&mut self) -> io::Result<()> {
        self.reached.clear();
        let stat = stat(&self.folder, c"")?;
        let folder = self.folder.clone();
        let identity = self.identity(&stat, &folder, c"");
        self.nodes.reset(identity, (folder, self.pins.clone()));
        Ok(())
    }

    /// Close what is only kept for speed. Returns whether there was anything.
    pub fn close_unused(&mut self) -> bool {
        let any = !self.reached.is_empty();
        self.reached.clear();
        any
    }

    /// A descriptor of the file, by which it can be examined and reopened, but not read.
    ///
    /// # Errors
    /// ESTALE: the file is not where it was seen last.
    pub fn reach(&mut self, number: u64) -> io::Result<Arc<OwnedFd>> {
        if let Some(found) = self.known(number)? {
            return Ok(found);
        }
        // From the file up to the first folder that is open, then down again.
        let mut way = vec![number];
        let mut at = loop {
            let node = self.nodes.get(way.last().copied().unwrap_or(ROOT))?;
            let (parent, _) = node.place.as_ref().ok_or(errno(libc::ESTALE))?;
            let parent = *parent;
            if let Some(found) = self.known(parent)? {
                break found;
            }
            // Folders that the host moved into each other can have places in a circle.
            if way.len() > self.nodes.count() {
                return Err(errno(libc::ESTALE));
            }
            way.push(parent);
        };
        for number in way.into_iter().rev() {
            let mut next = self.step(&at, number);
            // Many shares together may keep more than there are.
            let none_left = |error: &io::Error| error.raw_os_error() == Some(libc::EMFILE);
            if next.as_ref().is_err_and(none_left) && self.close_unused() {
                next = self.step(&at, number);
            }
            at = match next {
                Ok(next) => {
                    self.reached.put(number, next.clone());
                    next
                }
                Err(error) => self.opened(number).ok_or(error)?,
            };
        }
        Ok(at)
    }

    /// A descriptor that is open already.
    fn known(&mut self, number: u64) -> io::Result<Option<Arc<OwnedFd>>> {
        let node = self.nodes.get(number)?;
        if let Some((pin, _)) = &node.pin {
            return Ok(Some(pin.clone()));
        }
        if let Some(reached) = self.reached.get(&number) {
            return Ok(Some(reached.clone()));
        }
        Ok(match node.place {
            Some(_) => None,
            None => self.opened(number),
        })
    }

    /// One of the guest's open files.
    fn opened(&self, number: u64) -> Option<Arc<OwnedFd>> {
        let node = self.nodes.get(number).ok()?;
        node.handles.first().map(|(_, file)| file.clone())
    }

    /// Open the file whose folder is `parent`.
    fn step(&self, parent: &OwnedFd, number: u64) -> io::Result<Arc<OwnedFd>> {
        let node = self.nodes.get(number)?;
        let (_, name) = node.place.as_ref().ok_or(errno(libc::ESTALE))?;
        let opened = rustix::fs::openat(parent, name, REACH, Mode::empty());
        let file = opened.map_err(stale)?;
        let now = stat(&file, c"")?;
        if self.known_identity(&now) != Some(node.identity) {
            return Err(errno(libc::ESTALE));
        }
        Ok(Arc::new(file))
    }

    /// Open the file with `flags`, if it is a regular file or a folder.
    ///
    /// # Errors
    /// EBADF for others: a device or a FIFO of the host is not opened.
    pub fn open(&mut self, number: u64, flags: OFlags) -> io::Result<OwnedFd> {
        let reached = self.reach(number)?;
        self.reopen(number, &reached, flags)
    }

    /// The same for a file that is reached already.
    ///
    /// # Errors
    /// As there.
    pub fn reopen(&self, number: u64, reached: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
        let kind = self.nodes.get(number)?.identity.kind;
        if !matches!(kind, libc::S_IFREG | libc::S_IFDIR) {
            return Err(errno(libc::EBADF));
        }
        let flags = flags | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.links, link(reached), flags, Mode::empty());
        Ok(opened?)
    }

    /// The folder of links to descriptors, and the name there of the file, for calls that take a
    /// path and follow it.
    ///
    /// # Errors
    /// Those of [`Tree::reach`].
    pub fn link(&mut self, number: u64) -> io::Result<(&OwnedFd, Arc<OwnedFd>, String)> {
        let file = self.reach(number)?;
        let name = link(&file);
        Ok((&self.links, file, name))
    }

    /// The file's state, as the guest sees it.
    ///
    /// # Errors
    /// Those of [`Tree::reach`].
    pub fn stat(&mut self, number: u64) -> io::Result<Statx> {
        if let Some(found) = self.known(number)? {
            return self.shown(&found, c"");
        }
        // Without opening it.
        let place = self.nodes.get(number)?.place.clone();
        let (parent, name) = place.ok_or(errno(libc::ESTALE))?;
        let found = self.reach(parent).and_then(|folder| {
            let now = self
                .shown(&folder, &name)
                .map_err(|error| match error.raw_os_error() {
                    Some(libc::ENOENT | libc::ENOTDIR) => errno(libc::ESTALE),
                    _ => error,
                })?;
            match self.known_identity(&now) == Some(self.nodes.get(number)?.identity) {
                true => Ok(now),
                false => Err(errno(libc::ESTALE)),
            }
        });
        match (found, self.opened(number)) {
            (Err(_), Some(file)) => self.shown(&file, c""),
            (found, _) => found,
        }
    }

    /// The state of `name` in `folder`, or of `folder` itself if the name is empty, as the guest sees it.
    ///
    /// # Errors
    /// Those of the host.
    pub fn shown(&self, folder: impl AsFd, name: &CStr) -> io::Result<Statx> {
        let mut stat = stat(&folder, name)?;
        self.owners.show(folder, name, &mut stat);
        Ok(stat)
    }

    /// Look `name` up in the folder `parent`, of which `folder` is a descriptor. The guest has to
    /// forget the entry's number.
    ///
    /// # Errors
    /// Those of the host, and those of [`Nodes::look_up`].
    pub fn look_up(&mut self, parent: u64, folder: &OwnedFd, name: &CStr) -> io::Result<Entry> {
        let stat = self.shown(folder, name)?;
        let identity = self.identity(&stat, folder, name);
        self.found(parent, name, stat, identity)
    }

    /// As [`Tree::look_up`], for a file that the guest has just made and opened.
    ///
    /// # Errors
    /// As there.
    pub fn made(&mut self, parent: u64, name: &CStr, file: &OwnedFd) -> io::Result<Entry> {
        let stat = self.shown(file, c"")?;
        let identity = self.identity(&stat, file, c"");
        self.found(parent, name, stat, identity)
    }

    fn found(
        &mut self,
        parent: u64,
        name: &CStr,
        stat: Statx,
        identity: Identity,
    ) -> io::Result<Entry> {
        let outer = self.nodes.get(parent)?.identity;
        let elsewhere = identity.device != outer.device;
        let submount = elsewhere && identity.kind == libc::S_IFDIR;
        let alias = if elsewhere && !submount {
            self.alias(identity.device)
        } else {
            0
        };
        let number = self.nodes.look_up(identity, Some((parent, name)), alias)?;
        Ok(Entry {
            number,
            stat,
            alias: self.nodes.get(number)?.alias,
            submount,
        })
    }

    /// A node for a file without a name, which is reached by its open file alone.
    ///
    /// # Errors
    /// As [`Tree::look_up`].
    pub fn adopt(&mut self, file: &OwnedFd) -> io::Result<Entry> {
        let stat = self.shown(file, c"")?;
        let identity = self.identity(&stat, file, c"");
        Ok(Entry {
            number: self.nodes.look_up(identity, None, 0)?,
            stat,
            alias: 0,
            submount: false,
        })
    }

    /// Before `name` is removed from the folder `parent`: the node that loses its place by that, with
    /// a descriptor by which it is reached afterwards.
    pub fn before_removal(
        &mut self,
        parent: u64,
        folder: &OwnedFd,
        name: &CStr,
    ) -> Option<(u64, Option<Arc<OwnedFd>>)> {
        let now = stat(folder, name).ok()?;
        let number = self.nodes.find(&self.known_identity(&now)?)?;
        if !self.nodes.is_at(number, parent, name) {
            return None;
        }
        let room = Arc::strong_count(&self.pins) <= self.reached.cap().get();
        Some((
            number,
            room.then(|| self.reach(number)).and_then(Result::ok),
        ))
    }

    /// What [`Tree::before_removal`] returned has been removed.
    pub fn after_removal(&mut self, (number, file): (u64, Option<Arc<OwnedFd>>)) {
        self.reached.pop(&number);
        let pin = file.map(|file| (file, self.pins.clone()));
        self.nodes.removed(number, pin);
    }

    /// The guest forgets `count` look-ups.
    pub fn forget(&mut self, number: u64, count: u64) {
        if self.nodes.forget(number, count) {
            self.reached.pop(&number);
        }
    }

    /// What is added to the inode numbers of a file that lies in a folder of another file system,
    /// where the guest sees one device number for both.
    fn alias(&self, device: u64) -> u64 {
        let known = self.devices.get(&device);
        known.map_or(MAX_DEVICES as u64, |device| device.number) << 48
    }

    /// The identity of the file `name` in `folder`.
    fn identity(&mut self, stat: &Statx, folder: &OwnedFd, name: &CStr) -> Identity {
        let device = makedev(stat.stx_dev_major, stat.stx_dev_minor);
        if !self.devices.contains_key(&device) && self.devices.len() < MAX_DEVICES {
            let system = match name.is_empty() {
                true => rustix::fs::fstatfs(folder),
                false => rustix::fs::openat(folder, name, REACH, Mode::empty())
                    .and_then(rustix::fs::fstatfs),
            };
            let device_of = Device {
                number: self.devices.len() as u64 + 1,
                has_births: system.is_ok_and(|system| system.f_type as u64 != OVERLAY),
            };
            self.devices.insert(device, device_of);
        }
        identity(stat, self.has_births(device))
    }

    /// The same for a file on a file system that was seen before.
    fn known_identity(&self, stat: &Statx) -> Option<Identity> {
        let device = makedev(stat.stx_dev_major, stat.stx_dev_minor);
        Some(identity(stat, self.has_births(device)))
    }

    fn has_births(&self, device: u64) -> bool {
        self.devices
            .get(&device)
            .is_some_and(|known| known.has_births)
    }
}

fn identity(stat: &Statx, has_births: bool) -> Identity {
    let known = has_births && stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    Identity {
        device: makedev(stat.stx_dev_major, stat.stx_dev_minor),
        inode: stat.stx_ino,
        mount: match stat.stx_mask & StatxFlags::MNT_ID.bits() {
            0 => 0,
            _ => stat.stx_mnt_id,
        },
        kind: u32::from(stat.stx_mode) & libc::S_IFMT,
        born: match known {
            true => (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
            false => (0, 0),
        },
    }
}

/// The state of `name` in `folder`, or of `folder` itself if the name is empty.
fn stat(folder: impl AsFd, name: &CStr) -> io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    Ok(rustix::fs::statx(folder, name, flags, wanted)?)
}

/// The name of a descriptor in /proc/self/fd.
fn link(file: &OwnedFd) -> String {
    file.as_raw_fd().to_string()
}

/// A name that is not there any more says that the file is elsewhere.
fn stale(error: rustix::io::Errno) -> io::Error {
    match error {
        rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => errno(libc::ESTALE),
        error => error.into(),
    }
}
