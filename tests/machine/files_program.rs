//! Builds tests/machine/files_guest.rs, which tries what a file system promises.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The path of the static executable, which is built again when its source is newer.
pub fn files_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build)
}

fn build() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("tests/machine/files_guest.rs");
    let program = root.join("target/guest/files");
    let changed = |path| fs::metadata(path).and_then(|file| file.modified());
    if changed(&program).is_ok_and(|built| built >= changed(&source).expect("the source")) {
        return program;
    }
    // Other test programs may build it at the same time, and must not see half a file.
    let made = program.with_extension(std::process::id().to_string());
    let status = Command::new("rustc")
        .args(["--edition", "2024", "--target", "x86_64-unknown-linux-gnu"])
        .args(
            "target-feature=+crt-static panic=abort opt-level=s strip=symbols"
                .split(' ')
                .flat_map(|flag| ["-C", flag]),
        )
        .arg("-o")
        .args([&made, &source])
        .status();
    assert!(status.expect("rustc starts").success());
    fs::rename(&made, &program).expect("a folder for the guest");
    program
}
