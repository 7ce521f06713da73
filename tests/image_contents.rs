//! Images as other programs make them: a Debian of mmdebstrap, with layers of umoci (tests/lab/images). Its files
//! are compared with what `umoci unpack` made of it, and its servers are asked.

mod machine;

use std::fs;
use std::process::Stdio;

use machine::user::{User, wait_until};
use machine::{built, kvm, lab};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Run hull, which must say nothing and succeed; what it prints.
#[track_caller]
fn ok(user: &User, arguments: &[&str]) -> String {
    let mut hull = user.hull(arguments);
    hull.env("HOME", user.0.path()).stdin(Stdio::null());
    let output = hull.output().expect("hull starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        (output.status.code(), &*stderr),
        (Some(0), ""),
        "{arguments:?}"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The image `tag` of Debian's layout.
fn image(tag: &str) -> String {
    format!("{}:{tag}", built("images/debian/layout"))
}

#[test]
fn all_files_of_a_deep_image_are_as_umoci_unpacks_them() {
    if !kvm("contents") {
        return;
    }
    let Ok(meant) = fs::read_to_string(built("images/debian/files")) else {
        println!("skipped: contents: tests/lab/images was not root, and made no list of files");
        return;
    };
    assert!(meant.lines().count() > 5000 && meant.contains("security.capability"));
    let user = User::new();
    let share = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/images:/host:ro");
    let image = image("deep");
    let flags = [
        "run",
        "--image",
        &image,
        "-m",
        "384M",
        "--cpus",
        "1",
        "--network",
        "none",
    ];
    let command = [
        "--privileged",
        "-v",
        share,
        "--",
        "python3",
        "/host/list.py",
        "/",
        "/t",
        "/etc",
    ];
    let found = ok(&user, &[&flags[..], &command].concat());
    let different = diff(&meant, &found);
    assert!(different.is_empty(), "{different:#?}");
}

/// Lines that only one of two texts has, at most 40.
fn diff(a: &str, b: &str) -> Vec<String> {
    let [a, b] = [a, b].map(|text| text.lines().collect::<std::collections::BTreeSet<_>>());
    let umoci = a.difference(&b).map(|line| format!("umoci {line}"));
    let hull = b.difference(&a).map(|line| format!("hull {line}"));
    umoci.take(20).chain(hull.take(20)).collect()
}

/// The image has nothing but the program, which becomes another user and runs itself again.
#[test]
fn a_static_go_program_is_an_image_of_its_own() {
    if !kvm("a static program") {
        return;
    }
    let (user, image) = (User::new(), image("go"));
    let flags = ["run", "-m", "128M", "--cpus", "1", "--network", "none"];
    let command = ["--image", &image, "--", "1000:1000", "/gosu", "--version"];
    let version = ok(&user, &[&flags[..], &command].concat());
    assert!(
        version.contains("(go1") && version.contains("on linux/amd64"),
        "{version}"
    );
}

/// The server makes its data as root and as its own user, is killed like a computer without power, and has what
/// was committed.
#[test]
fn a_database_keeps_on_its_volume_what_was_committed() {
    // initdb takes half an hour where the guest's kernel is emulated.
    if !kvm("a database") || !lab("a database", "too slow on a software KVM") {
        return;
    }
    let (user, image) = (User::new(), image("postgres"));
    let sql = |text: &str| user.run(&["exec", "-u", "postgres", "db", "psql", "-Atc", text]);
    let flags = [
        "run",
        "-d",
        "--name",
        "db",
        "-m",
        "256M",
        "--cpus",
        "1",
        "--network",
        "none",
    ];
    let more = ["-v", "db:/var/lib/postgresql/data", "--image", &image];
    assert_eq!(ok(&user, &[&flags[..], &more].concat()), "db\n");
    wait_until(|| sql("create table kept (word text)").status == Some(0));
    assert_eq!(
        sql("insert into kept values ('anchor')").stdout,
        "INSERT 0 1\n"
    );
    kill(&user);
    assert_eq!(ok(&user, &["wait", "db"]), "137\n");
    assert_eq!(ok(&user, &["start", "db"]), "db\n");
    wait_until(|| sql("select 1").status == Some(0));
    assert_eq!(sql("select word from kept").stdout, "anchor\n");
    let owner = [
        "exec",
        "db",
        "stat",
        "-c",
        "%U %a",
        "/var/lib/postgresql/data",
    ];
    assert_eq!(ok(&user, &owner), "postgres 700\n");
    let log = user.run(&["logs", "db"]);
    assert!(
        log.stderr.contains("was not properly shut down"),
        "{}",
        log.stderr
    );
    ok(&user, &["rm", "-f", "db"]);
    // The lab has its temporary files in memory, and runs one test at a time.
    ok(&user, &["rmi", "--all"]);
}

/// `kill -9` of the only hull that runs.
fn kill(user: &User) {
    let running: Value = serde_json::from_str(&ok(user, &["ps", "--json"])).expect("JSON");
    let pid = running[0]["pid"].as_i64().expect("a process id");
    let pid = Pid::from_raw(pid as i32).expect("a process id");
    kill_process(pid, Signal::KILL).expect("it runs");
}

/// Asks the server of a guest, in the guest: the lab's kernel gives passt no user namespace.
const GET: &str = "import socket, sys
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
s.send(b'GET %s HTTP/1.0\\r\\n\\r\\n' % sys.argv[2].encode())
print(s.makefile().read())";

#[test]
fn servers_of_images_answer() {
    if !kvm("servers") {
        return;
    }
    let user = User::new();
    // The second runs as a user without rights.
    for (name, uid, port, path, meant) in [
        ("nginx", "0", "80", "/", "Welcome to nginx!"),
        (
            "python",
            "1000",
            "8000",
            "/nginx.conf",
            "worker_processes auto;",
        ),
    ] {
        let image = image(name);
        let flags = ["run", "-d", "--name", name, "-m", "256M", "--cpus", "1"];
        let more = ["--network", "none", "--image", &image];
        assert_eq!(
            ok(&user, &[&flags[..], &more].concat()),
            format!("{name}\n")
        );
        let exec = ["exec", name, "python3", "-c", GET, port, path];
        wait_until(|| user.run(&exec).status == Some(0));
        let answer = user.run(&exec).stdout;
        assert!(
            answer.contains(" 200 OK") && answer.contains(meant),
            "{answer}"
        );
        assert_eq!(ok(&user, &["exec", name, "id", "-u"]), format!("{uid}\n"));
        ok(&user, &["rm", "-f", name]);
    }
}
