//! Files and folders that a killed hull has left, and the next one removes.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, flock, unlinkat};
use rustix::process::geteuid;

/// How old one is at least: a hull that makes one locks it at once.
const LEFT_OVER: Duration = Duration::from_secs(60);

/// Remove the files and folders in `place` whose names begin with `prefix`, that belong to this user, are
/// older than a minute and have no lock (flock(2)).
pub fn remove(place: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(place) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        let about = entry.metadata().ok();
        let about = about.filter(|about| {
            (about.is_file() || about.is_dir()) && about.uid() == geteuid().as_raw()
        });
        let Some(about) = about else { continue };
        let age = about.modified().ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age > LEFT_OVER)
            && let Ok(opened) = File::open(entry.path())
            && flock(&opened, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            let _ = if about.is_dir() {
                fs::remove_dir_all(entry.path())
            } else {
                unlinkat(CWD, entry.path(), AtFlags::empty()).map_err(Into::into)
            };
        }
    }
}
