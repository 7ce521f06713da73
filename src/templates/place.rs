//! Where the cache is and how large it may be, from the environment.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::error::CacheError;
use crate::config::size;

/// A kind of what is kept, and how much of it unless the user says otherwise.
struct Kept {
    /// Its folder below hull's.
    folder: &'static str,
    /// Whether HULL_CACHE is its folder, and not the folder above it.
    whole: bool,
    /// The variable for the limit.
    size: &'static str,
    limit: u64,
}

const TEMPLATES: Kept = Kept {
    folder: "templates",
    whole: true,
    size: "HULL_CACHE_SIZE",
    limit: 4 << 30,
};

const IMAGES: Kept = Kept {
    folder: "images",
    whole: false,
    size: "HULL_IMAGES_SIZE",
    limit: 32 << 30,
};

/// Where something is kept, and its limit.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// The folder.
    pub path: PathBuf,
    /// Bytes on the disk that all may take together.
    pub limit: u64,
    /// The user named the folder itself.
    named: bool,
    /// The user's home, if it is in there.
    home: Option<PathBuf>,
}

impl Place {
    /// The place for templates that the environment gives.
    pub(super) fn find() -> Result<Self, CacheError> {
        Self::by(|name| env::var_os(name))
    }

    /// The place for images that the environment gives.
    ///
    /// # Errors
    /// There is none.
    pub fn of_images() -> Result<Self, CacheError> {
        Self::of(&IMAGES, |name| env::var_os(name))
    }

    pub(super) fn by(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, CacheError> {
        Self::of(&TEMPLATES, variable)
    }

    fn of(kept: &Kept, variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, CacheError> {
        let limit = match variable(kept.size) {
            None => kept.limit,
            Some(text) => limit(kept.size, &text)?,
        };
        let absolute = |name| {
            let path = variable(name).map(PathBuf::from);
            path.filter(|path| path.is_absolute())
        };
        let folder = match variable("HULL_CACHE") {
            Some(text) if text.is_empty() || text == "off" => {
                return Err(off("HULL_CACHE", &text));
            }
            Some(path) => Some(std::path::absolute(path).map_err(|_| CacheError::NoHome)?),
            None => None,
        };
        let named = folder.is_some();
        let cache = absolute("XDG_CACHE_HOME").filter(|_| !named);
        let home = absolute("HOME").filter(|_| !named && cache.is_none());
        let cache = cache.or_else(|| Some(home.as_ref()?.join(".cache")));
        let folder = folder.map(|folder| match kept.whole {
            true => folder,
            false => folder.join(kept.folder),
        });
        let path = folder.or_else(|| Some(cache?.join("hull").join(kept.folder)));
        Ok(Self {
            path: path.ok_or(CacheError::NoHome)?,
            limit,
            named,
            home,
        })
    }

    /// Make the folder if it is missing, with those above it.
    ///
    /// # Errors
    /// It would be another user's, or cannot be made.
    pub fn make(&self) -> io::Result<()> {
        if self.path.is_dir() {
            return Ok(());
        }
        // hull does not make a user's home.
        if let Some(home) = &self.home {
            fs::metadata(home)?;
        }
        // With the HOME of another user, as under sudo, hull must not leave folders there that the
        // other user cannot write to.
        if !self.named && !is_ours(&self.path)? {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut folders = fs::DirBuilder::new();
        folders.recursive(true).mode(0o700).create(&self.path)
    }
}

/// Whether the innermost folder on the way to `path` that is there belongs to us.
fn is_ours(path: &Path) -> io::Result<bool> {
    for folder in path.ancestors() {
        match fs::metadata(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            about => return Ok(about?.uid() == geteuid().as_raw()),
        }
    }
    Ok(false)
}

fn limit(variable: &'static str, text: &OsStr) -> Result<u64, CacheError> {
    match text.to_str().and_then(size::parse) {
        Some(0) => Err(off(variable, text)),
        Some(limit) => Ok(limit),
        None => Err(CacheError::Size {
            variable,
            value: text.to_string_lossy().into(),
        }),
    }
}

fn off(variable: &'static str, value: &OsStr) -> CacheError {
    CacheError::Off {
        variable,
        value: value.to_string_lossy().into(),
    }
}
