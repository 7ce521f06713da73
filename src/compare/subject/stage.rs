//! What all subjects start from: one root file system, one kernel, a folder for their files.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use crate::guest::{self, Guest, GuestError};

/// Memory of a virtual machine, as `hull run` has it when nothing is said.
pub const MEMORY_MIB: u64 = 128;
/// The one program there.
const BUSYBOX: &str = "/bin/busybox";
/// Types of files, in an entry's mode (cpio(5)).
const TYPE: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Why there is no stage.
#[derive(Debug, Error)]
pub enum StageError {
    /// Nothing to run.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A file could not be written.
    #[error("cannot unpack the initial RAM disk: {0}")]
    Write(#[from] io::Error),
    /// A command that no subject would find.
    #[error(
        "{0} is not in hull's initial RAM disk, of which all subjects run it: that has busybox alone, \
         whose applets `hull run -- busybox --list` lists"
    )]
    NoCommand(String),
}

/// A folder with all of it, gone when dropped.
pub struct Stage {
    folder: tempfile::TempDir,
    guest: Guest,
    bzimage: Option<PathBuf>,
}

impl Stage {
    /// Unpack hull's initial RAM disk into a new folder. `bzimage`, if there is one, is the kernel for
    /// monitors that take no other.
    ///
    /// # Errors
    /// hull carries no guest, or the folder cannot be written.
    pub fn new(bzimage: Option<PathBuf>) -> Result<Self, StageError> {
        Self::within(&std::env::temp_dir(), bzimage)
    }

    /// As [`new`](Self::new), in a new folder of `place`; what lies there may be not executable.
    ///
    /// # Errors
    /// As of [`new`](Self::new).
    pub fn within(place: &Path, bzimage: Option<PathBuf>) -> Result<Self, StageError> {
        let guest = guest::required()?;
        let folder = tempfile::Builder::new()
            .prefix("hull-stage-")
            .tempdir_in(place)?;
        let stage = Self {
            folder,
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

    /// A file of the stage's own folder, which only its owner can enter.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The root file system: what the guest's initial RAM disk has, but for device nodes.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// hull's kernel as an ELF file, written when it is first asked for.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn vmlinux(&self) -> Result<PathBuf, StageError> {
        let path = self.path("vmlinux");
        if !path.exists() {
            fs::write(
                &path,
                self.guest.vmlinux.unpack().map_err(GuestError::from)?,
            )?;
        }
        Ok(path)
    }

    /// The same kernel as a bzImage, if one was named.
    pub fn bzimage(&self) -> Option<&Path> {
        self.bzimage.as_deref()
    }

    /// hull's initial RAM disk, a newc archive.
    ///
    /// # Errors
    /// The program's file is damaged.
    pub fn initramfs(&self) -> Result<Vec<u8>, StageError> {
        Ok(self.guest.initramfs.unpack().map_err(GuestError::from)?)
    }

    /// `words` as all subjects can run them: the first is a path in the root; of an applet, busybox's.
    ///
    /// # Errors
    /// There is no such command.
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

    /// The host's file of `path` in the root, with links followed, none of which leads out of the root.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, path: &str) -> Result<PathBuf, StageError> {
        let found = self
            .follow(Path::new(path), 8)
            .filter(|file| file.is_file());
        found.ok_or_else(|| StageError::NoCommand(path.into()))
    }

    fn follow(&self, place: &Path, links: usize) -> Option<PathBuf> {
        let inside: PathBuf = place
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
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

/// Folders, files and links of a newc archive, below `root`.
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
        let inside: PathBuf = Path::new(&name)
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        let path = root.join(inside);
        match mode & TYPE {
            FOLDER => fs::create_dir_all(&path)?,
            FILE => {
                fs::write(&path, content)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode & 0o777))?;
            }
            LINK => symlink(String::from_utf8_lossy(&content).as_ref(), &path)?,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_as_the_guest_finds_them() {
        let stage = match Stage::new(None) {
            Ok(stage) => stage,
            Err(StageError::Guest(GuestError::None)) => {
                println!(
                    "skipped: commands_are_found_as_the_guest_finds_them: built without a guest"
                );
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
        assert_eq!(
            shell,
            stage.root().join("bin/busybox"),
            "links are followed in the root"
        );
        let outside = stage.find("../../../../bin/sh").expect("stays in the root");
        assert!(outside.starts_with(stage.root()));
        for missing in ["no-such", "/bin/no-such", "/bin", ""] {
            let error = command(missing).expect_err("is not there");
            assert!(
                error.contains(" is not in hull's initial RAM disk"),
                "{error}"
            );
        }
    }
}
