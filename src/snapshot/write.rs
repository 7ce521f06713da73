//! Writes a snapshot beside the old one, which one rename replaces.

use std::fs::{DirBuilder, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Address, GuestMemoryBackend};
use vm_memory::{Bytes, GuestMemoryRegion};

use super::error::{SnapshotError, failed};
use super::header::{self, MAX_SECTIONS, MAX_STATE, Tag};
use super::id::Id;
use super::memo::{self, Memo};
use super::read::{self, STEP, memory_name};
use crate::memory::GuestMemory;
use crate::memory::pages::{PAGE, Pages, at_offsets};

/// A page of zeros, which is not written.
const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// Writes one snapshot: call [`Writer::memory`], [`Writer::section`] for each section, then
/// [`Writer::commit`]. Without the last call no files stay, and the old snapshot is intact.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    /// The open folder, which holds the lock.
    lock: File,
    /// Whether this writer has made the folder.
    made: bool,
    sync: bool,
    memo: Memo,
    memory: File,
    sections: Vec<(Tag, Vec<u8>)>,
    committed: bool,
}

/// One of the steps of [`Writer::commit`].
type Step = fn(&mut Writer) -> Result<(), SnapshotError>;

/// The steps of [`Writer::commit`] in order. Until the rename the old snapshot is valid, from then on
/// the new one.
pub(super) const STEPS: [Step; 5] = [
    Writer::sync_memory,
    Writer::write_state,
    Writer::rename_state,
    Writer::sync_dir,
    Writer::remove_others,
];

impl Writer {
    /// Begin a snapshot in the folder `dir`, which is made if it is missing and may have an old one.
    /// With `sync` it is on the disk at the end and survives a crash of the host.
    ///
    /// # Errors
    /// The folder cannot be written to, has other content, or has another writer.
    pub fn create(dir: &Path, sync: bool) -> Result<Self, SnapshotError> {
        let made = make_folder(dir)?;
        let lock = own_folder(dir)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(SnapshotError::Busy { dir: dir.into() });
            }
            Err(error) => return Err(failed("lock", dir)(error)),
        }
        match read::current(&lock, dir) {
            Ok(id) => remove_others(&lock, dir, id)?,
            // Do not overwrite files of others.
            Err(error @ (SnapshotError::Foreign { .. } | SnapshotError::Io { .. })) => {
                return Err(error);
            }
            // Of no use to this hull, but only removed when the new snapshot is complete.
            Err(_) => {}
        }
        let mut id = Id([0; 16]);
        let random = getrandom(&mut id.0, GetRandomFlags::empty());
        random.map_err(failed("draw a random name for", dir))?;
        let path = dir.join(memory_name(id));
        let memory = create(&lock, &path)?;
        Ok(Self {
            dir: dir.into(),
            lock,
            made,
            sync,
            memo: Memo {
                id,
                parent: None,
                regions: Vec::new(),
                extents: Vec::new(),
                crc: 0,
            },
            memory,
            sections: Vec::new(),
            committed: false,
        })
    }

    /// The id of the snapshot, once it is committed.
    pub fn id(&self) -> Id {
        self.memo.id
    }

    /// Bytes of guest memory written so far.
    pub fn memory_bytes(&self) -> u64 {
        self.memo.pages().bytes()
    }

    /// Write `pages` of `memory`, which must not change meanwhile. With a `base` the snapshot is a diff
    /// to that one: `pages` are those that may differ from it.
    ///
    /// Pages of zeros take no space in the file.
    ///
    /// # Errors
    /// Writing fails, or `memory` does not have these pages.
    pub fn memory(
        &mut self,
        memory: &GuestMemory,
        pages: &Pages,
        base: Option<Id>,
    ) -> Result<(), SnapshotError> {
        let region = |region: &_| {
            let region: &vm_memory::GuestRegionMmap<_> = region;
            (region.start_addr().raw_value(), region.len())
        };
        let mut file = self.layer(memory.iter().map(region).collect(), base)?;
        let mut buffer = vec![0; STEP];
        for range in pages.ranges() {
            for at in (range.start..range.end).step_by(STEP) {
                let range = at..range.end.min(at + STEP as u64);
                let buffer = &mut buffer[..(range.end - range.start) as usize];
                let mut done = 0;
                for (gpa, len) in at_offsets(memory, &range) {
                    let part = &mut buffer[done..done + len as usize];
                    let read = memory.read_slice(part, gpa).map_err(io::Error::other);
                    read.map_err(failed("read guest memory for", &self.dir))?;
                    done += part.len();
                }
                file.put(&self.memory, at, &buffer[..done])
                    .map_err(failed("write", self.memory_path()))?;
            }
        }
        (self.memo.extents, self.memo.crc) = file.done();
        Ok(())
    }

    /// An empty file of memory for these regions.
    pub(super) fn layer(
        &mut self,
        regions: Vec<(u64, u64)>,
        base: Option<Id>,
    ) -> Result<Layer, SnapshotError> {
        self.memo.regions = regions;
        self.memo.parent = base;
        let sized = self.memory.set_len(self.memo.bytes());
        sized.map_err(failed("make room in", self.memory_path()))?;
        Ok(Layer::new(base.is_some()))
    }

    /// Take over the extents and the CRC-32 of a finished layer.
    pub(super) fn finish_layer(&mut self, layer: Layer) {
        (self.memo.extents, self.memo.crc) = layer.done();
    }

    pub(super) fn memory_file(&self) -> &File {
        &self.memory
    }

    /// Add the section `tag`; each tag may be used once.
    pub fn section(&mut self, tag: Tag, bytes: Vec<u8>) {
        self.sections.push((tag, bytes));
    }

    /// Complete the snapshot, which replaces the old one.
    ///
    /// # Errors
    /// Writing fails; then the old snapshot, if there was one, is intact.
    pub fn commit(mut self) -> Result<Id, SnapshotError> {
        STEPS.iter().try_for_each(|step| step(&mut self))?;
        Ok(self.memo.id)
    }

    fn sync_memory(&mut self) -> Result<(), SnapshotError> {
        if self.sync {
            self.memory.sync_all()
        } else {
            Ok(())
        }
        .map_err(failed("write", self.memory_path()))
    }

    fn write_state(&mut self) -> Result<(), SnapshotError> {
        let path = self.dir.join("state.tmp");
        let memo = self.memo.encode().map_err(io::Error::other);
        let memo = memo.map_err(failed("make", &path))?;
        if memo.len() > memo::MAX_BYTES {
            return too_large(format!("memory in {} extents", self.memo.extents.len()));
        }
        let mut sections = std::mem::take(&mut self.sections);
        sections.push((memo::TAG, memo));
        if sections.len() > MAX_SECTIONS as usize {
            return too_large(format!("{} sections", sections.len()));
        }
        let bytes = header::encode(&sections);
        if bytes.len() as u64 > MAX_STATE {
            return too_large(format!("{} bytes", bytes.len()));
        }
        // A killed writer may have left one with any access mode.
        remove(&self.lock, &path)?;
        let file = create(&self.lock, &path)?;
        let written = file.write_all_at(&bytes, 0);
        let synced = written.and_then(|()| if self.sync { file.sync_all() } else { Ok(()) });
        synced.map_err(failed("write", &path))
    }

    fn rename_state(&mut self) -> Result<(), SnapshotError> {
        let path = self.dir.join("state");
        let renamed = rustix::fs::renameat(&self.lock, "state.tmp", &self.lock, "state");
        renamed.map_err(failed("replace", &path))?;
        self.committed = true;
        Ok(())
    }

    fn sync_dir(&mut self) -> Result<(), SnapshotError> {
        if !self.sync {
            return Ok(());
        }
        let mut synced = self.lock.sync_all();
        if self.made {
            // The parent, which holds the folder's name.
            let above = File::open(self.dir.join(".."));
            synced = synced.and(above.and_then(|above| above.sync_all()));
        }
        synced.map_err(failed("write", &self.dir))
    }

    fn remove_others(&mut self) -> Result<(), SnapshotError> {
        remove_others(&self.lock, &self.dir, Some(self.memo.id))
    }

    fn memory_path(&self) -> PathBuf {
        self.dir.join(memory_name(self.memo.id))
    }

    /// Leave the files as a killed process would.
    #[cfg(test)]
    pub(super) fn killed(mut self) {
        self.committed = true;
    }
}

impl Drop for Writer {
    /// What is not a snapshot yet never becomes one.
    fn drop(&mut self) {
        if !self.committed {
            let _ = remove(&self.lock, &self.memory_path());
            let _ = remove(&self.lock, &self.dir.join("state.tmp"));
            if self.made {
                // Unless something else is in it.
                let _ = unlinkat(CWD, &self.dir, AtFlags::REMOVEDIR);
            }
        }
    }
}

/// Make the folder `dir` if it is missing. Returns whether it was.
///
/// # Errors
/// It cannot be made.
pub fn make_folder(dir: &Path) -> Result<bool, SnapshotError> {
    let missing = !dir.exists();
    if missing {
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(dir);
        made.map_err(failed("make the folder", dir))?;
    }
    Ok(missing)
}

/// Open the folder `dir` if it is this user's: in another one's, files could be replaced by links and by
/// other files at any time. From here on it is known by its descriptor, whatever its path leads to later.
fn own_folder(dir: &Path) -> Result<File, SnapshotError> {
    let user = geteuid().as_raw();
    let foreign = |owner: u32| SnapshotError::NotOwn {
        dir: dir.into(),
        owner,
    };
    let link = dir.symlink_metadata().map_err(failed("look at", dir))?;
    if link.is_symlink() && link.uid() != user {
        return Err(foreign(link.uid()));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(CWD, dir, flags, Mode::empty());
    let folder = File::from(folder.map_err(failed("open", dir))?);
    let data = folder.metadata().map_err(failed("look at", dir))?;
    match data.uid() {
        owner if owner != user => Err(foreign(owner)),
        _ => Ok(folder),
    }
}

/// Create the file of this path in `folder`, which has none.
fn create(folder: &File, path: &Path) -> Result<File, SnapshotError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let name = path.file_name().unwrap_or_default();
    let file = rustix::fs::openat(folder, name, flags, Mode::RUSR | Mode::WUSR);
    Ok(file.map_err(failed("create", path))?.into())
}

/// Remove what writers left in `folder` that does not belong to the snapshot `id`.
fn remove_others(folder: &File, dir: &Path, id: Option<Id>) -> Result<(), SnapshotError> {
    let own = id.map(memory_name);
    for entry in Dir::read_from(folder).map_err(failed("list", dir))? {
        let entry = entry.map_err(failed("list", dir))?;
        let Ok(name) = entry.file_name().to_str() else {
            continue; // none of ours
        };
        let is_memory = name.strip_prefix("memory-").is_some_and(|id| {
            id.len() == 32
                && id
                    .bytes()
                    .all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
        });
        if name == "state.tmp" || (is_memory && own.as_deref() != Some(name)) {
            remove(folder, &dir.join(name))?;
        }
    }
    Ok(())
}

fn remove(folder: &File, path: &Path) -> Result<(), SnapshotError> {
    let name = path.file_name().unwrap_or_default();
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Err(error) if error != Errno::NOENT => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn too_large(what: String) -> Result<(), SnapshotError> {
    Err(SnapshotError::TooLarge { what })
}

/// A file of memory that is being written: which parts, and the CRC-32 of them.
pub(super) struct Layer {
    /// Whether pages of zeros are content, because they replace those of a base.
    zeros_count: bool,
    extents: Pages,
    crc: crc32fast::Hasher,
}

impl Layer {
    fn new(zeros_count: bool) -> Self {
        Self {
            zeros_count,
            extents: Pages::default(),
            crc: crc32fast::Hasher::new(),
        }
    }

    /// Write `bytes`, which are whole pages, at offset `at` of `file`, after all earlier ones.
    pub(super) fn put(&mut self, file: &File, at: u64, bytes: &[u8]) -> io::Result<()> {
        let pages = bytes.as_chunks::<{ PAGE as usize }>().0;
        let mut start = 0;
        for run in pages.chunk_by(|a, b| (*a == ZEROS) == (*b == ZEROS)) {
            let here = at + start as u64 * PAGE;
            let run = run.as_flattened();
            start += run.len() / PAGE as usize;
            let is_zero = run.starts_with(&ZEROS);
            if !is_zero {
                file.write_all_at(run, here)?;
            }
            if !is_zero || self.zeros_count {
                self.crc.update(run);
                self.extents.push(here..here + run.len() as u64);
            }
        }
        Ok(())
    }

    fn done(self) -> (Vec<Range<u64>>, u32) {
        (self.extents.ranges().to_vec(), self.crc.finalize())
    }
}
