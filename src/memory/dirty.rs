//! Which pages of guest memory hull itself has written, once somebody asks: what KVM's log of dirty
//! pages, which sees the guest's writes, does not see.
//!
//! Writes through vm-memory mark their pages by themselves, as every slice of guest memory carries
//! its [`Dirty`]. What writes through pointers (readv(2), io_uring, the FUSE server, assists) has
//! [`mark`] called: for a request's buffers that is when its chain is given back
//! (`VirtQueue::finish`). Until [`start`] there is nothing to mark: a mark is one load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::GuestMemory;
use super::pages::{PAGE, Pages};

/// The pages of one region of guest memory that hull wrote.
#[derive(Debug, Default)]
pub struct Dirty {
    /// A bit a page, from the first time that somebody asks; zeroed pages of the host until used.
    bits: OnceLock<Box<[AtomicU64]>>,
    /// Parts of a region from a file that were replaced ([`super::backing::release`]).
    replaced: AtomicUsize,
}

impl Dirty {
    /// How often a part of the region was replaced by another mapping.
    pub(super) fn replaced(&self) -> &AtomicUsize {
        &self.replaced
    }

    fn start(&self, bytes: u64) {
        self.bits.get_or_init(|| zeros(bytes.div_ceil(64 * PAGE)));
    }

    fn mark(&self, offset: usize, len: usize) {
        let (Some(bits), Some(last)) = (self.bits.get(), len.checked_sub(1)) else {
            return;
        };
        let page = PAGE as usize;
        let last = offset.saturating_add(last) / page;
        // As far as there is memory.
        for index in offset / page..=last.min((64 * bits.len()).saturating_sub(1)) {
            if let Some(word) = bits.get(index / 64) {
                let bit = 1 << (index % 64);
                // Most are marked already: no write to a line that other threads read.
                if word.load(Ordering::Relaxed) & bit == 0 {
                    word.fetch_or(bit, Ordering::Relaxed);
                }
            }
        }
    }

    fn take(&self) -> Vec<u64> {
        let bits = self.bits.get().map(Box::as_ref).unwrap_or_default();
        let take = |word: &AtomicU64| match word.load(Ordering::Relaxed) {
            0 => 0,
            _ => word.swap(0, Ordering::Relaxed),
        };
        bits.iter().map(take).collect()
    }
}

/// So many words of zeros, which for many are pages of the host that nobody has touched yet.
fn zeros(words: u64) -> Box<[AtomicU64]> {
    let words = vec![0u64; words as usize].into_boxed_slice();
    // SAFETY: a box of as many words as before, which `AtomicU64` has in common with `u64` in size,
    // validity and, on x86_64, alignment (std's AtomicU64).
    unsafe { Box::from_raw(Box::into_raw(words) as *mut [AtomicU64]) }
}

/// A part of a region, for vm-memory.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    dirty: &'a Dirty,
    offset: usize,
}

impl<'a> WithBitmapSlice<'a> for Dirty {
    type S = Part<'a>;
}

impl Bitmap for Dirty {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.mark(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let index = offset / PAGE as usize;
        let word = self.bits.get().and_then(|bits| bits.get(index / 64));
        word.is_some_and(|word| word.load(Ordering::Relaxed) >> (index % 64) & 1 == 1)
    }

    fn slice_at(&self, offset: usize) -> Part<'_> {
        Part {
            dirty: self,
            offset,
        }
    }
}

impl NewBitmap for Dirty {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

impl<'a> WithBitmapSlice<'_> for Part<'a> {
    type S = Part<'a>;
}

impl BitmapSlice for Part<'_> {}

impl Bitmap for Part<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.dirty.mark(self.offset.saturating_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.dirty.dirty_at(self.offset.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Part {
            dirty: self.dirty,
            offset: self.offset.saturating_add(offset),
        }
    }
}

/// Mark from now on what hull writes; it stays so. Costs a bit a page of the guest's.
pub fn start(memory: &GuestMemory) {
    for region in memory.iter() {
        (**region).bitmap().start(region.len());
    }
}

/// Whether somebody asked.
pub fn is_on(memory: &GuestMemory) -> bool {
    let first = memory.iter().next();
    first.is_some_and(|region| (**region).bitmap().bits.get().is_some())
}

/// Mark the `len` bytes from `start` on as written, as far as they are guest memory.
pub fn mark(memory: &GuestMemory, start: GuestAddress, len: usize) {
    if is_on(memory) {
        for slice in memory.get_slices(start, len).flatten() {
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }
}

/// The pages that were marked since [`start`] or the last call, and mark none any more.
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
    fn every_kind_of_write_marks_its_pages_once_somebody_asked() {
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
