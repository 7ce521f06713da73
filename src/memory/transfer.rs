//! Copies bytes between a file of the host and guest memory, without a buffer in between.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::null_mut;

use smallvec::SmallVec;
use vm_memory::bitmap::BS;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::bitmap::Dirty;
use super::{GuestMemory, access};

/// Most pieces that one system call accepts (IOV_MAX, uapi/linux/uio.h).
pub const MAX_PIECES: usize = 1024;

/// A contiguous range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// GPA of the first byte.
    pub addr: GuestAddress,
    /// Length in bytes, never 0.
    pub len: u32,
}

/// The segments of a request: a few, for which nothing is allocated, or more.
pub type Segments = SmallVec<[Segment; 4]>;

/// Segments of guest memory as iovecs for the host's kernel.
///
/// Each is in guest memory, which stays mapped as long as the machine exists, and which hull accesses
/// only through pointers, because the guest accesses it at the same time.
#[derive(Default)]
pub struct Pieces(SmallVec<[libc::iovec; 4]>);

// SAFETY: the pointers point to guest memory, which belongs to no thread.
unsafe impl Send for Pieces {}

impl Pieces {
    /// The pieces of `segments`: one each, or two if a segment crosses the MMIO hole, whose edges are not
    /// adjacent on the host.
    ///
    /// # Errors
    /// A segment that is not all in guest memory.
    pub fn new(memory: &GuestMemory, segments: &[Segment]) -> io::Result<Self> {
        let mut pieces = Self(SmallVec::with_capacity(segments.len()));
        pieces.extend(memory, segments)?;
        Ok(pieces)
    }

    /// Append the pieces of `segments`.
    ///
    /// # Errors
    /// A segment that is not all in guest memory; those before it have been added.
    pub fn extend(&mut self, memory: &GuestMemory, segments: &[Segment]) -> io::Result<()> {
        for segment in segments {
            let len = segment.len as usize;
            if let Some(slice) = access::slice(memory, segment.addr, len) {
                self.push(&slice);
                continue;
            }
            for slice in memory.get_slices(segment.addr, len) {
                self.push(&slice.map_err(io::Error::other)?);
            }
        }
        Ok(())
    }

    fn push(&mut self, slice: &VolatileSlice<BS<Dirty>>) {
        self.0.push(libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        });
    }

    /// The number of pieces.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Remove the first `count` pieces.
    pub fn drop_first(&mut self, count: usize) {
        self.0.drain(..count.min(self.0.len()));
    }

    /// Remove all pieces, but keep the allocation.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Copy `bytes` to the beginning of the pieces, and return how many fitted.
    pub fn fill(&self, mut bytes: &[u8]) -> usize {
        let all = bytes.len();
        for piece in &self.0 {
            let (now, later) = bytes.split_at(bytes.len().min(piece.iov_len));
            // SAFETY: the piece is in guest memory (`Pieces`), to which no reference exists, and
            // has at least that many bytes.
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

    /// Copy the first `bytes` bytes of `from` to the beginning of the pieces, and return how many there were
    /// and fitted. No byte is in both.
    pub fn copy_from(&self, from: &Self, bytes: usize) -> usize {
        let (mut sources, mut source) = (
            from.0.iter(),
            libc::iovec {
                iov_base: null_mut(),
                iov_len: 0,
            },
        );
        let mut left = bytes;
        for piece in &self.0 {
            let mut to = *piece;
            while to.iov_len.min(left) > 0 {
                if source.iov_len == 0 {
                    match sources.next() {
                        Some(next) => source = *next,
                        None => return bytes - left,
                    }
                }
                let now = source.iov_len.min(to.iov_len).min(left);
                // SAFETY: as in `fill`; each has at least `now` bytes.
                unsafe {
                    to.iov_base
                        .cast::<u8>()
                        .copy_from(source.iov_base.cast(), now)
                };
                for part in [&mut source, &mut to] {
                    part.iov_base = part.iov_base.wrapping_byte_add(now);
                    part.iov_len -= now;
                }
                left -= now;
            }
        }
        bytes - left
    }

    /// Append the content of the pieces from byte `offset` on to `bytes`.
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

    /// Length of all pieces in bytes.
    pub fn len(&self) -> usize {
        self.0.iter().map(|piece| piece.iov_len).sum()
    }

    /// Whether there is no piece.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Remove the first `bytes` bytes.
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
    /// The errors of readv(2), such as WouldBlock.
    pub fn read(&self, from: impl AsFd) -> io::Result<usize> {
        let (pieces, count) = self.raw();
        let fd = from.as_fd().as_raw_fd();
        // SAFETY: each piece is in guest memory (`Pieces`), and there are `count` of them.
        done(unsafe { libc::readv(fd, pieces, count) })
    }

    /// One writev(2): from guest memory to `to`.
    ///
    /// # Errors
    /// The errors of writev(2), such as WouldBlock.
    pub fn write(&self, to: impl AsFd) -> io::Result<usize> {
        let (pieces, count) = self.raw();
        let fd = to.as_fd().as_raw_fd();
        // SAFETY: as in `read`; the kernel only reads.
        done(unsafe { libc::writev(fd, pieces, count) })
    }

    /// One preadv(2): from `from` at offset `at`, fewer bytes than there is room for at its end.
    ///
    /// # Errors
    /// The errors of preadv(2).
    pub fn read_at(&self, from: impl AsFd, at: u64) -> io::Result<usize> {
        let (pieces, count) = self.raw();
        let (fd, offset) = (from.as_fd().as_raw_fd(), offset(at)?);
        // SAFETY: as in `read`.
        done(unsafe { libc::preadv(fd, pieces, count, offset) })
    }

    /// One pwritev(2): to `to` at offset `at`, perhaps fewer bytes than there are.
    ///
    /// # Errors
    /// The errors of pwritev(2).
    pub fn write_at(&self, to: impl AsFd, at: u64) -> io::Result<usize> {
        let (pieces, count) = self.raw();
        let (fd, offset) = (to.as_fd().as_raw_fd(), offset(at)?);
        // SAFETY: as in `write`.
        done(unsafe { libc::pwritev(fd, pieces, count, offset) })
    }

    /// Fill all pieces from `from` at offset `at`.
    ///
    /// # Errors
    /// The errors of preadv(2), and UnexpectedEof if the file ends early.
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

    /// Write all pieces to `to` at offset `at`.
    ///
    /// # Errors
    /// The errors of pwritev(2), and WriteZero if no more bytes are accepted.
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

    /// The iovecs for one system call, at most [`MAX_PIECES`].
    pub(super) fn raw(&self) -> (*const libc::iovec, libc::c_int) {
        let count = self.0.len().min(MAX_PIECES);
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
    fn written_bytes_are_read_back_through_any_pieces() {
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
    fn bytes_are_copied_between_pieces() {
        let memory = backing::allocate(1 << 20).unwrap();
        let pieces = |all: &[(u64, u32)]| {
            let all: Vec<_> = all.iter().map(|(addr, len)| segment(*addr, *len)).collect();
            Pieces::new(&memory, &all).unwrap()
        };
        let from = pieces(&[(0, 3), (0x100, 5), (0x200, 4)]);
        from.fill(b"abcdefghijkl");
        for (to, bytes, copied) in [
            (vec![(0x1000, 100)], 100, 12),
            (vec![(0x1000, 1), (0x1100, 6), (0x1200, 2)], 100, 9),
            (vec![(0x1000, 2), (0x1100, 9)], 7, 7),
            (vec![], 7, 0),
        ] {
            let to = pieces(&to);
            to.fill(&[0; 100]);
            assert_eq!(to.copy_from(&from, bytes), copied);
            let mut all = Vec::new();
            to.append_to(0, &mut all);
            assert_eq!(all[..copied], b"abcdefghijkl"[..copied]);
            assert!(all[copied..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn segments_outside_of_guest_memory_are_refused() {
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
