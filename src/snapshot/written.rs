//! `written`: the pages that a guest writes first after a restore.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use vm_memory::Bytes;

use super::read::{STEP, open_file, open_folder};
use super::{SnapshotError, open};
use crate::memory::GuestMemory;
use crate::memory::pages::{PAGE, Pages, at_offsets};

const NAME: &str = "written";
/// Most bytes of pages: a start that writes more takes long anyhow, and the next one may write others.
const MAX_BYTES: u64 = 8 << 20;
/// Bytes of a range of pages in the file: the first page and their number, 4 each, little endian.
const RANGE: usize = 8;

/// Add to the snapshot in `dir` which pages of `memory`, of which those that are not in `touched` are zero,
/// have another content than it: those that the machine has written since. None are added if they are too
/// many.
///
/// # Errors
/// There is no snapshot, it is of another machine, or the file cannot be written.
pub fn add_written(dir: &Path, memory: &GuestMemory, touched: &Pages) -> Result<(), SnapshotError> {
    let file = open(dir)?.memory().file.clone();
    let path = dir.join(NAME);
    let failed = |error| super::error::failed("write", &path)(error);
    let written = changed(memory, touched, &file).map_err(failed)?;
    if written.bytes() > MAX_BYTES {
        return Ok(());
    }
    let number = |bytes: u64| ((bytes / PAGE) as u32).to_le_bytes();
    let ranges = written.ranges().iter();
    let ranges = ranges.flat_map(|range| [range.start, range.end - range.start].map(number));
    let ranges: Vec<u8> = ranges.flatten().collect();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let new = open_folder(dir).and_then(|folder| {
        let new = openat(folder, NAME, flags, Mode::RUSR | Mode::WUSR)?;
        File::from(new).write_all(&ranges)
    });
    new.map_err(failed)
}

/// The pages among `touched` that differ from `file`.
fn changed(memory: &GuestMemory, touched: &Pages, file: &File) -> io::Result<Pages> {
    let mut pages = Pages::default();
    let (mut now, mut then) = (vec![0; STEP], vec![0; STEP]);
    for range in touched.ranges() {
        let mut at = range.start;
        while at < range.end {
            let bytes = (range.end - at).min(STEP as u64);
            let (now, then) = (&mut now[..bytes as usize], &mut then[..bytes as usize]);
            file.read_exact_at(then, at)?;
            let mut from = 0;
            for (gpa, bytes) in at_offsets(memory, &(at..at + bytes)) {
                let part = &mut now[from..from + bytes as usize];
                memory.read_slice(part, gpa).map_err(io::Error::other)?;
                from += part.len();
            }
            let both = now.chunks(PAGE as usize).zip(then.chunks(PAGE as usize));
            for (page, (now, then)) in (at..).step_by(PAGE as usize).zip(both) {
                if now != then {
                    pages.push(page..page + PAGE);
                }
            }
            at += bytes;
        }
    }
    Ok(pages)
}

/// The pages that the snapshot in `folder` names; none if it does not, or too many.
pub(super) fn read(folder: &File) -> Pages {
    let mut bytes = Vec::new();
    let most = MAX_BYTES / PAGE * RANGE as u64;
    let file = open_file(folder, Path::new(NAME));
    if file.is_err() || file.is_ok_and(|file| file.take(most).read_to_end(&mut bytes).is_err()) {
        return Pages::default();
    }
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .rfold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let ranges = bytes.as_chunks::<RANGE>().0.iter().map(|range| {
        let (first, count) = range.split_at(RANGE / 2);
        let first = number(first) * PAGE;
        first..first + number(count) * PAGE
    });
    let pages = Pages::from_ranges(ranges);
    if pages.bytes() > MAX_BYTES {
        return Pages::default();
    }
    pages
}
