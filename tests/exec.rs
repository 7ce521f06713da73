//! `hull exec`: commands beside the own one of a running machine.

mod machine;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};

use machine::kvm;
use machine::terminal::{Session, resize};
use machine::user::{Running, User, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A machine whose command says `up`, and then waits for SIGTERM.
const WAITS: &str = "trap 'exit 3' TERM; echo up; sleep 1000 & wait";

/// Starts a machine; with the flags of `run`.
fn machine_of(user: &User, name: &str, flags: &[&str], script: &str) -> Running {
    let mut arguments = vec!["run", "--name", name];
    arguments.extend(flags);
    arguments.extend(["--", "sh", "-c", script]);
    let mut hull = user.hull(&arguments);
    let hull = hull.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut running = Running(hull.spawn().expect("hull starts"));
    let mut line = String::new();
    let stdout = running.0.stdout.as_mut().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    assert_eq!(line, "up\n");
    running
}

/// Starts `hull ARGUMENTS` with pipes.
fn piped(user: &User, arguments: &[&str]) -> Child {
    let mut hull = user.hull(arguments);
    let hull = hull.stdin(Stdio::piped()).stdout(Stdio::piped());
    hull.spawn().expect("hull starts")
}

fn first_line(child: &mut Child) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    let stdout = child.stdout.as_mut().expect("a pipe");
    while line.last() != Some(&b'\n') {
        stdout.read_exact(&mut byte).expect("a line");
        line.push(byte[0]);
    }
    String::from_utf8(line).expect("text")
}

#[track_caller]
fn check(user: &User, arguments: &[&str], expected: (i32, &str, &str)) {
    let mut all = vec!["exec"];
    all.extend(arguments);
    let done = user.run(&all);
    let (status, stdout, stderr) = expected;
    assert_eq!(
        (done.status, done.stdout.as_str(), done.stderr.as_str()),
        (Some(status), stdout, stderr),
        "{arguments:?}"
    );
}

#[test]
fn commands_run_beside_the_machines_own() {
    if !kvm("exec") {
        return;
    }
    let user = User::new();
    let flags = ["-e", "GIVEN=1", "-w", "/tmp"];
    let running = machine_of(&user, "web", &flags, WAITS);
    statuses(&user);
    surroundings(&user);
    streams(&user);
    many(&user);
    left_alone(&user);
    copies(&user);
    reports(&user);
    refusals(&user);
    stats_go_on(&user);
    let mut stats = piped(&user, &["stats", "web"]);
    assert!(first_line(&mut stats).starts_with("NAME "));
    // They end with the machine.
    let mut last = piped(&user, &["exec", "web", "sh", "-c", "echo up; sleep 1000"]);
    assert_eq!(first_line(&mut last), "up\n");
    assert_eq!(user.run(&["stop", "web"]).status, Some(0));
    assert_eq!(last.wait().expect("an end").code(), Some(137));
    assert_eq!(stats.wait().expect("an end").code(), Some(0));
    assert_eq!({ running }.0.wait().expect("an end").code(), Some(3));
    user.refused(&["exec", "web", "true"], "no such machine: web");
    user.refused(&["top", "web"], "no such machine: web");
}

fn statuses(user: &User) {
    let script = "echo out; echo err >&2; exit 7";
    check(user, &["web", "sh", "-c", script], (7, "out\n", "err\n"));
    check(user, &["web", "sh", "-c", "kill -9 $$"], (137, "", ""));
    let missing = user.run(&["exec", "web", "/no/such/program"]);
    assert_eq!(missing.status, Some(127));
    let why = "\"/no/such/program\" is not in the guest: No such file or directory";
    assert!(missing.stderr.contains(why), "{}", missing.stderr);
    assert_eq!(user.run(&["exec", "web", "/tmp"]).status, Some(126));
    assert_eq!(
        user.run(&["exec", "-w", "/none", "web", "ls"]).status,
        Some(126)
    );
    let nobody = user.run(&["exec", "-u", "nosuchuser", "web", "id"]);
    assert_eq!(nobody.status, Some(126));
    assert!(
        nobody.stderr.lines().count() == 1
            && nobody.stderr.contains("unable to find user nosuchuser"),
        "{}",
        nobody.stderr
    );
}

fn surroundings(user: &User) {
    let script = "pwd; echo $GIVEN $MORE; id -u; id -g";
    check(
        user,
        &["web", "sh", "-c", script],
        (0, "/tmp\n1\n0\n0\n", ""),
    );
    let flags = [
        "-w", "/proc", "-e", "MORE=2", "-e", "GIVEN=3", "-u", "1000:7", "web", "sh", "-c", script,
    ];
    check(user, &flags, (0, "/proc\n3 2\n1000\n7\n", ""));
    let file = user.0.path().join("variables");
    std::fs::write(&file, "# more\nMORE=from a file\n\nGIVEN=9\n").expect("written");
    let file = file.display().to_string();
    let flags = [
        "--env-file",
        &file,
        "-e",
        "GIVEN=4",
        "web",
        "sh",
        "-c",
        script,
    ];
    check(user, &flags, (0, "/tmp\n4 from a file\n0\n0\n", ""));
}

fn streams(user: &User) {
    // Without -i there is no input, whatever hull has.
    let mut cat = piped(user, &["exec", "web", "cat"]);
    assert_eq!(cat.wait().expect("an end").code(), Some(0));
    let mut cat = piped(user, &["exec", "-i", "web", "cat"]);
    let mut input = cat.stdin.take().expect("a pipe");
    input.write_all(b"first\n").expect("written");
    assert_eq!(first_line(&mut cat), "first\n");
    let data: Vec<u8> = (0..1_000_000u32)
        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    let sent = data.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent));
    let mut came = Vec::new();
    let stdout = cat.stdout.as_mut().expect("a pipe");
    stdout.read_to_end(&mut came).expect("read");
    writer.join().expect("a writer").expect("written");
    assert!(came == data, "{} bytes came back", came.len());
    assert_eq!(cat.wait().expect("an end").code(), Some(0));
    // A terminal has the size of hull's, and follows it.
    let script = "stty size; read x; while [ \"$(stty size)\" != '25 80' ]; do :; done; exit $x";
    let mut terminal = Session::of(user.hull(&["exec", "-it", "web", "sh", "-c", script]));
    terminal.wait_for("30 101\r\n");
    assert!(terminal.is_raw());
    resize(&terminal.terminal, 25, 80);
    terminal.key("5\r");
    assert_eq!(terminal.end(), Some(5));
    user.refused(
        &["exec", "-it", "web", "sh"],
        "the input device is not a TTY",
    );
}

/// One whose reader is slow stalls no other; and a signal is the command's.
fn many(user: &User) {
    let mut slow = piped(user, &["exec", "web", "yes"]);
    assert_eq!(first_line(&mut slow), "y\n");
    let mut all: Vec<Child> = (0..4)
        .map(|number| {
            let script = format!("trap 'exit {number}' TERM; echo {number}; sleep 1000 & wait");
            piped(user, &["exec", "web", "sh", "-c", &script])
        })
        .collect();
    for (number, child) in all.iter_mut().enumerate() {
        assert_eq!(first_line(child), format!("{number}\n"));
    }
    for (number, child) in all.iter_mut().enumerate() {
        kill_process(Pid::from_child(child), Signal::TERM).expect("it runs");
        assert_eq!(child.wait().expect("an end").code(), Some(number as i32));
    }
    // Its reader leaves: SIGPIPE.
    drop(slow.stdout.take());
    assert_eq!(slow.wait().expect("an end").code(), Some(141));
}

/// It goes on without a client.
fn left_alone(user: &User) {
    let script = "echo $$ > /tmp/alone; echo up; while [ ! -e /tmp/go ]; do sleep 1; done
        echo more && touch /tmp/done";
    let mut killed = piped(user, &["exec", "web", "sh", "-c", script]);
    assert_eq!(first_line(&mut killed), "up\n");
    killed.kill().expect("it runs");
    killed.wait().expect("an end");
    check(user, &["-d", "web", "touch", "/tmp/go"], (0, "", ""));
    wait_until(|| user.run(&["exec", "web", "test", "-e", "/tmp/done"]).status == Some(0));
    let missing = user.run(&["exec", "-d", "web", "/no/such/program"]);
    assert_eq!(missing.status, Some(127));
    assert!(missing.stderr.contains("is not in the guest"));
}

/// /new/site as a tar archive, there and back.
fn archives(user: &User) {
    let out = user
        .hull(&["cp", "web:/new/site", "-"])
        .output()
        .expect("hull starts");
    assert_eq!(
        (out.status.code(), &*String::from_utf8_lossy(&out.stderr)),
        (Some(0), "")
    );
    let mut archive = tar::Archive::new(&out.stdout[..]);
    let entries = archive.entries().expect("an archive");
    let mut names: Vec<String> = entries
        .map(|entry| {
            entry
                .expect("an entry")
                .path()
                .expect("a path")
                .display()
                .to_string()
        })
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "site/",
            "site/data",
            "site/link",
            "site/sub/",
            "site/sub/run"
        ]
    );
    check(user, &["web", "mkdir", "-m", "700", "/un"], (0, "", ""));
    let into = |target: &str, bytes: &[u8]| {
        let mut hull = piped(user, &["cp", "-", target]);
        hull.stdin
            .take()
            .expect("a pipe")
            .write_all(bytes)
            .expect("written");
        hull.wait().expect("an end").code()
    };
    assert_eq!(into("web:/un", &out.stdout), Some(0));
    check(user, &["web", "sh", "/un/site/link"], (0, "it runs\n", ""));
    let made = user.run(&["exec", "web", "ls", "-ld", "/un", "/un/site/sub/run"]);
    assert!(made.stdout.starts_with("drwx------ "), "{}", made.stdout);
    assert!(made.stdout.contains("\n-rwxr-x--x "), "{}", made.stdout);
    assert_eq!(into("web:/none", b""), Some(125));
    user.refused(
        &["cp", "-", "web:/un/site/data"],
        "there is no folder /un/site/data",
    );
}

/// `hull top` and `hull stats`.
fn reports(user: &User) {
    let top = user.run(&["top", "web"]);
    assert_eq!((top.status, top.stderr.as_str()), (Some(0), ""));
    let mut lines = top.stdout.lines();
    let head: Vec<&str> = lines.next().expect("a head").split_whitespace().collect();
    assert_eq!(
        head,
        ["UID", "PID", "PPID", "STATE", "MEMORY", "TIME", "CMD"]
    );
    let slept = lines.find(|line| line.ends_with("sleep 1000"));
    assert!(
        slept.is_some_and(|line| line.starts_with("0 ")),
        "{}",
        top.stdout
    );
    assert!(!top.stdout.contains("report"), "{}", top.stdout);
    let list = |arguments: &[&str]| -> Value {
        let done = user.run(arguments);
        assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
        serde_json::from_str(&done.stdout).expect("JSON")
    };
    let mut processes = list(&["top", "--json", "web"]);
    let processes = processes.as_array_mut().expect("a list");
    let sleep = processes.iter().find(|it| it["command"] == "sleep 1000");
    assert!(sleep.expect("there")["ppid"].as_u64() > Some(1));
    let stats = list(&["stats", "--no-stream", "--json", "web"]);
    let line = &stats[0];
    assert_eq!(line["name"], "web");
    assert!(line["processes"].as_u64() > Some(1) && processes.len() > 1);
    let number = |key: &str| line[key].as_f64().expect("a number");
    assert!((0.0..6400.0).contains(&number("cpu_percent")));
    assert!(number("host_memory_bytes") > 1e6);
    let (used, all) = (
        number("guest_memory_used_bytes"),
        number("guest_memory_bytes"),
    );
    assert!(
        0.0 < used && used < all && all <= 128.0 * 1024.0 * 1024.0,
        "{line}"
    );
    assert_eq!(number("network_bytes"), 0.0);
    let table = user.run(&["stats", "--no-stream"]);
    assert!(table.stdout.starts_with("NAME  CPU "), "{}", table.stdout);
    assert!(table.stdout.contains("web   "), "{}", table.stdout);
    user.refused(&["top", "none"], "no such machine: none");
    user.refused(&["stats", "none"], "no such machine: none");
    user.refused(
        &["port", "web", "80"],
        "no public port '80/tcp' published for web",
    );
    assert_eq!(user.run(&["pause", "web"]).status, Some(0));
    user.refused(&["top", "web"], "it is paused");
    let line = &list(&["stats", "--no-stream", "--json", "web"])[0];
    assert!(
        line["processes"].is_null() && !line["host_memory_bytes"].is_null(),
        "{line}"
    );
    assert_eq!(user.run(&["resume", "web"]).status, Some(0));
}

/// A table after the other, in place of it on a terminal, until Ctrl-C.
fn stats_go_on(user: &User) {
    let mut stats = piped(user, &["stats", "web"]);
    for _ in 0..2 {
        let head = first_line(&mut stats);
        assert!(head.starts_with("NAME  CPU "), "{head:?}");
        let line = first_line(&mut stats);
        assert!(line.starts_with("web   "), "{line:?}");
    }
    kill_process(Pid::from_child(&stats), Signal::INT).expect("it runs");
    assert_eq!(stats.wait().expect("an end").signal(), Some(2));
    let mut terminal = Session::of(user.hull(&["stats", "web"]));
    let erased = "\x1b[2J\x1b[HNAME  CPU ";
    terminal.wait_for(erased);
    terminal.wait_for(erased);
    terminal.key("\x03");
    terminal.end();
}

fn refusals(user: &User) {
    user.refused(
        &["exec", "other", "true"],
        "no such machine: other; these are running: web",
    );
    assert_eq!(user.run(&["pause", "web"]).status, Some(0));
    user.refused(
        &["exec", "web", "true"],
        "no command can be run in machine web: it is paused; hull resume lets it run again",
    );
    assert_eq!(user.run(&["resume", "web"]).status, Some(0));
    check(user, &["web", "true"], (0, "", ""));
    let spinning = user.spin(&["--name", "flat"]);
    user.refused(
        &["exec", "flat", "true"],
        "its guest is without hull's agent",
    );
    assert_eq!(spinning.terminate(), Some(143));
}

/// `hull cp` there and back, by docker's rules for what becomes what.
fn copies(user: &User) {
    let folder = user.0.path().join("files");
    let at = |path: &str| folder.join(path).display().to_string();
    fs::create_dir_all(folder.join("site/sub")).expect("made");
    let data: Vec<u8> = (0..300_000u32)
        .map(|n| (n.wrapping_mul(n) >> 5) as u8)
        .collect();
    fs::write(folder.join("site/data"), &data).expect("written");
    fs::write(folder.join("site/sub/run"), "echo it runs\n").expect("written");
    let mode = fs::Permissions::from_mode(0o751);
    fs::set_permissions(folder.join("site/sub/run"), mode).expect("set");
    symlink("sub/run", folder.join("site/link")).expect("made");
    let cp = |arguments: &[&str]| {
        let mut all = vec!["cp"];
        all.extend(arguments);
        let done = user.run(&all);
        assert_eq!(
            (done.status, done.stderr.as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    };
    cp(&[&at("site"), "web:/new"]);
    check(user, &["web", "sh", "/new/link"], (0, "it runs\n", ""));
    // A folder that is there gets the source under its name, or what is in it.
    cp(&[&at("site"), "web:/new/"]);
    cp(&[&at("site/."), "web:/new"]);
    check(
        user,
        &["web", "ls", "/new"],
        (0, "data\nlink\nsite\nsub\n", ""),
    );
    archives(user);
    cp(&["web:/new/site", &at("back")]);
    assert!(fs::read(folder.join("back/data")).expect("there") == data);
    assert_eq!(
        fs::read_link(folder.join("back/link"))
            .expect("there")
            .to_str(),
        Some("sub/run")
    );
    let run = fs::metadata(folder.join("back/sub/run")).expect("there");
    assert_eq!(run.permissions().mode() & 0o7777, 0o751);
    let time = |path: &str| fs::metadata(folder.join(path)).expect("there").mtime();
    assert_eq!(time("back/data"), time("site/data"));
    cp(&["web:new/data", &at("back/sub")]);
    assert!(fs::read(folder.join("back/sub/data")).expect("there") == data);
    cp(&["web:/new/data", &at("one")]);
    assert!(fs::read(folder.join("one")).expect("there") == data);
    // What cannot be copied is named.
    check(user, &["web", "mkfifo", "/new/fifo"], (0, "", ""));
    user.refused(
        &["cp", "web:/new/fifo", &at("x")],
        "/new/fifo is neither a file, a folder nor a link",
    );
    user.refused(&["cp", "web:/none", &at("x")], "there is nothing at /none");
    user.refused(&["cp", &at("none"), "web:/x"], "No such file or directory");
    user.refused(
        &["cp", &at("one"), "web:/none/"],
        "there is no folder /none/",
    );
    user.refused(
        &["cp", &at("site"), "web:/new/data"],
        "is a file: a folder cannot be copied to it",
    );
    user.refused(
        &["cp", &at("one"), &at("two")],
        "one of both must be in a machine",
    );
    assert!(!folder.join("x").exists());
}
