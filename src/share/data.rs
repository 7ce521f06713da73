//! Operations on open files and folders.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use zerocopy::IntoBytes;

use super::files::{Files, Handle, entry};
use super::wire::errno;
use super::wire::{CopyIn, Dirent, EntryOut, FallocateIn, LseekIn, OpenOut, ReadIn, WriteIn};
use crate::memory::transfer::Pieces;

/// Bytes of all listings of a share; beyond, a folder can only be read on or from its begin.
const MAX_LISTED: usize = 64 << 20;
/// Most bytes that are copied between two files at once, so that others wait a few milliseconds.
const MAX_COPIED: u64 = 4 << 20;
/// What fallocate(2) may do besides allocating; it is all that Linux's FUSE passes on.
const ALLOCATIONS: FallocateFlags = FallocateFlags::KEEP_SIZE
    .union(FallocateFlags::PUNCH_HOLE)
    .union(FallocateFlags::ZERO_RANGE);

impl Files {
    /// Open a regular file.
    ///
    /// # Errors
    /// EMFILE if too few descriptors are left, EBADF for what is no regular file, EROFS, and those of
    /// the host; also below.
    pub fn open(&mut self, node: u64, flags: u32) -> io::Result<OpenOut> {
        let flags = self.open_flags(flags)?;
        let file = self.open_node(node, flags)?;
        Ok(OpenOut {
            fh: self.keep(node, file, flags),
            ..OpenOut::default()
        })
    }

    /// Open a folder.
    ///
    /// # Errors
    /// EMFILE if too few descriptors are left, and the errno of the host's system call.
    pub fn open_folder(&mut self, node: u64) -> io::Result<OpenOut> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let folder = self.open_node(node, flags)?;
        Ok(OpenOut {
            fh: self.keep(node, folder, flags),
            ..OpenOut::default()
        })
    }

    /// Close what [`Files::open`] or [`Files::open_folder`] opened.
    ///
    /// # Errors
    /// EBADF.
    pub fn close(&mut self, node: u64, fh: u64) -> io::Result<()> {
        self.handle(node, fh)?;
        if let Some(handle) = self.handles.remove(&fh) {
            self.listed = self.listed.saturating_sub(handle.listing.size());
        }
        self.tree.nodes.closed(node, fh);
        Ok(())
    }

    /// Read to `pieces`; returns how many bytes, fewer at the end of the file.
    ///
    /// # Errors
    /// Those of the host; also below.
    pub fn read(&mut self, node: u64, asked: &ReadIn, pieces: &Pieces) -> io::Result<usize> {
        let handle = self.handle(node, asked.fh)?;
        pieces.read_at(&handle.file, asked.offset)
    }

    /// Write `pieces`; returns how many bytes, fewer if there is no space for all.
    ///
    /// # Errors
    /// The errno of the host's system call; EBADF if `fh` or the node is not open for it.
    pub fn write(&mut self, node: u64, asked: &WriteIn, pieces: &Pieces) -> io::Result<usize> {
        self.writable()?;
        let handle = self.handles.get_mut(&asked.fh);
        let handle = handle.filter(|open| open.node == node);
        let handle = handle.ok_or(errno(libc::EBADF))?;
        // The guest changes this by fcntl(2), and writes back pages of a mapping at their offset.
        let appends = asked.flags & OFlags::APPEND.bits() != 0;
        if appends != handle.appends {
            let flags = rustix::fs::fcntl_getfl(&handle.file)?;
            let flags = match appends {
                true => flags | OFlags::APPEND,
                false => flags - OFlags::APPEND,
            };
            rustix::fs::fcntl_setfl(&handle.file, flags)?;
            handle.appends = appends;
        }
        pieces.write_at(&handle.file, asked.offset)
    }

    /// Write what the host has cached of the file or folder to its disk.
    ///
    /// # Errors
    /// The errno of the host's system call; EBADF if `fh` or the node is not open for it.
    pub fn sync(&mut self, node: u64, fh: u64, data: bool) -> io::Result<()> {
        let file = &self.handle(node, fh)?.file;
        match data {
            true => Ok(rustix::fs::fdatasync(file)?),
            false => Ok(rustix::fs::fsync(file)?),
        }
    }

    /// Write what the host has cached of the file system on which the node is.
    ///
    /// # Errors
    /// The errno of the host's system call; EBADF if `fh` or the node is not open for it.
    pub fn sync_all(&mut self, node: u64) -> io::Result<()> {
        let folder = self.tree.open(node, OFlags::RDONLY)?;
        Ok(rustix::fs::syncfs(folder)?)
    }

    /// Allocate space, or free it.
    ///
    /// # Errors
    /// EOPNOTSUPP for what Linux's FUSE does not pass on; as above.
    pub fn allocate(&mut self, node: u64, asked: &FallocateIn) -> io::Result<()> {
        self.writable()?;
        let mode = FallocateFlags::from_bits_retain(asked.mode);
        if !ALLOCATIONS.contains(mode) {
            return Err(errno(libc::EOPNOTSUPP));
        }
        let file = &self.handle(node, asked.fh)?.file;
        Ok(rustix::fs::fallocate(
            file,
            mode,
            asked.offset,
            asked.length,
        )?)
    }

    /// Where the next data or the next hole begins.
    ///
    /// # Errors
    /// EINVAL for another question; as above.
    pub fn seek(&mut self, node: u64, asked: &LseekIn) -> io::Result<u64> {
        let file = &self.handle(node, asked.fh)?.file;
        let to = match asked.whence as i32 {
            libc::SEEK_DATA => SeekFrom::Data(asked.offset),
            libc::SEEK_HOLE => SeekFrom::Hole(asked.offset),
            _ => return Err(errno(libc::EINVAL)),
        };
        Ok(rustix::fs::seek(file, to)?)
    }

    /// Copy from one open file to another on the host; returns how many bytes.
    ///
    /// # Errors
    /// The errno of the host's system call; EBADF if `fh` or the node is not open for it.
    pub fn copy(&mut self, node: u64, asked: &CopyIn) -> io::Result<usize> {
        self.writable()?;
        let from = self.handle(node, asked.fh)?.file.clone();
        let to = self.handle(asked.to_node, asked.to_fh)?.file.clone();
        let (mut at, mut to_at) = (asked.offset, asked.to_offset);
        let len = asked.len.min(MAX_COPIED) as usize;
        let copied =
            rustix::fs::copy_file_range(&*from, Some(&mut at), &*to, Some(&mut to_at), len);
        Ok(copied?)
    }

    /// The entries of an open folder from `offset` on, as many as there is `room` for; `full` ones
    /// look each up for the guest, as far as that succeeds.
    ///
    /// # Errors
    /// The errno of the host's system call; EBADF if `fh` or the node is not open for it.
    pub fn list(
        &mut self,
        node: u64,
        asked: &ReadIn,
        room: usize,
        full: bool,
    ) -> io::Result<Vec<u8>> {
        self.handle(node, asked.fh)?;
        let mut handle = self.handles.remove(&asked.fh).ok_or(errno(libc::EBADF))?;
        let before = handle.listing.size();
        let others = self.listed.saturating_sub(before);
        let most = MAX_LISTED.saturating_sub(others);
        let read = handle.listing.read(&handle.file, asked.offset, most);
        self.listed = others + handle.listing.size();
        let room = room.min(asked.size as usize);
        let listed = read.map(|()| self.entries(&handle, asked.offset, room, full));
        self.handles.insert(asked.fh, handle);
        listed
    }

    fn entries(&mut self, handle: &Handle, from: u64, room: usize, full: bool) -> Vec<u8> {
        let (mut out, mut at) = (Vec::new(), from);
        while let Some(item) = handle.listing.at(at) {
            let name = item.name.to_bytes();
            let padded = (size_of::<Dirent>() + name.len()).next_multiple_of(8);
            let needed = padded + if full { size_of::<EntryOut>() } else { 0 };
            if room - out.len() < needed {
                break;
            }
            let mut inode = item.inode;
            if full {
                let found = self.known_entry(handle.node, &handle.file, item.name);
                // A mount's number is not that of the folder below it, which is the entry.
                if found.node != 0 && found.attr.flags == 0 {
                    inode = found.attr.ino;
                }
                out.extend(found.as_bytes());
            }
            let dirent = Dirent {
                ino: inode,
                offset: item.next,
                name_len: name.len() as u32,
                kind: item.kind.into(),
            };
            out.extend(dirent.as_bytes());
            out.extend(name);
            out.resize(out.len().next_multiple_of(8), 0);
            at = item.next;
        }
        out
    }

    /// An entry with its node; without, if it cannot be looked up: it is an entry all the same.
    fn known_entry(
        &mut self,
        parent: u64,
        folder: &Arc<OwnedFd>,
        child: &std::ffi::CStr,
    ) -> EntryOut {
        if matches!(child.to_bytes(), b"." | b"..") {
            return EntryOut::default();
        }
        let found = self.tree.look_up(parent, folder, child);
        found.as_ref().map(entry).unwrap_or_default()
    }
}
