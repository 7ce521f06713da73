//! `hull snapshot` and `hull restore` of a Linux guest: its computations, clocks, random numbers, networks
//! and sockets.
//!
//! The guest runs a shell that takes commands from the test, also after a restore.

mod machine;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use machine::saving::{Talk, moments, random, text};
use machine::user::{User, wait_until};
use machine::vsock_program::vsock_program;
use machine::{LIMIT, in_lab, kvm};

/// Bytes of the disk.
const DISK: usize = 1 << 20;

/// A user with a disk that begins with the guest's vsock program.
struct Desk {
    user: User,
    program_bytes: usize,
    /// The disk's content.
    disk: Vec<u8>,
    sum: String,
}

impl Desk {
    fn new() -> Self {
        let program = vsock_program();
        let mut disk: Vec<u8> = (0..DISK as u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        disk[..program.len()].copy_from_slice(program);
        let user = User::new();
        let image = user.0.path().join("disk.img");
        fs::write(&image, &disk).expect("a file");
        let output = std::process::Command::new("sha256sum").arg(image).output();
        let sum = String::from_utf8(output.expect("coreutils").stdout).expect("text");
        Self {
            user,
            program_bytes: program.len(),
            disk,
            sum: sum[..64].into(),
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.user.0.path().join(name)
    }

    fn vsock(&self, cid: u32) -> String {
        format!("cid={cid},socket={}", self.at(&format!("v{cid}")).display())
    }

    /// A shell in a guest that checksums its disk again and again.
    fn start(&self, flags: &[&str]) -> Talk {
        let disk = format!("{},ro", self.at("disk.img").display());
        let vsock = self.vsock(7);
        let mut all = vec![
            "run", "--name", "original", "--disk", &disk, "--vsock", &vsock,
        ];
        if with_network() {
            all.extend(["--net", "user,host-loopback"]);
        }
        all.extend(flags);
        all.extend(["--", "/bin/sh"]);
        let mut talk = Talk::start(&self.user, &all);
        let sum = &self.sum;
        talk.ask(&format!(
            "head -c {} /dev/vda >/tmp/v; chmod +x /tmp/v
             while :; do sha256sum </dev/vda; echo 1 >/proc/sys/vm/drop_caches; sleep 2; done >/tmp/sums &
             sums() {{ n=0; while read a b; do n=$((n+1)); [ $a = {sum} ] || echo bad $a; done </tmp/sums; echo $n; }}
             up() {{ read a b </proc/uptime; echo $a; }}
             draw() {{ read a </proc/sys/kernel/random/uuid; echo $a; }}",
            self.program_bytes
        ));
        talk
    }

    /// Checks all checksums that the guest has made, and returns their number.
    #[track_caller]
    fn sums(&self, talk: &mut Talk) -> usize {
        let said = talk.ask("sums");
        said.parse()
            .unwrap_or_else(|_| panic!("wrong sums: {said}"))
    }

    #[track_caller]
    fn sums_on(&self, talk: &mut Talk) {
        let before = self.sums(talk);
        wait_until(|| {
            thread::sleep(Duration::from_millis(200));
            self.sums(talk) > before
        });
    }
}

/// Whether passt works: it needs a default route and user namespaces, and the lab has neither.
fn with_network() -> bool {
    !in_lab()
}

/// Connects to the guest's port 52 as soon as a program listens.
fn connect(socket: &Path) -> UnixStream {
    let mut connected = None;
    wait_until(|| {
        let mut stream = UnixStream::connect(socket).expect("hull listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        stream.write_all(b"CONNECT 52\n").expect("hull reads");
        let (mut answer, mut byte) = (Vec::new(), [0]);
        while !answer.ends_with(b"\n") && matches!(stream.read(&mut byte), Ok(1)) {
            answer.extend(byte);
        }
        connected = answer.starts_with(b"OK ").then_some(stream);
        connected.is_some()
    });
    connected.expect("a stream")
}

/// Accepts a connection from the guest.
fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    stream
}

#[test]
fn a_computing_linux_is_restored_from_any_moment() {
    if !kvm("snapshots of Linux") {
        return;
    }
    let desk = Desk::new();
    let dir = desk.at("saved");
    let mut original = desk.start(&["--cpus", if in_lab() { "4" } else { "1" }]);
    original.ask("/tmp/v >/tmp/vsock 2>&1 &");
    let mut vsock = connect(&desk.at("v7"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let mut tcp = with_network().then(|| {
        // Its input stays open: passt sends nothing to a peer that has closed its half.
        original.ask(&format!(
            "(cat /dev/vda; exec sleep 1000) | nc 10.0.2.2 {port} | sha256sum >/tmp/tcp &"
        ));
        let stream = accept(&listener);
        let mut reader = stream.try_clone().expect("a descriptor");
        let reading = thread::spawn(move || {
            let mut all = vec![0; DISK];
            reader.read_exact(&mut all).expect("the guest's bytes");
            all
        });
        (stream, reading)
    });

    let moments = moments(if in_lab() { 12 } else { 6 });
    let parts: Vec<&[u8]> = desk.disk.chunks(DISK.div_ceil(moments)).collect();
    let overridden = desk.vsock(8);
    for moment in 0..moments {
        thread::sleep(Duration::from_millis(random(300)));
        // Data in flight at the snapshot arrives exactly once.
        let part = parts.get(moment).copied().unwrap_or_default();
        let some = &part[..part.len().min(60_000)];
        vsock.write_all(some).expect("hull reads");
        let mut writer = tcp
            .as_ref()
            .map(|(tcp, _)| tcp.try_clone().expect("a descriptor"));
        let copy = part.to_vec();
        let sending = thread::spawn(move || {
            if let Some(tcp) = &mut writer {
                tcp.write_all(&copy).expect("the guest reads");
            }
        });
        desk.user.snapshot("original", &dir, &[]);
        let mut copy = desk.user.restore(&dir, &["--vsock", &overridden]);
        desk.sums_on(&mut copy);
        copy.kill();
        let _ = fs::remove_file(desk.at("v8")); // of one that was killed
        let mut echoed = vec![0; some.len()];
        vsock.read_exact(&mut echoed).expect("the echo");
        assert!(echoed == some, "moment {moment}");
        sending.join().expect("all was sent");
        desk.sums(&mut original);
    }
    if let Some((tcp, reading)) = tcp.take() {
        assert!(reading.join().expect("all") == desk.disk);
        drop(tcp);
        let mut said = String::new();
        wait_until(|| {
            said = original.ask("read a b </tmp/tcp; echo $a");
            !said.is_empty()
        });
        assert_eq!(said, desk.sum);
    }
    vsock.shutdown(std::net::Shutdown::Write).expect("one half");
    assert_eq!(vsock.read(&mut [0]).expect("the end"), 0);
    desk.sums_on(&mut original);
}

/// The guest's uptime in seconds, by its own clock.
#[track_caller]
fn uptime(talk: &mut Talk) -> f64 {
    let said = talk.ask("up");
    said.parse().unwrap_or_else(|_| panic!("no time: {said}"))
}

fn unix_now() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.expect("later than 1970").as_secs_f64()
}

#[test]
fn a_copy_has_its_own_time_random_numbers_and_connections() {
    if !kvm("clock, random numbers and sockets of copies") {
        return;
    }
    let desk = Desk::new();
    let dir = desk.at("saved");
    let mut original = desk.start(&[]);
    original.ask("/tmp/v >/tmp/vsock 2>&1 & (sleep 5; up >/tmp/slept) &");
    let mut old = connect(&desk.at("v7"));
    let (asked, before) = (Instant::now(), uptime(&mut original));
    desk.user.snapshot("original", &dir, &[]);
    let ran = asked.elapsed().as_secs_f64();
    let mut drawn = BTreeSet::new();
    drawn.insert(original.ask("draw"));
    // Time passes before the restore.
    thread::sleep(Duration::from_secs(4));

    let restored = Instant::now();
    let vsock = desk.vsock(8);
    let mut flags = vec!["--name", "one", "--vsock", &vsock];
    if with_network() {
        flags.extend(["--mac", "02:00:00:00:00:09"]);
    }
    let mut one = desk.user.restore(&dir, &flags);
    let after = uptime(&mut one);
    let elapsed = ran + restored.elapsed().as_secs_f64();
    assert!(after >= before, "back from {before} to {after}");
    assert!(
        after - before < elapsed + 0.5,
        "ahead from {before} to {after} in {elapsed} s"
    );
    drawn.insert(one.ask("draw"));
    let earliest = unix_now();
    let date: f64 = one.ask("date +%s").parse().expect("seconds");
    let latest = unix_now();
    assert!(
        (earliest - 2.0..latest + 2.0).contains(&date),
        "{date}, {earliest} to {latest}"
    );

    let (began, slept) = (Instant::now(), uptime(&mut one));
    one.ask("sleep 1");
    let slept = uptime(&mut one) - slept;
    let taken = began.elapsed().as_secs_f64();
    assert!(
        (1.0..taken + 0.5).contains(&slept),
        "{slept} s of {taken} s"
    );
    let mut woken = String::new();
    wait_until(|| {
        woken = one.ask("[ -e /tmp/slept ] && read a </tmp/slept && echo $a");
        !woken.is_empty()
    });
    let woken: f64 = woken.parse().expect("a time");
    let passed = asked.elapsed().as_secs_f64();
    assert!(
        woken - before < passed + 0.5,
        "{woken} after {before}, in {passed} s"
    );

    let mut two = desk
        .user
        .restore(&dir, &["--name", "two", "--vsock", &desk.vsock(9)]);
    drawn.insert(two.ask("draw"));
    let from_device = "head -c 16 /dev/urandom | od -An -tx1";
    for talk in [&mut original, &mut one, &mut two] {
        drawn.insert(talk.ask(from_device));
    }
    assert_eq!(drawn.len(), 6, "{drawn:?}");
    drop(two);

    connections(&desk, &mut one, 8);
    if with_network() {
        network(&mut one, "02:00:00:00:00:09");
    }
    desk.sums_on(&mut one);
    // The original continues its work.
    old.write_all(b"still there").expect("hull reads");
    let mut echoed = [0; 11];
    old.read_exact(&mut echoed).expect("the echo");
    assert_eq!(&echoed, b"still there");
    assert_eq!(one.leave("exit 7"), Some(7));
}

/// Old vsock connections are reset, and new ones work in both directions.
#[track_caller]
fn connections(desk: &Desk, talk: &mut Talk, cid: u32) {
    let server = UnixListener::bind(desk.at(&format!("v{cid}_53"))).expect("a listener");
    let mut said = String::new();
    wait_until(|| {
        said = talk.ask("cat /tmp/vsock");
        said != "listening"
    });
    assert_eq!(said, "listening\nread", "the old connection is reset");
    talk.ask("/tmp/v >/tmp/again 2>&1 &");
    let mut stream = connect(&desk.at(&format!("v{cid}")));
    stream.write_all(&desk.disk[..100_000]).expect("hull reads");
    let mut echoed = vec![0; 100_000];
    stream.read_exact(&mut echoed).expect("the echo");
    assert!(echoed == desk.disk[..100_000]);
    stream
        .shutdown(std::net::Shutdown::Write)
        .expect("one half");
    let (mut client, _) = server.accept().expect("the guest connects");
    let mut heard = String::new();
    client.read_to_string(&mut heard).expect("text");
    assert_eq!(heard, "hello from the guest\n");
    client
        .write_all(b"hello from the host\n")
        .expect("hull reads");
    drop(client);
    wait_until(|| talk.ask("cat /tmp/again").ends_with("54 is reset"));
}

/// The network works and has the requested MAC address.
#[track_caller]
fn network(talk: &mut Talk, mac: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    talk.order(&format!("echo hello | nc 10.0.2.2 {port}"));
    let before = talk.said_bytes();
    let stream = accept(&listener);
    let mut heard = String::new();
    BufReader::new(&stream).read_line(&mut heard).expect("text");
    assert_eq!(heard, "hello\n");
    { &stream }
        .write_all(b"and back\n")
        .expect("the guest reads");
    drop(stream);
    assert_eq!(talk.answer(before), "and back");
    assert_eq!(
        talk.ask("read a </sys/class/net/eth0/address; echo $a"),
        mac
    );
}

#[test]
fn a_mounted_share_cannot_be_saved_and_an_unmounted_one_can() {
    if !kvm("snapshot with a shared folder") {
        return;
    }
    let user = User::new();
    let dir = user.0.path().join("saved");
    let folder = user.0.path().join("folder");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("file"), "shared\n").expect("a file");
    let share = format!("{}:/mnt", folder.display());
    let mut original = Talk::start(
        &user,
        &[
            "run", "--name", "shares", "--share", &share, "--", "/bin/sh",
        ],
    );
    assert_eq!(original.ask("cat /mnt/file"), "shared");
    user.refused(
        &["snapshot", "shares", text(&dir)],
        "is mounted in the guest",
    );
    assert!(!dir.exists(), "nothing is left behind");
    assert_eq!(
        original.ask("cat /mnt/file; umount /mnt; echo $?"),
        "shared\n0"
    );
    user.snapshot("shares", &dir, &[]);
    let mut copy = user.restore(&dir, &[]);
    assert_eq!(copy.ask("ls /mnt; echo it goes on"), "it goes on");
    copy.order("exit 3");
    assert_eq!(copy.hull.0.wait().expect("an end").code(), Some(3));

    // hull restore refuses a template.
    let cache = std::env::var_os("HULL_CACHE").expect("cargo and tests/suite set it");
    let templates = fs::read_dir(cache)
        .expect("the cache")
        .map(|it| it.expect("a file").path());
    let template = templates
        .into_iter()
        .find(|template| template.join("state").exists());
    let template = template.expect("the template of this guest");
    user.refused(
        &["restore", text(&template)],
        "is a template without a command",
    );
    user.refused(
        &["restore", text(&template), "-n", "2"],
        "is a template without a command",
    );
}

/// A port of the host's loopback such that it and the next one are free.
fn two_free_ports() -> u16 {
    loop {
        let one = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = one.local_addr().expect("its address").port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

#[test]
fn copies_publish_ports_of_their_own() {
    if !kvm("ports of copies") {
        return;
    }
    if !with_network() {
        println!("skipped: ports of copies: passt does not work here");
        return;
    }
    let user = User::new();
    let dir = user.0.path().join("saved");
    let port = two_free_ports();
    let net = format!("user,publish={port}:80");
    let spin = user.spin(&["--name", "one", "--net", &net]);
    user.snapshot("one", &dir, &["--stop"]);
    drop(spin);
    let restore = ["restore", text(&dir), "-n", "2"];
    let told = format!("with --publish {port}:80 each copy has its own");
    user.refused(&restore, &told);
    let last = ["--publish", "65535:80"];
    user.refused(&[&restore[..], &last].concat(), "or pass 65535");
    let (one, next) = (format!("{port}:80"), format!("{}:81", port + 1));
    let both = ["--publish", &one, "--publish", &next];
    user.refused(
        &[&restore[..], &both].concat(),
        "which meet those of another",
    );

    // As the message says.
    let copies = user.restore(&dir, &["-n", "2", "--publish", &one]);
    for port in [port, port + 1] {
        wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    }
    copies.terminate();
    let none = user.restore(&dir, &["--name", "none", "--publish", "none"]);
    wait_until(|| user.run(&["ps"]).stdout.contains("none "));
    assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "it is free");
    none.kill();
}
