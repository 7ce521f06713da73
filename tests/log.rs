//! The library's diagnostics: `--log-level`, `--log-file` and `HULL_LOG`.

mod machine;

use std::ffi::OsStr;
use std::fs;

use assert_cmd::Command;
use machine::{Finished, built};

/// A flat payload for real mode that asks a thousand times for a sleep type that the machine does not
/// have, and then powers off.
const FLOOD: &[u8] = b"\xeb\x0eHULLFLAT\x10\0\0\0\0\0\
    \xb9\xe8\x03\
    \xba\x04\x06\
    \xb8\x00\x20\xef\xe2\xfa\
    \xb8\x00\x34\xef\xf4\xeb\xfd";

/// Run hull with `directives` in the environment.
fn hull<S: AsRef<OsStr>>(directives: &str, arguments: &[S]) -> Finished {
    let output = Command::new(env!("CARGO_BIN_EXE_hull"))
        .env("HULL_LOG", directives)
        .args(arguments)
        .timeout(machine::LIMIT)
        .output()
        .expect("hull starts");
    Finished {
        status: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Seconds since the start, level and module of a line of the log.
fn parts(line: &str) -> Option<(f64, &str, &str)> {
    let (head, _) = line.strip_prefix('[')?.split_once("] ")?;
    let mut words = head.split_whitespace();
    let parts = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    words.next().is_none().then_some(parts)
}

#[test]
fn a_line_has_time_level_and_module() {
    if !machine::kvm("a_line_has_time_level_and_module") {
        return;
    }
    let payload = built("guest/payloads/hello.bin");
    let finished = hull("", &["run", "--log-level", "debug", &payload]);
    assert_eq!(finished.status, Some(0), "{}", finished.stderr);
    let lines: Vec<_> = finished
        .stderr
        .lines()
        .map(|line| parts(line).unwrap_or_else(|| panic!("{line}")))
        .collect();
    for wanted in [
        ("DEBUG", "hull::boot"),
        ("DEBUG", "hull::kvm::probe"),
        ("INFO", "hull::vmm"),
    ] {
        let found = lines
            .iter()
            .any(|&(_, level, module)| (level, module) == wanted);
        assert!(found, "no {wanted:?} in {}", finished.stderr);
    }
    assert!(
        lines.is_sorted_by_key(|(seconds, ..)| *seconds),
        "{lines:?}"
    );
    assert!(lines[0].0 < 60.0, "{lines:?}");
}

#[test]
fn only_warnings_are_logged_unless_asked_for() {
    if !machine::kvm("only_warnings_are_logged_unless_asked_for") {
        return;
    }
    let payload = built("guest/payloads/hello.bin");
    let finished = hull("", &["run", &payload]);
    finished.assert(0, "Hello from a virtual machine\n", "");
}

#[test]
fn a_directive_chooses_modules_and_the_flag_wins_over_the_environment() {
    if !machine::kvm("a_directive_chooses_modules") {
        return;
    }
    let payload = built("guest/payloads/virtqueue.bin");
    let directives = "hull::devices=debug,off";
    let devices = hull(directives, &["run", "--console", "virtio", &payload]);
    assert_eq!(devices.status, Some(0), "{}", devices.stderr);
    for step in [
        "reset by the driver",
        "accepted the features",
        "queue 1 is ready",
    ] {
        // Before its first reset the device has no driver.
        let shown = devices.stderr.contains(step);
        assert_eq!(
            shown,
            step != "reset by the driver",
            "{step}: {}",
            devices.stderr
        );
    }
    for line in devices.stderr.lines() {
        let (_, level, module) = parts(line).unwrap_or_else(|| panic!("{line}"));
        assert_eq!((level, module), ("DEBUG", "hull::devices"), "{line}");
    }
    let quiet = hull(
        directives,
        &["run", "--log-level=warn", "--console", "virtio", &payload],
    );
    assert_eq!((quiet.status, quiet.stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_log_file_is_appended_to() {
    if !machine::kvm("a_log_file_is_appended_to") {
        return;
    }
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let file = scratch.path().join("log").display().to_string();
    let payload = built("guest/payloads/hello.bin");
    let starts = |text: &str| text.matches("hull::vmm] started: 1 vCPU").count();
    for runs in 1..=2 {
        let finished = hull("info", &["--log-file", &file, "run", &payload]);
        finished.assert(0, "Hello from a virtual machine\n", "");
        let text = fs::read_to_string(&file).expect("a log");
        assert_eq!(starts(&text), runs, "{text}");
    }
}

#[test]
fn a_log_file_that_cannot_be_written_is_an_error() {
    let finished = hull("", &["ps", "--log-file", "/proc/none/log"]);
    let error = "error: --log-file /proc/none/log: No such file or directory (os error 2)\n";
    finished.assert(125, "", error);
}

#[test]
fn a_bad_directive_is_an_error_wherever_it_stands() {
    let why = "'loud' is not a directive; write LEVEL or MODULE=LEVEL, with off, error, warn, info, \
               debug or trace as LEVEL";
    let error = format!("error: HULL_LOG: {why}\n");
    hull("debug,loud", &["ps"]).assert(125, "", &error);
    let flag = hull("", &["ps", "--log-level", "loud"]);
    assert_eq!(flag.status, Some(125));
    assert!(flag.stderr.contains(why), "{}", flag.stderr);
}

#[test]
fn a_guest_that_floods_the_log_is_counted() {
    if !machine::kvm("a_guest_that_floods_the_log_is_counted") {
        return;
    }
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let payload = scratch.path().join("flood.bin");
    fs::write(&payload, FLOOD).expect("a payload");
    let finished = hull("", &["run", &payload.display().to_string()]);
    let line = "hull: ACPI power: the guest asked for sleep type 0, which this machine does not have\n\
                hull: ACPI power: 999 more like it\n";
    finished.assert(0, "", line);
}
