//! Reads a snapshot and checks everything in it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::error::{SnapshotError, failed};
use super::header::{self, Fault, MAX_STATE, Section, Tag};
use super::id::Id;
use super::memo::{self, Memo};
use crate::memory::file::MemoryFile;
use crate::memory::pages::{PAGE, Pages};

/// The file that names the pages that a guest writes first after a restore.
pub(super) const WRITTEN: &str = "written";
/// Most bytes of these pages: a start that writes more takes long anyhow, and the next one may write others.
pub(super) const MAX_WRITTEN: u64 = 8 << 20;
/// Bytes of a range of pages in that file: the first page and their number, 4 each, little endian.
const RANGE: usize = 8;

/// Bytes that one read takes.
pub(super) const STEP: usize = 256 << 10;

/// A snapshot whose state is intact and whose file of memory exists.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
    bytes: Vec<u8>,
    sections: Vec<Section>,
    memo: Memo,
    memory: MemoryFile,
    written: Pages,
    /// The owner of the files, if that is neither this user nor root.
    stranger: Option<u32>,
}

/// Open the snapshot in `dir`, which must not be a diff. All of `state` is checked, and that the file
/// of memory has the right size; its content is not read ([`Snapshot::check_memory`]).
///
/// # Errors
/// The folder has no snapshot that this version of hull can restore.
pub fn open(dir: &Path) -> Result<Snapshot, SnapshotError> {
    let snapshot = open_layer(dir)?;
    match snapshot.memo.parent {
        None => Ok(snapshot),
        Some(parent) => Err(SnapshotError::Diff {
            dir: dir.into(),
            parent,
        }),
    }
}

/// As [`open`], for a diff as well.
///
/// # Errors
/// As [`open`].
pub fn open_layer(dir: &Path) -> Result<Snapshot, SnapshotError> {
    match open_once(dir) {
        // A writer may have replaced the snapshot meanwhile: then `state` has changed.
        Err(SnapshotError::MemoryMissing { .. }) => open_once(dir),
        result => result,
    }
}

fn open_once(dir: &Path) -> Result<Snapshot, SnapshotError> {
    let path = dir.join("state");
    let folder = match open_folder(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SnapshotError::Missing { dir: dir.into() });
        }
        folder => folder.map_err(failed("open", dir))?,
    };
    let (bytes, owner) = read_state(&folder, dir, &path)?;
    let fault = |fault| refusal(&path, fault);
    let sections = header::decode(&bytes).map_err(fault)?;
    let memo = find(&sections, &bytes, memo::TAG).ok_or("no section MEMO".to_string());
    let memo = memo.and_then(Memo::decode);
    let memo = memo.map_err(|why| fault(Fault::Damaged(format!("section MEMO: {why}"))))?;
    let path = dir.join(memory_name(memo.id));
    let (file, owner_of_memory) = open_memory(&folder, &path, &memo)?;
    let memory = MemoryFile {
        file: Arc::new(file),
        regions: memo.regions.clone(),
        extents: memo.extents.clone(),
    };
    Ok(Snapshot {
        dir: dir.into(),
        bytes,
        sections,
        memo,
        memory,
        written: read_written(&folder),
        stranger: [owner, owner_of_memory]
            .into_iter()
            .find(|owner| !is_ours(*owner)),
    })
}

/// Whether this user trusts files of the user `owner`: its own, and root's.
pub(super) fn is_ours(owner: u32) -> bool {
    owner == 0 || owner == rustix::process::geteuid().as_raw()
}

/// The name of the file of memory of the snapshot `id`.
pub(super) fn memory_name(id: Id) -> String {
    format!("memory-{id}")
}

/// The id of the snapshot in `folder`, whose path is `dir`, if there is one that this version of hull can
/// read.
pub(super) fn current(folder: &File, dir: &Path) -> Result<Option<Id>, SnapshotError> {
    let path = dir.join("state");
    let (bytes, _) = match read_state(folder, dir, &path) {
        Err(SnapshotError::Missing { .. }) => return Ok(None),
        bytes => bytes?,
    };
    let sections = header::decode(&bytes).map_err(|fault| refusal(&path, fault))?;
    let memo = find(&sections, &bytes, memo::TAG).and_then(|memo| Memo::decode(memo).ok());
    Ok(memo.map(|memo| memo.id))
}

/// The content and the owner of `state` in `folder`.
fn read_state(folder: &File, dir: &Path, path: &Path) -> Result<(Vec<u8>, u32), SnapshotError> {
    let file = match open_file(folder, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SnapshotError::Missing { dir: dir.into() });
        }
        file => file.map_err(failed("open", path))?,
    };
    let data = file.metadata().map_err(failed("look at", path))?;
    if !data.is_file() || data.len() > MAX_STATE {
        return Err(SnapshotError::Foreign { path: path.into() });
    }
    let mut bytes = Vec::with_capacity(data.len() as usize);
    let read = file.take(MAX_STATE).read_to_end(&mut bytes);
    read.map_err(failed("read", path))?;
    Ok((bytes, data.uid()))
}

fn open_memory(folder: &File, path: &Path, memo: &Memo) -> Result<(File, u32), SnapshotError> {
    let file = match open_file(folder, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SnapshotError::MemoryMissing { path: path.into() });
        }
        file => file.map_err(failed("open", path))?,
    };
    let data = file.metadata().map_err(failed("look at", path))?;
    if !data.is_file() {
        return Err(SnapshotError::Foreign { path: path.into() });
    }
    match (data.len(), memo.bytes()) {
        (found, expected) if found == expected => Ok((file, data.uid())),
        (found, expected) => Err(SnapshotError::MemorySize {
            path: path.into(),
            found,
            expected,
        }),
    }
}

/// The pages that the snapshot in `folder` names; none if it does not, or too many.
fn read_written(folder: &File) -> Pages {
    let mut bytes = Vec::new();
    let most = MAX_WRITTEN / PAGE * RANGE as u64;
    let file = open_file(folder, Path::new(WRITTEN));
    if file.is_err() || file.is_ok_and(|file| file.take(most).read_to_end(&mut bytes).is_err()) {
        return Pages::default();
    }
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rfold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let ranges = bytes.as_chunks::<RANGE>().0.iter().map(|range| {
        let (first, count) = range.split_at(RANGE / 2);
        let first = number(first) * PAGE;
        first..first + number(count) * PAGE
    });
    let pages = Pages::from_ranges(ranges);
    if pages.bytes() > MAX_WRITTEN {
        return Pages::default();
    }
    pages
}

pub(super) fn open_folder(dir: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(rustix::fs::CWD, dir, flags, Mode::empty())?.into())
}

/// Open the file of this path in `folder` without blocking, which a pipe in place of the file would do. A
/// link in its place is not followed.
pub(super) fn open_file(folder: &File, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let name = path.file_name().unwrap_or_default();
    Ok(rustix::fs::openat(folder, name, flags, Mode::empty())?.into())
}

fn find<'a>(sections: &[Section], bytes: &'a [u8], tag: Tag) -> Option<&'a [u8]> {
    let section = sections.iter().find(|section| section.tag == tag)?;
    bytes.get(section.payload.clone())
}

fn refusal(path: &Path, fault: Fault) -> SnapshotError {
    let path = path.into();
    match fault {
        Fault::Foreign => SnapshotError::Foreign { path },
        Fault::Newer(version) => SnapshotError::Newer { path, version },
        Fault::Older(version) => SnapshotError::Older { path, version },
        Fault::Truncated => SnapshotError::Truncated { path },
        Fault::Damaged(part) => SnapshotError::Damaged { path, part },
    }
}

impl Snapshot {
    /// The id of this snapshot.
    pub fn id(&self) -> Id {
        self.memo.id
    }

    /// The snapshot to which it is a diff, if it is one.
    pub fn parent(&self) -> Option<Id> {
        self.memo.parent
    }

    /// The owner of its files, if that is neither this user nor root: whoever wrote them may have meant
    /// another machine than the user expects.
    pub fn stranger(&self) -> Option<u32> {
        self.stranger
    }

    /// The payload of section `tag`.
    pub fn section(&self, tag: Tag) -> Option<&[u8]> {
        find(&self.sections, &self.bytes, tag)
    }

    /// All sections in the order in which they were written, without those of this module.
    pub fn sections(&self) -> impl Iterator<Item = (Tag, &[u8])> {
        let payload = |section: &Section| {
            let payload = self.bytes.get(section.payload.clone());
            (section.tag, payload.unwrap_or_default())
        };
        let others = self
            .sections
            .iter()
            .filter(|section| section.tag != memo::TAG);
        others.map(payload)
    }

    /// The file of guest memory.
    pub fn memory(&self) -> &MemoryFile {
        &self.memory
    }

    /// The pages that a guest writes first after a restore, as far as that is known.
    pub fn written(&self) -> &Pages {
        &self.written
    }

    /// Read all of the memory and compare its CRC-32.
    ///
    /// # Errors
    /// The content has changed or cannot be read.
    pub fn check_memory(&self) -> Result<(), SnapshotError> {
        let path = self.memory_path();
        let mut crc = crc32fast::Hasher::new();
        let mut buffer = vec![0; STEP];
        for extent in &self.memo.extents {
            let mut at = extent.start;
            while at < extent.end {
                let buffer = &mut buffer[..(extent.end - at).min(STEP as u64) as usize];
                let read = self.memory.file.read_exact_at(buffer, at);
                read.map_err(failed("read", &path))?;
                crc.update(buffer);
                at += buffer.len() as u64;
            }
        }
        if crc.finalize() == self.memo.crc {
            return Ok(());
        }
        let part = "guest memory".into();
        Err(SnapshotError::Damaged { path, part })
    }

    pub(super) fn memory_path(&self) -> PathBuf {
        self.dir.join(memory_name(self.memo.id))
    }

    pub(super) fn memo(&self) -> &Memo {
        &self.memo
    }
}
