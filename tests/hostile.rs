//! Guests that do what none should: each costs no more than its own run. hull's memory stays bounded, and
//! it answers and ends at once, whatever the guest has asked of it.

mod machine;
#[path = "hostile/requests.rs"]
mod requests;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use machine::user::{Running, User, wait_until};
use machine::{built, in_lab, kvm};

/// Resident memory that hull may have beside its guest's, in bytes.
const BESIDE: u64 = 64 << 20;
const GUEST: u64 = 128 << 20;

/// A hostile guest with its streams.
struct Hostile {
    hull: Running,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl Hostile {
    /// Runs a payload under the name `hostile`; nothing reads its output but [`Hostile::says`].
    fn run(user: &User, payload: &str, flags: &[&str]) -> Self {
        let payload = built(&format!("guest/payloads/{payload}.bin"));
        Self::run_file(user, &payload, flags)
    }

    fn run_file(user: &User, file: &str, flags: &[&str]) -> Self {
        let run = ["run", file, "--name", "hostile"];
        Self::start(user, &[&run, flags].concat())
    }

    /// Another machine of the user's, which sends back each byte.
    fn beside(user: &User) -> Self {
        let echo = built("guest/payloads/echo.bin");
        let mut beside = Self::start(user, &["run", &echo, "--name", "beside"]);
        beside.says(">");
        beside
    }

    #[track_caller]
    fn echoes(&mut self) {
        self.stdin.write_all(b"e").expect("written");
        self.says("e");
    }

    /// Waits until the guest's output ends with this text.
    #[track_caller]
    fn says_at_last(&mut self, expected: &str) {
        let mut said = Vec::new();
        let mut byte = [0];
        while !said.ends_with(expected.as_bytes()) {
            self.stdout.read_exact(&mut byte).expect("output");
            said.extend(byte);
        }
    }

    /// Waits until the guest has done what it was made for, which writes nothing but zeroes before.
    #[track_caller]
    fn is_done(&mut self) {
        let mut said = [0];
        while said != *b"p" {
            self.stdout.read_exact(&mut said).expect("output");
            assert!(b"\0p".contains(&said[0]), "{said:?}");
        }
    }

    fn start(user: &User, arguments: &[&str]) -> Self {
        Self::of(&mut user.hull(arguments))
    }

    fn of(hull: &mut Command) -> Self {
        let hull = hull.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut hull: Child = hull.spawn().expect("hull starts");
        Self {
            stdin: hull.stdin.take().expect("a pipe"),
            stdout: hull.stdout.take().expect("a pipe"),
            hull: Running(hull),
        }
    }

    /// Waits for the next bytes of the guest.
    #[track_caller]
    fn says(&mut self, expected: &str) {
        let mut said = vec![0; expected.len()];
        self.stdout.read_exact(&mut said).expect("output");
        assert_eq!(String::from_utf8_lossy(&said), expected);
    }

    #[track_caller]
    fn is_small(&self) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.hull.0.id()));
        let status = status.expect("it runs");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.expect("a figure").trim().trim_end_matches(" kB");
        let resident = resident.parse::<u64>().expect("a number") << 10;
        assert!(resident < GUEST + BESIDE, "{resident} bytes are resident");
    }

    /// Stops it at once: hull itself ends, and need not be killed.
    #[track_caller]
    fn stops(mut self, user: &User) {
        self.is_small();
        let done = user.run(&["stop", "--timeout", "0", "hostile"]);
        assert_eq!(done.status, Some(0), "{}", done.stderr);
        let ended = self.hull.0.wait().expect("an end");
        assert_eq!(ended.code(), Some(137), "{ended}");
    }
}

/// Saves the machine in a folder of the user's, which is returned.
#[track_caller]
fn save(user: &User, flags: &[&str]) -> String {
    let dir = user.0.path().join("saved").display().to_string();
    let done = user.run(&[&["snapshot", "hostile", &dir], flags].concat());
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
    dir
}

#[test]
fn a_console_that_is_flooded_is_saved_and_stopped() {
    if !kvm("a flooded console") {
        return;
    }
    let user = User::new();
    let mut flood = Hostile::run(&user, "console-flood", &["--console", "virtio"]);
    flood.says("\0");
    let dir = save(&user, &[]);
    flood.is_small();
    assert_eq!(flood.hull.terminate(), Some(143));
    // What hull had not taken is still in the guest.
    let mut copy = Hostile::start(&user, &["restore", &dir, "--name", "hostile"]);
    copy.says("\0");
    copy.stops(&user);
}

#[test]
fn endless_requests_to_a_disk_delay_neither_a_snapshot_nor_a_reset_nor_the_end() {
    if !kvm("endless requests to a disk") {
        return;
    }
    let user = User::new();
    let mut reads = Hostile::run(&user, "disk-flood", &["--scratch", "8G"]);
    reads.says("q");
    let dir = save(&user, &[]);
    reads.stdin.write_all(b"r").expect("written");
    reads.says("R");
    reads.stops(&user);
    // It goes on where it was, with all requests.
    let mut copy = Hostile::start(&user, &["restore", &dir, "--name", "hostile"]);
    wait_until(|| user.run(&["inspect", "hostile"]).status == Some(0));
    copy.stdin.write_all(b"r").expect("written");
    copy.says("R");
    copy.stops(&user);
    // A rate makes no request longer than hull.
    let disk = user.0.path().join("disk");
    let file = fs::File::create(&disk).expect("a file");
    file.set_len(8 << 30).expect("a sparse file");
    let disk = format!("{},rate=1M", disk.display());
    let mut slow = Hostile::run(&user, "disk-flood", &["--disk", &disk]);
    slow.says("q");
    save(&user, &[]);
    slow.is_small();
    assert_eq!(slow.hull.terminate(), Some(143));
}

/// An ELF file for `hull run FILE -- CMD`: `code` at 16 MiB, and the note by which Linux is known.
fn elf(code: &[u8]) -> Vec<u8> {
    const AT: u64 = 16 << 20;
    const HEADERS: u64 = 64 + 2 * 56;
    let note = [
        &[6, 0, 0, 0, 4, 0, 0, 0, 1, 1, 0, 0][..],
        b"Linux\0\0\0",
        &[0; 4],
    ]
    .concat();
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // An executable for x86-64.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend([AT, 64, 0].map(u64::to_le_bytes).concat());
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let code_len = code.len() as u64;
    for (kind, from, to, len, align) in [
        (1u32, HEADERS + note.len() as u64, AT, code_len, 1),
        (4, HEADERS, 0, note.len() as u64, 4u64),
    ] {
        file.extend([kind, 5].map(u32::to_le_bytes).concat());
        file.extend(
            [from, to, to, len, len, align]
                .map(u64::to_le_bytes)
                .concat(),
        );
    }
    [file, note, code.to_vec()].concat()
}

#[test]
fn an_init_that_floods_is_kept_as_a_template_and_speaks_only_as_the_guest() {
    if !kvm("a flood of errors") {
        return;
    }
    let user = User::new();
    let kernel = user.0.path().join("kernel");
    let code = fs::read(built("guest/payloads/agent-flood.bin")).expect("built");
    fs::write(&kernel, elf(&code)).expect("written");
    let kernel = kernel.display().to_string();
    let mut hull = user.hull(&["run", &kernel, "--name", "hostile", "--", "true"]);
    hull.env("HULL_CACHE", user.0.path().join("templates"));
    let mut flood = Hostile::of(hull.stderr(Stdio::piped()));
    let errors = flood.hull.0.stderr.take().expect("a pipe");
    let line = BufReader::new(errors).lines().next().expect("a line");
    let line = line.expect("text");
    assert!(
        line.starts_with("hull: guest: \\u{1b}[2Jhull: all is well"),
        "{line}"
    );
    flood.stops(&user);
}

#[test]
fn connections_leave_hull_its_descriptors() {
    if !kvm("a flood of connections") {
        return;
    }
    let user = User::new();
    let socket = user.0.path().join("v");
    let _server = UnixListener::bind(user.0.path().join("v_52")).expect("a socket");
    let vsock = format!("cid=3,socket={}", socket.display());
    let payload = built("guest/payloads/vsock-flood.bin");
    // As a user may: without the right to more descriptors than these, and with the laxest umask.
    let limited = "umask 0; ulimit -n 256; exec setpriv --bounding-set=-sys_resource \
         --inh-caps=-sys_resource \"$@\"";
    let mut hull = Command::new("bash");
    hull.args([
        "-c",
        limited,
        "bash",
        env!("CARGO_BIN_EXE_hull"),
        "run",
        &payload,
    ])
    .args(["--name", "hostile", "--vsock", &vsock])
    .env("XDG_RUNTIME_DIR", user.0.path());
    let mut flood = Hostile::of(&mut hull);
    flood.says("f");
    let mode = fs::metadata(&socket).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let machines = user.run(&["ps"]);
    assert!(machines.stdout.contains("running"), "{}", machines.stdout);
    save(&user, &[]);
    flood.stops(&user);
}

/// Flags for a machine with each device, whose folder is shared.
fn each_device(user: &User) -> Vec<String> {
    let shared = user.0.path().join("shared");
    fs::create_dir_all(&shared).expect("a folder");
    let flags = [
        "--scratch=1M",
        "--balloon=1M",
        "--log-level=off",
        &format!("--share={}:/share", shared.display()),
        &format!("--vsock=cid=3,socket={}", user.0.path().join("v").display()),
    ];
    flags.map(String::from).to_vec()
}

#[test]
fn rings_and_registers_without_sense_end_nothing() {
    if !kvm("rings without sense") {
        return;
    }
    let user = User::new();
    let mut beside = Hostile::beside(&user);
    let mut devices = each_device(&user);
    devices.push("--console=virtio".into());
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    for payload in ["rings", "pokes"] {
        let mut guest = Hostile::run(&user, payload, &devices);
        guest.is_done();
        beside.echoes();
        guest.stops(&user);
    }
    beside.echoes();
}

#[test]
fn forged_requests_and_resets_in_their_midst_end_nothing() {
    if !kvm("forged requests") {
        return;
    }
    let user = User::new();
    let mut beside = Hostile::beside(&user);
    let victim = user.0.path().join("victim");
    fs::write(&victim, "ours").expect("written");
    let _server = UnixListener::bind(user.0.path().join("v_52")).expect("a socket");
    let mut devices = each_device(&user);
    // The lab's kernel gives passt no user namespace.
    devices.extend((!in_lab()).then(|| "--net=user".into()));
    let kernel = user.0.path().join("kernel");
    let kernel = kernel.display().to_string();
    // With an initial RAM disk and no command, no init of hull's is expected.
    devices.push(format!("--initrd={}", built("guest/initramfs.cpio")));
    devices.push("--console=virtio".into());
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let code = fs::read(built("guest/payloads/requests.bin")).expect("built");
    let (table, count) = requests::of_all_devices();
    assert!(count > 2000, "{count} requests");
    fs::write(&kernel, elf(&[code, table].concat())).expect("written");
    let mut guest = Hostile::run_file(&user, &kernel, &devices);
    // All devices have the same rings: the console may find requests of others there.
    guest.says_at_last("done");
    beside.echoes();
    let seen = user.inspect("hostile", &["queues"]);
    let devices = if in_lab() { 6 } else { 7 };
    assert_eq!(seen["queues"].as_array().map(Vec::len), Some(devices));
    guest.stops(&user);
    beside.echoes();
    assert_eq!(fs::read(&victim).expect("there"), b"ours");
}

#[test]
fn a_state_without_sense_and_a_storm_of_interrupts_can_be_looked_at() {
    if !kvm("a state without sense") {
        return;
    }
    let user = User::new();
    let mut beside = Hostile::beside(&user);
    let mut guest = Hostile::run(&user, "page-tables", &[]);
    guest.is_done();
    for address in [
        "8000000000", // the tables themselves, once and four times
        "8040201000",
        "10000000000", // a device
        "18000000000", // beyond all memory
        "20000000000", // reserved bits
        "28000000000",
        "28040000000",      // itself again
        "28080000000",      // no memory
        "ffffffffffffffff", // the end
        "8000000000000000", // no address
    ] {
        let done = user.run(&["inspect", "hostile", "pagetables", address]);
        assert!(
            matches!(done.status, Some(0 | 125)),
            "{address}: {}",
            done.stderr
        );
        assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
    }
    for topic in ["registers", "memory", "interrupts"] {
        user.inspect("hostile", &[topic]);
    }
    guest.stops(&user);
    beside.echoes();

    let mut storm = Hostile::run(&user, "interrupt-storm", &["--cpus", "3"]);
    storm.is_done();
    for order in [
        &["inspect", "hostile"][..],
        &["pause", "hostile"],
        &["resume", "hostile"],
    ] {
        let done = user.run(order);
        assert_eq!(
            (done.status, done.stderr.as_str()),
            (Some(0), ""),
            "{order:?}"
        );
    }
    storm.stops(&user);
    beside.echoes();
}

/// A frame of the agent's protocol (guest/agent/src/frame.rs).
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u32;
    [&[kind][..], &len.to_le_bytes(), payload].concat()
}

#[test]
fn forged_frames_of_an_init_end_its_own_run_with_a_message() {
    if !kvm("forged frames") {
        return;
    }
    let user = User::new();
    let mut beside = Hostile::beside(&user);
    let code = fs::read(built("guest/payloads/requests.bin")).expect("built");
    let kernel = user.0.path().join("kernel");
    let (hello, ready) = (frame(1, b"HULL\x04\0\0\0"), frame(2, b""));
    let begun = [&hello[..], &ready].concat();
    let after = |frames: &[u8]| vec![begun.clone(), frames.to_vec()];
    let text = frame(7, b"\xff\x1b]0;title\x07\r\nhull: all is well");
    let sliced: Vec<Vec<u8>> = hello.iter().map(|byte| vec![*byte]).collect();
    for frames in [
        vec![frame(1, b"LLUH\x04\0\0\0")],
        vec![frame(1, b"HULL\xff\xff\xff\xff")],
        vec![frame(1, b"")],
        vec![ready.clone()],
        vec![vec![0xff; 4096]],
        vec![b"\x03\xff\xff\xff\xff".to_vec()],
        [sliced, vec![frame(0x82, b"/bin/sh")]].concat(),
        after(&hello),
        after(&ready.repeat(13)),
        after(&frame(5, &[0xff; 4])),
        after(&frame(6, &[9; 5])),
        after(&frame(6, &[1, 0, 0, 0, 0])),
        after(&frame(8, b"x")),
        after(&[text, frame(10, b"")].concat()),
        after(&[frame(4, &[0x1b; 65536]), b"\x04\x01\0\x01\0".to_vec()].concat()),
    ] {
        let pieces: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let table = requests::of_an_init(&pieces);
        fs::write(&kernel, elf(&[&code[..], &table].concat())).expect("written");
        let path = kernel.display().to_string();
        let run = ["run", &path, "--cold", "--name", "hostile", "--", "true"];
        let done = user.run(&run);
        let told = &done.stderr;
        assert_eq!(done.status, Some(125), "{frames:x?}: {told}");
        assert!(told.contains("error: "), "{frames:x?}: {told}");
        beside.echoes();
    }
}

#[test]
fn a_snapshot_is_written_and_trusted_only_in_a_folder_of_ones_own() {
    if !kvm("folders of others") || !rustix::process::geteuid().is_root() {
        return;
    }
    let user = User::new();
    let at = |name: &str| user.0.path().join(name);
    let text = |path: &Path| path.display().to_string();
    let share = format!("{}:/share", text(user.0.path()));
    let machine = user.spin(&["--name", "hostile", "--share", &share]);
    // Another user's folder, and a link of another user's to one of ours.
    fs::create_dir(at("theirs")).expect("a folder");
    chown(at("theirs"), Some(1000), None).expect("root may");
    fs::create_dir(at("ours")).expect("a folder");
    std::os::unix::fs::symlink(at("ours"), at("link")).expect("a link");
    std::os::unix::fs::lchown(at("link"), Some(1000), None).expect("root may");
    for name in ["theirs", "link"] {
        let refused = user.run(&["snapshot", "hostile", &text(&at(name))]);
        assert!(
            refused.stderr.contains("belongs to user 1000"),
            "{}",
            refused.stderr
        );
    }
    assert_eq!(fs::read_dir(at("ours")).expect("there").count(), 0);
    let dir = save(&user, &[]);
    assert_eq!(machine.terminate(), Some(143));
    chown(at("saved/state"), Some(1000), None).expect("root may");
    let refused = user.run(&["restore", &dir]);
    assert_eq!(refused.status, Some(125));
    for part in [
        "belongs to user 1000",
        &format!("--share {share}"),
        "--trust",
    ] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let trusted = user.hull(&["restore", &dir, "--name", "hostile", "--trust"]);
    let mut trusted = trusted;
    let trusted = Running(trusted.stdin(Stdio::null()).spawn().expect("hull starts"));
    wait_until(|| user.run(&["inspect", "hostile"]).status == Some(0));
    assert_eq!(trusted.terminate(), Some(143));
    // A state of 16 MiB and more is refused before it is read.
    chown(at("saved/state"), Some(0), None).expect("root may");
    let state = fs::OpenOptions::new().write(true).open(at("saved/state"));
    state.expect("there").set_len(100 << 20).expect("longer");
    user.refused(&["restore", &dir], "is not a snapshot of hull's");
}
