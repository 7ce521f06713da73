//! Merges a snapshot and its diffs into one.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{SnapshotError, failed};
use super::id::Id;
use super::read::{self, STEP, Snapshot, memory_name};
use super::write::Writer;
use crate::memory::pages::Pages;

/// Merge the snapshot in `base` and its `diffs`, in the order in which they were taken, into one in
/// `out`, with the state of the last one. `out` may be one of them. After each step `progress` gets
/// the bytes copied so far, and the bytes to copy.
///
/// # Errors
/// They do not belong together, one is damaged, or writing fails.
pub fn merge(
    base: &Path,
    diffs: &[&Path],
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Id, SnapshotError> {
    let layers = open_chain(base, diffs)?;
    let Some(last) = layers.last() else {
        return Err(SnapshotError::Missing { dir: base.into() });
    };
    // Take each page from the newest layer that has it.
    let mut taken = Pages::default();
    let mut copies = Vec::new();
    for (index, layer) in layers.iter().enumerate().rev() {
        let pages = layer.memo().pages();
        let own = pages.minus(&taken);
        copies.extend(own.ranges().iter().map(|range| (range.clone(), index)));
        taken = taken.union(&pages);
    }
    copies.sort_unstable_by_key(|(range, _)| range.start);

    let mut writer = Writer::create(out, true)?;
    let mut file = writer.layer(last.memo().regions.clone(), None)?;
    let mut buffer = vec![0; STEP];
    let (mut done, total) = (0, taken.bytes());
    for (range, index) in copies {
        let Some(layer) = layers.get(index) else {
            continue;
        };
        let mut at = range.start;
        while at < range.end {
            let buffer = &mut buffer[..(range.end - at).min(STEP as u64) as usize];
            let read = layer.memory().file.read_exact_at(buffer, at);
            read.map_err(failed("read", layer.memory_path()))?;
            file.put(writer.memory_file(), at, buffer)
                .map_err(failed("write", out.join(memory_name(writer.id()))))?;
            at += buffer.len() as u64;
            done += buffer.len() as u64;
            progress(done, total);
        }
    }
    writer.finish_layer(file);
    for (tag, bytes) in last.sections() {
        writer.section(tag, bytes.to_vec());
    }
    writer.commit()
}

/// Open the snapshots, each a diff to the one before it, and check their memory.
fn open_chain(base: &Path, diffs: &[&Path]) -> Result<Vec<Snapshot>, SnapshotError> {
    let mut layers = vec![read::open(base)?];
    for dir in diffs {
        let layer = read::open_layer(dir)?;
        let before = layers.last().map(Snapshot::memo);
        let follows = |before: &&super::memo::Memo| {
            layer.parent() == Some(before.id) && layer.memo().regions == before.regions
        };
        if let Some(before) = before.filter(|before| !follows(before)) {
            return Err(SnapshotError::Order {
                dir: (*dir).into(),
                before: before.id,
            });
        }
        layers.push(layer);
    }
    layers.iter().try_for_each(Snapshot::check_memory)?;
    Ok(layers)
}
