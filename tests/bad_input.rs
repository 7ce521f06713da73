//! What a user can do wrong: a message that names it, exit status 125.

use std::fs;
use std::process::Command;

/// Run hull and return its message; it must fail with hull's own status.
fn refusal(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_hull"))
        .args(arguments)
        .output()
        .expect("hull starts");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{message}");
    assert!(output.stdout.is_empty(), "an error belongs on stderr");
    message
}

/// What hull says of a kernel file with these bytes.
fn refusal_of_kernel(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("kernel");
    fs::write(&file, bytes).expect("the file is written");
    refusal(&["run", &file.display().to_string()])
}

#[test]
fn a_kernel_that_cannot_be_read_is_named() {
    let message = refusal(&["run", "/no/such/kernel"]);
    assert!(
        message.contains("kernel /no/such/kernel: No such file"),
        "{message}"
    );
    let message = refusal(&["run", "/"]);
    assert!(message.contains("not a regular file"), "{message}");
}

#[test]
fn memory_sizes_that_make_no_machine_are_refused() {
    for size in ["0", "1M", "999T", "12Q", "abc"] {
        let message = refusal(&["run", "--memory", size, "kernel"]);
        assert!(
            message.contains(&format!("'{size}'")) && message.contains("--memory"),
            "{message}"
        );
    }
}

#[test]
fn an_unknown_flag_is_answered_with_the_nearest_known_one() {
    let message = refusal(&["run", "--memry", "1G", "kernel"]);
    assert!(message.contains("--memory"), "{message}");
}

// Opening KVM comes first on purpose: without it no kernel could run anyway.
#[test]
fn files_that_are_no_kernel_are_refused_by_what_they_look_like() {
    if !std::path::Path::new("/dev/kvm").exists() {
        println!("skipped: files_that_are_no_kernel: this machine has no /dev/kvm");
        return;
    }
    assert!(refusal_of_kernel(b"").contains("the file is empty"));
    assert!(refusal_of_kernel(b"#!/bin/sh\necho hi\n").contains("a text file"));
    assert!(refusal_of_kernel(b"\x7fELF").contains("ELF"));
    assert!(refusal_of_kernel(b"\xeb\x0eHULLFLAT\x11\0\0\0\0\0").contains("CPU mode 17"));
}
