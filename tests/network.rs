//! `hull run --net`: tap devices, passt, and wrong options.
//!
//! Creating a tap device needs root; where it fails the test is skipped, and the lab runs it.

mod machine;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use machine::{LIMIT, kvm};

const HULL: &str = env!("CARGO_BIN_EXE_hull");

fn in_lab() -> bool {
    std::env::var_os("HULL_TEST_HOST").is_some_and(|host| host == "lab")
}

/// Bytes of a transfer: few where the guest's kernel is emulated.
fn bytes() -> usize {
    if in_lab() { 64 << 20 } else { 200_000 }
}

/// A temporary tap device.
struct Tap(&'static str);

impl Tap {
    /// A device with the host's address `address`; `None`, after a message, where this user may not create one.
    /// In the lab it must succeed.
    fn new(test: &str, name: &'static str, address: &str) -> Option<Self> {
        // Left by a killed run.
        ip(&["link", "del", name]);
        if !ip(&["tuntap", "add", name, "mode", "tap", "user", "root"]) {
            assert!(!in_lab(), "no tap device in the lab");
            println!("skipped: {test}: only in the lab (no right to make tap devices here)");
            return None;
        }
        let tap = Self(name);
        assert!(ip(&["addr", "add", address, "dev", name]));
        assert!(ip(&["link", "set", name, "up"]));
        Some(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        ip(&["link", "del", self.0]);
    }
}

fn ip(words: &[&str]) -> bool {
    let status = Command::new("ip")
        .args(words)
        .stderr(Stdio::null())
        .status();
    status.expect("iproute2 is installed").success()
}

/// A running hull, killed when a test fails.
struct Hull {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Hull {
    fn start(net: &[&str], script: &str) -> Self {
        Self::start_with(net, script, Stdio::inherit())
    }

    fn start_with(net: &[&str], script: &str, stderr: Stdio) -> Self {
        let mut command = Command::new(HULL);
        command.args(["run", "--memory", "256M"]);
        for net in net {
            command.args(["--net", net]);
        }
        command.args(["--", "/bin/sh", "-c", script]);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let command = command.stderr(stderr);
        let mut child = command.spawn().expect("hull starts");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, stdout }
    }

    /// Reads lines up to one that contains `part`, and returns it.
    #[track_caller]
    fn line_with(&mut self, part: &str) -> String {
        let mut seen = String::new();
        loop {
            let start = seen.len();
            let len = self.stdout.read_line(&mut seen).expect("text");
            assert!(len > 0, "{part} is missing in: {seen}");
            if seen[start..].contains(part) {
                return seen[start..].trim_end().into();
            }
        }
    }

    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    #[track_caller]
    fn finish(&mut self) {
        let status = self.child.wait().expect("an end");
        assert_eq!(status.code(), Some(0));
    }
}

impl Drop for Hull {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The checksum of `bytes` by sha256sum(1).
fn checksum(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(bytes).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("its output").stdout;
    String::from_utf8(output).expect("text").trim_end().into()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("a socket");
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("a socket");
                stream.set_read_timeout(Some(LIMIT)).expect("a limit");
                return stream;
            }
            Err(_) => assert!(start.elapsed() < LIMIT, "no connection"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Connects to the echo server at `address`, as soon as there is one, and sends `sent`.
fn echo(address: (&str, u16), sent: &[u8]) {
    let start = Instant::now();
    let attempt = || -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut writer = stream.try_clone()?;
        let copy = sent.to_vec();
        let sending = thread::spawn(move || {
            let _ = writer.write_all(&copy);
            let _ = writer.shutdown(Shutdown::Write);
        });
        let mut echoed = Vec::new();
        let read = stream.read_to_end(&mut echoed);
        let _ = stream.shutdown(Shutdown::Both);
        sending.join().expect("a thread");
        read.map(|_| echoed)
    };
    loop {
        match attempt() {
            Ok(echoed) if !echoed.is_empty() => {
                assert!(echoed == sent, "{} bytes came back", echoed.len());
                return;
            }
            // The server does not listen yet.
            _ => assert!(start.elapsed() < LIMIT, "no echo"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn guest_and_host_reach_each_other_over_a_tap_device() {
    let test = "tap";
    if !kvm(test) {
        return;
    }
    let Some(_tap) = Tap::new(test, "hulltest0", "172.16.71.1/24") else {
        return;
    };
    let listener = TcpListener::bind("172.16.71.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let bytes = bytes();
    let script = format!(
        "ping -c 2 172.16.71.1 && nc 172.16.71.1 {port} </dev/null | sha256sum
         head -c {bytes} /dev/urandom >/tmp/f; sha256sum </tmp/f; nc 172.16.71.1 {port} </tmp/f
         nc -l -p 5000 -e /bin/busybox cat; read line </dev/null; ip route; ifconfig eth0"
    );
    let mut hull = Hull::start(&["tap=hulltest0,mac=02:00:00:00:00:99"], &script);
    hull.line_with("2 packets received, 0% packet loss");

    let sent = pattern(bytes);
    let mut stream = accept(&listener);
    stream.write_all(&sent).expect("the guest reads");
    stream.shutdown(Shutdown::Write).expect("one half");
    assert_eq!(hull.line_with("  -"), checksum(&sent));
    drop(stream);

    let told = hull.line_with("  -");
    let mut received = Vec::new();
    accept(&listener)
        .read_to_end(&mut received)
        .expect("all of it");
    assert_eq!(received.len(), bytes);
    assert_eq!(checksum(&received), told);

    let ping = Command::new("ping")
        .args(["-c", "2", "-W", "20", "172.16.71.2"])
        .stdout(Stdio::null())
        .status();
    assert!(ping.expect("iputils-ping is installed").success());
    echo(("172.16.71.2", 5000), &sent[..bytes / 4]);
    hull.line_with("default via 172.16.71.1");
    hull.line_with("02:00:00:00:00:99");
    hull.finish();
}

#[test]
fn two_machines_have_two_tap_devices_and_a_rate() {
    let test = "two taps";
    if !kvm(test) {
        return;
    }
    let Some(_one) = Tap::new(test, "hulltest1", "172.16.72.1/24") else {
        return;
    };
    let _other = Tap::new(test, "hulltest2", "172.16.73.1/30").expect("a second");
    let script = "ping -c 1 172.16.72.1; ping -c 1 172.16.73.1; cat /sys/class/net/eth*/address";
    let mut both = Hull::start(
        &["tap=hulltest1", "tap=hulltest2,rate=100K+50ops/5"],
        script,
    );
    hull_has_both(&mut both);
    // The devices are free again, one for each machine.
    let mut machines = [("hulltest1", "72"), ("hulltest2", "73")].map(|(name, network)| {
        let script = format!("ping -c 2 172.16.{network}.1");
        Hull::start(&[&format!("tap={name}")], &script)
    });
    for machine in &mut machines {
        machine.line_with("2 packets received");
        machine.finish();
    }
}

fn hull_has_both(hull: &mut Hull) {
    hull.line_with("1 packets received");
    hull.line_with("1 packets received");
    let macs = [hull.line_with(":"), hull.line_with(":")];
    assert_ne!(macs[0], macs[1]);
    for mac in macs {
        let first = u8::from_str_radix(&mac[..2], 16).expect("hexadecimal");
        assert_eq!(first & 3, 2, "{mac} is not local, or a group's");
    }
    hull.finish();
}

/// Whether passt works: it needs a default route and user namespaces, and the lab has neither.
fn passt(test: &str) -> bool {
    if in_lab() {
        println!("skipped: {test}: not in the lab (its kernel gives passt no user namespace)");
    }
    !in_lab() && kvm(test)
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// The running passt processes that `hull` started.
fn passts(hull: &Hull) -> Vec<u32> {
    let parent = hull.child.id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc") {
        let name = entry.expect("an entry").file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // proc(5): number, (name), state, parent.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (name, rest) = stat.rsplit_once(") ").unwrap_or_default();
        if name.contains("(passt") && rest.split(' ').nth(1) == Some(&parent) {
            found.push(pid);
        }
    }
    found
}

/// Whether a process has ended; it may still be a zombie.
fn is_gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with('Z'))
}

#[test]
fn a_user_network_connects_guest_and_host_both_ways() {
    if !passt("user network") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let published = free_port();
    let script = format!(
        "ping -c 2 10.0.2.2; cat /etc/resolv.conf
         echo hello | nc 10.0.2.2 {port}
         nc -l -p 80 -e /bin/busybox cat
         udhcpc -i eth0 -n -q -s /bin/true 2>&1"
    );
    let network = format!("user,publish={published}:80,host-loopback");
    let mut hull = Hull::start(&[&network], &script);
    hull.line_with("2 packets received, 0% packet loss");
    assert_eq!(hull.line_with("nameserver"), "nameserver 10.0.2.3");
    let mut heard = String::new();
    let mut stream = accept(&listener);
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    reader.read_line(&mut heard).expect("text");
    assert_eq!(heard, "hello\n");
    stream.flush().expect("nothing to do");
    drop((reader, stream));
    echo(("127.0.0.1", published), &pattern(bytes()));
    let passts = passts(&hull);
    assert_eq!(passts.len(), 1);
    hull.line_with("lease of 10.0.2.15 obtained");
    hull.finish();
    assert!(
        passts.iter().all(|pid| is_gone(*pid)),
        "hull leaves passt behind"
    );
}

#[test]
fn passt_ends_with_hull_however_hull_ends() {
    if !passt("passt goes") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    listener.set_nonblocking(true).expect("allowed");
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
        let script = format!("echo hello | nc -w 3 10.0.2.2 {port}; echo tried; sleep 1000");
        let mut hull = Hull::start(&["user", "user"], &script);
        if signal == rustix::process::Signal::TERM {
            // The host's loopback is out of reach without host-loopback.
            hull.line_with("tried");
            let came = listener.accept().map_err(|error| error.kind());
            assert_eq!(came.err(), Some(std::io::ErrorKind::WouldBlock));
        }
        let start = Instant::now();
        let mut running = Vec::new();
        while running.len() < 2 {
            assert!(start.elapsed() < LIMIT, "no passt");
            thread::sleep(Duration::from_millis(5));
            running = passts(&hull);
        }
        rustix::process::kill_process(hull.pid(), signal).expect("hull runs");
        hull.child.wait().expect("an end");
        while !running.iter().all(|pid| is_gone(*pid)) {
            assert!(start.elapsed() < LIMIT, "passt still runs after {signal:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// hull's message about networks that it refuses.
fn refusal(command: &mut Command, nets: &[&str]) -> String {
    command.arg("run");
    for net in nets {
        command.args(["--net", net]);
    }
    let output = command.args(["--", "true"]).output().expect("hull starts");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{nets:?}: {message}");
    assert!(message.starts_with("error: "), "{message}");
    message
}

fn refuses(nets: &[&str], parts: &[&str]) {
    let message = refusal(&mut Command::new(HULL), nets);
    for part in parts {
        assert!(message.contains(part), "{nets:?}: {message}");
    }
}

#[test]
fn impossible_networks_are_refused_with_a_remedy() {
    refuses(
        &["tap=hullnone"],
        &["--net tap=hullnone", "ip tuntap add hullnone mode tap"],
    );
    refuses(&["tap=a", "tap=a"], &["--net tap=a", "given twice"]);
    let mac = "user,mac=02:00:00:00:00:01";
    refuses(
        &[mac, mac],
        &["--net mac=02:00:00:00:00:01", "two networks"],
    );
    refuses(
        &["user,mac=03:00:00:00:00:01"],
        &["--net", "mac=03:00:00:00:00:01", "group"],
    );
    refuses(
        &["user,publish=1:2,publish=1:3"],
        &["publish=127.0.0.1:1:3/tcp", "twice"],
    );
    refuses(
        &["bridge"],
        &["--net", "write tap=NAME, network=NAME or user"],
    );

    let mut without = Command::new(HULL);
    let message = refusal(without.env("PATH", "/nonexistent"), &["user"]);
    assert!(message.contains("apt install passt"), "{message}");
}

#[test]
fn a_port_in_use_is_named() {
    if in_lab() {
        println!("skipped: a port in use: not in the lab (passt does not run there)");
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let publish = format!("publish=127.0.0.1:{port}:80/tcp");
    refuses(
        &[&format!("user,{publish}")],
        &["--net user", &publish, "Failed to bind"],
    );
}

#[test]
fn a_tap_device_in_use_or_missing_is_refused() {
    let test = "taken tap";
    let Some(tap) = Tap::new(test, "hulltest4", "172.16.74.1/32") else {
        return;
    };
    refuses(&["tap=lo"], &["--net tap=lo", "is not a tap device"]);
    // A network with one address has none left for the guest.
    refuses(
        &["tap=hulltest4"],
        &["172.16.74.1/32", "write ip=ADDRESS/PREFIX"],
    );
    if in_lab() {
        // A user that does not own the device but may open /dev/net/tun, as in Debian.
        let everybody = fs::Permissions::from_mode(0o666);
        fs::set_permissions("/dev/net/tun", everybody).expect("the lab is ours");
        // hull is copied to where that user can read it.
        let copy = Path::new("/dev/shm/hull-of-others");
        fs::copy(HULL, copy).expect("room");
        let mut other = Command::new(copy);
        // That user has no place for templates.
        other.uid(65534).gid(65534).env("HULL_CACHE", "off");
        let message = refusal(&mut other, &["tap=hulltest4"]);
        let _ = fs::remove_file(copy);
        assert!(message.contains("it is not yours"), "{message}");
    }
    if !kvm(test) {
        return;
    }
    let net = "tap=hulltest4,ip=172.16.74.2/24";
    let mut hull = Hull::start_with(&[net], "echo up; sleep 1000", Stdio::piped());
    hull.line_with("up");
    refuses(&[net], &["--net tap=hulltest4", "another program uses it"]);
    // Removing the device takes the link down and has no other effect.
    drop(tap);
    let mut told = String::new();
    let mut stderr = BufReader::new(hull.child.stderr.take().expect("a pipe"));
    stderr.read_line(&mut told).expect("text");
    assert!(
        told.contains("net hulltest4") && told.contains("link is down"),
        "{told}"
    );
    rustix::process::kill_process(hull.pid(), rustix::process::Signal::TERM).expect("hull runs");
    let status = hull.child.wait().expect("an end");
    assert_eq!(status.code(), Some(128 + 15), "the command has the signal");
}
