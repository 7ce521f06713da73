//! The stage: one root file system, one kernel and a folder for files, common to all subjects.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use super::guest;
use crate::guest::{Guest, GuestError, required};
use crate::leftover;

/// Memory of each virtual machine, the default of `hull run`.
pub const MEMORY_MIB: u64 = 128;
const BUSYBOX: &str = "/bin/busybox";
/// The longest chain of symbolic links that is followed.
const MAX_LINKS: usize = 8;

#[derive(Debug, Error)]
pub enum StageError {
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error("cannot unpack the initial RAM disk: {0}")]
    Write(#[from] io::Error),
    #[error(
        "{0} is not in hull's initial RAM disk, which all subjects use; it contains only busybox, whose \
         applets `hull run -- busybox --list` prints"
    )]
    NoCommand(String),
}

/// How the folder's name begins.
const PREFIX: &str = "hull-stage-";

/// The folder. Dropping it removes the folder.
pub struct Stage {
    folder: tempfile::TempDir,
    /// The folder, locked as long as it is in use.
    _lock: File,
    guest: Guest,
    pub(crate) bzimage: Option<PathBuf>,
}

impl Stage {
    /// Unpacks hull's initial RAM disk into a new temporary folder. `bzimage` is the kernel for monitors that
    /// boot no ELF file.
    pub fn new(bzimage: Option<PathBuf>) -> Result<Self, StageError> {
        Self::within(&std::env::temp_dir(), bzimage)
    }

    /// As [`new`](Self::new), with the new folder in `place`. Files there need not be executable.
    pub fn within(place: &Path, bzimage: Option<PathBuf>) -> Result<Self, StageError> {
        let guest = required()?;
        leftover::remove(place, PREFIX);
        let mut folder = tempfile::Builder::new();
        let folder = folder.prefix(PREFIX).tempdir_in(place)?;
        let lock = File::open(folder.path())?;
        let _ = flock(&lock, FlockOperation::NonBlockingLockExclusive);
        let stage = Self {
            folder,
            _lock: lock,
            guest,
            bzimage,
        };
        for name in ["root", "cache", "run", "tmp"] {
            fs::DirBuilder::new().mode(0o700).create(stage.path(name))?;
        }
        let archive = guest.initramfs.unpack().map_err(GuestError::from)?;
        unpack(&archive, &stage.root())?;
        Ok(stage)
    }

    /// A path in the stage's folder, which has the mode 0700.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The root file system: the guest's initial RAM disk without device nodes.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// hull's kernel as an ELF file, which the first call writes.
    pub fn vmlinux(&self) -> Result<PathBuf, StageError> {
        let path = self.path("vmlinux");
        if !path.exists() {
            let kernel = self.guest.vmlinux.unpack().map_err(GuestError::from)?;
            fs::write(&path, kernel)?;
        }
        Ok(path)
    }

    /// hull's initial RAM disk, a newc archive.
    pub fn initramfs(&self) -> Result<Vec<u8>, StageError> {
        Ok(self.guest.initramfs.unpack().map_err(GuestError::from)?)
    }

    /// hull's initial RAM disk with another init in the file `name`, which the first call writes.
    pub fn initrd(
        &self,
        name: &str,
        init: impl FnOnce() -> Vec<u8>,
    ) -> Result<PathBuf, StageError> {
        let path = self.path(name);
        if !path.exists() {
            fs::write(&path, guest::initrd(&self.initramfs()?, &init())?)?;
        }
        Ok(path)
    }

    /// `words` with a first word that is a path in the root. An applet is preceded by busybox's path.
    pub fn command(&self, words: &[String]) -> Result<Vec<String>, StageError> {
        let [first, rest @ ..] = words else {
            return Err(StageError::NoCommand("nothing".into()));
        };
        if first.contains('/') {
            self.find(first)?;
            return Ok(words.to_vec());
        }
        let path = format!("/bin/{first}");
        let mut command = match self.find(&path) {
            Ok(_) => vec![path],
            Err(_) if self.applets()?.contains(first) => vec![BUSYBOX.into(), first.clone()],
            Err(_) => return Err(StageError::NoCommand(first.clone())),
        };
        command.extend_from_slice(rest);
        Ok(command)
    }

    fn applets(&self) -> Result<Vec<String>, StageError> {
        let list = Command::new(self.find(BUSYBOX)?).arg("--list").output()?;
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        Ok(list.lines().map(Into::into).collect())
    }

    /// The path on the host of the file `path` in the root. Links are followed within the root.
    pub fn find(&self, path: &str) -> Result<PathBuf, StageError> {
        let found = self.follow(Path::new(path), MAX_LINKS);
        let found = found.filter(|file| file.is_file());
        found.ok_or_else(|| StageError::NoCommand(path.into()))
    }

    fn follow(&self, place: &Path, links: usize) -> Option<PathBuf> {
        let inside = normal(place);
        let path = self.root().join(&inside);
        match fs::read_link(&path) {
            Ok(target) if links > 0 => {
                let folder = inside.parent().unwrap_or(Path::new(""));
                self.follow(&folder.join(target), links - 1)
            }
            Ok(_) => None,
            Err(_) => Some(path),
        }
    }
}

/// `path` without its root and without `..`.
fn normal(path: &Path) -> PathBuf {
    let parts = path.components();
    parts
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect()
}

/// Writes the folders, files and links of a newc archive below `root`.
fn unpack(archive: &[u8], root: &Path) -> io::Result<()> {
    let mut rest = archive;
    loop {
        let mut entry = cpio::newc::Reader::new(rest)?;
        if entry.entry().is_trailer() {
            return Ok(());
        }
        let (name, mode) = (entry.entry().name().to_owned(), entry.entry().mode());
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        rest = entry.finish()?;
        let path = root.join(normal(Path::new(&name)));
        match mode & libc::S_IFMT {
            libc::S_IFDIR => fs::create_dir_all(&path)?,
            libc::S_IFREG => {
                fs::write(&path, content)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o777))?;
            }
            libc::S_IFLNK => symlink(String::from_utf8_lossy(&content).as_ref(), &path)?,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_the_root() {
        const NAME: &str = "commands_are_found_in_the_root";
        let stage = match Stage::new(None) {
            Ok(stage) => stage,
            Err(StageError::Guest(GuestError::None)) => {
                println!("skipped: {NAME}: built without a guest");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let command = |words: &str| {
            let words: Vec<String> = words.split_whitespace().map(Into::into).collect();
            stage.command(&words).map_err(|error| error.to_string())
        };
        assert_eq!(
            command("echo hi").expect("an applet"),
            ["/bin/busybox", "echo", "hi"]
        );
        assert_eq!(command("sh -c :").expect("a link"), ["/bin/sh", "-c", ":"]);
        assert_eq!(command("/bin/busybox").expect("a file"), ["/bin/busybox"]);
        let shell = stage.find("/bin/sh").expect("a link");
        assert_eq!(shell, stage.root().join("bin/busybox"));
        let outside = stage.find("../../../../bin/sh").expect("stays in the root");
        assert!(outside.starts_with(stage.root()));
        for missing in ["no-such", "/bin/no-such", "/bin", ""] {
            let error = command(missing).expect_err("does not exist");
            assert!(
                error.contains(" is not in hull's initial RAM disk"),
                "{error}"
            );
        }
    }
}
