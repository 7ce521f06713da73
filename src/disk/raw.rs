//! A raw image: byte N of the disk is byte N of the file.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::{Cache, Disk};
use crate::devices::virtio::block::{Range, Request};
use crate::memory::GuestMemory;
use crate::memory::transfer::Pieces;

/// Most zeroes that are written at once.
const CHUNK: u64 = 1 << 20;

/// What an image begins with that is not raw: taken for raw, it would look like an empty disk, and
/// a guest could write a header that names a file of the host (the reason why formats are told
/// apart here, not guessed at by whoever reads the image next).
const FORMATS: [(&[u8], &str); 5] = [
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "VMDK"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
    (b"QED\0", "QED"),
];

/// Bytes of a file or of a block device.
pub fn size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// The name of the format, if the image has one.
pub fn foreign_format(file: &File) -> Option<&'static str> {
    let mut head = [0; 8];
    let _ = file.read_at(&mut head, 0).ok()?;
    let known = FORMATS.iter().find(|(magic, _)| head.starts_with(magic));
    known.map(|(_, name)| *name)
}

impl Disk {
    /// Serve one request.
    ///
    /// # Errors
    /// The host's disk failed, or it is full.
    pub(super) fn serve(&self, memory: &GuestMemory, request: &Request) -> io::Result<()> {
        match request {
            Request::Read { at, to } => Pieces::new(memory, to)
                .map_err(io::Error::other)?
                .read_exact_at(&self.file, *at),
            Request::Write { at, from, stable } => {
                Pieces::new(memory, from)
                    .map_err(io::Error::other)?
                    .write_all_at(&self.file, *at)?;
                self.settle(*stable)
            }
            Request::Flush => self.settle(true),
            Request::Discard(ranges) => ranges.iter().try_for_each(|range| self.punch(range)),
            Request::WriteZeroes { ranges, stable } => {
                ranges.iter().try_for_each(|range| self.zero(range))?;
                self.settle(*stable)
            }
        }
    }

    /// What was written is on the host's disk, if that was asked for and the user wants it.
    fn settle(&self, wanted: bool) -> io::Result<()> {
        match wanted && self.cache != Cache::Unsafe {
            true => self.file.sync_data(),
            false => Ok(()),
        }
    }

    /// Give space back; a host that cannot need not (virtio 1.2, 5.2.6.2: discard is a hint).
    fn punch(&self, range: &Range) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, mode, range.at, range.len) {
            Err(Errno::OPNOTSUPP | Errno::NODEV) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn zero(&self, range: &Range) -> io::Result<()> {
        let mode = match range.unmap {
            true => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            false => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        };
        match fallocate(&self.file, mode, range.at, range.len) {
            Err(Errno::OPNOTSUPP | Errno::NODEV) => {}
            other => return Ok(other?),
        }
        let zeroes = vec![0; range.len.min(CHUNK) as usize];
        let mut done = 0;
        while done < range.len {
            let now = zeroes.len().min((range.len - done) as usize);
            let zeroes = zeroes.get(..now).unwrap_or_default();
            self.file.write_all_at(zeroes, range.at + done)?;
            done += now as u64;
        }
        Ok(())
    }
}
