//! Real applications on images of Debian (tests/lab/images): a database that is killed, servers asked from the host,
//! and programs that mount, filter packets and confine themselves. Part of `make test-full`.

mod machine;

use std::process::{Command, Stdio};

use machine::user::{User, wait_until};
use machine::{built, kvm, lab};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn here(test: &str) -> bool {
    if std::env::var_os("HULL_TEST_FULL").is_none() {
        println!("skipped: {test}: only in make test-full (HULL_TEST_FULL=1)");
        return false;
    }
    kvm(test) && lab(test, "too slow where the guest's kernel is emulated")
}

/// Run hull, which must succeed; what it prints.
#[track_caller]
fn ok(user: &User, arguments: &[&str]) -> String {
    let done = user.run(arguments);
    assert_eq!(done.status, Some(0), "{arguments:?}: {}", done.stderr);
    done.stdout
}

/// Run a program of the host.
fn host(line: &str) -> Result<String, String> {
    let output = Command::new("sh")
        .args(["-c", line])
        .stdin(Stdio::null())
        .output();
    let output = output.expect("a shell");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => Err(format!(
            "{line}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

fn image(tag: &str) -> String {
    format!("{}:{tag}", built("images/debian/layout"))
}

/// Starts a machine of an image in the background, with its network and `flags`.
fn start(user: &User, name: &str, flags: &[&str], command: &[&str]) {
    let all = [
        &["run", "-d", "--name", name, "-m", "256M", "--cpus", "1"],
        flags,
        command,
    ]
    .concat();
    assert_eq!(ok(user, &all), format!("{name}\n"));
}

/// `pgbench` through a published port, its machine killed in between: each transaction that it has counted is there.
#[test]
fn a_database_loses_no_committed_row_when_its_machine_is_killed() {
    if !here("postgres") {
        return;
    }
    if host("pgbench --version && psql --version").is_err() {
        println!("skipped: postgres: no pgbench and psql on this host (the package postgresql)");
        return;
    }
    let (user, image) = (User::new(), image("postgres"));
    let volume = "db:/var/lib/postgresql/data";
    let flags = [
        "-p",
        "5432:5432",
        "-e",
        "LISTEN=*",
        "-v",
        volume,
        "--image",
        &image,
    ];
    start(&user, "db", &flags, &[]);
    let psql = |text: &str| {
        host(&format!(
            "psql -h 127.0.0.1 -U postgres -Atc '{text}' postgres"
        ))
    };
    wait_until(|| psql("select 1").is_ok());
    host("pgbench -h 127.0.0.1 -U postgres -i -q postgres").expect("tables");
    for _ in 0..2 {
        let before: u64 = psql("select count(*) from pgbench_history")
            .expect("a table")
            .trim()
            .parse()
            .expect("a number");
        let bench = "pgbench -h 127.0.0.1 -U postgres -n -c 2 -T 60 -l --log-prefix=";
        let logs = user.0.path().join("log");
        let bench = format!("rm -f {0}.*; {bench}{0} postgres", logs.display());
        let running = std::thread::spawn(move || host(&bench));
        let counted = || {
            host(&format!("cat {}.* | wc -l", logs.display()))
                .unwrap_or_default()
                .trim()
                .parse()
                .unwrap_or(0u64)
        };
        wait_until(|| counted() >= 20);
        let listed: Value = serde_json::from_str(&ok(&user, &["ps", "--json"])).expect("JSON");
        let pid = listed[0]["pid"].as_i64().expect("a process id");
        kill_process(Pid::from_raw(pid as i32).expect("one"), Signal::KILL).expect("it runs");
        running
            .join()
            .expect("an end")
            .expect_err("the connection is lost");
        assert_eq!(ok(&user, &["wait", "db"]), "137\n");
        ok(&user, &["start", "db"]);
        wait_until(|| psql("select 1").is_ok());
        let after: u64 = psql("select count(*) from pgbench_history")
            .expect("a table")
            .trim()
            .parse()
            .expect("a number");
        // One that was committed may not have been counted; one that was counted is there.
        assert!(
            after >= before + counted(),
            "{before} and {} are not {after}",
            counted()
        );
    }
    // By SIGINT, its image's signal, it ends in order.
    ok(&user, &["stop", "db"]);
    let log = user.run(&["logs", "db"]).stderr;
    assert!(
        log.contains("received fast shutdown request")
            && log.contains("database system is shut down"),
        "{log}"
    );
    ok(&user, &["rm", "db"]);
    ok(&user, &["rmi", "--all"]); // the lab has it in memory
}

/// nginx leads to a Python program; redis keeps a value. Both are asked through published ports.
#[test]
fn servers_answer_at_published_ports() {
    if !here("servers") {
        return;
    }
    let (user, image) = (User::new(), image("services"));
    let script = "printf 'events {} http { server { listen 80; location / { proxy_pass http://127.0.0.1:8000; } } }' > /tmp/n
        cd /etc/nginx; python3 -m http.server -b 127.0.0.1 8000 & exec nginx -c /tmp/n -g 'daemon off;'";
    start(
        &user,
        "web",
        &["-p", "8080:80", "--image", &image],
        &["--", "sh", "-c", script],
    );
    let get = "curl -sSf http://127.0.0.1:8080/mime.types";
    wait_until(|| host(get).is_ok());
    assert!(host(get).expect("an answer").contains("text/html"));
    assert!(
        host("curl -sSI http://127.0.0.1:8080/")
            .expect("an answer")
            .contains("Server: nginx")
    );
    // Its label chose the kernel.
    assert!(ok(&user, &["exec", "web", "uname", "-r"]).ends_with("-hull-full\n"));
    ok(&user, &["rm", "-f", "web"]);
    let flags = [
        "-p",
        "6379:6379",
        "-v",
        "cache:/var/lib/redis",
        "--image",
        &image,
    ];
    let command = [
        "--",
        "redis-server",
        "--protected-mode",
        "no",
        "--dir",
        "/var/lib/redis",
        "--appendonly",
        "yes",
    ];
    start(&user, "cache", &flags, &command);
    let ask = |words: &[&str]| {
        user.run(&[&["exec", "cache", "redis-cli"], words].concat())
            .stdout
    };
    wait_until(|| ask(&["ping"]) == "PONG\n");
    assert_eq!(ask(&["set", "word", "anchor"]), "OK\n");
    ok(&user, &["stop", "cache"]);
    ok(&user, &["start", "cache"]);
    wait_until(|| ask(&["get", "word"]) == "anchor\n");
    ok(&user, &["rm", "-f", "cache"]);
    ok(&user, &["rmi", "--all"]);
}

/// Rules of nft and of iptables hold; file systems are made and mounted.
const PRIVILEGED: &str = r#"
set -e
nft 'add table inet t; add chain inet t c { type filter hook input priority 0; }; add rule inet t c tcp dport 81 ct state new counter reject with tcp reset'
python3 -c 'import socket
try: socket.create_connection(("127.0.0.1", 81))
except ConnectionRefusedError: pass'
nft list ruleset | grep -o 'counter packets 1'
nft flush ruleset
iptables -t nat -A OUTPUT -p tcp --dport 83 -j REDIRECT --to-ports 84
python3 -c 'import socket
s = socket.create_server(("127.0.0.1", 84))
c = socket.create_connection(("127.0.0.1", 83))
print("redirected to", c.getpeername()[1])'
mount -t devtmpfs none /dev # the loop devices
truncate -s 8M /tmp/d; mkfs.vfat /tmp/d > /dev/null; mount -o loop /tmp/d /mnt; echo vfat > /mnt/f; cat /mnt/f
mksquashfs /etc/nginx /tmp/s -quiet -no-progress > /dev/null; mount -o loop /tmp/s /media; ls /media | grep -x nginx.conf
"#;

/// A program without rights gives up files by Landlock, and a system call by a filter of seccomp.
const CONFINED: &str = r#"
import ctypes, struct, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
print("landlock", libc.syscall(444, None, 0, 1) >= 4)
attributes = struct.pack("<Q", 4)  # LANDLOCK_ACCESS_FS_READ_FILE
ruleset = libc.syscall(444, attributes, len(attributes), 0)
assert libc.syscall(446, ruleset, 0) == 0
try: open("/etc/passwd")
except PermissionError as error: print(error.strerror)
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 63), (6, 0, 0, 0x50026), (6, 0, 0, 0x7fff0000)]  # uname: ERRNO 38
code = b"".join(struct.pack("<HBBI", *rule) for rule in rules)
buffer = ctypes.create_string_buffer(code)
program = struct.pack("<HxxxxxxQ", len(rules), ctypes.addressof(buffer))
assert libc.prctl(22, 2, program) == 0
try: os.uname()
except OSError as error: print(error.strerror)
"#;

#[test]
fn programs_filter_packets_mount_and_confine_themselves() {
    if !here("programs") {
        return;
    }
    let (user, image) = (User::new(), image("services"));
    let run = |flags: &[&str], command: &[&str]| {
        let all = [
            &["run", "-m", "256M", "--cpus", "1", "--network", "none"],
            flags,
            &["--image", &image, "--"],
            command,
        ];
        ok(&user, &all.concat())
    };
    assert_eq!(
        run(&["--privileged"], &["sh", "-c", PRIVILEGED]),
        "counter packets 1\nredirected to 83\nvfat\nnginx.conf\n"
    );
    assert_eq!(
        run(&["-u", "1000"], &["python3", "-c", CONFINED]),
        "landlock True\nPermission denied\nFunction not implemented\n"
    );
}
