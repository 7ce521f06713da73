//! A file that a command writes at its end, whole or not at all. A command that runs a machine can make no
//! files by then: its file is made at the start, and empty until it is written.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use rustix::fs::{AtFlags, CWD, FlockOperation, flock, unlinkat};
use rustix::process::geteuid;
use tempfile::NamedTempFile;

use crate::leftover;

/// Bytes that are written at once.
const BATCH: usize = 64 << 10;
/// How the name of a file that is being written begins.
const PREFIX: &str = ".hull-";

/// A place that was tried before the work began. Until it is written, what was there before stays.
/// A pipe or a device gets the text as it is.
pub struct OutputFile {
    flag: &'static str,
    /// As it was typed.
    path: PathBuf,
    /// Through links: the file that is meant is replaced, not the link to it.
    resolved: PathBuf,
    place: Place,
}

enum Place {
    /// A new file takes the name when it is written; it gets these permissions.
    Beside { mode: u32 },
    /// The file itself: it is no regular one, its folder takes no other, or none after the lock-down.
    There(File),
    /// As before, and this has made it: it goes if nothing is written.
    Made(File),
}

impl OutputFile {
    /// Try whether `path`, which `flag` names, can be written.
    ///
    /// # Errors
    /// It cannot.
    pub fn create(flag: &'static str, path: &Path) -> anyhow::Result<Self> {
        let resolved = resolve(path);
        let place = place(&resolved).with_context(|| format!("{flag} {}", path.display()))?;
        Ok(Self {
            flag,
            path: path.into(),
            resolved,
            place,
        })
    }

    /// As [`OutputFile::create`], for a command that may open no file by the time it writes: what was there
    /// before stays until then.
    ///
    /// # Errors
    /// As there.
    pub fn open(flag: &'static str, path: &Path) -> anyhow::Result<Self> {
        let place = || match fs::metadata(path) {
            Ok(there) if there.is_dir() => bail!("a folder; name a file in it"),
            Ok(_) => Ok(Place::There(File::options().write(true).open(path)?)),
            Err(_) if path.file_name().is_none() => bail!("not a file's name"),
            // Through links, too: the last one may lead to a file that does not exist yet.
            Err(_) => {
                let make = File::options()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(path);
                Ok(Place::Made(make.map_err(|error| no_file(path, error))?))
            }
        };
        let place = place().with_context(|| format!("{flag} {}", path.display()))?;
        Ok(Self {
            flag,
            path: path.into(),
            resolved: path.into(),
            place,
        })
    }

    /// As it was typed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Write all of `text`.
    ///
    /// # Errors
    /// It could not be written.
    pub fn write(&self, text: impl AsRef<[u8]>) -> anyhow::Result<()> {
        let written = self.fill(|to| to.write_all(text.as_ref()));
        written.with_context(|| format!("{} {}", self.flag, self.path.display()))
    }

    /// Write what `fill` does. It may be called again, which replaces the text.
    ///
    /// # Errors
    /// It could not be written.
    pub fn fill(
        &self,
        fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    ) -> io::Result<()> {
        let whole = |file: &File| {
            let mut to = BufWriter::with_capacity(BATCH, file);
            fill(&mut to)?;
            to.flush()
        };
        match &self.place {
            Place::Beside { mode } => {
                let file = beside(&self.resolved, *mode)?;
                whole(file.as_file())?;
                Ok(file.persist(&self.resolved).map(drop)?)
            }
            Place::There(file) | Place::Made(file) => {
                let regular = file.metadata()?.is_file();
                if regular {
                    file.set_len(0)?;
                    (&*file).rewind()?;
                }
                whole(file).inspect_err(|_| {
                    if regular {
                        let _ = file.set_len(0); // nothing, rather than a part
                    }
                })
            }
        }
    }
}

/// The file that `path` leads to. The last link may lead to a file that does not exist yet.
fn resolve(path: &Path) -> PathBuf {
    match (path.canonicalize(), fs::read_link(path)) {
        (Ok(resolved), _) => resolved,
        (Err(_), Ok(target)) => folder(path).join(target),
        (Err(_), Err(_)) => path.into(),
    }
}

fn place(path: &Path) -> anyhow::Result<Place> {
    let Ok(there) = fs::metadata(path) else {
        if path.file_name().is_none() {
            bail!("not a file's name");
        }
        if closes(folder(path)) {
            return Ok(Place::There(File::create_new(path)?));
        }
        beside(path, 0o666).map_err(|error| no_file(path, error))?;
        return Ok(Place::Beside { mode: 0o666 });
    };
    if there.is_dir() {
        bail!("a folder; name a file in it");
    }
    let file = File::options().write(true).open(path)?;
    let mode = there.permissions().mode() & 0o777;
    if there.is_file() && !closes(folder(path)) && beside(path, mode).is_ok() {
        Ok(Place::Beside { mode })
    } else {
        Ok(Place::There(file))
    }
}

/// Why no file can be made at `path`; the error itself may name a temporary file.
fn no_file(path: &Path, error: io::Error) -> anyhow::Error {
    let folder = folder(path).display();
    match error.kind() {
        io::ErrorKind::NotFound => anyhow!("there is no folder {folder}"),
        io::ErrorKind::PermissionDenied => anyhow!("files cannot be made in the folder {folder}"),
        kind => io::Error::from(kind).into(),
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Place::Made(file) = &self.place
            && file.metadata().is_ok_and(|about| about.len() == 0)
        {
            // It fails after the lock-down.
            let _ = unlinkat(CWD, &self.path, AtFlags::empty());
        }
    }
}

/// Whether a folder takes no more files once root has no capabilities (CAP_DAC_OVERRIDE in
/// capabilities(7)), as another user's folder does.
fn closes(folder: &Path) -> bool {
    let open = |about: fs::Metadata| match about.uid() {
        0 => about.mode() & 0o200,
        _ => about.mode() & 0o002,
    };
    geteuid().is_root() && fs::metadata(folder).is_ok_and(|about| open(about) == 0)
}

fn beside(path: &Path, mode: u32) -> io::Result<NamedTempFile> {
    let folder = folder(path);
    leftover::remove(folder, PREFIX);
    let file = tempfile::Builder::new()
        .prefix(PREFIX)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    // Where there are no locks, another hull takes it for left over after a minute.
    let _ = flock(&file, FlockOperation::NonBlockingLockExclusive);
    Ok(file)
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn what_a_killed_hull_left_is_removed_by_the_next_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let long_ago = SystemTime::now() - Duration::from_secs(120);
        let old = [".hull-left", ".hull-locked", "hull-mine"].map(|name| {
            let file = File::create(at(name)).expect("a file");
            file.set_modified(long_ago).expect("a time");
            file
        });
        flock(&old[1], FlockOperation::LockExclusive).expect("a lock");
        File::create(at(".hull-new")).expect("a file");
        let written = OutputFile::create("--json", &at("report")).expect("a place");
        written.write("text").expect("written");
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .expect("a folder")
            .flatten()
            .map(|entry| entry.file_name().into_string().expect("text"))
            .collect();
        left.sort();
        assert_eq!(left, [".hull-locked", ".hull-new", "hull-mine", "report"]);
    }
}
