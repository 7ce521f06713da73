//! The payload of a `Mount`: `flags u8 | tag | path`, each string ended by a NUL.

use core::ffi::CStr;

use crate::Error;
use crate::message::write;

/// Maximum length of a tag in bytes (virtio 1.2, 5.11.4).
pub const MAX_TAG: usize = 36;

/// Maximum length of a path in bytes, with its NUL (PATH_MAX).
pub const MAX_PATH: usize = 4096;

const READ_ONLY: u8 = 1;
const MEMORY: u8 = 2;
const DISK: u8 = 4;

/// A kind of file system that init can mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A virtio file system, by its tag; or, at `/`, a disk.
    Share,
    /// A file system in memory (tmpfs); the tag has its options.
    Memory,
    /// An ext4 on a disk; the tag is its name in /dev.
    Disk,
}

/// A shared folder of the host and its mount point in the guest; or, at `/`, the block device that becomes
/// the guest's root, by its name in /dev.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Says what `tag` names.
    pub kind: MountKind,
    /// Mount it read-only.
    pub read_only: bool,
    /// The name of the virtio file system or disk, or options; 1 to [`MAX_TAG`] bytes.
    pub tag: &'a CStr,
    /// An absolute path without `.` and `..`; missing folders are made.
    pub path: &'a CStr,
}

impl<'a> Mount<'a> {
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, Error> {
        let (&flags, strings) = bytes
            .split_first()
            .ok_or(Error::WrongMount("it is empty"))?;
        let cut = Error::WrongMount("a string has no end");
        let tag = CStr::from_bytes_until_nul(strings).map_err(|_| cut)?;
        let rest = strings.get(tag.count_bytes() + 1..).unwrap_or_default();
        let path = CStr::from_bytes_with_nul(rest).map_err(|_| cut)?;
        let kind = match flags & !READ_ONLY {
            0 => MountKind::Share,
            MEMORY => MountKind::Memory,
            DISK => MountKind::Disk,
            _ => return Err(Error::WrongMount("it has flags that do not exist")),
        };
        let mount = Self {
            kind,
            read_only: flags & READ_ONLY != 0,
            tag,
            path,
        };
        mount.check()?;
        Ok(mount)
    }

    /// Whether it is the guest's root.
    pub fn is_root(&self) -> bool {
        self.path == c"/" && self.kind == MountKind::Share
    }

    /// Check that it can be sent.
    ///
    /// # Errors
    /// [`Error::WrongMount`] with the reason.
    pub fn check(&self) -> Result<(), Error> {
        let path = self.path.to_bytes();
        if !(1..=MAX_TAG).contains(&self.tag.count_bytes()) {
            return Err(Error::WrongMount("its tag must have 1 to 36 bytes"));
        }
        if path.len() >= MAX_PATH {
            return Err(Error::WrongMount("its path is too long"));
        }
        if !path.starts_with(b"/") || path.starts_with(b"//") {
            return Err(Error::WrongMount("its path must be absolute"));
        }
        let mut parts = path.split(|&byte| byte == b'/');
        if parts.any(|part| part == b"." || part == b"..") {
            return Err(Error::WrongMount("its path has a part . or .."));
        }
        Ok(())
    }

    pub(crate) fn encode(&self, out: &mut [u8], kind: u8) -> Option<usize> {
        self.check().ok()?;
        let mut fixed = [0; 1 + MAX_TAG + 1];
        let tag = self.tag.to_bytes_with_nul();
        let of_kind = match self.kind {
            MountKind::Share => 0,
            MountKind::Memory => MEMORY,
            MountKind::Disk => DISK,
        };
        fixed[0] = of_kind | if self.read_only { READ_ONLY } else { 0 };
        fixed.get_mut(1..=tag.len())?.copy_from_slice(tag);
        write(
            out,
            kind,
            fixed.get(..=tag.len())?,
            self.path.to_bytes_with_nul(),
        )
    }
}
