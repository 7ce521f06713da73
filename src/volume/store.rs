//! The store: volumes by their names.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statvfs};

use super::error::VolumeError;
use crate::config::size;
use crate::disk::ext4;
use crate::fleet::{self, kept::Kept};
use crate::leftover;

/// Bytes of a volume unless the user says otherwise. Only what is written takes room.
pub const DEFAULT_SIZE: u64 = 64 << 30;
/// The beginning of the names of files that are being made.
const FRESH: &str = ".new-";
const NAMES: std::ops::RangeInclusive<usize> = 2..=255;

/// The volumes of this user.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
}

/// A volume.
#[derive(Debug)]
pub struct Volume {
    /// The name that was given or made up, which is also the file's.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Bytes of its file.
    pub bytes: u64,
    /// Bytes that it takes on the host's disk.
    pub used: u64,
    /// When it was made, in seconds of Unix time.
    pub created: u64,
    /// Machines in the background that have it, whether they run or not.
    pub machines: Vec<String>,
    /// Machines that run with it.
    pub users: Vec<String>,
    /// Why it cannot be mounted.
    pub damaged: Option<String>,
}

/// Check a name that the user chose, by docker's rule.
///
/// # Errors
/// [`VolumeError::Name`].
pub fn check_name(name: &str) -> Result<(), VolumeError> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let first = name
        .bytes()
        .next()
        .is_some_and(|it| it.is_ascii_alphanumeric());
    match NAMES.contains(&name.len()) && first && name.bytes().all(known) {
        true => Ok(()),
        false => Err(VolumeError::Name { name: name.into() }),
    }
}

/// Parse the size of a file system, 8M to 16T.
///
/// # Errors
/// What the text must be instead, for the message behind its flag.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text).filter(|bytes| ext4::SIZES.contains(bytes));
    bytes.ok_or_else(|| format!("it has 8M to 16T; {}{}", size::FORM, size::as_bytes(text)))
}

/// Refuse a file that could never be filled.
pub(super) fn check_room(folder: &Path, bytes: u64) -> Result<(), VolumeError> {
    let about = statvfs(folder).map_err(|error| VolumeError::file(folder)(error.into()))?;
    let total = about.f_blocks.saturating_mul(about.f_frsize);
    match bytes > total {
        false => Ok(()),
        true => Err(VolumeError::TooLarge {
            bytes,
            folder: folder.into(),
            total,
        }),
    }
}

/// Make an empty ext4 of the name `path`, whole or not at all; false if the name is taken.
pub(super) fn made(path: &Path, bytes: u64) -> Result<bool, VolumeError> {
    if path.exists() {
        return Ok(false);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    leftover::remove(folder, FRESH);
    let file = tempfile::Builder::new().prefix(FRESH).tempfile_in(folder);
    let file = file.map_err(VolumeError::file(folder))?;
    let _ = flock(file.as_file(), FlockOperation::NonBlockingLockShared);
    ext4::format(file.as_file(), bytes).map_err(VolumeError::file(path))?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(true),
        Err(refused) if refused.error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(refused) => Err(VolumeError::file(path)(refused.error)),
    }
}

/// The size of the file system in `path`.
pub(super) fn size_of(path: &Path) -> Result<u64, VolumeError> {
    let file = File::open(path).map_err(VolumeError::file(path))?;
    let about = ext4::look(&file).map_err(|error| VolumeError::Damaged {
        path: path.into(),
        error,
    })?;
    Ok(about.bytes)
}

/// The machines that run with a lock on the file, by proc_locks(5): a look must not lock it itself.
fn users(file: &fs::Metadata) -> Vec<String> {
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let file = format!("{major:02x}:{minor:02x}:{}", file.ino());
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    // "1: FLOCK  ADVISORY  WRITE 708 fe:00:2359297 0 EOF"
    let holder = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_it = words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&file.as_str());
        words.get(4).filter(|_| is_it)?.parse().ok()
    };
    let holders: Vec<u32> = locks.lines().filter_map(holder).collect();
    if holders.is_empty() {
        return Vec::new();
    }
    let running = fleet::list().into_iter().map(|found| found.record);
    let with = running.filter(|record| holders.contains(&record.pid));
    with.map(|record| record.name).collect()
}

impl Store {
    /// Open it, and make it if need be.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn open() -> Result<Self, VolumeError> {
        let absolute = |name| {
            let path = std::env::var_os(name).map(PathBuf::from);
            path.filter(|path| path.is_absolute())
        };
        let data = absolute("XDG_DATA_HOME");
        let data = data.or_else(|| Some(absolute("HOME")?.join(".local/share")));
        let path = data.ok_or(VolumeError::NoPlace)?.join("hull/volumes");
        let mut folders = DirBuilder::new();
        let made = folders.recursive(true).mode(0o700).create(&path);
        made.map_err(VolumeError::file(&path))?;
        Ok(Self { path })
    }

    /// All of them, sorted by name.
    pub fn list(&self) -> Vec<Volume> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| check_name(name).is_ok())
            .collect();
        names.sort();
        let all = names.iter().filter_map(|name| self.find(name).ok());
        all.collect()
    }

    /// The volume of this name.
    ///
    /// # Errors
    /// [`VolumeError::Unknown`].
    pub fn find(&self, name: &str) -> Result<Volume, VolumeError> {
        check_name(name)?;
        let path = self.path.join(name);
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => VolumeError::Unknown { name: name.into() },
            _ => VolumeError::file(&path)(error),
        })?;
        let about = file.metadata().map_err(VolumeError::file(&path))?;
        let looked = ext4::look(&file);
        let all = Kept::list().into_iter().map(|kept| kept.record);
        let with = all.filter(|record| record.volumes.iter().any(|it| it == name));
        Ok(Volume {
            name: name.into(),
            bytes: about.len(),
            used: about.blocks() * 512,
            created: looked.as_ref().map_or(0, |about| about.created),
            machines: with.map(|record| record.name).collect(),
            users: users(&about),
            damaged: looked.err().map(|error| error.to_string()),
            path,
        })
    }

    /// The volume of this name, which is made if it is missing; `bytes` is its size, if the user has named one.
    ///
    /// # Errors
    /// It has another size, or the host has no room for it.
    pub fn create(&self, name: &str, bytes: Option<u64>) -> Result<Volume, VolumeError> {
        check_name(name)?;
        if let Some(bytes) = bytes {
            check_room(&self.path, bytes)?;
        }
        let fresh = made(&self.path.join(name), bytes.unwrap_or(DEFAULT_SIZE))?;
        let found = self.find(name)?;
        match bytes {
            Some(bytes) if !fresh && found.bytes != ext4::rounded(bytes) => {
                Err(VolumeError::Size {
                    name: found.name,
                    bytes: found.bytes,
                })
            }
            _ => Ok(found),
        }
    }

    /// The volume of this name for a machine, made if it is missing; its file.
    ///
    /// # Errors
    /// It is damaged, or another machine uses it and one of the two writes.
    pub fn mount(&self, name: &str, read_only: bool) -> Result<PathBuf, VolumeError> {
        let volume = self.create(name, None)?;
        size_of(&volume.path)?;
        let file = File::open(&volume.path).map_err(VolumeError::file(&volume.path))?;
        let how = match read_only {
            true => FlockOperation::NonBlockingLockShared,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        // Whoever comes between is found when the disk is opened.
        flock(&file, how).map_err(|_| VolumeError::Used {
            name: name.into(),
            machines: volume.users,
            remedy: ", and with :ro in all of them machines can share it",
        })?;
        Ok(volume.path)
    }

    /// Remove a volume.
    ///
    /// # Errors
    /// A machine has it.
    pub fn remove(&self, name: &str) -> Result<Volume, VolumeError> {
        let volume = self.find(name)?;
        let file = File::open(&volume.path).map_err(VolumeError::file(&volume.path))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(VolumeError::Used {
                name: volume.name,
                machines: volume.users,
                remedy: "",
            });
        }
        if !volume.machines.is_empty() {
            return Err(VolumeError::Kept {
                name: volume.name,
                machines: volume.machines,
            });
        }
        fs::remove_file(&volume.path).map_err(VolumeError::file(&volume.path))?;
        Ok(volume)
    }
}
