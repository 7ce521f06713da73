//! Devices that a guest is given: what it reads from a disk is what the host has, what it flushed
//! stays, and who may write is settled before anything boots; entropy is the host's.

mod machine;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use machine::{kvm, run, script};
use rustix::fs::{FlockOperation, flock};

const MIB: u64 = 1 << 20;

struct Image {
    folder: tempfile::TempDir,
    path: PathBuf,
}

impl Image {
    /// A sparse file of `bytes` that begins with `head`.
    fn new(bytes: u64, head: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk.img");
        let file = File::create(&path).expect("a file");
        file.set_len(bytes).expect("its size");
        file.write_all_at(head, 0).expect("its head");
        Self { folder, path }
    }

    fn flag(&self, options: &str) -> String {
        format!("{}{options}", self.path.display())
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let file = File::open(&self.path).expect("opened");
        file.read_exact_at(&mut bytes, at).expect("read");
        bytes
    }
}

#[test]
fn a_guest_reads_and_writes_its_disks() {
    if !kvm("disks") {
        return;
    }
    let pattern: Vec<u8> = (0..MIB).map(|i| (i * 31 % 251) as u8).collect();
    let [first, second] = [
        Image::new(4 * MIB, &pattern),
        Image::new(2 * MIB, b"second"),
    ];
    let sum = Command::new("sha256sum").arg(&first.path).output();
    let sum = String::from_utf8(sum.expect("sha256sum").stdout).expect("text");
    let sum = sum.split(' ').next().expect("a sum");
    let flags = [
        "--disk",
        &first.flag(",id=one"),
        "--disk",
        &second.flag(",ro"),
    ];
    let finished = script(
        &flags,
        "cat /sys/block/vda/serial; echo; cat /sys/block/vd?/size /sys/block/vd?/ro
         sha256sum /dev/vda; dd if=/dev/vdb bs=6 count=1 2>/dev/null; echo
         echo x 2>/dev/null > /dev/vdb && echo written
         printf changed | dd of=/dev/vda bs=1 seek=1048577 conv=fsync 2>/dev/null
         dd if=/dev/zero of=/dev/vda bs=1M seek=2 count=1 conv=fsync 2>/dev/null",
    );
    let expected = format!("one\n8192\n4096\n0\n1\n{sum}  /dev/vda\nsecond\n");
    finished.assert(0, &expected, "");
    assert_eq!(first.read(0, MIB as usize), pattern);
    assert_eq!(first.read(MIB, 9), b"\0changed\0");
    assert_eq!(second.read(0, 6), b"second");
}

#[test]
fn a_scratch_disk_is_empty_and_leaves_nothing() {
    if !kvm("scratch disks") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_hull"))
        .env("TMPDIR", folder.path())
        .args(["run", "--scratch", "1G", "--", "/bin/sh", "-c"])
        .arg("cat /sys/block/vda/size; echo kept | dd of=/dev/vda conv=fsync 2>/dev/null; head -c 5 /dev/vda")
        .timeout(machine::LIMIT)
        .output()
        .expect("hull starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2097152\nkept\n");
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    let finished = run(&["run", "--scratch", "0", "--", "true"]);
    assert!(
        finished.stderr.contains("a scratch disk has 1M to 16T"),
        "{}",
        finished.stderr
    );
}

#[test]
fn what_passed_through_a_disk_is_counted() {
    if !kvm("disk counters") {
        return;
    }
    let image = Image::new(4 * MIB, b"");
    let report = image.folder.path().join("report").display().to_string();
    let read = "dd if=/dev/vda of=/dev/null bs=1M count=4 2>/dev/null";
    let disk = image.flag(",id=counted");
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
fn space_that_a_guest_discards_is_the_hosts_again() {
    if !kvm("discard") {
        return;
    }
    let image = Image::new(4 * MIB, &vec![7; 4 * MIB as usize]);
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&image.path).unwrap());
    let before = blocks();
    let discard = "blkdiscard -o 1048576 -l 2097152 /dev/vda";
    script(&["--disk", &image.flag("")], discard).assert(0, "", "");
    assert_eq!(image.read(MIB, 2), [0, 0]);
    assert_eq!(image.read(3 * MIB, 2), [7, 7]);
    assert!(blocks() < before, "{before} blocks before and after");
}

#[test]
fn a_system_of_the_users_own_runs_from_its_disk() {
    if !kvm("a root disk") {
        return;
    }
    let image = Image::new(16 * MIB, b"");
    let root = image.folder.path().join("root");
    fs::create_dir_all(root.join("sbin")).expect("folders");
    let init = machine::built("guest/init"); // hull's, which without hull says so and powers off
    fs::copy(&init, root.join("sbin/init")).expect("an init");
    let made = Command::new("/usr/sbin/mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .args([&root, &image.path])
        .output();
    assert!(made.expect("mke2fs").status.success());
    let flag = image.flag("");
    let finished = run(&["run", "--root-disk", &flag, "--kernel-log"]);
    let seen = finished.stdout_text() + &finished.stderr;
    assert!(
        seen.contains("VFS: Mounted root (ext4 filesystem)"),
        "{seen}"
    );
    assert!(seen.contains("Run /sbin/init as init process"), "{seen}");
}

/// Refused before anything boots, with status 125 and this on standard error.
#[track_caller]
fn assert_refused(flag: &str, options: &str, expected: &str) {
    let finished = run(&["run", "--disk", &format!("{flag}{options}"), "--", "true"]);
    let what = (finished.status, finished.stdout.len());
    assert_eq!(what, (Some(125), 0), "{}", finished.stderr);
    assert!(
        finished.stderr.contains(expected),
        "{:?} is not in: {}",
        expected,
        finished.stderr
    );
}

#[test]
fn an_image_has_one_writer_or_many_readers() {
    let image = Image::new(MIB, b"");
    let held = File::open(&image.path).expect("opened");
    flock(&held, FlockOperation::LockExclusive).expect("locked");
    assert_refused(&image.flag(""), "", "another machine uses it; give each");
    assert_refused(
        &image.flag(""),
        ",ro",
        "another machine uses it and writes to it",
    );
    flock(&held, FlockOperation::LockShared).expect("locked");
    assert_refused(&image.flag(""), "", "another machine uses it; give each");
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, bytes: &[u8]| fs::write(at(name), bytes).expect("written");
    write("empty", b"");
    write("odd", &[1; 1000]);
    write(
        "image",
        b"QFI\xfb\0\0\0\x03................................",
    );
    let cases = [
        (at("none"), "none: No such file or directory"),
        (at(""), "Is a directory"),
        ("/dev/null".into(), "neither a file nor a block device"),
        (at("empty"), "the file is empty; `truncate -s 1G "),
        (
            at("odd"),
            "1000 bytes, which are no whole number of 512-byte sectors",
        ),
        (at("image"), "a qcow2 image, which hull does not read"),
    ];
    for (path, expected) in cases {
        assert_refused(&path, "", expected);
    }
    let flags = [
        (",rw", "'rw' is no option of a disk"),
        (",cache=none", "cache=none: it is writeback or unsafe"),
        (",id=", "a disk's name is 1 to 20"),
    ];
    for (options, expected) in flags {
        assert_refused(&at("odd"), options, expected);
    }
}
