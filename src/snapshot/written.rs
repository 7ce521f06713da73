//! Adds `written`: the pages that a guest writes first after a restore.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use vm_memory::Bytes;

use super::error::SnapshotError;
use super::read::{MAX_WRITTEN, STEP, WRITTEN, open, open_folder};
use crate::memory::GuestMemory;
use crate::memory::pages::{PAGE, Pages, at_offsets};

/// Most bytes that are compared, some 0.2 s of work at the end of a run.
const MAX_COMPARED: u64 = 512 << 20;

/// Have the snapshot in `dir` name the pages that the machine of `memory` has written since: those that
/// differ from it, among the `touched` ones; the others are zero. It names none if they are too many.
///
/// # Errors
/// There is no snapshot, it is of another machine, or the file cannot be written.
pub fn add_written(dir: &Path, memory: &GuestMemory, touched: &Pages) -> Result<(), SnapshotError> {
    if touched.bytes() > MAX_COMPARED {
        return Ok(());
    }
    let file = open(dir)?.memory().file.clone();
    let path = dir.join(WRITTEN);
    let failed = |error| super::error::failed("write", &path)(error);
    let written = changed(memory, touched, &file).map_err(failed)?;
    if written.bytes() > MAX_WRITTEN {
        return Ok(());
    }
    let number = |bytes: u64| ((bytes / PAGE) as u32).to_le_bytes();
    let ranges = written.ranges().iter();
    let ranges = ranges.flat_map(|range| [range.start, range.end - range.start].map(number));
    let ranges: Vec<u8> = ranges.flatten().collect();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let new = open_folder(dir).and_then(|folder| {
        let new = openat(folder, WRITTEN, flags, Mode::RUSR | Mode::WUSR)?;
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
