//! The programs and other files of subjects.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// A word for it: "program", "kernel", "image".
    pub what: String,
    pub path: PathBuf,
    /// Bytes on disk; of a folder, the sum over all files in it.
    pub bytes: u64,
}

#[derive(Debug, Error)]
pub enum LeftOut {
    #[error("{0} is not on PATH")]
    Missing(String),
    #[error("{0}")]
    Unfit(String),
    #[error("cannot prepare it: {0}")]
    Prepare(#[from] io::Error),
}

/// The path of `program`: a path is returned as it is, a name is looked up on PATH.
pub fn find(program: &Path) -> Result<PathBuf, LeftOut> {
    let executable = |path: &Path| {
        let allowed = rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
        path.is_file() && allowed
    };
    let found = if program.components().count() == 1 {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let mut paths = std::env::split_paths(&paths).map(|folder| folder.join(program));
        paths.find(|path| executable(path))
    } else {
        executable(program).then(|| program.to_path_buf())
    };
    found.ok_or_else(|| LeftOut::Missing(program.display().to_string()))
}

pub fn part(what: &str, path: &Path) -> Part {
    fn bytes(path: &Path) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let Ok(file) = std::fs::symlink_metadata(path) else {
            return 0;
        };
        if !file.is_dir() {
            return file.blocks() * 512;
        }
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| bytes(&entry.path())).sum()
    }
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    Part {
        what: what.into(),
        bytes: bytes(&path),
        path,
    }
}

/// The first line that `program` prints with `flag`, at most 80 characters.
pub fn first_line(program: &Path, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.chars().filter(|c| !c.is_control()).take(80).collect())
}
