//! A file to load into guest memory: in a buffer, in an open file, in one that is mapped, or packed
//! inside the program.
//!
//! A kernel has megabytes, and touching them takes longer than the rest of a boot's preparation. So
//! an [`Image`] is not read as a whole unless its format requires it: [`Image::read`] reads headers,
//! and [`Image::copy_to`] and [`Reader`] copy the bytes straight into guest memory, without a buffer
//! of their size in between.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::{panic, thread};

use thiserror::Error;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, ReadVolatile, VolatileMemoryError,
    VolatileSlice,
};

use super::GuestMemory;
use super::backing;
use super::layout::PAGE_SIZE;
use super::packed::{CHUNK, Packed, PackedError};
use crate::sandbox::{Role, spawn_scoped};

/// Fewest bytes for which a second thread pays, which takes some 100 us to start.
const MIN_FOR_TWO_THREADS: usize = 4 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// A file, by where its bytes are.
#[derive(Clone, Debug)]
pub enum Image {
    /// The bytes are in a buffer.
    Bytes(Vec<u8>),
    /// In a regular file, of this length when it was opened.
    File(Arc<File>, u64),
    /// Packed inside the program.
    Packed(Packed),
    /// In a file that stays as it is, and so can be mapped into guest memory instead of being copied.
    Kept {
        /// The file.
        file: Arc<File>,
        /// Where the bytes begin, a multiple of a page.
        start: u64,
        /// Their number.
        len: u64,
    },
}

/// Why the bytes of a file cannot be read or copied.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file cannot be read, or was truncated meanwhile.
    #[error("the file cannot be read ({0})")]
    Read(io::Error),
    /// The host does not map the file into guest memory.
    #[error("the file cannot be mapped ({0})")]
    Map(io::Error),
    /// The program's file is damaged.
    #[error(transparent)]
    Packed(#[from] PackedError),
    /// The target is not all in guest memory.
    #[error("not all in guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

impl Image {
    /// A regular file that is open for reading.
    ///
    /// # Errors
    /// The file's metadata cannot be read.
    pub fn file(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self::File(Arc::new(file), len))
    }

    /// Size of the file in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, len) | Self::Kept { len, .. } => *len,
            Self::Packed(packed) => packed.len() as u64,
        }
    }

    /// Whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Up to `max` bytes from `offset` on, fewer where the file ends.
    ///
    /// # Errors
    /// [`ImageError::Read`] and [`ImageError::Packed`].
    pub fn read(&self, offset: u64, max: usize) -> Result<Cow<'_, [u8]>, ImageError> {
        let range = self.clip(offset, max);
        if let Self::Bytes(bytes) = self {
            return Ok(bytes.get(range).unwrap_or_default().into());
        }
        let mut bytes = vec![0; range.len()];
        self.read_into(range.start, &mut bytes)?;
        Ok(bytes.into())
    }

    /// As [`Image::copy_to`], for bytes that the guest hardly writes: whole pages of a file that stays as
    /// it is are mapped. A page that is mapped and then written costs more than one that was copied.
    ///
    /// # Errors
    /// As [`Image::copy_to`].
    pub fn map_to(
        &self,
        offset: u64,
        len: u64,
        memory: &GuestMemory,
        gpa: u64,
    ) -> Result<(), ImageError> {
        let mut mapped = 0;
        if let Self::Kept { file, start, .. } = self {
            let at = start.saturating_add(offset);
            let len = self.len().saturating_sub(offset).min(len);
            let pages = len - len % PAGE_SIZE;
            if pages > 0 && (gpa | at).is_multiple_of(PAGE_SIZE) {
                let bytes = usize::try_from(pages).unwrap_or(usize::MAX);
                backing::map_part(memory, GuestAddress(gpa), file, at, bytes)
                    .map_err(ImageError::Map)?;
                mapped = pages;
            }
        }
        self.copy_to(offset + mapped, len - mapped, memory, gpa + mapped)
    }

    /// Copy `len` bytes from `offset` on to `gpa`, fewer if the file ends before.
    ///
    /// # Errors
    /// [`ImageError`]; bytes copied until then stay.
    pub fn copy_to(
        &self,
        offset: u64,
        len: u64,
        memory: &GuestMemory,
        gpa: u64,
    ) -> Result<(), ImageError> {
        let range = self.clip(offset, usize::try_from(len).unwrap_or(usize::MAX));
        let mut from = range.start;
        for slice in GuestMemoryBackend::get_slices(memory, GuestAddress(gpa), range.len()) {
            let slice = slice?;
            self.fill(from, &slice)?;
            from += slice.len();
        }
        Ok(())
    }

    /// Fill `slice` with the bytes from `offset` on, which must exist. Two threads share a large one,
    /// because the host takes longer to allocate the pages than to fill them.
    fn fill<B: BitmapSlice>(
        &self,
        offset: usize,
        slice: &VolatileSlice<B>,
    ) -> Result<(), ImageError> {
        let guard = slice.ptr_guard_mut();
        // SAFETY: the guard's bytes are mapped and may be written as long as it lives. No other
        // reference to this part of guest memory exists: hull accesses it by volatile slices.
        let bytes = unsafe { std::slice::from_raw_parts_mut(guard.as_ptr(), slice.len()) };
        slice.bitmap().mark_dirty(0, slice.len());
        if bytes.len() < MIN_FOR_TWO_THREADS {
            return self.read_into(offset, bytes);
        }
        let half = (bytes.len() / 2).next_multiple_of(HUGE_PAGE);
        let (low, high) = bytes.split_at_mut(half);
        thread::scope(|scope| {
            let high = || self.read_into(offset + half, high);
            let high = spawn_scoped(scope, Role::Copy, high);
            self.read_into(offset, low)?;
            let high = high.map_err(ImageError::Read)?.join();
            high.unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Fill `buffer` with the bytes from `offset` on, which must exist.
    fn read_into(&self, offset: usize, mut buffer: &mut [u8]) -> Result<(), ImageError> {
        let range = offset..offset.saturating_add(buffer.len());
        match self {
            Self::Bytes(bytes) => match bytes.get(range) {
                Some(bytes) => buffer.copy_from_slice(bytes),
                None => return Err(ImageError::Read(io::ErrorKind::UnexpectedEof.into())),
            },
            Self::File(file, _) => file
                .read_exact_at(buffer, offset as u64)
                .map_err(ImageError::Read)?,
            Self::Kept { file, start, .. } => file
                .read_exact_at(buffer, start + offset as u64)
                .map_err(ImageError::Read)?,
            Self::Packed(packed) => packed.pieces(range, |piece| {
                if let Some(part) = buffer.split_off_mut(..piece.len()) {
                    part.copy_from_slice(piece);
                }
                Ok::<(), ImageError>(())
            })?,
        }
        Ok(())
    }

    /// The part of `max` bytes from `offset` on that exists.
    fn clip(&self, offset: u64, max: usize) -> Range<usize> {
        let len = usize::try_from(self.len()).unwrap_or(usize::MAX);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(len);
        start..start.saturating_add(max).min(len)
    }
}

/// Reads an [`Image`] as linux-loader requires it. A read into guest memory is one [`Image::copy_to`].
#[derive(Debug)]
pub struct Reader<'a> {
    image: &'a Image,
    position: u64,
    /// Bytes around the last read, because linux-loader reads headers a few bytes at a time and a
    /// packed file is unpacked by chunks.
    window: Cow<'a, [u8]>,
    window_start: u64,
    /// The last error; linux-loader's own errors do not contain it.
    pub error: Option<ImageError>,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `image`.
    pub fn new(image: &'a Image) -> Self {
        Self {
            image,
            position: 0,
            window: Cow::default(),
            window_start: 0,
            error: None,
        }
    }

    /// Advance by the number of bytes read, or keep the error.
    fn advance(&mut self, read: Result<usize, ImageError>) -> io::Result<usize> {
        let count = read.map_err(|error| {
            self.error = Some(error);
            io::ErrorKind::Other
        })?;
        self.position += count as u64;
        Ok(count)
    }

    /// Bytes at the position, at least one unless the file has ended.
    fn at_position(&mut self) -> Result<&[u8], ImageError> {
        let range = self.window_start..self.window_start + self.window.len() as u64;
        if !range.contains(&self.position) {
            let size = if let Image::Packed(_) = self.image {
                CHUNK
            } else {
                4096
            };
            self.window_start = self.position / size as u64 * size as u64;
            self.window = self.image.read(self.window_start, size)?;
        }
        let skip = usize::try_from(self.position - self.window_start).unwrap_or(usize::MAX);
        Ok(self.window.get(skip..).unwrap_or_default())
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.at_position().map(|bytes| {
            let count = bytes.len().min(buffer.len());
            buffer[..count].copy_from_slice(&bytes[..count]);
            count
        });
        self.advance(read)
    }
}

impl ReadVolatile for Reader<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let range = self.image.clip(self.position, buffer.len());
        let part = buffer.subslice(0, range.len())?;
        let read = self.image.fill(range.start, &part).map(|()| range.len());
        self.advance(read).map_err(VolatileMemoryError::IOError)
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (from, offset) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::Current(offset) => (self.position, offset),
            SeekFrom::End(offset) => (self.image.len(), offset),
        };
        self.position = from
            .checked_add_signed(offset)
            .ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl From<Vec<u8>> for Image {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&[u8]> for Image {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::Bytes;

    use super::*;
    use crate::memory::packed::tests::packed;

    const GPA: u64 = 0x1234;

    fn content() -> Vec<u8> {
        (0..1_500_000u32)
            .flat_map(|i| (i / 3).to_le_bytes())
            .collect()
    }

    /// The content behind a page of something else.
    fn kept() -> Image {
        let moved = tempfile::tempfile().expect("a file");
        moved.write_all_at(&content(), PAGE_SIZE).expect("written");
        Image::Kept {
            file: Arc::new(moved),
            start: PAGE_SIZE,
            len: content().len() as u64,
        }
    }

    /// The same bytes in every place they can be in.
    fn images() -> Vec<Image> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&content()).expect("written");
        vec![
            content().into(),
            Image::file(file).expect("a file"),
            kept(),
            Image::Packed(packed(&content())),
        ]
    }

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 8 << 20)]).expect("memory")
    }

    #[test]
    fn every_kind_reads_the_same_up_to_the_end_of_the_file() {
        let bytes = content();
        for image in images() {
            assert_eq!(image.len(), bytes.len() as u64);
            for (offset, most) in [
                (0, 64),
                (262_100, 300),
                (1_000_000, 700_000),
                (5_999_990, 64),
            ] {
                let end = (offset + most).min(bytes.len());
                let read = image.read(offset as u64, most).expect("read");
                assert_eq!(read, &bytes[offset..end], "{image:?} {offset}");
            }
            for beyond in [bytes.len() as u64, u64::MAX] {
                assert!(image.read(beyond, 10).expect("read").is_empty());
            }
        }
    }

    #[test]
    fn every_kind_copies_exactly_the_bytes_asked_for() {
        for image in images() {
            let memory = memory();
            image
                .copy_to(262_000, 1_000_000, &memory, GPA)
                .expect("copied");
            let mut copy = vec![0; 1_000_002];
            let before = GuestAddress(GPA - 1);
            memory.read_slice(&mut copy, before).expect("read");
            assert_eq!(
                copy[1..1_000_001],
                content()[262_000..1_262_000],
                "{image:?}"
            );
            assert_eq!((copy[0], copy[1_000_001]), (0, 0));
        }
    }

    #[test]
    fn what_is_mapped_is_the_same_as_what_is_copied() {
        let all = content().len() as u64;
        for image in images() {
            for (offset, len) in [(0, 10), (0x2000, 0x2345), (0x2001, 0x3000), (0, u64::MAX)] {
                let memory = memory();
                image.map_to(offset, len, &memory, 0x1000).expect("mapped");
                let end = offset.saturating_add(len).min(all);
                let mut there = vec![0; (end - offset) as usize + 1];
                let first = GuestAddress(0x1000);
                memory.read_slice(&mut there, first).expect("read");
                assert_eq!(there.pop(), Some(0), "{image:?}");
                assert_eq!(there, content()[offset as usize..end as usize]);
            }
            let beyond = image.map_to(0, u64::MAX, &memory(), (8 << 20) - 0x1000);
            assert!(beyond.is_err(), "{image:?}");
        }
    }

    #[test]
    fn a_reader_reads_and_seeks_in_every_kind() {
        let bytes = content();
        for image in images() {
            let mut reader = Reader::new(&image);
            let mut few = [0; 9];
            for start in [0, 5, 262_140, 5_999_991] {
                let at = reader.seek(SeekFrom::Start(start as u64)).expect("moved");
                assert_eq!(at, start as u64);
                reader.read_exact(&mut few).expect("read");
                assert_eq!(few, bytes[start..start + 9], "{image:?} {start}");
            }
            assert_eq!(reader.read(&mut few).expect("the end"), 0);
            let back = reader.seek(SeekFrom::Current(-5_000_000)).expect("moved");
            let memory = memory();
            memory
                .read_exact_volatile_from(GuestAddress(GPA), &mut reader, 4_500_000)
                .expect("read");
            let mut copy = vec![0; 4_500_000];
            memory
                .read_slice(&mut copy, GuestAddress(GPA))
                .expect("read");
            assert_eq!(copy, bytes[back as usize..][..4_500_000], "{image:?}");
            reader.seek(SeekFrom::End(-3)).expect("moved");
            let more = memory.read_exact_volatile_from(GuestAddress(0), &mut reader, 4);
            assert!(more.is_err() && reader.error.is_none());
        }
    }

    #[test]
    fn a_copy_beyond_memory_is_an_error() {
        for image in images() {
            let error = image.copy_to(0, u64::MAX, &memory(), (8 << 20) - 5000);
            assert!(matches!(error, Err(ImageError::Memory(_))), "{image:?}");
        }
    }

    #[test]
    fn a_file_that_shrank_is_an_error() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(10_000).expect("grown");
        let image = Image::file(file.try_clone().expect("a handle")).expect("a file");
        file.set_len(5_000).expect("truncated");
        assert!(matches!(image.read(0, 10_000), Err(ImageError::Read(_))));
        assert!(image.copy_to(0, 10_000, &memory(), 0).is_err());
    }
}
