//! Bytes between a file of the host and guest memory, without a copy of ours in between.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::GuestMemory;

/// Most pieces that one system call takes (IOV_MAX, uapi/linux/uio.h).
pub const PIECES_MOST: usize = 1024;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// GPA.
    pub addr: GuestAddress,
    /// Bytes, never 0.
    pub len: u32,
}

/// Segments of guest memory as the kernel of the host takes them.
///
/// Each lies in guest memory, which is never unmapped while the machine is there, and which this
/// program reads and writes only through pointers, as the guest does at the same time.
#[derive(Default)]
pub struct Pieces(Vec<libc::iovec>);

// SAFETY: guest memory, at which the pointers point, belongs to no thread.
unsafe impl Send for Pieces {}

impl Pieces {
    /// The pieces of `segments`: one each, or two where a segment goes across the MMIO hole's
    /// edges, which are no neighbours on the host.
    ///
    /// # Errors
    /// A segment that is not all in guest memory.
    pub fn new(memory: &GuestMemory, segments: &[Segment]) -> io::Result<Self> {
        let mut pieces = Self(Vec::with_capacity(segments.len()));
        pieces.extend(memory, segments)?;
        Ok(pieces)
    }

    /// The pieces of `segments` behind those that are there.
    ///
    /// # Errors
    /// A segment that is not all in guest memory; those before it have been added.
    pub fn extend(&mut self, memory: &GuestMemory, segments: &[Segment]) -> io::Result<()> {
        for segment in segments {
            for slice in memory.get_slices(segment.addr, segment.len as usize) {
                let slice = slice.map_err(io::Error::other)?;
                self.0.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        Ok(())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Leave out the first `count` pieces.
    pub fn drop_first(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
    }

    /// Leave out all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Copy `bytes` to where the pieces begin; how many there was room for.
    pub fn fill(&self, mut bytes: &[u8]) -> usize {
        let all = bytes.len();
        for piece in &self.0 {
            let (now, later) = bytes.split_at(bytes.len().min(piece.iov_len));
            // SAFETY: the piece lies in guest memory (`Pieces`), where no reference points, and
            // has at least so many bytes.
            unsafe {
                piece
                    .iov_base
                    .cast::<u8>()
                    .copy_from(now.as_ptr(), now.len())
            };
            bytes = later;
        }
        all - bytes.len()
    }

    /// Append what is in the pieces from byte `offset` on to `bytes`.
    pub fn append_to(&self, mut offset: usize, bytes: &mut Vec<u8>) {
        bytes.reserve(self.len().saturating_sub(offset));
        for piece in &self.0 {
            let skip = offset.min(piece.iov_len);
            offset -= skip;
            let (start, len) = (bytes.len(), piece.iov_len - skip);
            bytes.resize(start + len, 0);
            if let Some(space) = bytes.get_mut(start..) {
                let from = piece.iov_base.wrapping_byte_add(skip).cast::<u8>();
                // SAFETY: as in `fill`; `space` has `len` bytes.
                unsafe { from.copy_to(space.as_mut_ptr(), len) };
            }
        }
    }

    /// Bytes of all pieces.
    pub fn len(&self) -> usize {
        self.0.iter().map(|piece| piece.iov_len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Leave out the first `bytes`.
    pub fn advance(&mut self, mut bytes: usize) {
        self.0.retain_mut(|piece| {
            let gone = bytes.min(piece.iov_len);
            bytes -= gone;
            piece.iov_base = piece.iov_base.wrapping_byte_add(gone);
            piece.iov_len -= gone;
            piece.iov_len > 0
        });
    }

    /// One readv(2): from `from`, a stream or a packet socket, into guest memory.
    ///
    /// # Errors
    /// Of readv(2), WouldBlock among them.
    pub fn read(&self, from: impl AsFd) -> io::Result<usize> {
        let (pieces, count) = self.raw();
        let fd = from.as_fd().as_raw_fd();
        // SAFETY: each piece lies in guest memory (`Pieces`), and `count` of them are there.
        done(unsafe { libc::readv(fd, pieces, count) })
    }

    /// One writev(2): from guest memory to `to`.
    ///
    /// # Errors
    /// Of writev(2), WouldBlock among them.
    pub fn write(&self, to: impl AsFd) -> io::Result<usize> {
        let (pieces, count) = self.raw();
        let fd = to.as_fd().as_raw_fd();
        // SAFETY: as in `read`; the kernel only reads.
        done(unsafe { libc::writev(fd, pieces, count) })
    }

    /// All of the pieces from the bytes of `from` at offset `at`.
    ///
    /// # Errors
    /// Of preadv(2), and UnexpectedEof where the file ends early.
    pub fn read_exact_at(mut self, from: &File, mut at: u64) -> io::Result<()> {
        while !self.is_empty() {
            let (pieces, count) = self.raw();
            let offset = offset(at)?;
            // SAFETY: as in `read`.
            match done(unsafe { libc::preadv(from.as_raw_fd(), pieces, count, offset) }) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.advance(read);
                    at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// All of the pieces to `to` at offset `at`.
    ///
    /// # Errors
    /// Of pwritev(2), and WriteZero where nothing more is taken.
    pub fn write_all_at(mut self, to: &File, mut at: u64) -> io::Result<()> {
        while !self.is_empty() {
            let (pieces, count) = self.raw();
            let offset = offset(at)?;
            // SAFETY: as in `write`.
            match done(unsafe { libc::pwritev(to.as_raw_fd(), pieces, count, offset) }) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.advance(written);
                    at += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What one system call takes of them.
    pub(super) fn raw(&self) -> (*const libc::iovec, libc::c_int) {
        let count = self.0.len().min(PIECES_MOST);
        (self.0.as_ptr(), count as libc::c_int)
    }
}

fn offset(at: u64) -> io::Result<libc::off_t> {
    at.try_into()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn done(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::super::backing;
    use super::super::layout::{MMIO_HOLE, MMIO_HOLE_END};
    use super::*;

    fn segment(addr: u64, len: u32) -> Segment {
        Segment {
            addr: GuestAddress(addr),
            len,
        }
    }

    #[test]
    fn what_was_written_is_read_back_whatever_the_pieces() {
        let memory = backing::allocate(1 << 20).expect("memory");
        let data: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        memory.write_slice(&data, GuestAddress(0x1000)).expect("in");
        let file = tempfile::tempfile().expect("a file");
        // More pieces than one system call takes.
        let small: Vec<_> = (0..2000).map(|n| segment(0x1000 + n * 100, 100)).collect();
        let pieces = Pieces::new(&memory, &small).expect("pieces");
        assert_eq!(pieces.len(), 200_000);
        pieces.write_all_at(&file, 512).expect("written");
        let back = [segment(0x80000, 70_000), segment(0xa0000, 130_000)];
        let pieces = Pieces::new(&memory, &back).expect("pieces");
        pieces.read_exact_at(&file, 512).expect("read");
        let mut read = vec![0; 70_000];
        memory
            .read_slice(&mut read, GuestAddress(0x80000))
            .expect("out");
        assert_eq!(read, data[..70_000]);
        let mut read = vec![0; 130_000];
        memory
            .read_slice(&mut read, GuestAddress(0xa0000))
            .expect("out");
        assert_eq!(read, data[70_000..]);
        let pieces = Pieces::new(&memory, &back).expect("pieces");
        let short = pieces.read_exact_at(&file, 513).expect_err("past the end");
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn bytes_are_copied_in_and_out_across_pieces() {
        let memory = backing::allocate(1 << 20).expect("memory");
        let segments = [segment(0x1000, 3), segment(0x3000, 1), segment(0x2000, 6)];
        let mut pieces = Pieces::new(&memory, &segments).expect("pieces");
        assert_eq!(pieces.fill(b"abcdefgh"), 8);
        let mut bytes = b"-".to_vec();
        pieces.append_to(2, &mut bytes);
        assert_eq!(bytes, b"-cdefgh\0\0");
        assert_eq!(pieces.fill(&[b'x'; 20]), 10);
        pieces.drop_first(2);
        bytes.clear();
        pieces.append_to(0, &mut bytes);
        assert_eq!((pieces.count(), bytes.as_slice()), (1, &b"xxxxxx"[..]));
        pieces.append_to(7, &mut bytes);
        assert_eq!(bytes.len(), 6);
    }

    #[test]
    fn nothing_outside_of_guest_memory_becomes_a_piece() {
        let memory = backing::allocate(MMIO_HOLE + 0x1000).expect("memory");
        for (addr, len) in [
            (MMIO_HOLE, 1),
            (MMIO_HOLE - 1, 2),
            (MMIO_HOLE_END + 0xfff, 2),
            (u64::MAX, 1),
        ] {
            assert!(
                Pieces::new(&memory, &[segment(addr, len)]).is_err(),
                "{addr:#x}"
            );
        }
        assert!(Pieces::new(&memory, &[segment(MMIO_HOLE_END, 0x1000)]).is_ok());
    }
}
