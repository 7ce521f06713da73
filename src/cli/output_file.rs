//! A file that a command writes at its end, whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use rustix::fs::{AtFlags, CWD, FlockOperation, flock, renameat, unlinkat};
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
    /// No regular file, or one in a folder that takes no other, or takes none after the lock-down.
    There(File),
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
                // It would be removed by unlink(2), which is on no list of system calls.
                let (file, name) = beside(&self.resolved, *mode)?.keep()?;
                let replaced =
                    whole(&file).and_then(|()| Ok(renameat(CWD, &name, CWD, &self.resolved)?));
                replaced.inspect_err(|_| {
                    let _ = unlinkat(CWD, &name, AtFlags::empty());
                })
            }
            Place::There(file) => {
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
        // The error would name the temporary file.
        beside(path, 0o666).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow!("there is no folder {}", folder(path).display()),
            io::ErrorKind::PermissionDenied => {
                anyhow!(
                    "files cannot be made in the folder {}",
                    folder(path).display()
                )
            }
            kind => io::Error::from(kind).into(),
        })?;
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
