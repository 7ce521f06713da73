//! Machines in one network: names, isolation, ports, and what stays when machines and switches are killed.

#[path = "images/layout.rs"]
mod layout;
mod machine;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ::tar::EntryType;
use layout::{Layer, Layout};
use machine::user::{Done, wait_until};
use machine::{built, in_lab, kvm};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A user with an image, and with folders that are gone afterwards.
struct Home {
    folder: tempfile::TempDir,
    image: Layout,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["run", "data", "state"] {
            fs::create_dir(folder.path().join(name)).expect("made");
        }
        Self {
            folder,
            image: image(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn hull(&self, arguments: &[&str]) -> Command {
        let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
        hull.args(arguments).stdin(Stdio::null());
        hull.env("HOME", self.folder.path())
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("XDG_DATA_HOME", self.path("data"))
            .env("XDG_STATE_HOME", self.path("state"));
        hull
    }

    fn run(&self, arguments: &[&str]) -> Done {
        let output = self.hull(arguments).output().expect("hull starts");
        Done {
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The output of a command that succeeds.
    #[track_caller]
    fn prints(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(
            (done.status, &*done.stderr),
            (Some(0), ""),
            "{arguments:?} {}",
            done.stdout
        );
        done.stdout
    }

    /// Run `script` in a machine of the image; what it prints.
    #[track_caller]
    fn sh(&self, flags: &[&str], script: &str) -> String {
        let image = self.image.path().to_str().expect("text");
        let shape = ["-m", "64M", "--cpus", "1"];
        self.prints(
            &[
                &["run", "--image", image][..],
                &shape,
                flags,
                &["--", script],
            ]
            .concat(),
        )
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], message: &str) {
        let done = self.run(arguments);
        assert_eq!(
            (done.status, &*done.stdout),
            (Some(125), ""),
            "{arguments:?}"
        );
        assert!(done.stderr.contains(message), "{}", done.stderr);
    }

    /// The machines of a network.
    fn machines(&self, network: &str) -> Vec<Value> {
        let text = self.prints(&["network", "inspect", network]);
        let found: Value = serde_json::from_str(&text).expect("JSON");
        found[0]["machines"].as_array().expect("a list").clone()
    }

    /// The switches that run with the networks of this home.
    fn switches(&self) -> Vec<Pid> {
        let own = format!("XDG_DATA_HOME={}\0", self.path("data").display());
        let is_switch = |folder: &Path| {
            let text = |name| fs::read_to_string(folder.join(name)).unwrap_or_default();
            text("cmdline").contains("\0network\0serve\0") && text("environ").contains(&own)
        };
        let all = fs::read_dir("/proc").expect("/proc").flatten();
        let all = all.filter(|entry| is_switch(&entry.path()));
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(Pid::from_raw).collect()
    }

    /// The process of a machine's hull.
    fn process(&self, machine: &str) -> Pid {
        let text = self.prints(&["ps", "--json"]);
        let all: Value = serde_json::from_str(&text).expect("JSON");
        let all = all.as_array().expect("a list").iter();
        let mut pids = all.filter(|it| it["name"] == machine).map(|it| &it["pid"]);
        let pid = pids.next().and_then(Value::as_i64).expect("it runs");
        Pid::from_raw(pid as i32).expect("a process")
    }
}

/// busybox.
fn image() -> Layout {
    let program = fs::read(built("foreign/busybox")).expect("busybox");
    let (file, folder, link) = (EntryType::Regular, EntryType::Directory, EntryType::Symlink);
    let mut layer = Layer::new()
        .entry(folder, "bin", 0o755, (0, 0), "", b"")
        .entry(file, "bin/busybox", 0o755, (0, 0), "", &program)
        .entry(folder, "tmp", 0o1777, (0, 0), "", b"");
    for applet in [
        "sh", "cat", "sleep", "httpd", "wget", "ping", "nslookup", "ip", "grep", "hostname", "true",
    ] {
        let path = format!("bin/{applet}");
        layer = layer.entry(link, &path, 0o777, (0, 0), "busybox", b"");
    }
    Layout::new(vec![layer], json!({ "Entrypoint": ["/bin/sh", "-c"] }))
}

/// A web server that says `word`.
fn serves(word: &str) -> String {
    format!("echo {word} > /tmp/index.html; httpd -p 80 -h /tmp; echo ready; sleep 1000")
}

#[test]
fn machines_find_each_other_by_name_and_nobody_else() {
    if !kvm("networks") {
        return;
    }
    let home = Home::new();
    let create = [
        "network",
        "create",
        "--internal",
        "--subnet",
        "10.77.0.0/24",
        "inner",
    ];
    assert_eq!(home.prints(&create), "inner\n");
    assert_eq!(
        home.prints(&["network", "create", "--internal", "other"]),
        "other\n"
    );
    home.refused(&create, "network with name inner already exists");
    let web = [
        "-d",
        "--name",
        "web",
        "--network",
        "inner",
        "--network-alias",
        "www",
    ];
    assert_eq!(home.sh(&web, &serves("hello")), "web\n");
    wait_until(|| home.run(&["logs", "web"]).stdout.contains("ready"));
    let there = home.machines("inner");
    assert_eq!(there.len(), 1);
    assert_eq!(there[0]["address"], "10.77.0.2");
    assert_eq!(there[0]["aliases"], json!(["www"]));
    home.refused(
        &["network", "rm", "inner"],
        "network inner has active endpoints: web",
    );

    let script = "grep nameserver /etc/resolv.conf; ip route | grep default
        wget -qO- http://web/; wget -qO- http://WWW/
        ping -c 1 -W 5 web > /dev/null && echo pinged
        ping -c 1 -W 5 10.77.0.1 > /dev/null && echo router
        ping -c 1 -W 5 $(hostname) > /dev/null && echo itself
        nslookup nobody 2>&1 | grep -q NXDOMAIN && echo NXDOMAIN
        ip addr add 10.77.0.9/24 dev eth0
        ping -c 1 -W 1 -I 10.77.0.9 web > /dev/null || echo not as another
        ping -c 1 -W 1 10.90.0.1 > /dev/null 2>&1 || echo no way out";
    let client = [
        "--name",
        "client",
        "--network",
        "inner",
        "--cap-add",
        "NET_ADMIN",
    ];
    let said = home.sh(&client, script);
    let expected = "nameserver 10.77.0.1\nhello\nhello\npinged\nrouter\nitself\nNXDOMAIN\n\
                    not as another\nno way out\n";
    assert_eq!(said, expected);
    // Another network reaches neither names nor addresses of this one.
    let script =
        "nslookup web 2>&1 | grep -q NXDOMAIN && echo NXDOMAIN; ip route add 10.77.0.0/24 dev eth0
        ping -c 1 -W 1 10.77.0.2 > /dev/null 2>&1 || echo apart";
    let stranger = ["--network", "other", "--cap-add", "NET_ADMIN"];
    assert_eq!(home.sh(&stranger, script), "NXDOMAIN\napart\n");
    // One in both has the names of both.
    let script = "wget -qO- http://web/; ip addr | grep -c 'inet 10'";
    let both = ["--network", "other", "--network", "inner"];
    assert_eq!(home.sh(&both, script), "hello\n2\n");
    survives(&home);
}

/// A machine and a switch are killed, and the network goes on.
fn survives(home: &Home) {
    kill_process(home.process("web"), Signal::KILL).expect("killed");
    wait_until(|| home.machines("inner").is_empty());
    assert_eq!(home.prints(&["start", "web"]), "web\n");
    assert_eq!(home.machines("inner").len(), 1);
    for switch in home.switches() {
        kill_process(switch, Signal::KILL).expect("killed");
    }
    wait_until(|| home.switches().is_empty());
    assert!(home.machines("inner").is_empty());
    assert_eq!(home.prints(&["restart", "-t", "0", "web"]), "web\n");
    // Its server may not listen yet.
    let script = "until wget -qO- http://web/ 2> /dev/null; do sleep 0.2; done";
    let said = home.sh(&["--network", "inner"], script);
    assert_eq!(said, "hello\n");
    home.prints(&["rm", "-f", "web"]);
    assert_eq!(
        home.prints(&["network", "rm", "inner", "other"]),
        "inner\nother\n"
    );
    assert!(home.switches().is_empty(), "a switch stays");
    let left = fs::read_dir(home.path("data/hull/networks")).expect("a folder");
    assert_eq!(left.count(), 0);
    home.refused(&["network", "rm", "inner"], "network inner not found");
}

#[test]
fn a_network_leads_out_and_published_ports_lead_in() {
    if !kvm("ports of networks") {
        return;
    }
    if in_lab() || !Path::new("/usr/bin/passt").exists() {
        return println!("skipped: ports of networks: passt cannot run here");
    }
    let home = Home::new();
    home.prints(&["network", "create", "open"]);
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("its address").port();
    drop(free);
    let publish = format!("127.0.0.1:{port}:80");
    let web = ["-d", "--name", "web", "--network", "open", "-p", &publish];
    assert_eq!(home.sh(&web, &serves("hello")), "web\n");
    wait_until(|| home.run(&["logs", "web"]).stdout.contains("ready"));
    assert_eq!(
        home.prints(&["port", "web", "80"]),
        format!("127.0.0.1:{port}\n")
    );
    assert_eq!(ask(port), "hello\n");
    // From another machine: the first by name, and this host by its address.
    let own = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    let listener = own.and_then(|own| TcpListener::bind((own.ip(), 0)));
    let mut script = String::from("wget -qO- http://web/");
    if let Ok(listener) = &listener {
        let address = listener.local_addr().expect("its address");
        script += &format!("; wget -qO- http://{address}/");
    } else {
        println!("left out: the way out: this host has no address");
    }
    let answers = listener.is_ok();
    let serving = std::thread::spawn(move || {
        let Ok(listener) = listener else { return };
        let (mut stream, _) = listener.accept().expect("a connection");
        let _ = stream.read(&mut [0; 1000]);
        let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nout\n");
    });
    let said = home.sh(&["--network", "open"], &script);
    assert_eq!(said, if answers { "hello\nout\n" } else { "hello\n" });
    serving.join().expect("served");
    home.prints(&["rm", "-f", "web"]);
    home.prints(&["network", "rm", "open"]);
}

/// A project of two services that stay and one that ends, with success when it is started again. The first to be
/// healthy is so at its third check.
fn shop(home: &Home, word: &str) -> String {
    format!(
        "name: shop
services:
  app:
    image: {image}
    command: [\"cat /data/setup; wget -qO- http://db/; echo $$WORD; sleep 1000\"]
    environment: {{WORD: {word}}}
    depends_on:
      db: {{condition: service_healthy}}
      setup: {{condition: service_completed_successfully}}
    volumes: [\"data:/data:ro\"]
    deploy: {{resources: {{limits: {{cpus: 1, memory: 64M}}}}}}
    labels: [passed over]
  db:
    image: {image}
    command: [\"{serves}\"]
    healthcheck:
      test: [CMD, sh, -c, 'echo >> /tmp/tries; [ $$(grep -c ^ /tmp/tries) -ge 3 ] && wget -qO- http://127.0.0.1/']
      interval: 100ms
      timeout: 20s
      retries: 100
    mem_limit: 64m
    cpus: 1
  setup:
    image: {image}
    command:
      - if [ -e /data/tried ]; then echo set up > /data/setup; else echo > /data/tried; false; fi;
        s=$$?; sync; exit $$s
    restart: on-failure
    network_mode: none
    volumes: [\"data:/data\"]
    mem_limit: 64m
    cpus: 1
networks:
  default: {{internal: true}}
volumes:
  data:
",
        image = home.image.path().display(),
        serves = serves("from db")
    )
}

#[test]
fn an_application_comes_up_in_order_changes_and_goes_without_a_trace() {
    if !kvm("applications") {
        return;
    }
    let home = Home::new();
    let path = home.path("compose.yaml");
    let file = path.to_str().expect("text");
    fs::write(&path, shop(&home, "one")).expect("written");
    let up = || {
        let done = home.run(&["up", "-d", file]);
        assert_eq!(
            (done.status, &*done.stdout),
            (Some(0), ""),
            "{}",
            done.stderr
        );
        done.stderr
    };
    let first = up();
    let place = |what: &str| {
        first
            .find(what)
            .unwrap_or_else(|| panic!("no {what}: {first}"))
    };
    assert!(place("network shop_default created") < place("shop-db-1 started"));
    assert!(place("shop-setup-1 started") < place("shop-app-1 started"));
    let events = home.prints(&["events", "--since", "1h", "--until", "0s"]);
    let event = |what: &str| {
        let found = events.find(what);
        found.unwrap_or_else(|| panic!("no {what}: {events}"))
    };
    let healthy = event(" health_status: healthy shop-db-1\n");
    assert!(healthy < event(" create shop-app-1\n"), "{events}");
    let failed = event(" die shop-setup-1 (exitCode=1)\n");
    assert!(failed < event(" die shop-setup-1 (exitCode=0)\n"));
    let logs = || home.run(&["logs", "--project", "shop"]).stdout;
    wait_until(|| logs().contains("app   | one\n"));
    assert!(
        logs().contains("app   | set up\napp   | from db\n"),
        "{}",
        logs()
    );
    let running = home.prints(&["ps", "-q", "--project", "shop"]);
    assert_eq!(running, "shop-app-1\nshop-db-1\n");

    // Again: what has ended is started, and what has changed is replaced, and nothing else.
    let database = home.process("shop-db-1");
    fs::write(&path, shop(&home, "two")).expect("written");
    let second = up();
    assert!(
        second.contains("machine shop-db-1 is as it should be"),
        "{second}"
    );
    assert!(second.contains("machine shop-app-1 stopped"), "{second}");
    wait_until(|| logs().contains("app   | two\n"));
    assert_eq!(home.process("shop-db-1"), database);
    kill_process(home.process("shop-app-1"), Signal::KILL).expect("killed");
    wait_until(|| !home.prints(&["ps", "-q"]).contains("app"));
    assert!(up().contains("machine shop-app-1 started"));

    let lock = fs::File::open(&path).expect("open");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    home.refused(
        &["up", "-d", file],
        "another hull up or hull down is at work",
    );
    drop(lock);
    let down = home.run(&["down", "-v", file]);
    assert_eq!(
        (down.status, &*down.stdout),
        (Some(0), ""),
        "{}",
        down.stderr
    );
    assert_eq!(home.prints(&["ps", "-aq"]), "");
    for place in ["data/hull/networks", "data/hull/volumes", "state/hull"] {
        let left = fs::read_dir(home.path(place)).expect("a folder").flatten();
        let left: Vec<_> = left
            .map(|it| it.file_name())
            .filter(|it| it != ".events")
            .collect();
        assert!(left.is_empty(), "{place}: {left:?}");
    }
    assert!(home.switches().is_empty(), "a switch stays");
}

#[test]
fn wrong_files_are_refused_by_line_and_leave_nothing() {
    let home = Home::new();
    let path = home.path("file.yaml");
    let file = path.to_str().expect("text");
    let image = home.image.path().display().to_string();
    for (text, message) in [
        (String::new(), "line 1: the file is empty"),
        ("\0\u{1}".into(), "no YAML"),
        (
            "services:\n  a: {image: x, x: 1}\n".into(),
            "line 2: service a: x is not supported",
        ),
        (
            "services:\n  a:\n    image: $NOWHERE\n".into(),
            "line 3: image: the variable NOWHERE has no value",
        ),
        (
            format!("services:\n  a: {{image: {image}}}\n  b:\n    image: ./nothing-here\n"),
            "line 4: service b",
        ),
        (
            format!(
                "services: {{a: {{image: {image}, networks: [n]}}}}\nnetworks: {{n: {{external: true}}}}\n"
            ),
            "network n not found",
        ),
    ] {
        fs::write(&path, text).expect("written");
        home.refused(&["up", "-d", file], message);
    }
    home.refused(&["up", "-d", "nowhere.yaml"], "nowhere.yaml");
    let networks = home.prints(&["network", "ls", "-q"]);
    assert_eq!(
        (networks, home.prints(&["ps", "-aq"])),
        (String::new(), String::new())
    );
}

/// What the web server at a port of this host says.
fn ask(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("set");
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    body.into()
}

#[test]
fn wrong_networks_are_refused_by_name() {
    let home = Home::new();
    for (arguments, message) in [
        (
            &["network", "create", "none"][..],
            "is no name of a network",
        ),
        (&["network", "create", "a/b"], "is no name of a network"),
        (&["network", "inspect", "web"], "network web not found"),
        (
            &["run", "--net", "network=web", "--", "true"],
            "network web not found",
        ),
    ] {
        home.refused(arguments, message);
    }
    home.prints(&["network", "create", "--subnet", "10.1.0.0/16", "one"]);
    let same = ["network", "create", "--subnet", "10.1.2.0/24", "two"];
    home.refused(&same, "overlap with those of network one");
    assert_eq!(home.prints(&["network", "ls", "-q"]), "one\n");
    assert_eq!(
        home.prints(&["network", "prune", "-f"]),
        "Deleted Networks:\none\n"
    );
    home.prints(&["network", "rm", "-f", "one"]);
}
