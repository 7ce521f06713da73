//! Which pages of guest memory hull itself has written: KVM's log of dirty pages has only the writes
//! of the guest.
//!
//! Writes through vm-memory mark their pages by themselves, as every slice of guest memory carries
//! its [`super::bitmap::Dirty`]. What writes through pointers (readv(2), io_uring, the FUSE server, assists) has
//! to call [`mark`], for a request's buffers when its chain is returned (`VirtQueue::finish`). Before
//! [`start`] a mark is one load and does nothing.

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::GuestMemory;
use super::pages::Pages;

/// Mark the pages that hull writes from now on. Takes one bit for each page of guest memory.
pub fn start(memory: &GuestMemory) {
    for region in memory.iter() {
        (**region).bitmap().start(region.len());
    }
}

/// Whether [`start`] was called.
pub fn is_on(memory: &GuestMemory) -> bool {
    let first = memory.iter().next();
    first.is_some_and(|region| (**region).bitmap().is_on())
}

/// Mark the pages of the `len` bytes from `start` on as written, as far as they are guest memory.
pub fn mark(memory: &GuestMemory, start: GuestAddress, len: usize) {
    if is_on(memory) {
        for slice in memory.get_slices(start, len).flatten() {
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }
}

/// Take the marks since [`start`] or the last call: afterwards no page is marked.
pub fn take(memory: &GuestMemory) -> Pages {
    let maps: Vec<_> = memory
        .iter()
        .map(|region| (**region).bitmap().take())
        .collect();
    Pages::from_bitmaps(memory, &maps)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use vm_memory::Bytes;

    use super::super::backing;
    use super::super::layout::{MMIO_HOLE, MMIO_HOLE_END};
    use super::*;

    #[test]
    fn every_kind_of_write_marks_its_pages() {
        let memory = backing::allocate(MMIO_HOLE + 0x10_0000).expect("memory");
        memory
            .write_obj(1u8, GuestAddress(0x5000))
            .expect("written");
        mark(&memory, GuestAddress(0x6000), 1);
        assert!(take(&memory).is_empty());
        start(&memory);
        assert!(take(&memory).is_empty());
        memory
            .write_obj(1u64, GuestAddress(0x1ffc))
            .expect("written");
        memory
            .write_slice(&[0; 1], GuestAddress(0x4fff))
            .expect("written");
        let high = GuestAddress(MMIO_HOLE_END + 0x2_0000);
        memory
            .store(7u32, high, Ordering::Release)
            .expect("written");
        let last = GuestAddress(MMIO_HOLE_END + 0xf_f800);
        mark(&memory, last, 0x800);
        mark(&memory, GuestAddress(0x8000), 0);
        mark(&memory, GuestAddress(0x9010), 0x1ff1);
        mark(&memory, GuestAddress(MMIO_HOLE), 0x1000);
        backing::release(&memory, GuestAddress(0x10_0000), 0x4000).expect("released");
        let high = MMIO_HOLE + 0x2_0000;
        let last = MMIO_HOLE + 0xf_f000;
        let expected = [
            0x1000..0x3000,
            0x4000..0x5000,
            0x9000..0xc000,
            0x10_0000..0x10_4000,
            high..high + 0x1000,
            last..last + 0x1000,
        ];
        assert_eq!(take(&memory).ranges(), expected);
        assert!(take(&memory).is_empty());
        let mut read = [0; 8];
        memory
            .read_slice(&mut read, GuestAddress(0x1000))
            .expect("read");
        assert!(take(&memory).is_empty());
    }
}
