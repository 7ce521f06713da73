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

/// The state of a snapshot that is being written.
const FRESH_STATE: &str = "state.tmp";
/// A page of zeros, which is not written.
const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// A folder that gets a snapshot, from the lock on it to the rename that completes the snapshot. Dropped
/// before that, no new files stay, and the old snapshot is intact.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    /// The open folder, which holds the lock.
    lock: File,
    /// Whether this has made the folder.
    made: bool,
    sync: bool,
    id: Id,
    committed: bool,
}

/// The new files of a snapshot, which are empty.
#[derive(Debug)]
pub struct Files {
    /// `memory-ID`.
    pub memory: File,
    /// `state.tmp`.
    pub state: File,
}

/// Writes the files of one snapshot: call [`Writer::memory`], [`Writer::section`] for each section, then
/// [`Writer::commit`].
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    /// `None` if another process has the folder.
    folder: Option<Folder>,
    sync: bool,
    memo: Memo,
    files: Files,
    sections: Vec<(Tag, Vec<u8>)>,
}

/// One of the steps of [`Writer::commit`].
type Step = fn(&mut Writer) -> Result<(), SnapshotError>;

/// The steps of [`Writer::commit`] in order. Until the rename the old snapshot is valid, from then on
/// the new one.
pub(super) const STEPS: [Step; 5] = [
    Writer::sync_memory,
    Writer::write_state,
    |writer| writer.folder.as_mut().map_or(Ok(()), Folder::rename_state),
    |writer| writer.folder.as_mut().map_or(Ok(()), Folder::sync_dir),
    |writer| writer.folder.as_mut().map_or(Ok(()), Folder::remove_others),
];

impl Folder {
    /// Begin a snapshot in the folder `dir`, which is made if it is missing and may have an old one.
    /// With `sync` it is on the disk at the end and survives a crash of the host.
    ///
    /// # Errors
    /// The folder cannot be written to, has other content, or has another writer.
    pub fn open(dir: &Path, sync: bool) -> Result<(Self, Files), SnapshotError> {
        let made = !dir.exists();
        if made {
            let mut builder = DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(dir);
            made.map_err(failed("make the folder", dir))?;
        }
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
        let folder = Self {
            dir: dir.into(),
            lock,
            made,
            sync,
            id,
            committed: false,
        };
        let memory = create(&folder.lock, &dir.join(memory_name(id)))?;
        // A killed writer may have left one with any access mode.
        let state = dir.join(FRESH_STATE);
        remove(&folder.lock, &state)?;
        let state = create(&folder.lock, &state)?;
        Ok((folder, Files { memory, state }))
    }

    /// The id of the snapshot, once it is committed.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Complete the snapshot, whose files are written, and remove the old one.
    ///
    /// # Errors
    /// The folder cannot be written to; then the old snapshot, if there was one, is intact, or both are.
    pub fn commit(mut self) -> Result<(), SnapshotError> {
        self.rename_state()?;
        self.sync_dir()?;
        self.remove_others()
    }

    fn rename_state(&mut self) -> Result<(), SnapshotError> {
        let path = self.dir.join("state");
        let renamed = rustix::fs::renameat(&self.lock, FRESH_STATE, &self.lock, "state");
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
        remove_others(&self.lock, &self.dir, Some(self.id))
    }
}

impl Drop for Folder {
    /// What is not a snapshot yet never becomes one.
    fn drop(&mut self) {
        if !self.committed {
            let _ = remove(&self.lock, &self.dir.join(memory_name(self.id)));
            let _ = remove(&self.lock, &self.dir.join(FRESH_STATE));
            if self.made {
                // Unless something else is in it.
                let _ = unlinkat(CWD, &self.dir, AtFlags::REMOVEDIR);
            }
        }
    }
}

impl Writer {
    /// Begin a snapshot in the folder `dir`, as [`Folder::open`] does.
    ///
    /// # Errors
    /// As there.
    pub fn create(dir: &Path, sync: bool) -> Result<Self, SnapshotError> {
        let (folder, files) = Folder::open(dir, sync)?;
        let mut writer = Self::of(files, folder.id, dir, sync);
        writer.folder = Some(folder);
        Ok(writer)
    }

    /// Write the `files` of the snapshot `id` in the folder `dir`, which another process has: that commits
    /// the snapshot once [`Writer::commit`] has written them.
    pub fn of(files: Files, id: Id, dir: &Path, sync: bool) -> Self {
        Self {
            dir: dir.into(),
            folder: None,
            sync,
            memo: Memo {
                id,
                parent: None,
                regions: Vec::new(),
                extents: Vec::new(),
                crc: 0,
            },
            files,
            sections: Vec::new(),
        }
    }

    /// The id of the snapshot, once it is committed.
    pub fn id(&self) -> Id {
        self.memo.id
    }

    /// The folder of the snapshot.
    pub fn dir(&self) -> &Path {
        &self.dir
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
                file.put(&self.files.memory, at, &buffer[..done])
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
        let sized = self.files.memory.set_len(self.memo.bytes());
        sized.map_err(failed("make room in", self.memory_path()))?;
        Ok(Layer::new(base.is_some()))
    }

    /// Take over the extents and the CRC-32 of a finished layer.
    pub(super) fn finish_layer(&mut self, layer: Layer) {
        (self.memo.extents, self.memo.crc) = layer.done();
    }

    pub(super) fn memory_file(&self) -> &File {
        &self.files.memory
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
            self.files.memory.sync_all()
        } else {
            Ok(())
        }
        .map_err(failed("write", self.memory_path()))
    }

    fn write_state(&mut self) -> Result<(), SnapshotError> {
        let path = self.dir.join(FRESH_STATE);
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
        let file = &self.files.state;
        let written = file.write_all_at(&bytes, 0);
        let synced = written.and_then(|()| if self.sync { file.sync_all() } else { Ok(()) });
        synced.map_err(failed("write", &path))
    }

    fn memory_path(&self) -> PathBuf {
        self.dir.join(memory_name(self.memo.id))
    }

    /// Leave the files as a killed process would.
    #[cfg(test)]
    pub(super) fn killed(mut self) {
        if let Some(folder) = &mut self.folder {
            folder.committed = true;
        }
    }
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
        if name == FRESH_STATE || (is_memory && own.as_deref() != Some(name)) {
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
