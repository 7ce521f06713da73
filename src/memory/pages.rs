//! Sets of pages of guest memory, and which pages have content.
//!
//! A page is named by its *offset* in a file that holds all regions one after the other, in the order
//! of their addresses, as a snapshot's file does.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom as Sparse;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::GuestMemory;
use super::bitmap::Dirty;

pub use super::layout::PAGE_SIZE as PAGE;

/// Bytes of an entry of /proc/PID/pagemap, one for each page
/// (Documentation/admin-guide/mm/pagemap.rst).
const ENTRY: usize = 8;
/// Bit 62 of an entry: "page swapped".
const SWAPPED: u64 = 1 << 62;
/// Bit 63 of an entry: "page present".
const PRESENT: u64 = 1 << 63;
/// Bit 61 of an entry: "page is file-page or shared-anon".
const OF_FILE: u64 = 1 << 61;
/// Entries that one read takes.
const ENTRIES: usize = 8192;

/// A set of pages, as ranges of offsets: in order, apart from each other, none empty, and all
/// borders are multiples of [`PAGE`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pages(Vec<Range<u64>>);

impl Pages {
    /// The set of all pages of `memory`.
    pub fn all(memory: &GuestMemory) -> Self {
        let bytes = memory.iter().map(GuestMemoryRegion::len).sum();
        let mut pages = Self::default();
        pages.push(0..bytes);
        pages
    }

    /// The pages that contain `ranges`, in any order.
    pub fn from_ranges(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut pages = Self::default();
        ranges.into_iter().for_each(|range| pages.push(range));
        pages
    }

    /// The pages whose bits are set in `maps`, one for each region of `memory`: the lowest bit of
    /// the first word is the region's first page, as in KVM's log.
    pub fn from_bitmaps(memory: &GuestMemory, maps: &[Vec<u64>]) -> Self {
        let mut pages = Self::default();
        let mut base = 0;
        for (region, map) in memory.iter().zip(maps) {
            for (index, &word) in (0u64..).zip(map).filter(|(_, word)| **word != 0) {
                let start = base + index * 64 * PAGE;
                for bit in (0..64u64).filter(|bit| word >> bit & 1 == 1) {
                    pages.push(start + bit * PAGE..start + (bit + 1) * PAGE);
                }
            }
            base += region.len();
        }
        pages
    }

    /// The pages of `memory` that may hold something other than zeros: those that were touched, and
    /// those with content in the file that it was mapped from.
    ///
    /// Read from `pagemap`, which is /proc/self/pagemap, because mincore(2) would miss pages that are
    /// swapped out. All pages without it.
    pub fn touched(memory: &GuestMemory, pagemap: Option<&File>) -> Self {
        let mut pages = Self::default();
        let mut base = 0;
        for region in memory.iter() {
            let all = base..base + region.len();
            let found = match pagemap {
                Some(pagemap) => touched_in(region, pagemap, base),
                None => Err(io::ErrorKind::NotFound.into()),
            };
            pages = pages.union(&found.unwrap_or_else(|_| Self::from_ranges([all.clone()])));
            base = all.end;
        }
        pages
    }

    /// The ranges in order, apart from each other, none empty.
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.0
    }

    /// Size of all pages in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Whether the set has no page.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The pages that are in either set.
    pub fn union(&self, other: &Self) -> Self {
        match (self.is_empty(), other.is_empty()) {
            (true, _) => other.clone(),
            (_, true) => self.clone(),
            _ => Self::from_ranges(self.0.iter().chain(&other.0).cloned()),
        }
    }

    /// The pages that are not in `other`.
    pub fn minus(&self, other: &Self) -> Self {
        let mut pages = Self::default();
        let mut others = other.0.iter().peekable();
        for range in &self.0 {
            let mut start = range.start;
            while let Some(gone) = others.peek().filter(|gone| gone.start < range.end) {
                if gone.start > start {
                    pages.push(start..gone.start);
                }
                start = start.max(gone.end);
                if gone.end > range.end {
                    break; // continues in the next range
                }
                others.next();
            }
            if start < range.end {
                pages.push(start..range.end);
            }
        }
        pages
    }

    /// Add the pages of `range`, which must not begin before the last range.
    pub(crate) fn push(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let start = range.start - range.start % PAGE;
        let end = range.end.checked_next_multiple_of(PAGE);
        let end = end.unwrap_or(range.end - range.end % PAGE);
        match self.0.last_mut() {
            Some(last) if last.end >= start => last.end = last.end.max(end),
            _ => self.0.push(start..end),
        }
    }
}

/// The touched pages of `region`, whose first page has the offset `base`.
fn touched_in(region: &GuestRegionMmap<Dirty>, pagemap: &File, base: u64) -> io::Result<Pages> {
    let file = region.file_offset();
    // Only written pages belong to a private mapping of a file itself.
    let own = |entry: u64| match file {
        Some(_) => entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT,
        None => entry & (SWAPPED | PRESENT) != 0,
    };
    let first = region.as_ptr().addr() as u64 / PAGE;
    let count = region.len() / PAGE;
    let mut pages = Pages::default();
    let mut entries = vec![0; ENTRIES * ENTRY];
    let mut at = 0;
    while at < count {
        let now = (count - at).min(ENTRIES as u64);
        let entries = &mut entries[..now as usize * ENTRY];
        pagemap.read_exact_at(entries, (first + at) * ENTRY as u64)?;
        for (index, entry) in (at..).zip(entries.as_chunks::<ENTRY>().0) {
            if own(u64::from_le_bytes(*entry)) {
                pages.push(base + index * PAGE..base + (index + 1) * PAGE);
            }
        }
        at += now;
    }
    if let Some(file) = file {
        let data = data_of(file.file(), file.start(), region.len())?;
        let data = data
            .into_iter()
            .map(|range| base + range.start..base + range.end);
        pages = pages.union(&Pages::from_ranges(data));
    }
    let parts = (**region).bitmap().parts();
    let parts = parts
        .into_iter()
        .map(|part| base + part.start..base + part.end);
    Ok(pages.union(&Pages::from_ranges(parts)))
}

/// The parts of the `len` bytes from `start` on that are not holes of `file`, relative to `start`.
fn data_of(file: &File, start: u64, len: u64) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let end = start + len;
    let mut at = start;
    while at < end {
        let data = match rustix::fs::seek(file, Sparse::Data(at)) {
            Ok(data) => data.max(at),
            Err(rustix::io::Errno::NXIO) => break, // nothing but a hole to the end
            Err(error) => return Err(error.into()),
        };
        if data >= end {
            break;
        }
        let hole = rustix::fs::seek(file, Sparse::Hole(data))?;
        let hole = hole.clamp(data + 1, end);
        ranges.push(data - start..hole - start);
        at = hole;
    }
    Ok(ranges)
}

/// The GPAs of a `range` of offsets: one range, or two if it crosses the MMIO hole.
pub(crate) fn at_offsets(
    memory: &GuestMemory,
    range: &Range<u64>,
) -> impl Iterator<Item = (GuestAddress, u64)> {
    let mut base = 0;
    memory.iter().filter_map(move |region| {
        let start = range.start.max(base);
        let end = range.end.min(base + region.len());
        let gpa = GuestAddress(region.start_addr().0 + start.saturating_sub(base));
        base += region.len();
        (start < end).then(|| (gpa, end - start))
    })
}

#[cfg(test)]
mod tests;
