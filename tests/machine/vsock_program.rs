//! Builds tests/machine/vsock_guest.rs, the guest's end of vsock connections.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The bytes of the static executable, which is built again when its source is newer.
pub fn vsock_program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(build)
}

fn build() -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("tests/machine/vsock_guest.rs");
    let program = root.join("target/guest/vsock");
    let changed = |path| fs::metadata(path).and_then(|file| file.modified());
    if changed(&program).is_ok_and(|built| built >= changed(&source).expect("the source")) {
        return fs::read(program).expect("the program");
    }
    // Other test programs may build it at the same time, and must not see half a file.
    let made = program.with_extension(std::process::id().to_string());
    let status = Command::new("rustc")
        .args(["--edition", "2024", "--target", "x86_64-unknown-linux-gnu"])
        .args(
            "panic=abort lto=fat opt-level=s strip=symbols relocation-model=static"
                .split(' ')
                .flat_map(|flag| ["-C", flag]),
        )
        .args(
            "-nostartfiles -nostdlib -static -no-pie -Wl,--build-id=none,-z,noseparate-code"
                .split(' ')
                .map(|flag| format!("-Clink-arg={flag}")),
        )
        .arg("-o")
        .args([&made, &source])
        .status();
    assert!(status.expect("rustc starts").success());
    fs::rename(&made, &program).expect("a folder for the guest");
    fs::read(program).expect("the program")
}
