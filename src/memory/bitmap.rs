//! The bitmap of one region of guest memory: the pages that hull has written ([`super::dirty`]).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

use super::layout::PAGE_SIZE as PAGE;

/// The pages of one region of guest memory that hull wrote.
#[derive(Debug, Default)]
pub struct Dirty {
    /// A bit for each page, once marking is on.
    bits: OnceLock<Box<[AtomicU64]>>,
    /// Parts of a region mapped from a file that were replaced ([`super::backing::release`]).
    replaced: AtomicUsize,
    /// Parts of an anonymous region that are mapped from a file ([`super::backing::map_part`]).
    parts: Mutex<Vec<Range<u64>>>,
}

impl Dirty {
    /// Note that the bytes of `part` of the region are mapped from a file.
    pub(super) fn add_part(&self, part: Range<u64>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.push(part);
    }

    /// The parts of the region that were mapped from a file.
    pub(super) fn parts(&self) -> Vec<Range<u64>> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.clone()
    }

    /// The number of parts of the region that another mapping has replaced.
    pub(super) fn replaced(&self) -> &AtomicUsize {
        &self.replaced
    }

    /// Mark pages from now on, of a region of `bytes`.
    pub(super) fn start(&self, bytes: u64) {
        self.bits.get_or_init(|| zeros(bytes.div_ceil(64 * PAGE)));
    }

    /// Whether pages are marked.
    pub(super) fn is_on(&self) -> bool {
        self.bits.get().is_some()
    }

    fn mark(&self, offset: usize, len: usize) {
        let (Some(bits), Some(last)) = (self.bits.get(), len.checked_sub(1)) else {
            return;
        };
        let page = PAGE as usize;
        let last = offset.saturating_add(last) / page;
        // Not beyond the end of the region.
        for index in offset / page..=last.min((64 * bits.len()).saturating_sub(1)) {
            if let Some(word) = bits.get(index / 64) {
                let bit = 1 << (index % 64);
                // Most are marked already: do not write to a cache line that other threads read.
                if word.load(Ordering::Relaxed) & bit == 0 {
                    word.fetch_or(bit, Ordering::Relaxed);
                }
            }
        }
    }

    /// The marks, a bit a page, which are gone then.
    pub(super) fn take(&self) -> Vec<u64> {
        let bits = self.bits.get().map(Box::as_ref).unwrap_or_default();
        let take = |word: &AtomicU64| match word.load(Ordering::Relaxed) {
            0 => 0,
            _ => word.swap(0, Ordering::Relaxed),
        };
        bits.iter().map(take).collect()
    }
}

/// `words` words of zeros: many of them are pages of the host that are not allocated until touched.
fn zeros(words: u64) -> Box<[AtomicU64]> {
    let words = vec![0u64; words as usize].into_boxed_slice();
    // SAFETY: a box of as many words as before, which `AtomicU64` has in common with `u64` in size,
    // validity and, on x86_64, alignment (std's AtomicU64).
    unsafe { Box::from_raw(Box::into_raw(words) as *mut [AtomicU64]) }
}

/// The bitmap of a part of a region, for vm-memory.
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
