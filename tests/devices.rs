//! Devices that a guest is given beside disks and networks: what passed through them is counted,
//! entropy is the host's.

mod machine;

use std::fs::{self, File};

use machine::{kvm, script};

const MIB: u64 = 1 << 20;

#[test]
fn what_passed_through_a_disk_is_counted() {
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
fn a_guest_has_the_hosts_entropy_unless_told_otherwise() {
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
fn the_kernels_messages_come_by_the_console_that_was_asked_for() {
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
