//! The machine is what it says: its clock is the host's, its processors are arranged as asked, its
//! kernel knows of their flaws when it is told to, and a compressed initial RAM disk is one.

mod machine;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use hull::boot::initrd::{File, cpio};
use machine::saving::{Talk, text};
use machine::user::User;
use machine::{built, in_lab, kvm, lab, run};

/// How far a guest's clock may be from the host's, in seconds.
const TOLERANCE: f64 = 0.05;
/// Prints the seconds since 1970.
const NOW: &str = "echo $EPOCHREALTIME";

fn now() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("later than 1970").as_secs_f64()
}

/// What `program` prints with `input`.
fn filter(program: &[&str], input: &Path) -> Vec<u8> {
    let input = fs::File::open(input).expect("an input");
    let output = Command::new(program[0])
        .args(&program[1..])
        .stdin(input)
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program:?}: {error}"));
    assert!(output.status.success(), "{program:?}");
    output.stdout
}

/// hull's initial RAM disk, an archive with a file for each compression behind it, and where it is.
fn compressed_initrd(folder: &Path) -> String {
    let mut initrd = fs::read(built("guest/initramfs.cpio")).expect("built");
    initrd.extend([0; 100]);
    for program in [
        &["gzip", "-c"][..],
        &["xz", "-c", "--check=crc32"],
        &["zstd", "-q", "-c"],
        &["lz4", "-l", "-c"],
        &["bzip2", "-c"],
        &["lzma", "-c"],
    ] {
        let file = File {
            path: &format!("with-{}", program[0]),
            mode: 0o100644,
            content: program[0].as_bytes(),
        };
        let archive = folder.join("archive");
        fs::write(&archive, cpio(&[file]).expect("small")).expect("a file");
        initrd.extend(filter(program, &archive));
    }
    let path = folder.join("initrd");
    fs::write(&path, initrd).expect("a file");
    text(&path).into()
}

/// Checks the guest's clock, which is read between two moments of the host's.
#[track_caller]
fn assert_clock(talk: &mut Talk, when: &str) {
    let before = now();
    let said: f64 = talk.ask(NOW).parse().expect("a time");
    let after = now();
    let range = before - TOLERANCE..after + TOLERANCE;
    assert!(range.contains(&said), "{when}: {said} is not in {range:?}");
}

#[track_caller]
fn uptime(talk: &mut Talk) -> f64 {
    let said = talk.ask("read up idle </proc/uptime; echo $up");
    said.parse().expect("seconds")
}

#[test]
fn a_cold_machine_has_the_host_s_time_and_a_compressed_initrd() {
    if !kvm("a cold machine") {
        return;
    }
    let user = User::new();
    let files = tempfile::tempdir().expect("a folder");
    let initrd = compressed_initrd(files.path());
    let start = now();
    let first = format!("{NOW}; exec sh");
    let mut all = vec!["run", "--cold", "--name", "it", "--initrd", &initrd];
    all.extend(["--", "sh", "-c", &first]);
    let mut talk = Talk::start(&user, &all);
    let said = talk.says(18);
    let (said, after) = (String::from_utf8_lossy(&said).into_owned(), now());
    let first: f64 = said.trim().parse().expect("a time");
    let range = start..after + TOLERANCE;
    assert!(range.contains(&first), "{first} is not in {range:?}");
    assert_clock(&mut talk, "after a boot");
    // Since the first vCPU ran.
    let up = uptime(&mut talk);
    assert!(up <= now() - start + TOLERANCE, "up {up} s");

    let unpacked = talk.ask("cd /; for each in with-*; do cat $each; echo; done");
    assert_eq!(unpacked, "bzip2\ngzip\nlz4\nlzma\nxz\nzstd");
    let flaws = talk.ask("cat /sys/devices/system/cpu/vulnerabilities/spectre_v1");
    assert!(flaws.starts_with("Vulnerable"), "{flaws}");
    if in_lab() {
        let clock = talk.ask("ls /dev/ptp*; cat /sys/class/ptp/ptp0/clock_name");
        assert_eq!(clock, "/dev/ptp0\nKVM virtual PTP");
    }

    user.named(&["pause", "it"]);
    thread::sleep(Duration::from_millis(500));
    user.named(&["resume", "it"]);
    assert_clock(&mut talk, "after a pause");
    let paused = uptime(&mut talk);
    assert!(paused > up, "{paused} after {up}");
    let saved = files.path().join("saved");
    user.snapshot("it", &saved, &[]);
    assert_clock(&mut talk, "after a snapshot");
    talk.kill();
    thread::sleep(Duration::from_millis(500));
    let mut copy = user.restore(&saved, &[]);
    assert_clock(&mut copy, "after a restore");
    let restored = uptime(&mut copy);
    assert!(restored >= paused, "{restored} after {paused}");
}

#[test]
fn an_initrd_that_cannot_be_unpacked_is_refused_by_name() {
    if !kvm("initial RAM disks") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("initrd");
    let refused = |content: &[u8], expected: &str| {
        fs::write(&path, content).expect("a file");
        let finished = run(&["run", "--cold", "--initrd", text(&path), "--", "true"]);
        assert_eq!(finished.status, Some(125), "{}", finished.stderr);
        assert!(finished.stderr.contains(expected), "{}", finished.stderr);
    };
    refused(b"hello", "the initrd is no initramfs: at byte 0");
    refused(b"\x04\x22\x4d\x18\x40\x40\xc0", "compress it with: lz4 -l");
    refused(
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc",
        "the gzip-compressed initrd is damaged",
    );
    // 4 GiB of zeroes.
    let bomb = "head -c 4G /dev/zero | zstd -q -c";
    let bomb = Command::new("sh").args(["-c", bomb]).output().expect("sh");
    refused(&bomb.stdout, "more memory");
}

#[test]
fn mitigations_are_on_when_asked_for() {
    if !lab(
        "mitigations",
        "a boot takes long where the kernel is emulated",
    ) {
        return;
    }
    // The kernel warns, for one, of a return that it could not patch.
    let flaws = "cd /sys/devices/system/cpu/vulnerabilities; grep -H . *
                 dmesg | grep -iE 'unpatched|retpoline.*fail|thunk'";
    let finished = run(&[
        "run",
        "--cold",
        "--cmdline",
        "mitigations=auto",
        "--",
        "sh",
        "-c",
        flaws,
    ]);
    let said = finished.stdout_text();
    assert_eq!(finished.stderr, "");
    assert!(said.contains("spectre_v1:Mitigation: "), "{said}");
    assert!(said.contains("spectre_v2:Mitigation: "), "{said}");
    assert!(!said.to_lowercase().contains("thunk"), "{said}");
}

/// A folder with lscpu and its libraries, for a guest that has none.
fn with_lscpu(folder: &Path) -> String {
    let copy = "set -e; cd \"$1\"; mkdir bin sys proc; cp $(which lscpu) bin
        for library in $(ldd bin/lscpu | grep -o '/[^ ]*'); do
          mkdir -p .${library%/*}; cp -L $library .$library
        done";
    let done = Command::new("sh")
        .args(["-c", copy, "sh", text(folder)])
        .status();
    assert!(done.expect("sh").success());
    format!("{}:/l", folder.display())
}

#[test]
fn the_guest_s_processors_are_arranged_as_asked() {
    if !lab(
        "processors",
        "a software KVM shows its guests the host's CPUID",
    ) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let share = with_lscpu(folder.path());
    // 32 vCPUs take minutes to boot on the lab's one CPU.
    for (cpus, sockets, cores, threads) in [
        ("1", 1, 1, 1),
        ("2", 1, 2, 1),
        ("3", 1, 3, 1),
        ("4", 1, 4, 1),
        ("7", 1, 7, 1),
        ("8,cores=4,threads=2", 1, 4, 2),
        ("8,sockets=2,threads=2", 2, 2, 2),
    ] {
        let look = "mount -o bind /sys /l/sys; mount -o bind /proc /l/proc
            chroot /l /bin/lscpu -J; echo =; chroot /l /bin/lscpu -p=CPU,CORE,SOCKET,CACHE | grep -v '#'";
        let finished = run(&[
            "run", "--cpus", cpus, "--share", &share, "--", "sh", "-c", look,
        ]);
        assert_eq!(
            (finished.status, &*finished.stderr),
            (Some(0), ""),
            "{cpus}"
        );
        let said = finished.stdout_text();
        let (overview, list) = said.split_once("=\n").expect("both");
        let overview: serde_json::Value = serde_json::from_str(overview).expect("JSON");
        let overview = overview.to_string();
        for (field, value) in [
            ("CPU(s)", sockets * cores * threads),
            ("Thread(s) per core", threads),
            ("Core(s) per socket", cores),
            ("Socket(s)", sockets),
        ] {
            let expected = format!("{{\"data\":\"{value}\",\"field\":\"{field}:\"}}");
            let other = format!("\"field\":\"{field}:\",\"data\":\"{value}\"");
            assert!(
                overview.contains(&expected) || overview.contains(&other),
                "{cpus}: {expected} is not in {overview}"
            );
        }
        for (cpu, line) in list.lines().enumerate() {
            let fields: Vec<&str> = line.split([',', ':']).collect();
            let (core, socket) = (cpu / threads, cpu / threads / cores);
            let expected = [cpu, core, socket].map(|number| number.to_string());
            assert_eq!(fields[..3], expected, "{cpus}");
            // The last level is the socket's.
            assert_eq!(fields.last(), Some(&&*socket.to_string()), "{cpus}: {line}");
        }
    }
}
