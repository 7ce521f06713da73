//! Disks: a guest reads what the host has, flushed data survives, and write access is settled before the boot.

mod machine;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use machine::guest_program::guest_program;
use machine::{kvm, lab, run, script};
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

/// A running hull, killed when the test ends first.
struct Hull(Child);

impl Drop for Hull {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `hull run FLAGS -- sh -c SCRIPT`; the function returned reads one line of its output.
fn start(flags: &[&str], script: &str) -> (Hull, impl FnMut() -> String + use<>) {
    let started = Command::new(env!("CARGO_BIN_EXE_hull"))
        .arg("run")
        .args(flags)
        .args(["--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn();
    let mut hull = Hull(started.expect("hull starts"));
    let mut stdout = BufReader::new(hull.0.stdout.take().expect("a pipe"));
    let line = move || {
        let mut line = String::new();
        stdout.read_line(&mut line).expect("text");
        line
    };
    (hull, line)
}

/// The output of a program of e2fsprogs, qemu-utils or coreutils, which must succeed.
#[track_caller]
fn tool(name: &str, arguments: &[&str]) -> String {
    let (said, status) = tried(name, arguments);
    assert_eq!(status, 0, "{name} {arguments:?}: {said}");
    said
}

fn tried(name: &str, arguments: &[&str]) -> (String, i32) {
    let sbin = Path::new("/usr/sbin").join(name);
    let program = if sbin.exists() { sbin } else { name.into() };
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{name}: {error}"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (said, output.status.code().unwrap_or(-1))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn sum(path: &Path) -> String {
    let said = tool("sha256sum", &[text(path)]);
    said.split(' ').next().expect("a sum").into()
}

/// Pseudo-random bytes.
fn noise(bytes: u64) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

/// A qcow2 image beside `raw` with the same content.
fn qcow2(raw: &Image, options: &[&str]) -> PathBuf {
    let path = raw.folder.path().join("disk.qcow2");
    let mut arguments = vec!["convert", "-O", "qcow2"];
    arguments.extend(options);
    arguments.extend([text(&raw.path), text(&path)]);
    tool("qemu-img", &arguments);
    path
}

#[test]
fn a_file_system_is_intact_after_a_guest_used_it_in_either_format() {
    if !kvm("file systems") {
        return;
    }
    let raw = Image::new(48 * MIB, b"");
    tool("mke2fs", &["-q", "-t", "ext4", text(&raw.path)]);
    let qcow2 = qcow2(&raw, &[]);
    let finished = script(
        &["--disk", &raw.flag(""), "--disk", text(&qcow2)],
        "set -e; mkdir /a /b; mount /dev/vda /a; mount /dev/vdb /b
         dd if=/dev/hwrng of=/a/noise bs=4k count=64 2>/dev/null
         for n in 1 2 3 4 5 6 7 8; do cat /a/noise >>/a/file; done
         cp /a/file /b/file; mkdir /b/sub; cp /a/noise /b/sub; rm /a/noise
         sha256sum </a/file; umount /a /b",
    );
    assert_eq!((finished.status, &*finished.stderr), (Some(0), ""));
    let expected = finished.stdout_text();
    let expected = expected.split(' ').next().expect("a sum");

    tool("qemu-img", &["check", text(&qcow2)]);
    let back = raw.folder.path().join("back");
    tool(
        "qemu-img",
        &["convert", "-O", "raw", text(&qcow2), text(&back)],
    );
    for image in [&raw.path, &back] {
        tool("e2fsck", &["-f", "-n", text(image)]);
        let file = raw.folder.path().join("file");
        let dump = format!("dump /file {}", file.display());
        tool("debugfs", &["-R", &dump, text(image)]);
        assert_eq!(sum(&file), expected, "{}", image.display());
    }
}

#[test]
fn flushed_data_survives_a_killed_hull() {
    if !kvm("a kill") {
        return;
    }
    let raw = Image::new(48 * MIB, b"");
    tool("mke2fs", &["-q", "-t", "ext4", text(&raw.path)]);
    let qcow2 = qcow2(&raw, &[]);
    let (mut hull, mut line) = start(
        &["--disk", &raw.flag(""), "--disk", text(&qcow2)],
        "set -e; mkdir /a /b; mount /dev/vda /a; mount /dev/vdb /b
         head -c 500000 /dev/urandom >/a/kept; cp /a/kept /b/kept; sync; sha256sum </a/kept
         n=0; while :; do n=$((n+1)); cp /a/kept /a/$((n%9)); cp /b/kept /b/$((n%7)); echo; done",
    );
    let expected = line();
    let expected = expected.split(' ').next().expect("a sum");
    // While it writes.
    assert_eq!(line(), "\n");
    hull.0.kill().expect("hull runs");
    hull.0.wait().expect("an end");

    // qemu-img check: leaked clusters (3) are allowed, errors (2) are not.
    let (said, status) = tried("qemu-img", &["check", text(&qcow2)]);
    assert!(matches!(status, 0 | 3), "{said}");
    let back = raw.folder.path().join("back");
    tool(
        "qemu-img",
        &["convert", "-O", "raw", text(&qcow2), text(&back)],
    );
    for image in [&raw.path, &back] {
        // 1: the journal was replayed.
        let (said, status) = tried("e2fsck", &["-f", "-p", text(image)]);
        assert!(matches!(status, 0 | 1), "{said}");
        let file = raw.folder.path().join("file");
        let dump = format!("dump /kept {}", file.display());
        tool("debugfs", &["-R", &dump, text(image)]);
        assert_eq!(sum(&file), expected, "{}", image.display());
    }
}

#[test]
fn compressed_and_backed_images_read_like_their_source() {
    if !kvm("qcow2") {
        return;
    }
    let raw = Image::new(4 * MIB, &noise(MIB));
    let compressed = qcow2(&raw, &["-c"]);
    let based = raw.folder.path().join("based.qcow2");
    let base = text(&compressed);
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base];
    tool("qemu-img", &[&create[..], &[text(&based)]].concat());
    let before = sum(&compressed);
    let disks = [
        "--disk",
        &format!("{},ro", compressed.display()),
        "--disk",
        &format!("{},backing={}", based.display(), compressed.display()),
    ];
    let finished = script(
        &disks,
        "sha256sum /dev/vda /dev/vdb
         printf changed | dd of=/dev/vdb bs=1 seek=100 conv=fsync 2>/dev/null
         dd if=/dev/zero of=/dev/vdb bs=1M seek=3 count=1 conv=fsync 2>/dev/null",
    );
    let expected = sum(&raw.path);
    let expected = format!("{expected}  /dev/vda\n{expected}  /dev/vdb\n");
    finished.assert(0, &expected, "");
    assert_eq!(sum(&compressed), before, "what others are based on stays");
    tool("qemu-img", &["check", text(&based)]);
    let back = raw.folder.path().join("back");
    tool(
        "qemu-img",
        &["convert", "-O", "raw", text(&based), text(&back)],
    );
    let mut expected = raw.read(0, 4 * MIB as usize);
    expected[100..107].copy_from_slice(b"changed");
    assert!(fs::read(&back).expect("a file") == expected);

    // hull opens only backing files that the user names.
    let flag = based.display().to_string();
    assert_refused(&flag, "", "add backing=FILE if you want it");
    let unnamed = format!(",backing={},backing={}", compressed.display(), flag);
    assert_refused(
        &flag,
        &unnamed,
        "it is not based on another image; leave out",
    );
    assert_refused(&raw.flag(""), ",backing=/etc/passwd", "leave out backing=");
}

/// tests/all runs this first, so that the program is there when the lab starts.
#[test]
fn the_guests_program_is_built() {
    assert!(guest_program("disks").exists());
}

/// A way to make an image: its name, the arguments of `qemu-img create`, and those of a command after it.
struct Made {
    name: &'static str,
    create: &'static str,
    then: &'static str,
    /// The image is based on one of this format, of 8 MiB of noise.
    base: Option<&'static str>,
    /// Bytes that a discard frees at least; 0 if the guest is offered none.
    unit: u64,
}

const fn made(name: &'static str, create: &'static str, unit: u64) -> Made {
    Made {
        name,
        create,
        then: "",
        base: None,
        unit,
    }
}

/// All options of Debian's `qemu-img create -f qcow2`, but for those that hull refuses by name.
const FORMATS: [Made; 19] = [
    made("raw", "-f raw", 4096),
    made("compat11", "-o compat=1.1", 65536),
    made("compat010", "-o compat=0.10", 0),
    made("lazy", "-o compat=1.1,lazy_refcounts=on", 65536),
    made("cluster512", "-o cluster_size=512", 4096),
    made("cluster4k", "-o cluster_size=4k", 4096),
    made("cluster2M", "-o cluster_size=2M", 2 << 20),
    made("refcount1", "-o refcount_bits=1", 65536),
    made("refcount4", "-o refcount_bits=4", 65536),
    made("refcount64", "-o refcount_bits=64", 65536),
    made("metadata", "-o preallocation=metadata", 65536),
    made("falloc", "-o preallocation=falloc", 65536),
    made("full", "-o preallocation=full", 65536),
    made("snapshot", "-o compat=1.1", 65536).then("snapshot -c s IMAGE"),
    made("snapshot010", "-o compat=0.10", 0).then("snapshot -c s IMAGE"),
    made("qcow2-base", "-F qcow2 -b BASE", 65536).on("qcow2"),
    made("raw-base", "-F raw -b BASE", 65536).on("raw"),
    made("base010", "-o compat=0.10 -F raw -b BASE", 0).on("raw"),
    made("compressed", "-o compat=1.1", 65536).then("convert -c -O qcow2 BASE IMAGE"),
];

impl Made {
    const fn then(mut self, then: &'static str) -> Self {
        self.then = then;
        self
    }

    const fn on(mut self, base: &'static str) -> Self {
        self.base = Some(base);
        self
    }

    /// Makes the image, and returns the flag's value.
    fn make(&self, folder: &Path) -> String {
        let image = folder.join(self.name);
        let base = folder.join(format!("base.{}", self.base.unwrap_or("raw")));
        let qemu_img = |line: &str| {
            let words = line.split(' ').map(|word| match word {
                "IMAGE" => text(&image),
                "BASE" => text(&base),
                word => word,
            });
            tool("qemu-img", &words.collect::<Vec<_>>());
        };
        qemu_img(&format!("create -q -f qcow2 {} IMAGE 8M", self.create));
        if !self.then.is_empty() {
            qemu_img(self.then);
        }
        match self.base {
            Some(_) => format!("{},backing={}", image.display(), base.display()),
            None => image.display().to_string(),
        }
    }
}

/// In each format, what a guest writes, zeroes and discards is what it is in a raw image, in the eyes of
/// qemu-img; and what a format cannot do the guest is not offered.
#[test]
fn every_format_does_what_it_offers() {
    if !kvm("formats") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let base = noise(8 * MIB);
    fs::write(at("base.raw"), &base).expect("written");
    let convert = ["convert", "-O", "qcow2"];
    let bases = [at("base.raw"), at("base.qcow2")];
    tool(
        "qemu-img",
        &[&convert[..], &[text(&bases[0]), text(&bases[1])]].concat(),
    );
    let programs = guest_program("disks");
    let share = format!("{}:/t:ro", programs.parent().expect("a folder").display());
    // A machine has 16 interrupt lines.
    for formats in FORMATS.chunks(10) {
        let disks = formats
            .iter()
            .flat_map(|made| ["--disk".into(), made.make(folder.path())]);
        let disks: Vec<String> = disks.collect();
        let mut arguments = vec!["run", "--share", &share];
        arguments.extend(disks.iter().map(String::as_str));
        arguments.extend(["--", "sh", "-c", "/t/disks /dev/vd?"]);
        let finished = run(&arguments);
        let units = formats.iter().zip('a'..);
        let units = units.map(|(made, letter)| format!("vd{letter}: {}\n", made.unit));
        let done = (finished.status, finished.stdout_text());
        let expected = (Some(0), units.collect::<String>());
        assert_eq!(done, expected, "{}", finished.stderr);
    }
    let contents = FORMATS
        .iter()
        .map(|made| (made, content(made, &at(made.name))));
    let contents: Vec<_> = contents.collect();
    let (_, raw) = &contents[0];
    for (made, content) in &contents[1..] {
        let mut expected = match made.base.is_some() || made.name == "compressed" {
            true => base.clone(),
            false => vec![0; raw.len()],
        };
        for range in [65_536..265_536, 1_000_000..1_200_000, 5_000_001..5_000_004] {
            expected[range.clone()].copy_from_slice(&raw[range]);
        }
        // What was written and then discarded is undefined.
        expected[2 << 20..4 << 20].copy_from_slice(&content[2 << 20..4 << 20]);
        assert!(*content == expected, "{} differs", made.name);
    }
}

/// The bytes of an image, which must be in order and have freed what was discarded.
fn content(made: &Made, image: &Path) -> Vec<u8> {
    let raw = made.name == "raw";
    if !raw {
        tool("qemu-img", &["check", text(image)]);
    }
    let format = if raw { "raw" } else { "qcow2" };
    let map = tool(
        "qemu-img",
        &["map", "--output=json", "-f", format, text(image)],
    );
    let map: serde_json::Value = serde_json::from_str(&map).expect("JSON");
    let holds_data = map.as_array().expect("a list").iter().any(|part| {
        let number = |key: &str| part[key].as_u64().expect("a number");
        let (start, end) = (number("start"), number("start") + number("length"));
        start < 4 << 20 && end > 2 << 20 && part["depth"] == 0 && part["data"] == true
    });
    assert_eq!(holds_data, made.unit == 0, "{}: {map}", made.name);
    let back = image.with_extension("back");
    let convert = ["convert", "-f", format, "-O", "raw"];
    tool(
        "qemu-img",
        &[&convert[..], &[text(image), text(&back)]].concat(),
    );
    fs::read(back).expect("a file")
}

/// A block device offers what the host's device can do.
#[test]
fn a_block_device_is_a_disk() {
    if !kvm("block devices") {
        return;
    }
    let image = Image::new(8 * MIB, b"");
    let losetup = ["--find", "--show", text(&image.path)];
    let (device, status) = tried("losetup", &losetup);
    if status != 0 {
        println!("skipped: block devices: losetup: {device}");
        return;
    }
    let device = device.trim();
    let programs = guest_program("disks");
    let share = format!("{}:/t:ro", programs.parent().expect("a folder").display());
    let finished = script(&["--share", &share, "--disk", device], "/t/disks /dev/vda");
    tool("losetup", &["--detach", device]);
    finished.assert(0, "vda: 4096\n", "");
    let zeroes = |at: u64, len: usize| image.read(at, len).iter().all(|&byte| byte == 0);
    assert!(zeroes(131_072, 131_072) && zeroes(2 << 20, 2 << 20) && !zeroes(65_536, 65_536));
    assert_eq!(image.read(5_000_001, 3), b"odd");
}

#[test]
fn an_overlay_does_not_change_its_base() {
    if !kvm("overlays") {
        return;
    }
    let raw = Image::new(4 * MIB, &noise(MIB));
    let qcow2 = qcow2(&raw, &[]);
    let before = [sum(&raw.path), sum(&qcow2)];
    let temporary = tempfile::tempdir().expect("a folder");
    let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_hull"))
        .env("TMPDIR", temporary.path())
        .args([
            "run",
            "--disk",
            &raw.flag(",overlay"),
            "--overlay",
            text(&qcow2),
        ])
        .args(["--", "/bin/sh", "-c"])
        .arg(
            "for disk in vda vdb; do
               printf mine | dd of=/dev/$disk bs=1 seek=65534 conv=fsync 2>/dev/null
               dd if=/dev/$disk bs=1 skip=65534 count=4 2>/dev/null
               blkdiscard -o 2097152 -l 1048576 /dev/$disk || echo no discard
             done; cmp /dev/vda /dev/vdb",
        )
        .timeout(machine::LIMIT)
        .output()
        .expect("hull starts");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "minemine");
    assert_eq!([sum(&raw.path), sum(&qcow2)], before);
    assert_eq!(fs::read_dir(temporary.path()).expect("a folder").count(), 0);
}

#[test]
fn an_image_that_grows_grows_in_the_guest() {
    if !kvm("resize") {
        return;
    }
    let image = Image::new(MIB, b"");
    let (mut hull, mut line) = start(
        &["--disk", &image.flag("")],
        "size=/sys/block/vda/size; cat $size; while grep -qx 2048 $size; do sleep 0.3; done; cat $size
         printf end | dd of=/dev/vda bs=1 seek=3145725 conv=fsync 2>/dev/null",
    );
    assert_eq!(line(), "2048\n");
    let file = File::options().write(true).open(&image.path);
    file.and_then(|file| file.set_len(3 * MIB)).expect("longer");
    assert_eq!(line(), "6144\n");
    assert_eq!(hull.0.wait().expect("an end").code(), Some(0));
    assert_eq!(image.read(3 * MIB - 3, 3), b"end");
}

#[test]
fn a_disk_stays_within_its_rate() {
    if !kvm("disk rates") {
        return;
    }
    let image = Image::new(4 * MIB, &noise(4 * MIB));
    let expected = format!("{}  /dev/vda\n", sum(&image.path));
    // 3 MiB above the burst at 1 MiB a second; the kernel's own reads come on top.
    let start = Instant::now();
    let finished = script(
        &["--disk", &image.flag(",ro,rate=1M")],
        "sha256sum /dev/vda",
    );
    finished.assert(0, &expected, "");
    assert!(start.elapsed() >= Duration::from_secs(3));
    // At least 4 requests of at most 256 segments, above a burst of 1.
    let start = Instant::now();
    let finished = script(
        &["--disk", &image.flag(",ro,rate=1G+1ops")],
        "dd if=/dev/vda bs=4k count=1 of=/dev/null 2>/dev/null
         dd if=/dev/vda bs=4k count=1 skip=900 of=/dev/null 2>/dev/null; echo read",
    );
    finished.assert(0, "read\n", "");
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn ten_machines_have_a_disk_each() {
    if !lab("ten machines", "they boot for minutes elsewhere") {
        return;
    }
    let images: Vec<_> = (0..10).map(|_| Image::new(4 * MIB, b"")).collect();
    let script =
        "head -c 3000000 /dev/urandom | dd of=/dev/vda conv=fsync 2>/dev/null; sha256sum </dev/vda";
    let start = |image: &Image| {
        let disk = image.flag("");
        start(&["--memory", "64M", "--disk", &disk], script)
    };
    let machines: Vec<_> = images.iter().map(start).collect();
    for ((mut hull, mut line), image) in machines.into_iter().zip(&images) {
        assert_eq!(line(), format!("{}  -\n", sum(&image.path)));
        assert_eq!(hull.0.wait().expect("an end").code(), Some(0));
    }
}

#[test]
fn every_byte_of_a_large_disk_arrives() {
    if !lab("64 MiB", "an emulated kernel moves them for minutes") {
        return;
    }
    let [from, to] = [
        Image::new(64 * MIB, &noise(64 * MIB)),
        Image::new(64 * MIB, b""),
    ];
    let qcow2 = qcow2(&from, &[]);
    let disks = [
        "--disk",
        &from.flag(",ro"),
        "--disk",
        &to.flag(""),
        "--overlay",
        text(&qcow2),
    ];
    let copy = "dd if=/dev/vda of=/dev/vdb bs=1M conv=fsync 2>/dev/null; sha256sum </dev/vdc";
    let expected = sum(&from.path);
    script(&disks, copy).assert(0, &format!("{expected}  -\n"), "");
    assert_eq!(sum(&to.path), expected);
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
    let sum = sum(&first.path);
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
fn a_scratch_disk_is_empty_and_leaves_no_file() {
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
fn a_full_host_disk_is_an_io_error_in_the_guest_only() {
    if !kvm("a limit of the file's size") {
        return;
    }
    let image = Image::new(16 * MIB, b"");
    // 512-byte blocks: files end at 8 MiB, as on a full disk.
    let output = assert_cmd::Command::new("sh")
        .args(["-c", "ulimit -f 16384; exec \"$@\"", "sh"])
        .args([env!("CARGO_BIN_EXE_hull"), "run", "--disk", &image.flag("")])
        .args(["--", "/bin/sh", "-c"])
        .arg(
            "dd if=/dev/zero of=/dev/vda bs=64k seek=160 count=1 conv=fsync 2>/dev/null || \
             echo refused; dd if=/dev/zero of=/dev/vda bs=64k count=1 conv=fsync 2>/dev/null && \
             echo written",
        )
        .timeout(machine::LIMIT)
        .output()
        .expect("sh starts");
    let (stdout, stderr) = (output.stdout, String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&stdout), "refused\nwritten\n");
    assert!(stderr.contains("File too large"), "{stderr}");
}

#[test]
fn discarded_space_returns_to_the_host() {
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
fn a_users_own_system_runs_from_its_disk() {
    if !kvm("a root disk") {
        return;
    }
    let image = Image::new(16 * MIB, b"");
    let root = image.folder.path().join("root");
    fs::create_dir_all(root.join("sbin")).expect("folders");
    let init = machine::built("guest/init"); // hull's, which without hull says so and powers off
    fs::copy(&init, root.join("sbin/init")).expect("an init");
    tool(
        "mke2fs",
        &["-q", "-t", "ext4", "-d", text(&root), text(&image.path)],
    );
    let flag = image.flag("");
    let finished = run(&["run", "--root-disk", &flag, "--kernel-log"]);
    let seen = finished.stdout_text() + &finished.stderr;
    assert!(
        seen.contains("VFS: Mounted root (ext4 filesystem)"),
        "{seen}"
    );
    assert!(seen.contains("Run /sbin/init as init process"), "{seen}");

    // With a command, hull's init runs it in that system; the second time from a template.
    let write = "grep -c ' / ext4 ' /proc/mounts && echo kept > /file && ls -d /proc/1 /dev/vda";
    let programs = machine::built("foreign/busybox");
    fs::create_dir_all(root.join("bin")).expect("folders");
    for name in ["sh", "busybox"] {
        fs::copy(&programs, root.join("bin").join(name)).expect("a program");
    }
    fs::write(&image.path, vec![0; 16 << 20]).expect("emptied");
    tool(
        "mke2fs",
        &["-q", "-t", "ext4", "-d", text(&root), text(&image.path)],
    );
    script(&["--root-disk", &flag], write).assert(0, "1\n/dev/vda\n/proc/1\n", "");
    // It was left in good order.
    tool("e2fsck", &["-f", "-n", text(&image.path)]);
    let features = Command::new("dumpe2fs")
        .args(["-h", text(&image.path)])
        .output();
    let features = String::from_utf8(features.expect("dumpe2fs").stdout).expect("text");
    assert!(!features.contains("needs_recovery"), "{features}");
    let ro = image.flag(",ro");
    let read = "cat /file; (echo no > /file) 2> /dev/null || echo refused";
    script(&["--root-disk", &ro], read).assert(0, "kept\nrefused\n", "");
    let empty = Image::new(MIB, b"");
    let refused = script(&["--root-disk", &empty.flag("")], "true");
    assert_eq!(refused.status, Some(125), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("the root disk cannot be mounted"),
        "{}",
        refused.stderr
    );
}

/// hull refuses the flag before the boot, with status 125 and `expected` on standard error.
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
    assert_refused(
        &image.flag(""),
        "",
        "uses it; give each an image of its own",
    );
    assert_refused(
        &image.flag(""),
        ",ro",
        "another machine, or another disk of this one, uses it and writes to it",
    );
    flock(&held, FlockOperation::LockShared).expect("locked");
    assert_refused(
        &image.flag(""),
        "",
        "uses it; give each an image of its own",
    );
}

#[test]
fn an_error_names_the_disk_by_its_number() {
    let image = Image::new(MIB, b"");
    let refused = |flags: [&str; 4], expected: &str| {
        let finished = run(&[&["run"][..], &flags, &["--", "true"]].concat());
        assert_eq!(finished.status, Some(125), "{}", finished.stderr);
        assert!(finished.stderr.contains(expected), "{}", finished.stderr);
    };
    let (plain, named) = (image.flag(""), image.flag(",ro,id=a"));
    let expected = "named twice; a disk has one writer";
    refused(["--disk", &plain, "--disk", &plain], expected);
    refused(["--disk", &plain, "--disk", &named], expected);
    refused(["--overlay", &plain, "--disk", &plain], expected);
    refused(
        ["--disk", &named, "--disk", &named],
        "id=a: two disks have this name",
    );
}

#[test]
fn files_that_are_no_disk_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, bytes: &[u8]| fs::write(at(name), bytes).expect("written");
    write("empty", b"");
    write("odd", &[1; 1000]);
    write(
        "image",
        b"QFI\xfb\0\0\0\x03................................",
    );
    write("vmdk", b"KDMV............................");
    write("parallels", b"WithouFreSpacExt................");
    let mut vdi = [b'<'; 512];
    vdi[0x40..0x44].copy_from_slice(b"\x7f\x10\xda\xbe");
    write("vdi", &vdi);
    tool(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", &at("locked"), "1M"],
    );
    let mut uncounted = fs::read(at("locked")).expect("an image");
    uncounted[0x10000..0x10008].fill(0); // the refcount table's first entry
    write("uncounted", &uncounted);
    let mut locked = fs::read(at("locked")).expect("an image");
    locked[35] = 2; // crypt_method: LUKS
    write("locked", &locked);
    let socket = std::os::unix::net::UnixListener::bind(at("socket"));
    let cases = [
        (
            at("none"),
            "none: No such file or directory (os error 2); name",
        ),
        (at(""), "neither a file nor a block device"),
        (at("socket"), "neither a file nor a block device"),
        ("/dev/null".into(), "neither a file nor a block device"),
        (at("empty"), "the file is empty; `truncate -s 1G "),
        (
            at("odd"),
            "1000 bytes, which is not a whole number of 512-byte sectors",
        ),
        (at("image"), "image: not a usable qcow2 image ("),
        (at("vmdk"), "a VMDK image, which hull does not read"),
        (
            at("parallels"),
            "a Parallels image, which hull does not read",
        ),
        (at("vdi"), "a VDI image, which hull does not read"),
        (at("uncounted"), "cluster is counted as free"),
        (at("locked"), "an encrypted image, which hull does not read"),
    ];
    for (path, expected) in cases {
        assert_refused(&path, "", expected);
        assert_refused(&path, "", &format!("error: --disk {path}: "));
    }
    drop(socket);
    let overlay = run(&["run", "--overlay", &at("none"), "--", "true"]);
    let expected = format!("error: --overlay {}: No such file", at("none"));
    assert!(overlay.stderr.starts_with(&expected), "{}", overlay.stderr);
    let flags = [
        (",rw", "'rw' is no option of a disk"),
        (",cache=none", "cache=none: it is writeback or unsafe"),
        (",id=", "a disk's name is 1 to 20"),
        (",format=vmdk", "format=vmdk: it is raw or qcow2"),
        (",rate=fast", "rate=fast: it is rate=BYTES[/BURST] a second"),
        (",ro,overlay", "ro and overlay: a disk is one or the other"),
    ];
    for (options, expected) in flags {
        assert_refused(&at("odd"), options, expected);
    }
}
