//! The file system that a guest reaches: fuse-backend-rs's passthrough, without what a guest must
//! not do.
//!
//! The operations below are served; for others the trait answers ENOSYS, which Linux takes as "not
//! supported": locks (so they are local to the guest), extended attributes, polling, and FUSE_FLUSH
//! (nothing is left to write when a file is closed).

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, OpenOptions, SetattrValid, ZeroCopyReader,
    ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use rustix::process::Resource;

/// How long the guest may cache names and attributes, and so how late it sees changes of the host.
/// Data is read again at every open.
const FRESH: Duration = Duration::from_secs(1);

/// Descriptors that the guest must leave for the rest of hull.
const SPARE: u64 = 128;
/// Descriptors that a guest may take between two checks of the limit.
const COUNTED: u32 = 32;

/// Bits of a mode: set-user-ID and set-group-ID, which a guest cannot give to a file of the host.
const SET_ID: u32 = 0o6000;
const TYPE: u32 = libc::S_IFMT;

/// Flags of open(2) that are passed on: the others only matter to the guest's kernel, or would open
/// another object than the requested one.
const OPEN_FLAGS: u32 = (libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_TRUNC
    | libc::O_EXCL
    | libc::O_SYNC
    | libc::O_DSYNC) as u32;
/// Those of them that apply to an open file.
const FILE_FLAGS: u32 = OPEN_FLAGS & !(libc::O_TRUNC | libc::O_EXCL) as u32;

/// The file system of one shared folder.
pub struct Confined {
    inner: PassthroughFs,
    read_only: bool,
    /// hull is the superuser: files belong to the guest's users.
    superuser: bool,
    /// The folder itself, to which the name in the crate's configuration leads.
    folder: File,
    /// Descriptors taken since the last check of the limit.
    taken: AtomicU32,
    /// The limit of open files of the process.
    pub(super) limit: u64,
    /// The guest was refused because no descriptor was left.
    full: AtomicBool,
    /// The warning about that was given for this mount.
    warned: AtomicBool,
    /// Between FUSE_INIT and FUSE_DESTROY.
    mounted: AtomicBool,
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl Confined {
    /// The file system of `folder`, which may be renamed.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn new(folder: File, read_only: bool) -> io::Result<Self> {
        let config = Config {
            // The dot has the link followed, which is not done for a path's last part.
            root_dir: format!("/proc/self/fd/{}/.", folder.as_raw_fd()),
            entry_timeout: FRESH,
            attr_timeout: FRESH,
            cache_policy: CachePolicy::Auto,
            // The host may change files, too.
            writeback: false,
            // A file handle can open files to which no descriptor leads.
            inode_file_handles: false,
            // Otherwise the crate remembers each file that it ever saw.
            use_host_ino: true,
            ..Config::default()
        };
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let files = Self {
            inner: PassthroughFs::new(config)?,
            read_only,
            superuser: rustix::process::geteuid().is_root(),
            folder,
            taken: AtomicU32::new(COUNTED),
            limit: limit.current.unwrap_or(u64::MAX),
            full: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            mounted: AtomicBool::new(false),
        };
        files.inner.import()?;
        Ok(files)
    }

    /// Whether the guest may hold files.
    pub fn is_mounted(&self) -> bool {
        self.mounted.load(Ordering::Relaxed)
    }

    /// A warning for the user, once a mount.
    pub fn warning(&self) -> Option<String> {
        let full = self.full.load(Ordering::Relaxed);
        let now = full && !self.warned.swap(true, Ordering::Relaxed);
        now.then(|| {
            format!(
                "the guest holds as many files as hull may have open ({}); raise the limit \
                 (ulimit -Hn), or have the guest forget some (echo 2 > /proc/sys/vm/drop_caches)",
                self.limit
            )
        })
    }

    /// The user to act as: the guest's where hull may act as one, else hull's own.
    fn caller(&self, context: &Context) -> Context {
        if self.superuser {
            return *context;
        }
        Context {
            uid: 0, // the crate changes nothing then
            gid: 0,
            ..*context
        }
    }

    fn writable(&self) -> io::Result<()> {
        if self.read_only {
            return Err(errno(libc::EROFS));
        }
        Ok(())
    }

    /// Refuse to take another descriptor when too few are left.
    fn room(&self) -> io::Result<()> {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        if taken < COUNTED {
            return Ok(());
        }
        // The kernel returns the lowest free number.
        let next: OwnedFd = rustix::io::dup(&self.folder)?;
        if next.as_raw_fd() as u64 + SPARE >= self.limit {
            self.full.store(true, Ordering::Relaxed);
            return Err(errno(libc::EMFILE));
        }
        self.taken.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// The flags to open a file with, if the guest may open it so.
    fn open_flags(&self, flags: u32) -> io::Result<u32> {
        let flags = flags & OPEN_FLAGS;
        let access = flags & libc::O_ACCMODE as u32;
        if access == libc::O_ACCMODE as u32 {
            return Err(errno(libc::EINVAL));
        }
        if access != libc::O_RDONLY as u32 || flags & libc::O_TRUNC as u32 != 0 {
            self.writable()?;
        }
        Ok(flags)
    }
}

/// Refuse a name that leads out of its folder.
fn name(name: &CStr) -> io::Result<&CStr> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(errno(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(errno(libc::EINVAL)),
        _ => Ok(name),
    }
}

impl FileSystem for Confined {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        let wanted = FsOptions::ASYNC_READ
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::BIG_WRITES
            | FsOptions::MAX_PAGES
            | FsOptions::PARALLEL_DIROPS;
        let own = self.inner.init(capable)? - FsOptions::PERFILE_DAX;
        self.mounted.store(true, Ordering::Relaxed);
        Ok(own | wanted)
    }

    fn destroy(&self) {
        self.inner.destroy();
        self.taken.store(COUNTED, Ordering::Relaxed);
        self.full.store(false, Ordering::Relaxed);
        self.warned.store(false, Ordering::Relaxed);
        self.mounted.store(false, Ordering::Relaxed);
    }

    fn lookup(&self, context: &Context, parent: u64, child: &CStr) -> io::Result<Entry> {
        self.room()?;
        self.inner.lookup(context, parent, name(child)?)
    }

    fn forget(&self, context: &Context, inode: u64, count: u64) {
        self.inner.forget(context, inode, count);
    }

    fn batch_forget(&self, context: &Context, requests: Vec<(u64, u64)>) {
        self.inner.batch_forget(context, requests);
    }

    fn getattr(
        &self,
        context: &Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        self.inner.getattr(context, inode, handle)
    }

    fn setattr(
        &self,
        context: &Context,
        inode: u64,
        mut attributes: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.writable()?;
        if valid.intersects(SetattrValid::MODE | SetattrValid::UID | SetattrValid::GID) {
            // The guest must not change who may use a device.
            let (now, _) = self.inner.getattr(context, inode, None)?;
            if matches!(now.st_mode & TYPE, libc::S_IFCHR | libc::S_IFBLK) {
                return Err(errno(libc::EPERM));
            }
        }
        attributes.st_mode &= 0o7777 & !SET_ID;
        self.inner
            .setattr(context, inode, attributes, handle, valid)
    }

    fn readlink(&self, context: &Context, inode: u64) -> io::Result<Vec<u8>> {
        self.inner.readlink(context, inode)
    }

    fn symlink(
        &self,
        context: &Context,
        target: &CStr,
        parent: u64,
        child: &CStr,
    ) -> io::Result<Entry> {
        self.writable()?;
        self.room()?;
        self.inner
            .symlink(&self.caller(context), target, parent, name(child)?)
    }

    fn mknod(
        &self,
        context: &Context,
        parent: u64,
        child: &CStr,
        mode: u32,
        _device: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.writable()?;
        self.room()?;
        if !matches!(
            mode & TYPE,
            0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK
        ) {
            return Err(errno(libc::EPERM));
        }
        let caller = self.caller(context);
        self.inner
            .mknod(&caller, parent, name(child)?, mode & !SET_ID, 0, umask)
    }

    fn mkdir(
        &self,
        context: &Context,
        parent: u64,
        child: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.writable()?;
        self.room()?;
        let caller = self.caller(context);
        self.inner
            .mkdir(&caller, parent, name(child)?, mode & !SET_ID, umask)
    }

    fn unlink(&self, context: &Context, parent: u64, child: &CStr) -> io::Result<()> {
        self.writable()?;
        self.inner.unlink(context, parent, name(child)?)
    }

    fn rmdir(&self, context: &Context, parent: u64, child: &CStr) -> io::Result<()> {
        self.writable()?;
        self.inner.rmdir(context, parent, name(child)?)
    }

    fn rename(
        &self,
        context: &Context,
        from: u64,
        old: &CStr,
        to: u64,
        new: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.writable()?;
        // Not RENAME_WHITEOUT, which makes a device node.
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(errno(libc::EINVAL));
        }
        self.inner
            .rename(context, from, name(old)?, to, name(new)?, flags)
    }

    fn link(&self, context: &Context, inode: u64, parent: u64, child: &CStr) -> io::Result<Entry> {
        self.writable()?;
        self.room()?;
        let linked = self.inner.link(context, inode, parent, name(child)?);
        linked.map_err(|error| match error.raw_os_error() {
            // linkat(2), AT_EMPTY_PATH: before Linux 6.10 for the superuser alone.
            Some(libc::ENOENT) if !self.superuser => errno(libc::EPERM),
            _ => error,
        })
    }

    fn open(
        &self,
        context: &Context,
        inode: u64,
        flags: u32,
        _fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        self.room()?;
        let flags = self.open_flags(flags)?;
        self.inner.open(context, inode, flags, 0)
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        child: &CStr,
        arguments: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        self.writable()?;
        self.room()?;
        let arguments = CreateIn {
            flags: self.open_flags(arguments.flags)?,
            mode: arguments.mode & 0o7777 & !SET_ID,
            fuse_flags: 0,
            ..arguments
        };
        let caller = self.caller(context);
        self.inner.create(&caller, parent, name(child)?, arguments)
    }

    fn read(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let flags = flags & FILE_FLAGS;
        self.inner
            .read(context, inode, handle, to, size, offset, owner, flags)
    }

    fn write(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        delayed: bool,
        flags: u32,
        _fuse_flags: u32,
    ) -> io::Result<usize> {
        self.writable()?;
        let flags = flags & FILE_FLAGS;
        self.inner.write(
            context, inode, handle, from, size, offset, owner, delayed, flags, 0,
        )
    }

    fn fsync(&self, context: &Context, inode: u64, data: bool, handle: u64) -> io::Result<()> {
        self.inner.fsync(context, inode, data, handle)
    }

    fn fallocate(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.writable()?;
        self.inner
            .fallocate(context, inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        context: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        unlock: bool,
        owner: Option<u64>,
    ) -> io::Result<()> {
        self.inner
            .release(context, inode, flags, handle, flush, unlock, owner)
    }

    fn statfs(&self, context: &Context, inode: u64) -> io::Result<statvfs64> {
        self.inner.statfs(context, inode)
    }

    fn opendir(
        &self,
        context: &Context,
        inode: u64,
        _flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        self.room()?;
        self.inner.opendir(context, inode, libc::O_RDONLY as u32)
    }

    fn readdir(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.inner
            .readdir(context, inode, handle, size, offset, add)
    }

    fn readdirplus(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let mut added = 0;
        let mut add = |entry: DirEntry, of: Entry| match self.room() {
            Ok(()) => {
                added += 1;
                add(entry, of)
            }
            Err(error) if added == 0 => {
                self.inner.forget(context, of.inode, 1);
                Err(error)
            }
            Err(_) => Ok(0), // what there is so far; the crate forgets this one
        };
        self.inner
            .readdirplus(context, inode, handle, size, offset, &mut add)
    }

    fn fsyncdir(&self, context: &Context, inode: u64, data: bool, handle: u64) -> io::Result<()> {
        self.inner.fsyncdir(context, inode, data, handle)
    }

    fn releasedir(&self, context: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.inner.releasedir(context, inode, flags, handle)
    }

    fn lseek(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        match whence as i32 {
            libc::SEEK_DATA | libc::SEEK_HOLE => {
                self.inner.lseek(context, inode, handle, offset, whence)
            }
            _ => Err(errno(libc::EINVAL)),
        }
    }
}
