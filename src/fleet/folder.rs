//! The folders themselves: found, checked, taken and cleared away.
//!
//! Everything is done below a descriptor of a folder that was checked to be a folder and ours, so
//! that in a /tmp that all may write to nobody leads us elsewhere. A lock counts only if its file
//! is still the one of that name: it is what whoever clears away removes last.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags, Stat};
use rustix::io::{Errno, Result};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};

use super::{FleetError, Record, failed};

/// Files of a machine's folder.
const LOCK: &str = "lock";
const RECORD: &str = "record";
const SOCKET: &str = "socket";
const FRESH_RECORD: &str = "record.new";

/// Most bytes of a record.
const RECORD_MOST: u64 = 4096;
/// Somebody may just be looking at a folder: how often and how long it is waited for that.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);
/// Connections that may wait to be taken.
const BACKLOG: i32 = 8;
/// Most bytes of a socket's path (unix(7)), its NUL not counted.
const SOCKET_PATH_MOST: usize = 107;

const FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::NOFOLLOW
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);
const OURS: Mode = Mode::RWXU;
const OURS_TO_READ: Mode = Mode::RUSR.union(Mode::WUSR);

/// The folder in which every machine of this user has one.
pub struct Runtime {
    fd: OwnedFd,
    path: PathBuf,
    /// Folders that hull made for itself and removes again when they are empty, the inner first.
    made: Vec<PathBuf>,
}

impl Runtime {
    /// Open it, and make it if need be.
    ///
    /// # Errors
    /// [`FleetError::NoRuntime`].
    pub fn make() -> std::result::Result<Self, FleetError> {
        Self::first(true)
    }

    /// Open it, if it is there.
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
            // One that is not there or another's is no place for us: the next. The first that is ours
            // is the place, whatever comes of it, so that all commands look at the same one.
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
                existing(fs::mkdirat(fs::CWD, &base, OURS))?;
            }
            let fd = open_ours(fs::CWD, &base)?;
            Self::below(&fd, &base, make, vec![base.clone()])
        };
        let opened = match make {
            true => in_turn(below),
            false => below(),
        };
        opened.map_err(|error| {
            tried.push(format!("{}: {error}", base.display()));
            FleetError::NoRuntime {
                tried: tried.join(", "),
            }
        })
    }

    /// In a folder that is there.
    pub(super) fn inside(base: &Path, make: bool) -> Result<Self> {
        let fd = open_ours(fs::CWD, base)?;
        let below = || Self::below(&fd, base, make, vec![]);
        match make {
            true => in_turn(below),
            false => below(),
        }
    }

    fn below(base: &OwnedFd, path: &Path, make: bool, mut made: Vec<PathBuf>) -> Result<Self> {
        let name = Path::new("hull");
        if make {
            existing(fs::mkdirat(base, name, OURS))?;
        }
        let path = path.join(name);
        made.insert(0, path.clone());
        let fd = open_ours(base, name)?;
        Ok(Self { fd, path, made })
    }

    /// The machines that run, by name.
    pub fn list(&self) -> Vec<Found> {
        let Ok(folder) = fs::Dir::read_from(&self.fd) else {
            return Vec::new();
        };
        let names = folder.flatten().map(|entry| entry.file_name().to_owned());
        let names = names.filter(|name| !name.to_bytes().starts_with(b"."));
        let mut all: Vec<Found> = names
            .filter_map(|name| self.look(OsStr::from_bytes(name.to_bytes())))
            .collect();
        self.remove_if_empty();
        all.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        all
    }

    /// The machine in the folder `name`, if it lives and has said who it is.
    fn look(&self, name: &OsStr) -> Option<Found> {
        let folder = open_ours(&self.fd, Path::new(name)).ok()?;
        let lock = match fs::openat(&folder, LOCK, FILE | OFlags::RDONLY, Mode::empty()) {
            Ok(lock) => match fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Err(_) => lock,
                Ok(()) => {
                    if is_still(&folder, &lock) {
                        clear(&self.fd, name, &folder);
                    }
                    return None;
                }
            },
            Err(_) => {
                // Made just now, or left by one that was killed at that moment: then it is empty.
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

    fn remove_if_empty(&self) {
        for path in &self.made {
            if fs::unlinkat(fs::CWD, path, AtFlags::REMOVEDIR).is_err() {
                return;
            }
        }
    }
}

/// A machine that runs.
#[derive(Debug)]
pub struct Found {
    /// Who it is.
    pub record: Record,
    path: PathBuf,
    folder: OwnedFd,
    lock: OwnedFd,
}

impl Found {
    /// Whether its hull has given it up since.
    pub fn is_gone(&self) -> bool {
        // Shared: two that look do not take each other for it. A new machine of that name that
        // comes at this very moment tries again.
        let gone = fs::flock(&self.lock, FlockOperation::NonBlockingLockShared).is_ok();
        if gone {
            let _ = fs::flock(&self.lock, FlockOperation::Unlock);
        }
        gone
    }

    /// Its hull's process, if it is there and can be watched from here.
    pub fn process(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.record.pid.try_into().ok()?)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Not another's that has got the number since: this one still holds the lock.
        (!self.is_gone()).then_some(process)
    }

    /// Wait for its hull to give it up and, where that can be watched, for that `process` to end;
    /// whether it has in time.
    pub fn wait_until_gone(&self, process: Option<&OwnedFd>, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        if let Some(process) = process {
            let mut fds = [PollFd::new(process, PollFlags::IN)];
            // Interrupted or not: what counts is the lock.
            let _ = poll(&mut fds, Timespec::try_from(patience).ok().as_ref());
        }
        while !self.is_gone() {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(PAUSE);
        }
        true
    }

    /// Connect to it, if it has room for one more in time.
    ///
    /// # Errors
    /// It has no socket (yet), or no longer, or does not take those who have connected.
    pub fn connect(&self, patience: Duration) -> std::io::Result<OwnedFd> {
        let socket = socket(SocketFlags::CLOEXEC)?;
        // connect(2) waits for as long as send(2) does.
        sockopt::set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
        net::connect(&socket, &address(&self.folder, &self.path)?)?;
        Ok(socket)
    }
}

/// A machine's folder, removed when this is dropped.
#[derive(Debug)]
pub struct Claim {
    name: String,
    path: PathBuf,
    root: OwnedFd,
    made: Vec<PathBuf>,
    folder: OwnedFd,
    /// Held as long as this lives.
    _lock: OwnedFd,
}

impl Claim {
    pub(super) fn take(
        runtime: &Runtime,
        record: &Record,
    ) -> std::result::Result<Self, FleetError> {
        let name = record.name.as_str();
        let path = runtime.path.join(name);
        let taken = in_turn(|| Self::lock(runtime, name));
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
            _lock: lock,
        };
        claim
            .write(record)
            .map_err(failed(name, claim.path.join(RECORD)))?;
        Ok(claim)
    }

    fn lock(runtime: &Runtime, name: &str) -> Result<(OwnedFd, OwnedFd, OwnedFd)> {
        // Another hull that ends may have removed the folder around meanwhile.
        for path in runtime.made.iter().rev() {
            existing(fs::mkdirat(fs::CWD, path, OURS))?;
        }
        let root = open_ours(fs::CWD, &runtime.path)?;
        existing(fs::mkdirat(&root, name, OURS))?;
        let folder = open_ours(&root, Path::new(name))?;
        let flags = FILE | OFlags::RDWR | OFlags::CREATE;
        let lock = fs::openat(&folder, LOCK, flags, OURS_TO_READ)?;
        fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        if !is_still(&folder, &lock) {
            return Err(Errno::NOENT); // cleared away before it was ours
        }
        for stale in [SOCKET, RECORD, FRESH_RECORD] {
            let _ = fs::unlinkat(&folder, stale, AtFlags::empty());
        }
        Ok((root, folder, lock))
    }

    /// Whole or not at all.
    fn write(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_vec(record).unwrap_or_default();
        let flags = FILE | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = fs::openat(&self.folder, FRESH_RECORD, flags, OURS_TO_READ)?;
        let written = File::from(file).write_all(&text);
        written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        fs::renameat(&self.folder, FRESH_RECORD, &self.folder, RECORD)
    }

    /// A socket in the folder, which programs may connect to from now on. It takes the place of an
    /// earlier one.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn listen(&self) -> std::io::Result<OwnedFd> {
        let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        let _ = fs::unlinkat(&self.folder, SOCKET, AtFlags::empty());
        net::bind(&socket, &address(&self.folder, &self.path)?)?;
        net::listen(&socket, BACKLOG)?;
        Ok(socket)
    }

    /// What the machine is called.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        clear(&self.root, OsStr::new(&self.name), &self.folder);
        for path in &self.made {
            if fs::unlinkat(fs::CWD, path, AtFlags::REMOVEDIR).is_err() {
                return; // others are in it
            }
        }
    }
}

/// Remove a folder whose lock is held by who asks; the lock last, after which it may be another's.
fn clear(root: &OwnedFd, name: &OsStr, folder: &OwnedFd) {
    for file in [SOCKET, RECORD, FRESH_RECORD, LOCK] {
        let _ = fs::unlinkat(folder, file, AtFlags::empty());
    }
    let _ = fs::unlinkat(root, name, AtFlags::REMOVEDIR);
}

/// Whether `lock` is what the folder has under that name.
fn is_still(folder: &OwnedFd, lock: &OwnedFd) -> bool {
    let of = |stat: Stat| (stat.st_dev, stat.st_ino);
    let named = fs::statat(folder, LOCK, AtFlags::SYMLINK_NOFOLLOW).map(of);
    named.is_ok() && named == fs::fstat(lock).map(of)
}

/// Do what others may be in the way of for a moment.
fn in_turn<T>(mut what: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        match what() {
            Err(Errno::NOENT | Errno::WOULDBLOCK) => thread::sleep(PAUSE),
            done => return done,
        }
    }
    what()
}

/// Open a folder that belongs to us and that nobody else can write to.
fn open_ours(below: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let fd = fs::openat(below, path, FOLDER, Mode::empty())?;
    let stat = fs::fstat(&fd)?;
    let others = Mode::WGRP | Mode::WOTH;
    let closed = !Mode::from_raw_mode(stat.st_mode).intersects(others);
    match stat.st_uid == geteuid().as_raw() && closed {
        true => Ok(fd),
        false => Err(Errno::PERM),
    }
}

fn existing(made: Result<()>) -> Result<()> {
    match made {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

fn read_record(folder: &OwnedFd) -> Option<Record> {
    let file = fs::openat(folder, RECORD, FILE | OFlags::RDONLY, Mode::empty()).ok()?;
    let mut text = Vec::new();
    File::from(file)
        .take(RECORD_MOST)
        .read_to_end(&mut text)
        .ok()?;
    serde_json::from_slice(&text).ok()
}

fn socket(flags: SocketFlags) -> Result<OwnedFd> {
    net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// The address of the socket in a machine's folder, however long its path is.
fn address(folder: &OwnedFd, path: &Path) -> Result<SocketAddrUnix> {
    let path = path.join(SOCKET);
    if path.as_os_str().len() <= SOCKET_PATH_MOST {
        return SocketAddrUnix::new(path);
    }
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}
