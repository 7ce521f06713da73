//! A file to be loaded into guest memory, wherever its bytes are: at hand, in an open file, or
//! packed inside the program.
//!
//! A kernel is megabytes, and touching each of them costs more than all the rest of a boot's
//! preparation. So nothing reads an [`Image`] as a whole that does not have to: headers come by
//! [`Image::read`], and [`Image::copy_to`] brings bytes from where they are straight into guest
//! memory, without a buffer of their size in between.

use std::borrow::Cow;
use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::{io, panic, thread};

use rustix::io::{Errno, pread};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::packed::{Packed, PackedError};
use super::{GuestMemory, STACK};

/// Bytes that are worth a second thread, which takes some 100 us to be there.
const MANY: usize = 4 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// Where the bytes are.
#[derive(Clone, Debug)]
pub enum Image {
    /// At hand.
    Bytes(Vec<u8>),
    /// In a regular file, of this length when it was opened.
    File(Arc<File>, u64),
    /// In the program.
    Packed(Packed),
}

/// Bytes did not come.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The file cannot be read, or not that far: it was truncated meanwhile.
    #[error("the file cannot be read ({0})")]
    Read(io::Error),
    /// The program's file is damaged.
    #[error(transparent)]
    Packed(#[from] PackedError),
    /// Guest memory is not there.
    #[error("not all in guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

impl Image {
    /// A regular file that is open for reading.
    ///
    /// # Errors
    /// The file's metadata cannot be had.
    pub fn file(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self::File(Arc::new(file), len))
    }

    /// Bytes in the file.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, len) => *len,
            Self::Packed(packed) => packed.len() as u64,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Up to `most` bytes from `offset` on, fewer where the file ends.
    ///
    /// # Errors
    /// [`ImageError::Read`] and [`ImageError::Packed`].
    pub fn read(&self, offset: u64, most: usize) -> Result<Cow<'_, [u8]>, ImageError> {
        let range = self.clip(offset, most);
        Ok(match self {
            Self::Bytes(bytes) => bytes.get(range).unwrap_or_default().into(),
            Self::File(file, _) => {
                let mut bytes = vec![0; range.len()];
                file.read_exact_at(&mut bytes, offset)
                    .map_err(ImageError::Read)?;
                bytes.into()
            }
            Self::Packed(packed) => {
                let mut bytes = Vec::with_capacity(range.len());
                packed.pieces(range, |piece| -> Result<(), ImageError> {
                    bytes.extend_from_slice(piece);
                    Ok(())
                })?;
                bytes.into()
            }
        })
    }

    /// Copy `len` bytes from `offset` on to `gpa`; only what is there when the file ends before.
    /// Two threads share many: it takes longer to have the host find the pages than to fill them.
    ///
    /// # Errors
    /// [`ImageError`]; what was copied until then stays.
    pub fn copy_to(
        &self,
        offset: u64,
        len: u64,
        memory: &GuestMemory,
        gpa: u64,
    ) -> Result<(), ImageError> {
        let range = self.clip(offset, usize::try_from(len).unwrap_or(usize::MAX));
        let half = (range.len() / 2).next_multiple_of(HUGE_PAGE);
        if range.len() < MANY {
            return self.copy(range, memory, gpa);
        }
        let middle = range.start + half;
        let rest = || self.copy(middle..range.end, memory, gpa.saturating_add(half as u64));
        thread::scope(|scope| {
            let thread = thread::Builder::new().stack_size(STACK);
            let rest = thread.spawn_scoped(scope, rest);
            self.copy(range.start..middle, memory, gpa)?;
            let rest = rest.map_err(ImageError::Read)?.join();
            rest.unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    fn copy(&self, range: Range<usize>, memory: &GuestMemory, gpa: u64) -> Result<(), ImageError> {
        match self {
            Self::Bytes(bytes) => {
                let bytes = bytes.get(range).unwrap_or_default();
                memory.write_slice(bytes, GuestAddress(gpa))?;
            }
            Self::File(file, _) => read_into(file, range, memory, gpa)?,
            Self::Packed(packed) => {
                let mut to = gpa;
                packed.pieces(range, |piece| {
                    memory.write_slice(piece, GuestAddress(to))?;
                    to += piece.len() as u64;
                    Ok::<(), ImageError>(())
                })?;
            }
        }
        Ok(())
    }

    /// The part of `most` bytes from `offset` on that exists.
    fn clip(&self, offset: u64, most: usize) -> Range<usize> {
        let len = usize::try_from(self.len()).unwrap_or(usize::MAX);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(len);
        start..start.saturating_add(most).min(len)
    }
}

/// Have the host's kernel write a part of `file` to `gpa`.
fn read_into(
    file: &File,
    range: Range<usize>,
    memory: &GuestMemory,
    gpa: u64,
) -> Result<(), ImageError> {
    let mut from = range.start as u64;
    for slice in GuestMemoryBackend::get_slices(memory, GuestAddress(gpa), range.len()) {
        let slice = slice?;
        let guard = slice.ptr_guard_mut();
        // SAFETY: the guard's bytes may be written as long as it lives. They are a part of guest
        // memory to which nobody else has a reference: all of hull reaches it by volatile slices.
        let mut buffer = unsafe {
            std::slice::from_raw_parts_mut(guard.as_ptr().cast::<MaybeUninit<u8>>(), slice.len())
        };
        while !buffer.is_empty() {
            let done = match pread(file, &mut *buffer, from) {
                Ok((done, _)) => done.len(),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(ImageError::Read(error.into())),
            };
            if done == 0 {
                return Err(ImageError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            from += done as u64;
            buffer = buffer.get_mut(done..).unwrap_or_default();
        }
    }
    Ok(())
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

    use super::*;
    use crate::memory::packed::tests::packed;

    const GPA: u64 = 0x1234;

    fn content() -> Vec<u8> {
        (0..1_500_000u32)
            .flat_map(|i| (i / 3).to_le_bytes())
            .collect()
    }

    /// The same bytes in every place they can be in.
    fn images() -> Vec<Image> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&content()).expect("written");
        vec![
            content().into(),
            Image::file(file).expect("a file"),
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
    fn every_kind_copies_the_same_and_nothing_beside_it() {
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
    fn what_does_not_fit_into_memory_is_an_error() {
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
