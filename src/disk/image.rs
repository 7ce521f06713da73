//! What all formats of images have in common.

use std::io;

use smallvec::SmallVec;

use crate::devices::virtio::block::Range;
use crate::memory::GuestMemory;
use crate::memory::transfer::Segment;

/// The smallest space that a file system of the host frees, in bytes.
pub const BLOCK: u64 = 4096;

/// The results of requests, in their order.
pub type Results = SmallVec<[io::Result<()>; 4]>;

/// An open image. Positions and lengths are whole sectors within its size.
pub trait Image: Send {
    /// Get ready, on the thread that serves the image, what it may not open later: its system calls are
    /// restricted afterwards.
    fn prepare(&mut self) {}

    /// Size of the disk now, in bytes.
    fn size(&self) -> io::Result<u64>;

    /// Fill `to` from byte `at` of the disk on.
    fn read(&mut self, memory: &GuestMemory, at: u64, to: &[Segment]) -> io::Result<()>;

    /// Fill several parts, each from its byte of the disk on; returns the results in the same order.
    fn read_all(&mut self, memory: &GuestMemory, parts: &[(u64, &[Segment])]) -> Results {
        let read = |&(at, to): &(u64, &[Segment])| self.read(memory, at, to);
        parts.iter().map(read).collect()
    }

    /// Write `from` at byte `at`.
    fn write(&mut self, memory: &GuestMemory, at: u64, from: &[Segment]) -> io::Result<()>;

    /// Put all that was written on the host's disk.
    fn flush(&mut self) -> io::Result<()>;

    /// Put all that was written into the file, so that a program that opens the image finds it.
    fn write_back(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The smallest space that [`Image::discard`] frees, in bytes; `None` if it frees nothing.
    fn discard_unit(&self) -> Option<u64>;

    /// Free the space if that is possible; the bytes are undefined afterwards.
    fn discard(&mut self, range: &Range) -> io::Result<()>;

    /// Set the bytes to 0.
    fn zero(&mut self, range: &Range) -> io::Result<()>;
}
