//! The cache itself: templates found, built, counted and taken away.
//!
//! Only files that hull gives their names are ever removed, one by one, and folders only when they
//! are empty: whatever else lies in a folder that the user named stays there.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    self, AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT,
};
use rustix::io::{Errno, Result};
use rustix::process::geteuid;

use super::about::{About, Listed};
use super::error::CacheError;
use super::key::Key;
use super::place::Place;

/// Files of a template, and of the cache the first of them.
const LOCK: &str = "lock";
const ABOUT: &str = "about";
const STATE: &str = "state";
/// Which boot of the host made the template, until its files are on the disk for certain: after a power
/// cut they may hold anything.
const UNSYNCED: &str = "unsynced";
/// A part of the snapshot that is written when the run that made the template ends.
const WRITTEN: &str = "written";
pub(super) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A snapshot's writer has these.
const FRESH_STATE: &str = "state.tmp";
const MEMORY: &str = "memory-";

/// Most bytes of a template's facts, and of the name of a boot.
const MAX_ABOUT: u64 = 16 << 10;
/// Bytes of `Stat::st_blocks` (stat(2)).
const BLOCK: u64 = 512;
/// How often, and how long after each try, hull waits for another one that changes the cache.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(5);

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);
pub(super) const FILE: OFlags = OFlags::NOFOLLOW
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);
const OURS: Mode = Mode::RWXU;
const OURS_TO_READ: Mode = Mode::RUSR.union(Mode::WUSR);

/// The templates of this user.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(super) root: Arc<OwnedFd>,
    pub(super) path: PathBuf,
    /// Most bytes of the disk.
    pub(super) limit: u64,
}

impl Cache {
    /// Open it, and make it if need be.
    ///
    /// # Errors
    /// The user wants none, or no place can be written to.
    pub fn made() -> std::result::Result<Self, CacheError> {
        let place = Place::find()?;
        place.make().map_err(|error| CacheError::Folder {
            path: place.path.clone(),
            error,
        })?;
        Self::at(place.path, place.limit)
    }

    /// Open it, if it is there.
    ///
    /// # Errors
    /// Why there can be none.
    pub fn there() -> std::result::Result<Option<Self>, CacheError> {
        let place = Place::find()?;
        match Self::at(place.path, place.limit) {
            Err(CacheError::Folder { error, .. })
                if error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    /// In a folder that is there.
    pub(super) fn at(path: PathBuf, limit: u64) -> std::result::Result<Self, CacheError> {
        // The folder itself may be a link, for example to a larger disk.
        let opened = open_ours(fs::CWD, &path, FOLDER).and_then(|root| {
            open_lock(&root)?; // or it cannot be written to
            Ok(root)
        });
        match opened {
            Ok(root) => Ok(Self {
                root: Arc::new(root),
                path,
                limit,
            }),
            Err(error) => Err(CacheError::Folder {
                path,
                error: error.into(),
            }),
        }
    }

    /// The folder of a template, if there is one, which counts as used now. It may be gone before it
    /// is opened.
    pub fn find(&self, key: &Key) -> Option<PathBuf> {
        let name = key.to_string();
        let folder = self.folder(&name).ok()?;
        state(&folder)?;
        if is_there(&folder, UNSYNCED) && read(&folder, UNSYNCED) != std::fs::read(BOOT_ID).ok() {
            log::info!("template {name} was not on the disk when the host stopped");
            let _ = self.remove(key);
            return None;
        }
        let time = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let times = Timestamps {
            last_access: time(UTIME_OMIT),
            last_modification: time(UTIME_NOW),
        };
        // What cannot be marked goes the earlier.
        let _ = fs::utimensat(&folder, STATE, &times, AtFlags::SYMLINK_NOFOLLOW);
        Some(self.path.join(name))
    }

    /// Take a folder to build a template in. `None` if another hull builds or has built it.
    ///
    /// # Errors
    /// [`CacheError::Folder`]: the folder cannot be made or written to.
    pub fn build(
        &self,
        key: &Key,
        about: &About,
    ) -> std::result::Result<Option<Building>, CacheError> {
        match self.begin(key, about) {
            Ok(building) => Ok(Some(building)),
            Err(Errno::WOULDBLOCK | Errno::EXIST) => Ok(None),
            Err(error) => Err(CacheError::Folder {
                path: self.path.clone(),
                error: error.into(),
            }),
        }
    }

    fn begin(&self, key: &Key, about: &About) -> Result<Building> {
        let name = key.to_string();
        let turn = self.turn()?;
        let folder = self.fresh_folder(&name)?;
        let lock = lock(&folder)?;
        if state(&folder).is_some() {
            return Err(Errno::EXIST);
        }
        clear(&folder);
        drop(turn);
        let building = Building {
            path: self.path.join(&name),
            cache: self.clone(),
            name,
            folder,
            _lock: lock,
            keep: false,
        };
        // Before there is a state: a template without it is no template.
        let about = serde_json::to_vec(about).unwrap_or_default();
        write(&building.folder, ABOUT, &about)?;
        write(
            &building.folder,
            UNSYNCED,
            &std::fs::read(BOOT_ID).unwrap_or_default(),
        )?;
        Ok(building)
    }

    /// The folder of a template, made if need be; a file of its name is removed.
    fn fresh_folder(&self, name: &str) -> Result<OwnedFd> {
        let make = || match fs::mkdirat(&*self.root, name, OURS) {
            Ok(()) | Err(Errno::EXIST) => self.folder(name),
            Err(error) => Err(error),
        };
        match make() {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                fs::unlinkat(&*self.root, name, AtFlags::empty())?;
                make()
            }
            made => made,
        }
    }

    /// Remove a template. That there is none is no error.
    ///
    /// # Errors
    /// [`CacheError::Busy`] and [`CacheError::Remove`].
    pub fn remove(&self, key: &Key) -> std::result::Result<(), CacheError> {
        let name = key.to_string();
        let removed = self.turn().and_then(|_turn| self.remove_named(&name));
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::WOULDBLOCK) => Err(CacheError::Busy { key: *key }),
            Err(error) => Err(CacheError::Remove {
                path: self.path.join(name),
                error: error.into(),
            }),
        }
    }

    /// Remove all templates, what killed builders left, and the unpacked guests; not what is just being
    /// built.
    ///
    /// # Errors
    /// [`CacheError::Remove`].
    pub fn remove_all(&self) -> std::result::Result<(), CacheError> {
        for key in self.keys() {
            match self.remove(&key) {
                Ok(()) | Err(CacheError::Busy { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if let Ok(_turn) = self.turn() {
            self.remove_all_unpacked();
        }
        Ok(())
    }

    /// All templates, the last used first. What killed builders left is removed.
    pub fn list(&self) -> Vec<Listed> {
        if let Ok(_turn) = self.turn() {
            self.sweep();
        }
        self.seen()
    }

    /// Remove what killed builders left. The caller holds the outer lock.
    fn sweep(&self) {
        for key in self.keys() {
            let name = key.to_string();
            if self.folder(&name).is_ok_and(|it| state(&it).is_none()) {
                let _ = self.remove_named(&name);
            }
        }
    }

    fn seen(&self) -> Vec<Listed> {
        let look = |key: Key| {
            let folder = self.folder(&key.to_string()).ok()?;
            let last_used = changed(&state(&folder)?);
            Some(Listed {
                key,
                about: read_about(&folder),
                bytes: bytes(&folder),
                last_used,
            })
        };
        let mut all: Vec<Listed> = self.keys().into_iter().filter_map(look).collect();
        all.sort_by_key(|listed| (std::cmp::Reverse(listed.last_used), listed.key));
        all
    }

    /// Remove those that were not used for longest until all are within the limit, `own` the last.
    /// Whether that is still there.
    fn evict(&self, own: &str) -> bool {
        self.sweep();
        let mut all = self.seen();
        let mut total: u64 = all.iter().map(|listed| listed.bytes).sum();
        total += self.unpacked_bytes();
        let at = all.iter().position(|it| it.key.to_string() == own);
        let Some(own) = at.map(|at| all.remove(at)) else {
            return false;
        };
        // A template above the whole limit evicts nothing.
        let keep = own.bytes <= self.limit;
        if !keep {
            total -= own.bytes;
        }
        for listed in all.iter().rev() {
            if total <= self.limit {
                break;
            }
            if self.remove_named(&listed.key.to_string()).is_ok() {
                total = total.saturating_sub(listed.bytes);
            }
        }
        keep
    }

    /// Remove a folder in which no hull builds. The caller holds the outer lock.
    fn remove_named(&self, name: &str) -> Result<()> {
        let folder = self.folder(name)?;
        // A folder without a template and without a lock is not hull's, unless it is empty.
        let ours = state(&folder).is_some() || is_there(&folder, LOCK);
        let _lock = if ours {
            let lock = lock(&folder)?;
            clear(&folder);
            fs::unlinkat(&folder, LOCK, AtFlags::empty())?;
            Some(lock)
        } else {
            None
        };
        fs::unlinkat(&*self.root, name, AtFlags::REMOVEDIR)?;
        log::info!("template {name} removed");
        Ok(())
    }

    fn folder(&self, name: &str) -> Result<OwnedFd> {
        open_ours(&*self.root, Path::new(name), FOLDER | OFlags::NOFOLLOW)
    }

    fn keys(&self) -> Vec<Key> {
        let names = names(&self.root);
        names.iter().filter_map(|name| Key::parse(name)).collect()
    }

    /// Take the outer lock: no other hull makes or removes folders while the result lives.
    fn turn(&self) -> Result<OwnedFd> {
        let take = || {
            let lock = open_lock(&self.root)?;
            fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
            // A user who cleans up by hand may have removed it meanwhile.
            let of = |stat: Stat| (stat.st_dev, stat.st_ino);
            let named = fs::statat(&*self.root, LOCK, AtFlags::SYMLINK_NOFOLLOW).map(of);
            if named.is_ok() && named == fs::statat(&lock, c"", AtFlags::EMPTY_PATH).map(of) {
                Ok(lock)
            } else {
                Err(Errno::WOULDBLOCK)
            }
        };
        for _ in 1..TRIES {
            match take() {
                Err(Errno::WOULDBLOCK) => thread::sleep(PAUSE),
                taken => return taken,
            }
        }
        take()
    }
}

/// A template that is being built; it is removed if this is dropped before [`Building::finish`].
#[derive(Debug)]
pub struct Building {
    cache: Cache,
    path: PathBuf,
    name: String,
    folder: OwnedFd,
    _lock: OwnedFd,
    keep: bool,
}

impl Building {
    /// Where the snapshot is to be written to.
    pub fn dir(&self) -> &Path {
        &self.path
    }

    /// The snapshot is written: make room for it. Whether it stays, which it does unless it is larger
    /// than the limit for all templates.
    pub fn finish(mut self) -> bool {
        self.keep = match self.cache.turn() {
            Ok(_turn) => self.cache.evict(&self.name),
            // The next template that is built makes room for both.
            Err(_) => state(&self.folder).is_some(),
        };
        if self.keep && sync(&self.folder).is_ok() {
            let _ = fs::unlinkat(&self.folder, UNSYNCED, AtFlags::empty());
        }
        self.keep
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        clear(&self.folder);
        if let Ok(_turn) = self.cache.turn() {
            let _ = fs::unlinkat(&self.folder, LOCK, AtFlags::empty());
            let _ = fs::unlinkat(&*self.cache.root, &*self.name, AtFlags::REMOVEDIR);
        }
    }
}

/// Remove what makes a template, the state first, and not the lock.
fn clear(folder: &OwnedFd) {
    let memory = |name: &String| name.strip_prefix(MEMORY).is_some_and(is_id);
    let names = names(folder).into_iter().filter(memory);
    let own = [STATE, FRESH_STATE, ABOUT, UNSYNCED, WRITTEN].map(String::from);
    for name in own.into_iter().chain(names) {
        let _ = fs::unlinkat(folder, name, AtFlags::empty());
    }
}

/// Whether `text` is the ID of a snapshot's memory.
fn is_id(text: &str) -> bool {
    Key::parse(text).is_some() // both are as many digits
}

/// Bytes on the disk of all files in `folder`; guest memory has holes.
fn bytes(folder: &OwnedFd) -> u64 {
    bytes_of(folder, names(folder))
}

/// Bytes on the disk of these files in `folder`.
pub(super) fn bytes_of(folder: &OwnedFd, names: impl IntoIterator<Item = String>) -> u64 {
    let of = |name: String| {
        let stat = fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        u64::try_from(stat.st_blocks).ok()
    };
    let blocks = names.into_iter().filter_map(of).sum::<u64>();
    blocks.saturating_mul(BLOCK)
}

/// The state of the template in `folder`, if it has one.
fn state(folder: &OwnedFd) -> Option<Stat> {
    let stat = fs::statat(folder, STATE, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(stat)
}

pub(super) fn changed(stat: &Stat) -> SystemTime {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    let since = Duration::from_secs(seconds) + Duration::from_nanos(stat.st_mtime_nsec);
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}

fn read_about(folder: &OwnedFd) -> Option<About> {
    serde_json::from_slice(&read(folder, ABOUT)?).ok()
}

pub(super) fn read(folder: &OwnedFd, name: &str) -> Option<Vec<u8>> {
    let file = fs::openat(folder, name, FILE | OFlags::RDONLY, Mode::empty()).ok()?;
    let mut text = Vec::new();
    File::from(file)
        .take(MAX_ABOUT)
        .read_to_end(&mut text)
        .ok()?;
    Some(text)
}

/// Write a file that is not there yet.
pub(super) fn write(folder: &OwnedFd, name: &str, text: &[u8]) -> Result<()> {
    let flags = FILE | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let file = fs::openat(folder, name, flags, OURS_TO_READ)?;
    let written = File::from(file).write_all(text);
    written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Wait until the files of a template are on the disk.
fn sync(folder: &OwnedFd) -> Result<()> {
    for name in names(folder) {
        let file = fs::openat(folder, name, FILE | OFlags::RDONLY, Mode::empty())?;
        fs::fsync(file)?;
    }
    fs::fsync(folder)
}

fn is_there(folder: &OwnedFd, name: &str) -> bool {
    fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

pub(super) fn names(folder: &OwnedFd) -> Vec<String> {
    let Ok(entries) = fs::Dir::read_from(folder) else {
        return Vec::new();
    };
    let text = |name: &CStr| name.to_str().ok().map(String::from);
    let names = entries
        .flatten()
        .filter_map(|entry| text(entry.file_name()));
    names.collect()
}

/// The lock of a template's folder, if it is free.
fn lock(folder: &OwnedFd) -> Result<OwnedFd> {
    let lock = open_lock(folder)?;
    fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    Ok(lock)
}

pub(super) fn open_lock(folder: &OwnedFd) -> Result<OwnedFd> {
    let flags = FILE | OFlags::RDWR | OFlags::CREATE;
    fs::openat(folder, LOCK, flags, OURS_TO_READ)
}

/// Open a folder that belongs to this user and that no other user can write to.
fn open_ours(below: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let fd = fs::openat(below, path, flags, Mode::empty())?;
    let stat = fs::statat(&fd, c"", AtFlags::EMPTY_PATH)?;
    let others = Mode::WGRP | Mode::WOTH;
    let closed = !Mode::from_raw_mode(stat.st_mode).intersects(others);
    if stat.st_uid == geteuid().as_raw() && closed {
        Ok(fd)
    } else {
        Err(Errno::PERM)
    }
}
