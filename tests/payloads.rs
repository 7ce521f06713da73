//! Flat guests, run through the program.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The command that runs a payload; `None`, after a message, on a machine without KVM.
fn hull(payload: &str) -> Option<Command> {
    if std::fs::File::open("/dev/kvm").is_err() {
        println!("skipped: {payload}: /dev/kvm does not open");
        return None;
    }
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("target/guest/payloads/{payload}.bin"));
    assert!(
        file.exists(),
        "{} is missing: run `make payloads` first",
        file.display()
    );
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
    hull.arg("run").arg(file);
    Some(hull)
}

fn run(payload: &str) -> Option<Output> {
    Some(hull(payload)?.output().expect("hull starts"))
}

/// The `--json` report of a payload, which must succeed and print exactly `expected`.
fn report(payload: &str, expected: &str) -> Option<serde_json::Value> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("report");
    let output = hull(payload)?.arg("--json").arg(&file).output();
    let output = output.expect("hull starts");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert_eq!(output.status.code(), Some(0));
    let report = fs::read(file).expect("the report is there");
    Some(serde_json::from_slice(&report).expect("JSON"))
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
    // On SVM, KVM resets the vCPU before hull can read its registers.
    let places = [
        "RIP 0x8017",
        "a place that KVM on this processor does not tell",
    ];
    let told = places.map(|place| message.contains(&format!("triple fault at {place}")));
    assert!(told.contains(&true), "{message}");
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn a_byte_to_the_debug_port_is_recorded_with_its_time() {
    let Some(report) = report("port-write", "") else {
        return;
    };
    let at = report["init_ms"].as_f64().expect("a time");
    assert!(report["first_instruction_ms"].as_f64() < Some(at));
    assert!(Some(at) < report["end_ms"].as_f64());
}

#[test]
fn a_load_without_a_device_gives_ones_and_a_store_reaches_the_boot_timer() {
    let Some(report) = report("mmio", "ok\n") else {
        return;
    };
    assert!(report["init_ms"].is_f64(), "{report}");
    assert_eq!(
        self::report("hello", "Hello from a virtual machine\n").expect("runs")["init_ms"],
        serde_json::Value::Null,
        "a guest that writes to neither is not up"
    );
}

#[test]
fn every_page_that_a_guest_wrote_keeps_its_content() {
    assert_prints("dirty-pages", "ok\n");
}

/// Waits up to 20 s for something that takes milliseconds.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        sleep(Duration::from_millis(2));
    }
}

/// Whether the process has a thread of this name.
fn has_thread(process: &Child, name: &str) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.id())).expect("it runs");
    let names = tasks
        .flatten()
        .map(|task| fs::read(task.path().join("comm")));
    names
        .flatten()
        .any(|found| found.trim_ascii() == name.as_bytes())
}

#[test]
fn a_signal_ends_a_guest_that_never_exits_and_leaves_no_process() {
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let Some(mut hull) = hull("spin") else { return };
        let scratch = tempfile::tempdir().expect("a temporary folder");
        hull.process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for variable in [
            "TMPDIR",
            "XDG_RUNTIME_DIR",
            "XDG_STATE_HOME",
            "XDG_CACHE_HOME",
        ] {
            hull.env(variable, scratch.path());
        }
        let child = hull.spawn().expect("hull starts");
        let group = Pid::from_child(&child);
        wait_until("the vCPU runs", || has_thread(&child, "vcpu0"));
        kill_process(group, signal).expect("hull is there");

        let output = child.wait_with_output().expect("hull ends");
        assert_eq!(output.status.code(), Some(status));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert!(output.stdout.is_empty());
        // One closes the virtual machine, and ends right after hull.
        wait_until("no process is left", || !is_running(group));
        let files = fs::read_dir(scratch.path()).expect("the folder is there");
        assert_eq!(files.count(), 0, "files are left");
    }
}

/// Whether a process of `group` runs. One that has ended and that the system has not waited for does not.
fn is_running(group: Pid) -> bool {
    let group = group.as_raw_nonzero().to_string();
    let processes = fs::read_dir("/proc").expect("a folder").flatten();
    let mut stats = processes.filter_map(|it| fs::read_to_string(it.path().join("stat")).ok());
    // State, parent and group are behind the name in parentheses (proc_pid_stat(5)).
    stats.any(|stat| {
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        fields.first() != Some(&"Z") && fields.get(2) == Some(&group.as_str())
    })
}

#[test]
fn an_unread_timing_changes_no_status() {
    let Some(mut hull) = hull("hello") else {
        return;
    };
    hull.arg("--timing").stdout(Stdio::null());
    let mut child = hull.stderr(Stdio::piped()).spawn().expect("hull starts");
    drop(child.stderr.take());
    assert_eq!(child.wait().expect("hull ends").code(), Some(0));
}
