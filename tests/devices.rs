//! Devices other than disks and networks: counters, entropy, consoles, the balloon.

mod machine;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use machine::{kvm, script};

const MIB: u64 = 1 << 20;

#[test]
fn the_traffic_of_a_disk_is_counted() {
    if !kvm("disk counters") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let image = File::create(at("image")).expect("a file");
    image.set_len(4 * MIB).expect("its size");
    let disk = format!("{},id=counted", at("image"));
    let report = at("report");
    let read = "dd if=/dev/vda of=/dev/null bs=1M count=4 2>/dev/null";
    script(&["--disk", &disk, "--json", &report], read).assert(0, "", "");
    let report = fs::read(&report).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    let devices = report["devices"].as_array().expect("devices");
    let disk = devices
        .iter()
        .find(|device| device["name"] == "disk counted");
    let disk = disk.expect("the disk");
    assert!(disk["bytes"].as_u64() >= Some(4 * MIB), "{disk}");
    for counter in ["requests", "notifications", "interrupts"] {
        assert!(disk[counter].as_u64() > Some(0), "{disk}");
    }
}

#[test]
fn a_guest_has_the_hosts_entropy_by_default() {
    if !kvm("rng") {
        return;
    }
    let read = "head -c 100 /dev/hwrng | wc -c; cat /sys/class/misc/hw_random/rng_current";
    script(&[], read).assert(0, "100\nvirtio_rng.0\n", "");
    let finished = script(
        &["--rng", "off"],
        "cat /sys/class/misc/hw_random/rng_current",
    );
    finished.assert(0, "none\n", "");
}

#[test]
fn the_kernels_messages_come_over_the_requested_console() {
    if !kvm("kernel messages") {
        return;
    }
    for (console, name) in [("serial", "ttyS0"), ("virtio", "hvc0")] {
        let flags = [
            "--console",
            console,
            "--kernel-log",
            "--cmdline",
            "loglevel=7",
        ];
        let finished = script(&flags, "cat /sys/class/tty/console/active");
        assert_eq!(
            finished.stdout_text(),
            format!("{name}\n"),
            "{}",
            finished.stderr
        );
        for line in ["Linux version 6.", "Run /init as init process"] {
            assert!(
                finished.stderr.contains(line),
                "{console}: {}",
                finished.stderr
            );
        }
    }
}

#[test]
fn memory_that_a_guest_does_not_use_returns_to_the_host() {
    if !kvm("balloon") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report").display().to_string();
    let started = Command::new(env!("CARGO_BIN_EXE_hull"))
        .args([
            "run",
            "--memory",
            "160M",
            "--balloon=32M,stats=1",
            "--json",
            &report,
        ])
        .args(["--", "sh", "-c"])
        // The balloon fills up and the pages of the file are reported within some seconds.
        .arg(
            "head -c 50000000 /dev/zero >/tmp/file; echo used; read line; rm /tmp/file; echo free
             read line",
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut hull = started.expect("hull starts");
    let resident = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        kib.map(|kib: u64| kib << 10).expect("a figure")
    };
    let mut stdout = BufReader::new(hull.stdout.take().expect("a pipe")).lines();
    let mut line = || stdout.next().expect("a line").expect("text");
    let mut stdin = hull.stdin.take().expect("a pipe");
    assert_eq!(line(), "used");
    let used = resident(hull.id());
    assert!(used > 50_000_000, "{used}");
    stdin.write_all(b"\n").expect("hull reads");
    assert_eq!(line(), "free");
    let start = Instant::now();
    let pid = hull.id().to_string();
    let is_full = || {
        let mut inspect = Command::new(env!("CARGO_BIN_EXE_hull"));
        let shown = inspect.args(["inspect", &pid, "devices"]).output();
        let shown = String::from_utf8(shown.expect("hull starts").stdout).expect("text");
        let mut lines = shown.lines().map(str::split_whitespace);
        lines.any(|line| line.skip(1).eq(["actual", "00002000", "8192"]))
    };
    while !is_full() {
        assert!(
            start.elapsed() < machine::LIMIT,
            "the balloon does not fill"
        );
        thread::sleep(Duration::from_millis(500));
    }
    while resident(hull.id()) > used - 30_000_000 {
        assert!(start.elapsed() < machine::LIMIT, "{used} bytes stay in use");
        thread::sleep(Duration::from_millis(100));
    }
    stdin.write_all(b"\n").expect("hull reads");
    assert!(hull.wait().expect("an end").success());
    let report = fs::read(&report).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    let balloon = &report["balloon"];
    assert_eq!(balloon["target_bytes"], 32 << 20, "{balloon}");
    assert_eq!(balloon["actual_bytes"], 32 << 20, "{balloon}");
    assert!(
        balloon["released_bytes"].as_u64() > Some(62 << 20),
        "{balloon}"
    );
    let names = balloon["statistics"].as_array().expect("statistics");
    assert!(
        names.iter().any(|entry| entry[0] == "free_bytes"),
        "{balloon}"
    );
}
