//! Several files as one read-only disk: each begins at a whole sector, and zeroes fill the rest of its last.

use std::fs::File;
use std::io;

use super::image::Image;
use crate::devices::virtio::block::{Range, SECTOR};
use crate::memory::GuestMemory;
use crate::memory::transfer::{Pieces, Segment};

/// A disk of several files.
pub struct Joined {
    parts: Vec<Part>,
}

struct Part {
    file: File,
    /// The byte of the disk at which it begins.
    start: u64,
    /// Its length in bytes.
    len: u64,
}

impl Part {
    /// The byte of the disk behind its last sector.
    fn end(&self) -> u64 {
        self.start + self.len.next_multiple_of(SECTOR)
    }
}

impl Joined {
    /// The disk of `files`.
    ///
    /// # Errors
    /// A file's size cannot be had, or all of them are too large.
    pub fn new(files: Vec<File>) -> io::Result<Self> {
        let mut parts: Vec<Part> = Vec::with_capacity(files.len());
        for file in files {
            let len = file.metadata()?.len();
            let start = parts.last().map_or(0, Part::end);
            let fits = start.checked_add(len).is_some_and(|end| end < 1 << 62);
            if !fits {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            parts.push(Part { file, start, len });
        }
        Ok(Self { parts })
    }
}

/// The first `bytes` bytes of `segments`, or all of them, and the rest.
fn split(segments: Vec<Segment>, bytes: u64) -> (Vec<Segment>, Vec<Segment>) {
    let (mut first, mut second, mut left) = (Vec::new(), Vec::new(), bytes);
    for segment in segments {
        let now = left.min(segment.len.into()) as u32;
        left -= u64::from(now);
        if now > 0 {
            first.push(Segment {
                len: now,
                ..segment
            });
        }
        if now < segment.len {
            second.push(Segment {
                addr: vm_memory::GuestAddress(segment.addr.0 + u64::from(now)),
                len: segment.len - now,
            });
        }
    }
    (first, second)
}

fn read_only() -> io::Error {
    io::ErrorKind::ReadOnlyFilesystem.into()
}

impl Image for Joined {
    fn size(&self) -> io::Result<u64> {
        Ok(self.parts.last().map_or(0, Part::end))
    }

    fn read(&mut self, memory: &GuestMemory, mut at: u64, to: &[Segment]) -> io::Result<()> {
        let mut rest = to.to_vec();
        while !rest.is_empty() {
            // The last part that begins at or before it; an empty one has no byte.
            let index = self.parts.partition_point(|part| part.end() <= at);
            let part = self.parts.get(index).ok_or(io::ErrorKind::UnexpectedEof)?;
            let data = part.start + part.len;
            let (until, is_data) = if at < data {
                (data, true)
            } else {
                (part.end(), false)
            };
            let (now, later) = split(rest, until - at);
            let bytes = now.iter().map(|it| u64::from(it.len)).sum::<u64>();
            let pieces = Pieces::new(memory, &now)?;
            if is_data {
                pieces.read_exact_at(&part.file, at - part.start)?;
            } else {
                pieces.fill(&vec![0; bytes as usize]);
            }
            at += bytes;
            rest = later;
        }
        Ok(())
    }

    fn write(&mut self, _: &GuestMemory, _: u64, _: &[Segment]) -> io::Result<()> {
        Err(read_only())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn discard_unit(&self) -> Option<u64> {
        None
    }

    fn discard(&mut self, _: &Range) -> io::Result<()> {
        Err(read_only())
    }

    fn zero(&mut self, _: &Range) -> io::Result<()> {
        Err(read_only())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const MEMORY: usize = 1 << 16;

    proptest! {
        #[test]
        fn a_disk_is_its_files_one_after_the_other(
            lens in proptest::collection::vec(0_usize..1500, 1..6),
            (from, sectors) in (0_u64..20, 1_u64..20),
            cuts in proptest::collection::vec(1_u32..700, 0..4),
        ) {
            let (mut files, mut whole) = (Vec::new(), Vec::new());
            for (index, len) in lens.iter().enumerate() {
                let mut file = tempfile::tempfile().unwrap();
                let bytes = vec![index as u8 + 1; *len];
                file.write_all(&bytes).unwrap();
                files.push(file);
                whole.extend(bytes);
                whole.resize(whole.len().next_multiple_of(SECTOR as usize), 0);
            }
            let mut disk = Joined::new(files).unwrap();
            prop_assert_eq!(disk.size().unwrap(), whole.len() as u64);

            // The request in segments of guest memory, one behind the other.
            let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
            let (mut segments, mut addr, mut left) = (Vec::new(), 0, sectors * SECTOR);
            for cut in cuts.into_iter().chain([u32::MAX]) {
                let len = left.min(cut.into());
                if len > 0 {
                    segments.push(Segment { addr: GuestAddress(addr), len: len as u32 });
                }
                (addr, left) = (addr + len, left - len);
            }
            let at = from * SECTOR;
            let read = disk.read(&memory, at, &segments);
            let (at, end) = (at as usize, (at + sectors * SECTOR) as usize);
            prop_assert_eq!(read.is_ok(), end <= whole.len());
            if end <= whole.len() {
                let mut got = vec![0; end - at];
                memory.read_slice(&mut got, GuestAddress(0)).unwrap();
                prop_assert_eq!(&got, &whole[at..end]);
            }
        }
    }
}
