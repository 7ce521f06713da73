//! Flat guests on the machine's KVM, through the program.

use std::path::PathBuf;
use std::process::{Command, Output};

/// Run a payload, or `None` with a word about it on a machine without KVM.
fn run(payload: &str) -> Option<Output> {
    if !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped: {payload}: this machine has no /dev/kvm");
        return None;
    }
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("target/guest/payloads/{payload}.bin"));
    assert!(
        file.exists(),
        "{} is missing: run `make payloads` first",
        file.display()
    );
    let output = Command::new(env!("CARGO_BIN_EXE_hull"))
        .arg("run")
        .arg(file)
        .output();
    Some(output.expect("hull starts"))
}

fn assert_prints(payload: &str, expected: &str) {
    let Some(output) = run(payload) else { return };
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_real_mode_guest_prints_on_the_serial_port_and_powers_off() {
    assert_prints("hello", "Hello from a virtual machine\n");
}

#[test]
fn a_protected_mode_guest_reads_back_what_it_wrote_to_memory() {
    assert_prints("protected-mode", "32\n");
}

#[test]
fn a_long_mode_guest_has_64_bit_registers() {
    assert_prints("long-mode", "ok\n");
}

#[test]
fn a_triple_fault_is_an_error_with_its_address() {
    let Some(output) = run("triple-fault") else {
        return;
    };
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("triple fault at RIP 0x8017"), "{message}");
    assert_eq!(output.status.code(), Some(125));
}
