//! Guest memory as a file of a snapshot.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// A file of guest memory, one region after the other, with holes instead of zeros.
#[derive(Clone, Debug)]
pub struct MemoryFile {
    /// The file, open for reading.
    pub file: Arc<File>,
    /// The regions of guest memory: GPA and bytes, in order.
    pub regions: Vec<(u64, u64)>,
    /// The parts of the file that have content: in order, apart, all borders multiples of a page.
    pub extents: Vec<Range<u64>>,
}

impl MemoryFile {
    /// Size of guest memory and of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|(_, bytes)| bytes).sum()
    }
}
