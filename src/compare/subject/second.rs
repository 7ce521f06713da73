//! A second kernel: two machines that run two kernels at the same time show that each has its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::hull;
use super::stage::Stage;

/// Memory for a distribution's kernel and hull's initial RAM disk.
const MEMORY: &str = "256M";

/// The newest readable kernel in the folder `boot`. Many containers have none, and on some distributions only
/// root can read them.
pub fn newest(boot: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(boot).ok()?.flatten();
    let kernels = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("vmlinuz-") && fs::File::open(entry.path()).is_ok()
    });
    let newest = kernels.max_by_key(|entry| {
        let modified = entry.metadata().and_then(|file| file.modified());
        (modified.ok(), entry.file_name())
    });
    newest.map(|entry| entry.path())
}

/// A command that boots `kernel` with hull's initial RAM disk, in a machine named `id` that runs `words`. On
/// a software KVM this takes minutes or hangs: the caller sets the limit.
pub fn command(kernel: &Path, stage: &Stage, words: &[String], id: &str) -> io::Result<Command> {
    let run = ["run", "--name", id, "--cold", "--memory", MEMORY];
    let mut command = hull::command(stage, &std::env::current_exe()?, &run);
    command.arg(kernel).arg("--").args(words);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn the_newest_readable_kernel_is_used() {
        let boot = tempfile::tempdir().expect("a folder");
        assert_eq!(newest(boot.path()), None);
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        for (name, age) in [
            ("vmlinuz-6.1", 2),
            ("vmlinuz-6.12", 9),
            ("vmlinuz-6.9", 4),
            ("initrd.img-6.12", 99),
        ] {
            let file = fs::File::create(boot.path().join(name)).expect("a file");
            file.set_modified(old + Duration::from_secs(age))
                .expect("its age");
        }
        std::os::unix::fs::symlink("gone", boot.path().join("vmlinuz-9")).expect("a link");
        let expected = boot.path().join("vmlinuz-6.12");
        assert_eq!(newest(boot.path()), Some(expected));
        assert_eq!(newest(Path::new("/none")), None);
    }
}
