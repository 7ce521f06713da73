//! `--allow` and `--deny-private`: what leaves a machine, and what is told of it.
//!
//! The test runs itself again in a network of its own, in which the addresses of the whole Internet are this host's:
//! servers of the test's own are at some of them, and the name server, too.

mod machine;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use machine::user::{User, wait_until};
use machine::{in_lab, kvm};

/// Of example.test, of evil.test, of the name server, and one of a private network.
const GOOD: &str = "198.51.100.1";
const EVIL: &str = "198.51.100.2";
const SERVER: &str = "198.51.100.53";
const PRIVATE: &str = "10.9.8.7";
/// Where the test is in its own network.
const INSIDE: &str = "HULL_TEST_INSIDE";

/// Asks a server and prints its answer, or the reason why there is none. (wget of busybox fails on some emulated KVM.)
/// The input of nc stays open, as a browser's does: a connection that the guest half closes first is not what is tested.
const GET: &str = r#"mkfifo /tmp/in; exec 3<> /tmp/in
get() {
    printf 'GET / HTTP/1.0\r\nHost: %s\r\n\r\n' "${Host:-$1}" >&3
    timeout -s KILL 100 nc "$1" "$2" < /tmp/in 2>&1 |
        sed -n 's/^nc: .*: /says /p; s/^nc: /says /p; /^at/p'
}"#;

/// Go on as the test `name` in a network of its own, if this is not one; whether it is.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if in_lab() || !Path::new("/usr/bin/passt").exists() {
        println!("skipped: {name}: passt cannot run here");
        return false;
    }
    if !kvm(name) {
        return false;
    }
    let own = std::env::current_exe().expect("this program");
    let mut again = Command::new("unshare");
    again.args(["--net", "--mount"]);
    if !rustix::process::geteuid().is_root() {
        again.arg("--map-root-user");
    }
    let data = tempfile::tempdir().expect("a folder");
    again.arg(own).args(["--exact", name, "--nocapture"]);
    again.env(INSIDE, "1").env("XDG_DATA_HOME", data.path());
    let output = again.output().expect("unshare is installed");
    let text = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&text)
    );
    false
}

/// The servers, and what reached them.
#[derive(Clone, Default)]
struct World {
    /// Names that were asked for.
    asked: Arc<Mutex<BTreeSet<String>>>,
    /// Addresses of this host to which something connected.
    reached: Arc<Mutex<BTreeSet<IpAddr>>>,
}

impl World {
    fn new(folder: &Path) -> Self {
        let resolver = folder.join("resolv.conf");
        fs::write(&resolver, format!("nameserver {SERVER}\n")).expect("written");
        let resolver = resolver.to_str().expect("text");
        let mut commands = vec![
            "ip link set lo up".to_string(),
            format!("mount --bind {resolver} /etc/resolv.conf"),
        ];
        for address in [GOOD, EVIL, SERVER, PRIVATE] {
            commands.push(format!("ip addr add {address}/32 dev lo"));
        }
        for command in commands {
            let mut words = command.split(' ');
            let program = words.next().expect("a program");
            let status = Command::new(program).args(words).status();
            assert!(status.expect("it is installed").success(), "{command}");
        }
        let world = Self::default();
        let dns = UdpSocket::bind((SERVER, 53)).expect("the port");
        let other = UdpSocket::bind((EVIL, 53)).expect("the port");
        let web = TcpListener::bind("0.0.0.0:8000").expect("the port");
        let (all, asked) = (world.clone(), world.asked.clone());
        thread::spawn(move || all.serve(&web));
        thread::spawn(move || answer(&dns, &asked));
        let asked = world.asked.clone();
        thread::spawn(move || answer(&other, &asked));
        world
    }

    fn serve(&self, web: &TcpListener) {
        for stream in web.incoming() {
            let mut stream = stream.expect("a connection");
            let to = stream.local_addr().expect("its address").ip();
            self.reached.lock().expect("not poisoned").insert(to);
            let _ = stream.read(&mut [0; 1000]);
            let _ = write!(stream, "HTTP/1.0 200 OK\r\n\r\nat {to}\n");
        }
    }

    fn asked(&self) -> Vec<String> {
        let asked = std::mem::take(&mut *self.asked.lock().expect("not poisoned"));
        asked.into_iter().collect()
    }

    fn reached(&self) -> Vec<String> {
        let reached = std::mem::take(&mut *self.reached.lock().expect("not poisoned"));
        reached.iter().map(ToString::to_string).collect()
    }
}

/// Answer questions for names as a name server does.
fn answer(socket: &UdpSocket, asked: &Mutex<BTreeSet<String>>) {
    let mut message = [0; 600];
    while let Ok((len, from)) = socket.recv_from(&mut message) {
        let (mut at, mut name) = (12, String::new());
        while message[at] != 0 {
            let end = at + 1 + usize::from(message[at]);
            name += &String::from_utf8_lossy(&message[at + 1..end]);
            name.push('.');
            at = end;
        }
        let address: Option<Ipv4Addr> = match name.as_str() {
            "example.test." => GOOD.parse().ok(),
            "evil.test." => EVIL.parse().ok(),
            "inner.test." => PRIVATE.parse().ok(),
            _ => None,
        };
        asked.lock().expect("not poisoned").insert(name);
        let result = if address.is_some() { 0 } else { 3 };
        let mut answer = message[..(at + 5).min(len)].to_vec();
        answer[2..8].copy_from_slice(&[0x81, 0x80 | result, 0, 1, 0, 1 - result / 3]);
        answer[8..12].fill(0);
        if let Some(address) = address {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4]);
            answer.extend(address.octets());
        }
        let _ = socket.send_to(&answer, from);
    }
}

/// Run `script` in a machine in the background; what it printed.
fn sh(user: &User, name: &str, flags: &[&str], script: &str) -> String {
    let begin = ["run", "-d", "--name", name, "-m", "256M"];
    let end = ["--", "/bin/sh", "-c", script];
    let done = user.run(&[&begin[..], flags, &end].concat());
    assert_eq!(done.status, Some(0), "{}", done.stderr);
    let waited = user.run(&["wait", name]);
    let said = user.run(&["logs", name]);
    assert_eq!(waited.stdout, "0\n", "{} {}", said.stdout, said.stderr);
    said.stdout
}

/// What is told of a machine's network: a line each, without time and with single spaces.
fn told(user: &User, name: &str) -> Vec<String> {
    let text = user.run(&["logs", "--network", name]).stdout;
    let words = |line: &str| {
        line.split_whitespace()
            .skip(1)
            .collect::<Vec<_>>()
            .join(" ")
    };
    text.lines().skip(1).map(words).collect()
}

#[test]
fn only_allowed_destinations_are_reached_and_all_is_told() {
    if !inside("only_allowed_destinations_are_reached_and_all_is_told") {
        return;
    }
    let user = User::new();
    let world = World::new(user.0.path());
    let flags = [
        "--net",
        "user,publish=127.0.0.1:7000:7",
        "--allow",
        "Example.test:8000",
    ];
    let script = format!(
        "{GET}
         get example.test 8000; get {EVIL} 8000; Host=example.test get {EVIL} 8000; get {GOOD} 8001
         get evil.test 8000; get secret.example.test 8000
         nslookup evil.test {EVIL} >/dev/null 2>&1; get 10.0.2.3 53
         ping -c 1 -W 1 {EVIL} >/dev/null || echo no ping
         ip addr add 10.0.2.77/24 dev eth0; ping -c 1 -W 1 -I 10.0.2.77 {GOOD} >/dev/null || echo no forgery
         ping -c 1 -W 9 10.0.2.2 >/dev/null && echo gateway
         nc -l -p 7 -e /bin/busybox cat"
    );
    let published = thread::spawn(|| {
        let mut echoed = [0; 5];
        wait_until(|| {
            TcpStream::connect("127.0.0.1:7000").is_ok_and(|mut stream| {
                let _ = stream.write_all(b"hello");
                stream.read_exact(&mut echoed).is_ok()
            })
        });
        echoed
    });
    let said = sh(&user, "one", &flags, &script);
    let refused = "says Connection refused\n";
    let expected = format!(
        "at {GOOD}\n{}says bad address 'evil.test'\nsays bad address 'secret.example.test'\n{refused}no ping\n\
         no forgery\ngateway\n",
        refused.repeat(3)
    );
    assert_eq!(said, expected);
    assert_eq!(published.join().expect("an echo"), *b"hello");
    // On the host: one name was asked for, and one server reached.
    assert_eq!(world.asked(), ["example.test."]);
    assert_eq!(world.reached(), [GOOD]);
    let told = told(&user, "one");
    for line in [
        "1+ tcp allowed 198.51.100.1:8000 example.test",
        "1+ tcp refused: not allowed 198.51.100.2:8000 -",
        "1+ tcp refused: not allowed 198.51.100.1:8001 example.test",
        "dns refused: not allowed - evil.test",
        "dns refused: not allowed - secret.example.test",
        "udp refused: not allowed 198.51.100.2:53 -",
        "tcp refused: not allowed 10.0.2.3:53 -",
        "icmp refused: not allowed 198.51.100.2 -",
        "ethernet refused: another sender - -",
        "ipv6 refused: not looked into - -",
    ] {
        assert!(
            told.iter().any(|it| it.ends_with(line)),
            "{line}: {told:#?}"
        );
    }
    user.run(&["rm", "one"]);
    // Private addresses, and those of the host: here all that has a server is the host's.
    let flags = [
        "--net",
        "user",
        "--deny-private",
        "--allow",
        "0.0.0.0/0",
        "--allow",
        GOOD,
        "--allow",
        "inner.test",
    ];
    let script = format!(
        "{GET}
         for host in {GOOD} {EVIL} {PRIVATE} 169.254.169.254 inner.test; do get $host 8000; done"
    );
    let said = sh(&user, "two", &flags, &script);
    let expected = format!("at {GOOD}\n{}", refused.repeat(3));
    let (addresses, name) = said.split_at(expected.len().min(said.len()));
    assert_eq!(addresses, expected, "{said}");
    assert!(name.starts_with("says bad address"), "{said}");
    assert_eq!(world.reached(), [GOOD]);
    user.run(&["rm", "two"]);
}

#[test]
fn a_network_holds_its_machines_to_its_rules() {
    if !inside("a_network_holds_its_machines_to_its_rules") {
        return;
    }
    let user = User::new();
    let world = World::new(user.0.path());
    let made = user.run(&["network", "create", "held", "--allow", "example.test:8000"]);
    assert_eq!(made.status, Some(0), "{}", made.stderr);
    let script =
        format!("{GET}\nfor host in example.test {EVIL} evil.test; do get $host 8000; done");
    let said = sh(&user, "three", &["--net", "network=held"], &script);
    let expected = format!("at {GOOD}\nsays Connection refused\nsays bad address 'evil.test'\n");
    assert_eq!(said, expected);
    assert_eq!(world.reached(), [GOOD]);
    assert_eq!(world.asked(), ["example.test."]);
    let told = told(&user, "three");
    let refused = format!("tcp refused: not allowed {EVIL}:8000 -");
    assert!(told.iter().any(|it| it.ends_with(&refused)), "{told:#?}");
    user.run(&["rm", "three"]);
    let removed = user.run(&["network", "rm", "held"]);
    assert_eq!(removed.status, Some(0), "{}", removed.stderr);
}

#[test]
fn wrong_destinations_are_refused_with_a_remedy() {
    let user = User::new();
    for (flags, part) in [
        (
            &["--net", "user", "--allow", "10.0.0.0/40"][..],
            "prefix from 0 to 32",
        ),
        (
            &["--net", "user", "--allow", "https://a.org"],
            "write the host alone",
        ),
        (&["--net", "user", "--allow", "a..org"], "no name of a host"),
        (
            &["--net", "user", "--allow", "a.org:70000"],
            "a port is from 1 to 65535",
        ),
        (
            &["--allow", "a.org"],
            "--allow: the machine has no network; --net user",
        ),
        (
            &["--deny-private"],
            "--deny-private: the machine has no network",
        ),
        (
            &["--net", "tap=t0", "--allow", "a.org"],
            "tap=t0 is the host's to decide",
        ),
        (
            &["--net", "tap=t0,allow=a.org"],
            "'allow=a.org' is no option",
        ),
    ] {
        let arguments = [&["run"][..], flags, &["--print-config"]].concat();
        let done = user.run(&arguments);
        assert_ne!(done.status, Some(0), "{flags:?}");
        assert!(done.stderr.contains(part), "{flags:?}: {}", done.stderr);
    }
    let printed = user.run(&[
        "run",
        "--net",
        "user",
        "--allow",
        "A.org:443",
        "--deny-private",
        "--print-config",
    ]);
    assert!(
        printed.stdout.contains("user,allow=a.org:443,deny-private"),
        "{}",
        printed.stdout
    );
    let mut both = user.hull(&["network", "create", "in", "--internal", "--deny-private"]);
    let both = both.env("XDG_DATA_HOME", user.0.path()).output();
    let said = String::from_utf8_lossy(&both.expect("hull starts").stderr).into_owned();
    assert!(said.contains("leave out --allow"), "{said}");
}
