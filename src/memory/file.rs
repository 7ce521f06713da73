//! Guest memory as a file: what a snapshot keeps of it.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// A file of guest memory, region behind region, with holes where there is nothing but zeros.
#[derive(Clone, Debug)]
pub struct MemoryFile {
    /// Opened for reading.
    pub file: Arc<File>,
    /// The regions of guest memory: GPA and bytes, in order.
    pub regions: Vec<(u64, u64)>,
    /// Where the file has content: in order, apart, all borders multiples of a page.
    pub extents: Vec<Range<u64>>,
}

impl MemoryFile {
    /// Bytes of guest memory, and of the file.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|(_, bytes)| bytes).sum()
    }
}
