//! A file that a long command writes at its end, whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use tempfile::NamedTempFile;

/// It takes its name when it is written. A pipe or a device gets the text as it is.
pub struct WholeFile {
    flag: &'static str,
    path: PathBuf,
    place: Place,
}

enum Place {
    /// Beside the file that it will be.
    Beside(NamedTempFile),
    /// What is there is no regular file.
    There(File),
}

impl WholeFile {
    /// Try whether `path`, which `flag` names, can be written.
    ///
    /// # Errors
    /// It cannot.
    pub fn prepare(flag: &'static str, path: &Path) -> anyhow::Result<Self> {
        Self::open(flag, path).with_context(|| format!("{flag} {}", path.display()))
    }

    fn open(flag: &'static str, path: &Path) -> anyhow::Result<Self> {
        // Through links: the file that is meant is replaced, not the link to it.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let mut mode = 0o666;
        if let Ok(there) = fs::metadata(&path) {
            if there.is_dir() {
                bail!("a folder; name a file in it");
            }
            let file = File::options().write(true).open(&path)?;
            if !there.is_file() {
                let place = Place::There(file);
                return Ok(Self { flag, path, place });
            }
            mode = there.permissions().mode() & 0o777;
        } else if path.file_name().is_none() {
            bail!("not a file's name");
        }
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let place = tempfile::Builder::new()
            .prefix(".hull-")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(folder)
            // Its words would name the temporary file.
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => anyhow!("there is no folder {}", folder.display()),
                io::ErrorKind::PermissionDenied => {
                    anyhow!("files cannot be made in the folder {}", folder.display())
                }
                kind => io::Error::from(kind).into(),
            })?;
        let place = Place::Beside(place);
        Ok(Self { flag, path, place })
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Write all of it.
    ///
    /// # Errors
    /// It could not be written, and what was there before still is.
    pub fn write(self, text: &str) -> anyhow::Result<()> {
        let Self { flag, path, place } = self;
        let written = match place {
            Place::There(mut file) => file.write_all(text.as_bytes()),
            Place::Beside(mut file) => file
                .write_all(text.as_bytes())
                .and_then(|()| Ok(file.persist(&path).map(drop)?)),
        };
        written.with_context(|| format!("{flag} {}", path.display()))
    }
}
