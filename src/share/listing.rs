//! What a folder has, for a guest that reads it in parts.
//!
//! The host's positions in a folder need not survive the removal of entries: tmpfs before Linux 6.6
//! counts entries, so that a guest that removes what it has read would miss as many. So the host's
//! folder is read once from begin to end, and the guest's positions are those in a copy.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{RawDir, SeekFrom};

use super::wire::errno;

/// Bytes of entries that are read at once.
const AT_ONCE: usize = 32 << 10;
/// Bytes before the name: inode number, length of the name with its NUL, type.
const HEADER: usize = 11;

/// An entry of a folder.
pub struct Item<'a> {
    /// Inode number.
    pub inode: u64,
    /// Type (DT_*).
    pub kind: u8,
    /// Name.
    pub name: &'a CStr,
    /// The position after it, never 0.
    pub next: u64,
}

/// A folder that is being read. A position is the number of entries before it.
#[derive(Default)]
pub struct Listing {
    /// Entries as they were read, each with its [`HEADER`].
    copy: Vec<u8>,
    /// Where each begins in the copy.
    starts: Vec<u32>,
    /// The position of the copy's first entry.
    begin: u64,
}

impl Listing {
    /// Bytes that it keeps.
    pub fn size(&self) -> usize {
        self.copy.len() + size_of_val(&self.starts[..])
    }

    /// Read `folder` until there is an entry at `position`, or it ends. What lies before the position
    /// is dropped where it would be more than `most` bytes.
    ///
    /// # Errors
    /// Those of the host; EINVAL for a position that was dropped.
    pub fn read(&mut self, folder: &OwnedFd, position: u64, most: usize) -> io::Result<()> {
        if position == 0 {
            // The guest begins again, and sees what has changed.
            rustix::fs::seek(folder, SeekFrom::Start(0))?;
            *self = Self::default();
        }
        if position < self.begin {
            return Err(errno(libc::EINVAL));
        }
        // A position of before the guest began again may lie beyond what was read since.
        while position >= self.end() {
            if self.size() > most {
                *self = Self {
                    begin: self.end(),
                    ..Self::default()
                };
            }
            let end = self.end();
            self.read_on(folder)?;
            if self.end() == end {
                break;
            }
        }
        Ok(())
    }

    /// The position after the last entry.
    fn end(&self) -> u64 {
        self.begin + self.starts.len() as u64
    }

    fn read_on(&mut self, folder: &OwnedFd) -> io::Result<()> {
        let mut space = vec![MaybeUninit::uninit(); AT_ONCE];
        let mut entries = RawDir::new(folder, &mut space);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes_with_nul();
            let len = u16::try_from(name.len()).map_err(|_| errno(libc::ENAMETOOLONG))?;
            let start = u32::try_from(self.copy.len()).map_err(|_| errno(libc::EOVERFLOW))?;
            self.starts.push(start);
            self.copy.extend(entry.ino().to_ne_bytes());
            self.copy.extend(len.to_ne_bytes());
            self.copy.push(kind(entry.file_type()));
            self.copy.extend(name);
            if entries.is_buffer_empty() {
                break;
            }
        }
        Ok(())
    }

    /// The entry at `position`, if there is one in the copy.
    pub fn at(&self, position: u64) -> Option<Item<'_>> {
        let index = usize::try_from(position.checked_sub(self.begin)?).ok()?;
        let start = *self.starts.get(index)? as usize;
        let (header, rest) = self.copy.get(start..)?.split_at_checked(HEADER)?;
        let (inode, rest_of_header) = header.split_first_chunk()?;
        let (len, kind) = rest_of_header.split_first_chunk()?;
        let len = usize::from(u16::from_ne_bytes(*len));
        Some(Item {
            inode: u64::from_ne_bytes(*inode),
            kind: *kind.first()?,
            name: CStr::from_bytes_with_nul(rest.get(..len)?).ok()?,
            next: position + 1,
        })
    }
}

/// A type as in struct dirent: the bits of st_mode, shifted.
fn kind(kind: rustix::fs::FileType) -> u8 {
    match kind {
        rustix::fs::FileType::Unknown => 0,
        kind => (kind.as_raw_mode() >> 12) as u8,
    }
}
