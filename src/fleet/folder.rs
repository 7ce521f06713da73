//! The machines' folders: finding, checking, claiming and removing them.
//!
//! Every path is opened below a descriptor of a folder that was checked to be this user's, so that
//! other users of /tmp cannot redirect hull by a link. A lock counts only if its file still has its
//! name: the lock is the last file of a folder that is removed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, RenameFlags, Stat};
use rustix::io::{Errno, Result};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};

use super::error::{FleetError, failed};
use super::record::Record;

/// Files of a machine's folder.
const LOCK: &str = "lock";
const RECORD: &str = "record";
const SOCKET: &str = "socket";
const FRESH_RECORD: &str = "record.new";

/// CGROUP_SUPER_MAGIC and CGROUP2_SUPER_MAGIC (uapi/linux/magic.h).
const CONTROL_GROUPS: [fs::FsWord; 2] = [0x0027_e0eb, 0x6367_7270];
/// Longest record, in bytes.
const MAX_RECORD: u64 = 4096;
/// Attempts to lock a folder while another process holds its lock to look at it.
const TRIES: u32 = 20;
/// Delay between two attempts.
const RETRY_DELAY: Duration = Duration::from_millis(5);
/// Time for a machine to make its control socket, after its record.
const MAX_START: Duration = Duration::from_secs(5);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 8;
/// Longest path of a socket (unix(7)), in bytes without the NUL.
const MAX_SOCKET_PATH: usize = 107;

const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::NOFOLLOW
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);
const FOLDER_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// The folder that holds the folders of all of this user's machines.
pub struct Runtime {
    fd: OwnedFd,
    path: PathBuf,
    /// Folders that hull makes, and removes when they are empty; the innermost first.
    made: Vec<PathBuf>,
    /// Whether no other hull may remove it.
    kept: bool,
}

impl Runtime {
    /// Open the folder, and create it if it does not exist.
    ///
    /// # Errors
    /// [`FleetError::NoRuntime`].
    pub fn make() -> std::result::Result<Self, FleetError> {
        Self::first(true)
    }

    /// Open the folder, if it exists.
    ///
    /// # Errors
    /// [`FleetError::NoRuntime`].
    pub fn open() -> std::result::Result<Self, FleetError> {
        Self::first(false)
    }

    fn first(make: bool) -> std::result::Result<Self, FleetError> {
        let uid = geteuid().as_raw();
        let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let given = given.filter(|path| path.is_absolute());
        let places = given.into_iter().chain([format!("/run/user/{uid}").into()]);
        let mut tried = Vec::new();
        for base in places {
            // Skip a folder that does not exist or belongs to another user. The first that is this
            // user's is used even if that fails, so that all commands look in the same place.
            match open_ours(fs::CWD, &base) {
                Ok(_) => {
                    return Self::inside(&base, make).map_err(|error| FleetError::NoRuntime {
                        tried: format!("{}/hull: {error}", base.display()),
                    });
                }
                Err(error) => tried.push(format!("{}: {error}", base.display())),
            }
        }
        let base = PathBuf::from(format!("/tmp/hull-{uid}"));
        let below = || {
            if make {
                existing(fs::mkdirat(fs::CWD, &base, FOLDER_MODE))?;
            }
            let fd = open_ours(fs::CWD, &base)?;
            Self::below(&fd, &base, make, vec![base.clone()])
        };
        let opened = if make { retry(below) } else { below() };
        opened.map_err(|error| {
            tried.push(format!("{}: {error}", base.display()));
            FleetError::NoRuntime {
                tried: tried.join(", "),
            }
        })
    }

    /// The folder below the existing folder `base`.
    pub(super) fn inside(base: &Path, make: bool) -> Result<Self> {
        let fd = open_ours(fs::CWD, base)?;
        let below = || Self::below(&fd, base, make, vec![]);
        if make { retry(below) } else { below() }
    }

    fn below(base: &OwnedFd, path: &Path, make: bool, mut made: Vec<PathBuf>) -> Result<Self> {
        let name = Path::new("hull");
        if make {
            existing(fs::mkdirat(base, name, FOLDER_MODE))?;
        }
        let path = path.join(name);
        made.insert(0, path.clone());
        let fd = open_ours(base, name)?;
        Ok(Self {
            fd,
            path,
            made,
            kept: false,
        })
    }

    /// The open folder.
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The folders in which the empty ones of [`Runtime`] are removed at the end.
    pub fn above(&self) -> impl Iterator<Item = OwnedFd> {
        let above = self.made.iter().filter_map(|path| path.parent());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        above.filter_map(move |path| fs::openat(fs::CWD, path, flags, Mode::empty()).ok())
    }

    /// Keep the folder from being removed by other hulls while this lives, even while it is empty.
    ///
    /// # Errors
    /// [`Errno::NOENT`] and [`Errno::WOULDBLOCK`]: another one is just removing it.
    fn keep(&mut self) -> Result<()> {
        fs::flock(&self.fd, FlockOperation::NonBlockingLockShared)?;
        self.kept = true;
        match fs::fstat(&self.fd)?.st_nlink {
            0 => Err(Errno::NOENT),
            _ => Ok(()),
        }
    }

    /// As [`Runtime::make`], and no other hull removes the folder while this lives.
    ///
    /// # Errors
    /// [`FleetError::NoRuntime`].
    pub fn reserve() -> std::result::Result<Self, FleetError> {
        let mut tries = 0;
        loop {
            let mut made = Self::make()?;
            match made.keep() {
                Ok(()) => return Ok(made),
                Err(_) if tries < TRIES => thread::sleep(RETRY_DELAY),
                Err(error) => {
                    let tried = format!("{}: {error}", made.path.display());
                    return Err(FleetError::NoRuntime { tried });
                }
            }
            tries += 1;
        }
    }

    /// The running machines, sorted by name.
    pub fn list(&self) -> Vec<Found> {
        let Ok(folder) = fs::Dir::read_from(&self.fd) else {
            return Vec::new();
        };
        let names = folder.flatten().map(|entry| entry.file_name().to_owned());
        let names = names.filter(|name| !name.to_bytes().starts_with(b"."));
        let mut all: Vec<Found> = names
            .filter_map(|name| self.look(OsStr::from_bytes(name.to_bytes())))
            .collect();
        if !self.kept {
            self.remove_if_empty();
        }
        all.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        all
    }

    /// The machine in the folder `name`, if it runs and its record is complete. The folder of a killed
    /// machine is removed.
    fn look(&self, name: &OsStr) -> Option<Found> {
        let folder = open_ours(&self.fd, Path::new(name)).ok()?;
        let lock = match fs::openat(&folder, LOCK, FILE | OFlags::RDONLY, Mode::empty()) {
            Ok(lock) => match fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Err(_) => lock,
                Ok(()) => {
                    if is_still(&folder, &lock) {
                        let groups = read_record(&folder).map(|record| record.groups);
                        // Its supervisor was killed. Its processes may still be on their way out; then
                        // the next look removes both.
                        if groups.into_iter().flatten().any(|group| stays(&group)) {
                            return None;
                        }
                        clear(&self.fd, name, &folder);
                    }
                    return None;
                }
            },
            Err(_) => {
                // Created just now, or left empty by a hull that was killed at that moment.
                let _ = fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR);
                return None;
            }
        };
        Some(Found {
            record: read_record(&folder)?,
            path: self.path.join(name),
            folder,
            lock,
        })
    }

    /// Remove the folder if it is empty and no other hull keeps it; this one no longer does.
    pub fn remove_if_empty(&self) {
        remove(&self.fd, &self.made);
    }
}

/// Remove the open folder `inner` and those around it, `made`, as far as they are empty and no machine keeps
/// `inner` ([`Runtime::keep`]).
fn remove(inner: &OwnedFd, made: &[PathBuf]) {
    if fs::flock(inner, FlockOperation::NonBlockingLockExclusive).is_err() {
        return;
    }
    for path in made {
        if fs::unlinkat(fs::CWD, path, AtFlags::REMOVEDIR).is_err() {
            break; // other machines use it
        }
    }
    let _ = fs::flock(inner, FlockOperation::Unlock);
}

/// Remove the control group `group`; whether processes are still in it. The record of a machine whose hull was
/// taken over may name any folder: others stay.
fn stays(group: &Path) -> bool {
    let is_group = fs::statfs(group).is_ok_and(|about| CONTROL_GROUPS.contains(&about.f_type));
    is_group && fs::unlinkat(fs::CWD, group, AtFlags::REMOVEDIR) == Err(Errno::BUSY)
}

/// A machine that was running when it was looked up.
#[derive(Debug)]
pub struct Found {
    /// The record as it was when the machine was found.
    pub record: Record,
    path: PathBuf,
    folder: OwnedFd,
    lock: OwnedFd,
}

impl Found {
    /// Whether the machine has ended since.
    pub fn is_gone(&self) -> bool {
        // A shared lock, so that two observers do not take each other for the machine. A new machine of
        // this name that fails to lock because of it retries.
        let gone = fs::flock(&self.lock, FlockOperation::NonBlockingLockShared).is_ok();
        if gone {
            let _ = fs::flock(&self.lock, FlockOperation::Unlock);
        }
        gone
    }

    /// Whether its hull is stopped, as by Ctrl-Z, and so answers nothing.
    pub fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.record.pid));
        // The state follows the name, which may hold anything (proc_pid_stat(5)).
        stat.is_ok_and(|stat| {
            stat.rsplit(')')
                .next()
                .is_some_and(|after| after.starts_with(" T"))
        })
    }

    /// A pidfd of the machine's hull, if the process can be watched from here.
    pub fn process(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.record.pid.try_into().ok()?)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The lock is still held: the process id was not reused by another process.
        (!self.is_gone()).then_some(process)
    }

    /// Give it another name. Its hull, which knows no other than its first, removes the content of its folder at
    /// its end, and the next look the folder.
    ///
    /// # Errors
    /// [`FleetError::InUse`], or the folder cannot be renamed.
    pub fn rename(self, name: &str) -> std::result::Result<(), FleetError> {
        let failed = failed(name, self.path.with_file_name(name));
        let (above, old) = (self.path.parent(), self.path.file_name());
        let renamed = above.zip(old).ok_or(Errno::NOENT).and_then(|(above, old)| {
            let above = open_ours(fs::CWD, above)?;
            fs::renameat_with(&above, old, &above, name, RenameFlags::NOREPLACE)
        });
        match renamed {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return Err(FleetError::InUse {
                    name: name.into(),
                    pid: None,
                });
            }
            Err(error) => return Err(failed(error)),
        }
        let record = Record {
            name: name.into(),
            ..self.record
        };
        write_record(&self.folder, &record).map_err(failed)
    }

    /// Wait for the machine to end and, where it can be watched, for its `process`. Returns whether
    /// it ended within the timeout.
    pub fn wait_until_gone(&self, process: Option<&OwnedFd>, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        if let Some(process) = process {
            let mut fds = [PollFd::new(process, PollFlags::IN)];
            // Even if interrupted: only the lock counts.
            let _ = poll(&mut fds, Timespec::try_from(timeout).ok().as_ref());
        }
        while !self.is_gone() {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(RETRY_DELAY);
        }
        true
    }

    /// Connect to the control socket. A machine that has just started is given time to make it.
    ///
    /// # Errors
    /// The machine has ended or has made no socket in time, or its backlog stays full until the timeout.
    pub fn connect(&self, timeout: Duration) -> std::io::Result<OwnedFd> {
        let socket = socket(SocketFlags::CLOEXEC)?;
        // SO_SNDTIMEO is also the timeout of connect(2).
        sockopt::set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
        let until = Instant::now() + timeout.min(MAX_START);
        loop {
            let connected = address(&self.folder, &self.path, SOCKET)
                .and_then(|address| net::connect(&socket, &address));
            match connected {
                // Not bound, or bound and not yet listened on.
                Err(Errno::NOENT | Errno::CONNREFUSED)
                    if !self.is_gone() && Instant::now() < until =>
                {
                    thread::sleep(RETRY_DELAY);
                }
                connected => return Ok(connected.map(|()| socket)?),
            }
        }
    }
}

/// A machine's claim to its name: the folder, which is removed when this is dropped.
#[derive(Debug)]
pub struct Claim {
    name: String,
    path: PathBuf,
    root: OwnedFd,
    made: Vec<PathBuf>,
    folder: OwnedFd,
    /// The socket that [`Claim::listen_now`] has made.
    listener: Option<OwnedFd>,
    /// Held while the machine runs.
    _lock: OwnedFd,
}

impl Claim {
    /// Claim the name in `record` below `runtime`, and write the record.
    ///
    /// # Errors
    /// A running machine has the name, or no folder can be made.
    pub fn take(runtime: &Runtime, record: &Record) -> std::result::Result<Self, FleetError> {
        let name = record.name.as_str();
        let path = runtime.path.join(name);
        let taken = retry(|| Self::lock(runtime, name));
        let (root, folder, lock) = match taken {
            Ok(taken) => taken,
            Err(Errno::WOULDBLOCK) => {
                let folder = open_ours(&runtime.fd, Path::new(name)).ok();
                let record = folder.as_ref().and_then(read_record);
                return Err(FleetError::InUse {
                    name: name.into(),
                    pid: record.map(|record| record.pid),
                });
            }
            Err(error) => return Err(failed(name, path)(error)),
        };
        let claim = Self {
            name: name.into(),
            path,
            root,
            made: runtime.made.clone(),
            folder,
            listener: None,
            _lock: lock,
        };
        write_record(&claim.folder, record).map_err(failed(name, claim.path.join(RECORD)))?;
        Ok(claim)
    }

    fn lock(runtime: &Runtime, name: &str) -> Result<(OwnedFd, OwnedFd, OwnedFd)> {
        // A hull that has just ended may have removed the outer folder.
        for path in runtime.made.iter().rev() {
            existing(fs::mkdirat(fs::CWD, path, FOLDER_MODE))?;
        }
        let root = open_ours(fs::CWD, &runtime.path)?;
        existing(fs::mkdirat(&root, name, FOLDER_MODE))?;
        let folder = open_ours(&root, Path::new(name))?;
        let flags = FILE | OFlags::RDWR | OFlags::CREATE;
        let lock = fs::openat(&folder, LOCK, flags, FILE_MODE)?;
        fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        if !is_still(&folder, &lock) {
            return Err(Errno::NOENT); // removed before it was locked
        }
        for stale in [SOCKET, RECORD, FRESH_RECORD] {
            let _ = fs::unlinkat(&folder, stale, AtFlags::empty());
        }
        Ok((root, folder, lock))
    }

    /// Listen on the control socket; an existing socket is replaced.
    ///
    /// # Errors
    /// The socket cannot be created.
    pub fn listen(&self) -> std::io::Result<OwnedFd> {
        self.bind(unbound()?)
    }

    /// Listen on the control socket from now on, for a later [`Claim::listen_on`] in a place without folders.
    ///
    /// # Errors
    /// The socket cannot be created.
    pub fn listen_now(mut self) -> std::result::Result<Self, FleetError> {
        let listening = self.listen().map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            failed(&self.name, self.path.join(SOCKET))(errno)
        });
        self.listener = Some(listening?);
        Ok(self)
    }

    /// As [`Claim::listen`], on a socket that was made before, by [`unbound`].
    ///
    /// # Errors
    /// The socket's file cannot be created.
    pub fn listen_on(&mut self, socket: OwnedFd) -> std::io::Result<OwnedFd> {
        if let Some(listener) = self.listener.take() {
            return Ok(listener);
        }
        self.bind(socket)
    }

    fn bind(&self, socket: OwnedFd) -> std::io::Result<OwnedFd> {
        let _ = fs::unlinkat(&self.folder, SOCKET, AtFlags::empty());
        // bind(2) makes the file with the mode of the socket.
        fs::fchmod(&socket, FILE_MODE)?;
        net::bind(&socket, &address(&self.folder, &self.path, SOCKET)?)?;
        net::listen(&socket, BACKLOG)?;
        Ok(socket)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        clear(&self.root, OsStr::new(&self.name), &self.folder);
        remove(&self.root, &self.made);
    }
}

/// Remove a folder whose lock the caller holds. The lock goes last: afterwards the folder may be
/// another machine's.
fn clear(root: &OwnedFd, name: &OsStr, folder: &OwnedFd) {
    for file in [SOCKET, RECORD, FRESH_RECORD, LOCK] {
        let _ = fs::unlinkat(folder, file, AtFlags::empty());
    }
    let _ = fs::unlinkat(root, name, AtFlags::REMOVEDIR);
}

/// Whether `lock` is still the folder's lock file.
fn is_still(folder: &OwnedFd, lock: &OwnedFd) -> bool {
    let of = |stat: Stat| (stat.st_dev, stat.st_ino);
    let named = fs::statat(folder, LOCK, AtFlags::SYMLINK_NOFOLLOW).map(of);
    named.is_ok() && named == fs::fstat(lock).map(of)
}

/// Retry while other processes hold the lock or remove the folder.
fn retry<T>(mut what: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        match what() {
            Err(Errno::NOENT | Errno::WOULDBLOCK) => thread::sleep(RETRY_DELAY),
            done => return done,
        }
    }
    what()
}

/// Open a folder that belongs to this user and that no other user can write to.
fn open_ours(below: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let fd = fs::openat(below, path, FOLDER, Mode::empty())?;
    let stat = fs::fstat(&fd)?;
    let others = Mode::WGRP | Mode::WOTH;
    let closed = !Mode::from_raw_mode(stat.st_mode).intersects(others);
    if stat.st_uid == geteuid().as_raw() && closed {
        Ok(fd)
    } else {
        Err(Errno::PERM)
    }
}

fn existing(made: Result<()>) -> Result<()> {
    match made {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

/// Write the record atomically.
fn write_record(folder: &OwnedFd, record: &Record) -> Result<()> {
    let text = serde_json::to_vec(record).unwrap_or_default();
    let flags = FILE | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let file = fs::openat(folder, FRESH_RECORD, flags, FILE_MODE)?;
    let written = File::from(file).write_all(&text);
    written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    fs::renameat(folder, FRESH_RECORD, folder, RECORD)
}

fn read_record(folder: &OwnedFd) -> Option<Record> {
    let file = fs::openat(folder, RECORD, FILE | OFlags::RDONLY, Mode::empty()).ok()?;
    let mut text = Vec::new();
    File::from(file)
        .take(MAX_RECORD)
        .read_to_end(&mut text)
        .ok()?;
    serde_json::from_slice(&text).ok()
}

/// A socket to listen on.
///
/// # Errors
/// No descriptor is left.
pub fn unbound() -> std::io::Result<OwnedFd> {
    Ok(socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

pub(super) fn socket(flags: SocketFlags) -> Result<OwnedFd> {
    net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// The address of the socket `name` in a machine's folder; through /proc if its path is too long.
pub(super) fn address(folder: impl AsFd, path: &Path, name: &str) -> Result<SocketAddrUnix> {
    let path = path.join(name);
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return SocketAddrUnix::new(path);
    }
    let folder = folder.as_fd().as_raw_fd();
    SocketAddrUnix::new(format!("/proc/self/fd/{folder}/{name}"))
}
