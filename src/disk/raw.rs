//! A raw image: byte N of the disk is byte N of the file.

use std::fs::File;
use std::io::{self, IoSliceMut, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::image::{BLOCK, Image, Results};
use crate::devices::virtio::block::Range;
use crate::memory::GuestMemory;
use crate::memory::ring::Ring;
use crate::memory::transfer::{Pieces, Segment};

/// Bytes of zeroes written at once.
const CHUNK: u64 = 1 << 20;

/// The name of the one format besides raw that hull reads.
pub const QCOW2: &str = "qcow2";

/// Magic numbers of formats that are not raw. Read as raw, such an image would look like an empty
/// disk; and a guest could write a header that names a file of the host, for the next program that
/// guesses the format.
const FORMATS: [(usize, &[u8], &str); 9] = [
    (0, b"QFI\xfb", QCOW2),
    (0, b"KDMV", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"QED\0", "QED"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
];

/// The name of the format whose magic number the file has.
pub fn magic(file: &File) -> Option<&'static str> {
    let mut head = [0; 0x44];
    let _ = file.read_at(&mut head, 0).ok()?;
    let known = FORMATS.iter().find(|(at, magic, _)| {
        let there = head.get(*at..).unwrap_or_default();
        there.starts_with(magic)
    });
    known.map(|(_, _, name)| *name)
}

/// A raw image.
pub struct Raw {
    file: File,
    several: Several,
}

/// How several reads are made.
enum Several {
    /// All at once, by io_uring.
    Ring(Box<Ring>),
    /// One after the other: the kernel has no io_uring, or would use a thread for each read, as it
    /// does where the file system cannot read without waiting.
    InTurn,
}

impl Raw {
    /// The raw image in `file`.
    pub fn new(file: File) -> Self {
        Self {
            file,
            several: Several::InTurn,
        }
    }
}

impl Several {
    fn of(file: &File) -> Self {
        let mut byte = [0];
        let mut buffer = [IoSliceMut::new(&mut byte)];
        let nowait = preadv2(file, &mut buffer, 0, ReadWriteFlags::NOWAIT);
        match (nowait, Ring::new()) {
            (Ok(_) | Err(Errno::AGAIN), Ok(ring)) => Self::Ring(Box::new(ring)),
            _ => Self::InTurn,
        }
    }
}

/// Whether the host can give the space of `file` back, as far as it says before it is tried: of a block device.
fn can_discard(file: &File) -> bool {
    let Some(about) = file
        .metadata()
        .ok()
        .filter(|about| about.file_type().is_block_device())
    else {
        return true;
    };
    let (major, minor) = (
        rustix::fs::major(about.rdev()),
        rustix::fs::minor(about.rdev()),
    );
    // A partition's limits are those of its disk, one folder up (Documentation/ABI/stable/sysfs-block).
    let most = ["queue", "../queue"].iter().find_map(|queue| {
        let limit = format!("/sys/dev/block/{major}:{minor}/{queue}/write_zeroes_max_bytes");
        std::fs::read_to_string(limit).ok()
    });
    most.is_none_or(|most| most.trim() != "0")
}

impl Image for Raw {
    fn prepare(&mut self) {
        self.several = Several::of(&self.file);
    }

    fn size(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    fn read(&mut self, memory: &GuestMemory, at: u64, to: &[Segment]) -> io::Result<()> {
        Pieces::new(memory, to)?.read_exact_at(&self.file, at)
    }

    fn read_all(&mut self, memory: &GuestMemory, parts: &[(u64, &[Segment])]) -> Results {
        let Several::Ring(ring) = &mut self.several else {
            return parts
                .iter()
                .map(|&(at, to)| self.read(memory, at, to))
                .collect();
        };
        let pieces = |&(at, to): &(u64, &[Segment])| Ok((at, Pieces::new(memory, to)?));
        let reads: io::Result<Vec<_>> = parts.iter().map(pieces).collect();
        let mut reads = match reads {
            Ok(reads) => reads,
            Err(fault) => return parts.iter().map(|_| Err(fault.kind().into())).collect(),
        };
        // The rest of a read that came short, or its error, follows below.
        let came = ring.read(&self.file, &reads);
        for ((at, pieces), came) in reads.iter_mut().zip(came) {
            let came = came.unwrap_or(0);
            pieces.advance(came);
            *at += came as u64;
        }
        if ring.is_broken() {
            self.several = Several::InTurn;
        }
        let rest = |(at, pieces): (u64, Pieces)| pieces.read_exact_at(&self.file, at);
        reads.into_iter().map(rest).collect()
    }

    fn write(&mut self, memory: &GuestMemory, at: u64, from: &[Segment]) -> io::Result<()> {
        Pieces::new(memory, from)?.write_all_at(&self.file, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard_unit(&self) -> Option<u64> {
        can_discard(&self.file).then_some(BLOCK)
    }

    /// Does nothing on a file system that cannot: discard is a hint (virtio 1.2, 5.2.6.2).
    fn discard(&mut self, range: &Range) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, mode, range.at, range.len) {
            Err(Errno::OPNOTSUPP | Errno::NODEV) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn zero(&mut self, range: &Range) -> io::Result<()> {
        let mode = if range.unmap {
            FallocateFlags::PUNCH_HOLE
        } else {
            FallocateFlags::ZERO_RANGE
        } | FallocateFlags::KEEP_SIZE;
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
