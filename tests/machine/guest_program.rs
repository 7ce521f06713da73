//! Builds static programs for the guest: files_guest.rs, which tries what a file system promises, and
//! disks_guest.rs, which tries what a disk does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder that holds them.
pub fn guest_programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest")
}

/// The path of the static executable of `tests/machine/NAME_guest.rs`, which is built again when its source is newer.
pub fn guest_program(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join(format!("tests/machine/{name}_guest.rs"));
    let program = guest_programs().join(name);
    let changed = |path| fs::metadata(path).and_then(|file| file.modified());
    if changed(&program).is_ok_and(|built| built >= changed(&source).expect("the source")) {
        return program;
    }
    // Others may build it at the same time, and must not see half a file.
    let made = tempfile::NamedTempFile::new_in(guest_programs()).expect("a folder for the guest");
    let status = Command::new("rustc")
        .args(["--edition", "2024", "--target", "x86_64-unknown-linux-gnu"])
        .args(
            "target-feature=+crt-static panic=abort opt-level=s strip=symbols"
                .split(' ')
                .flat_map(|flag| ["-C", flag]),
        )
        .arg("-o")
        .args([made.path(), &source])
        .status();
    assert!(status.expect("rustc starts").success());
    made.persist(&program).expect("a folder for the guest");
    program
}
