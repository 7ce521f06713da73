//! Machines in the background: `hull run -d`, and what takes them from there.

mod machine;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use machine::kvm;
use machine::terminal::Session;
use machine::user::{Done, User, wait_until};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

#[track_caller]
fn ok(user: &User, arguments: &[&str]) -> String {
    let done = user.run(arguments);
    assert_eq!(
        (done.status, done.stderr.as_str()),
        (Some(0), ""),
        "{arguments:?}"
    );
    done.stdout
}

/// `hull run -d --name NAME FLAGS -- sh -c SCRIPT`.
fn start(user: &User, name: &str, flags: &[&str], script: &str) -> Done {
    let mut arguments = vec!["run", "-d", "--name", name];
    arguments.extend(flags);
    arguments.extend(["--", "sh", "-c", script]);
    user.run(&arguments)
}

/// The state of a machine in `hull ps -a`.
fn state(user: &User, name: &str) -> Option<String> {
    let list: Value = serde_json::from_str(&ok(user, &["ps", "-a", "--json"])).expect("JSON");
    let mut lines = list.as_array().expect("a list").iter();
    let line = lines.find(|line| line["name"] == name)?;
    Some(line["state"].as_str().expect("text").into())
}

#[test]
fn a_machine_in_the_background_is_named_logged_and_removed() {
    if !kvm("life") {
        return;
    }
    let user = User::new();
    let script = "trap 'echo bye >&2; exit 3' TERM; trap 'echo hup' HUP
        echo up; echo warned >&2; printf half; while :; do sleep 1000 & wait; done";
    let started = start(&user, "web", &[], script);
    assert_eq!(
        (started.status, started.stdout.as_str()),
        (Some(0), "web\n"),
        "{}",
        started.stderr
    );
    let logs = || user.run(&["logs", "web"]);
    wait_until(|| logs().stderr == "warned\n");
    wait_until(|| logs().stdout == "up\n");
    assert_eq!(ok(&user, &["exec", "web", "echo", "in it"]), "in it\n");
    assert_eq!(state(&user, "web").as_deref(), Some("running"));
    let taken = start(&user, "web", &[], "true");
    assert_eq!(taken.status, Some(125));
    assert!(
        taken
            .stderr
            .contains("the machine name \"web\" is already in use"),
        "{}",
        taken.stderr
    );
    user.refused(
        &["rm", "web"],
        "machine web is running; hull stop web first",
    );
    let attached = attach(&user);
    // A reader that follows ends with the machine, and so does one that waits.
    let follow = user
        .hull(&["logs", "-f", "web"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let follow = follow.expect("hull starts");
    let wait = user
        .hull(&["wait", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("hull starts");
    assert_eq!(ok(&user, &["kill", "-s", "HUP", "web"]), "web\n");
    wait_until(|| logs().stdout == "up\nhalfhup\n");
    signals_reach_it(&user, &attached);
    assert_eq!(ok(&user, &["stop", "web"]), "web\n");
    assert_eq!(state(&user, "web").as_deref(), Some("exited (3)"));
    for one in attached {
        let output = one.wait_with_output().expect("an end");
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stdout, b"hup\nhup\n");
        assert_eq!(output.stderr, b"bye\n");
    }
    let waited = wait.wait_with_output().expect("an end");
    assert_eq!(waited.stdout, b"3\n");
    let followed = follow.wait_with_output().expect("an end");
    assert_eq!(followed.stdout, b"up\nhalfhup\nhup\n");
    assert_eq!(followed.stderr, b"warned\nbye\n");
    user.refused(
        &["exec", "web", "true"],
        "machine web is not running: it ended with status 3",
    );
    user.refused(
        &["attach", "web"],
        "you cannot attach to a stopped machine: machine web is not running: it ended with status 3",
    );
    user.refused(
        &["attach", "none"],
        "no such machine in the background: none",
    );
    happened(&user);
    logs_are_read(&user);
    begins_again(&user);
    failures(&user);
    journal(&user);
    is_rotated_and_survives_kills(&user);
}

/// What happened so far, as lines of time, action and the rest.
fn events(user: &User, filter: &str) -> Vec<String> {
    let text = ok(
        user,
        &["events", "--since", "1h", "--until", "0s", "-f", filter],
    );
    let lines = text.lines().map(|line| {
        let (time, rest) = line.split_once(' ').expect("a time");
        assert!(time.starts_with("20") && time.ends_with('Z'), "{line}");
        rest.to_string()
    });
    lines.collect()
}

/// Two that see what machine web writes; a third is refused while it is paused, a fourth is killed.
fn attach(user: &User) -> Vec<Child> {
    let spawn = || {
        let mut hull = user.hull(&["attach", "web"]);
        hull.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        hull.spawn().expect("hull starts")
    };
    let attached = vec![spawn(), spawn()];
    let mut killed = spawn();
    wait_until(|| events(user, "action=attach").len() == 3);
    killed.kill().expect("it runs");
    killed.wait().expect("an end");
    assert_eq!(ok(user, &["pause", "web"]), "web\n");
    user.refused(&["attach", "web"], "you cannot attach to a paused machine");
    assert_eq!(ok(user, &["resume", "web"]), "web\n");
    attached
}

/// A signal to one that is attached is the command's, unless that is not wanted.
fn signals_reach_it(user: &User, attached: &[Child]) {
    let mut hull = user.hull(&["attach", "--sig-proxy=false", "web"]);
    hull.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut left = hull.spawn().expect("hull starts");
    wait_until(|| events(user, "action=attach").len() == 4);
    kill_process(Pid::from_child(&left), Signal::HUP).expect("it runs");
    let status = left.wait().expect("an end");
    assert_eq!(
        status.code().or_else(|| Some(128 + status.signal()?)),
        Some(129)
    );
    assert_eq!(user.run(&["logs", "web"]).stdout, "up\nhalfhup\n");
    let first = attached.first().expect("one");
    kill_process(Pid::from_child(first), Signal::HUP).expect("it runs");
    wait_until(|| user.run(&["logs", "web"]).stdout == "up\nhalfhup\nhup\n");
}

fn happened(user: &User) {
    let all = events(user, "name=web");
    for expected in [
        "create web",
        "start web",
        "exec web (command=echo in it)",
        "pause web",
        "unpause web",
        "kill web (signal=1)",
        "die web (exitCode=3)",
        "stop web",
    ] {
        assert!(
            all.iter().any(|line| line == expected),
            "{expected}: {all:?}"
        );
    }
    assert_eq!(events(user, "name=nobody"), Vec::<String>::new());
    let both = [
        "events",
        "--since",
        "1h",
        "--until",
        "0s",
        "-f",
        "name=web",
        "-f",
        "action=die",
        "--json",
    ];
    let one: Value = serde_json::from_str(&ok(user, &both)).expect("one line");
    assert_eq!(one["attributes"]["exitCode"], "3");
}

#[test]
fn a_terminal_in_the_background_is_attached_and_left() {
    if !kvm("life") {
        return;
    }
    let user = User::new();
    assert_eq!(
        ok(
            &user,
            &["run", "-dit", "--rm", "--name", "shell", "--", "sh"]
        ),
        "shell\n"
    );
    user.refused(&["attach", "shell"], "the input device is not a TTY");
    let mut first = Session::of(user.hull(&["attach", "shell"]));
    first.key("echo $((6 * 7))\n");
    first.wait_for("42\r\n");
    first.key("stty size\n");
    first.wait_for("30 101\r\n");
    // Both see what is typed in one; hull's own key is the guest's there.
    let mut second = Session::of(user.hull(&["attach", "--detach-keys", "ctrl-x,q", "shell"]));
    wait_until(|| events(&user, "action=attach").len() == 2);
    second.key("cho o'n'e\x01e\n");
    second.wait_for("one\r\n");
    first.wait_for("one\r\n");
    first.key("\x10\x11");
    first.wait_for("read escape sequence");
    assert_eq!(first.end(), Some(0));
    second.key("\x18q");
    assert_eq!(second.end(), Some(0));
    assert_eq!(state(&user, "shell").as_deref(), Some("running"));
    assert!(ok(&user, &["logs", "shell"]).contains("42\r\n"));
    let only_seen = user
        .hull(&["attach", "--no-stdin", "shell"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("hull starts");
    let mut third = Session::of(user.hull(&["attach", "shell"]));
    wait_until(|| events(&user, "action=attach").len() == 4);
    let wait = user.hull(&["wait", "shell"]).stdout(Stdio::piped()).spawn();
    let wait = wait.expect("hull starts");
    wait_until(|| has_open(&wait, "shell"));
    third.key("exit 5\n");
    assert_eq!(third.end(), Some(5));
    let seen = only_seen.wait_with_output().expect("an end");
    assert_eq!(seen.status.code(), Some(5));
    assert!(String::from_utf8_lossy(&seen.stdout).contains("exit 5"));
    // Though its folder has gone.
    let waited = wait.wait_with_output().expect("an end");
    assert_eq!(waited.stdout, b"5\n");
    wait_until(|| state(&user, "shell").is_none());
    // Without a terminal: pipes.
    assert_eq!(
        ok(&user, &["run", "-di", "--rm", "--name", "cat", "--", "cat"]),
        "cat\n"
    );
    let cat = user
        .hull(&["attach", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut cat = cat.expect("hull starts");
    let mut typed = cat.stdin.take().expect("a pipe");
    typed.write_all(b"typed\n").expect("written");
    let mut line = [0; 6];
    cat.stdout
        .as_mut()
        .expect("a pipe")
        .read_exact(&mut line)
        .expect("a line");
    assert_eq!(&line, b"typed\n");
    // Its end is not the command's, which others may type to.
    drop(typed);
    assert_eq!(ok(&user, &["kill", "cat"]), "cat\n");
    assert_eq!(cat.wait().expect("an end").code(), Some(137));
    wait_until(|| state(&user, "cat").is_none());
}

fn logs_are_read(user: &User) {
    let tail = user.run(&["logs", "--tail", "1", "web"]);
    assert_eq!((tail.stdout.as_str(), tail.stderr.as_str()), ("", "bye\n"));
    let none = user.run(&["logs", "--since", "2100-01-01T00:00:00Z", "web"]);
    assert_eq!(
        (none.status, none.stdout.as_str(), none.stderr.as_str()),
        (Some(0), "", "")
    );
    let none = user.run(&["logs", "--until", "2000-01-01T00:00:00Z", "web"]);
    assert_eq!((none.stdout.as_str(), none.stderr.as_str()), ("", ""));
    let timed = user.run(&["logs", "-t", "--since", "1h", "web"]);
    let first = timed.stdout.lines().next().expect("a line");
    let (time, text) = first.split_once(' ').expect("a time");
    assert!(
        time.starts_with("20") && time.ends_with('Z') && text == "up",
        "{first}"
    );
    let file = user.0.path().join("state/hull/web/log");
    for line in fs::read_to_string(file).expect("there").lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert!(line["log"].is_string() && line["time"].is_string() && line["stream"].is_string());
    }
}

/// Whether `child` has found the machine.
fn has_open(child: &Child, machine: &str) -> bool {
    let files = fs::read_dir(format!("/proc/{}/fd", child.id())).expect("it runs");
    let mut files = files
        .flatten()
        .filter_map(|it| fs::read_link(it.path()).ok());
    files.any(|path| path.ends_with(std::path::Path::new("state/hull").join(machine)))
}

fn begins_again(user: &User) {
    assert_eq!(ok(user, &["restart", "web"]), "web\n");
    wait_until(|| user.run(&["logs", "web"]).stdout == "up\nhalfhup\nhup\nup\n");
    let follow = user
        .hull(&["logs", "-f", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("hull starts");
    let wait = user
        .hull(&["wait", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("hull starts");
    wait_until(|| has_open(&follow, "web") && has_open(&wait, "web"));
    // It has another name, and everything finds it there.
    assert_eq!(ok(user, &["rename", "web", "renamed"]), "");
    assert_eq!(state(user, "web"), None);
    assert_eq!(state(user, "renamed").as_deref(), Some("running"));
    assert_eq!(ok(user, &["exec", "renamed", "echo", "in it"]), "in it\n");
    assert_eq!(ok(user, &["kill", "-s", "HUP", "renamed"]), "renamed\n");
    wait_until(|| user.run(&["logs", "renamed"]).stdout == "up\nhalfhup\nhup\nup\nhalfhup\n");
    assert_eq!(ok(user, &["kill", "renamed"]), "renamed\n");
    assert_eq!(ok(user, &["wait", "renamed"]), "137\n");
    // Those that had found it before have followed it.
    let waited = wait.wait_with_output().expect("an end");
    assert_eq!(waited.stdout, b"137\n");
    let followed = follow.wait_with_output().expect("an end");
    assert_eq!(followed.stdout, b"up\nhalfhup\nhup\nup\nhalfhup\n");
    let all = events(user, "name=renamed");
    assert!(
        all.contains(&"die renamed (exitCode=137)".into()),
        "{all:?}"
    );
    assert_eq!(start(user, "other", &[], "exit 0").status, Some(0));
    assert_eq!(ok(user, &["wait", "other"]), "0\n");
    user.refused(
        &["rename", "renamed", "other"],
        "the machine name \"other\" is already in use",
    );
    user.refused(
        &["rename", "none", "more"],
        "no such machine in the background: none",
    );
    assert_eq!(ok(user, &["rm", "other"]), "other\n");
    assert_eq!(ok(user, &["rename", "renamed", "other"]), "");
    assert_eq!(state(user, "web"), None);
    assert_eq!(state(user, "other").as_deref(), Some("exited (137)"));
    assert_eq!(ok(user, &["rm", "other"]), "other\n");
    assert_eq!(state(user, "other"), None);
    user.refused(
        &["logs", "other"],
        "no such machine in the background: other",
    );
}

/// A failed start is told where it was made, and leaves nothing.
fn failures(user: &User) {
    let missing = user.run(&["run", "-d", "--name", "bad", "--", "/no/such/program"]);
    assert_eq!((missing.status, missing.stdout.as_str()), (Some(127), ""));
    assert!(
        missing.stderr.contains("is not in the guest"),
        "{}",
        missing.stderr
    );
    let flag = user.run(&[
        "run",
        "-d",
        "--name",
        "bad",
        "--disk",
        "/no/such/image",
        "--",
        "true",
    ]);
    assert_eq!((flag.status, flag.stdout.as_str()), (Some(125), ""));
    assert!(flag.stderr.contains("/no/such/image"), "{}", flag.stderr);
    assert_eq!(state(user, "bad"), None);
    for flags in [["run", "--stop-signal", "WINNER"], ["kill", "-s", "0"]] {
        user.refused(&[&flags[..], &["web"]].concat(), "unknown signal");
    }
    // One that is not to be kept.
    assert_eq!(start(user, "brief", &["--rm"], "exit 4").stdout, "brief\n");
    // Its record goes before the rest of its folder.
    wait_until(|| !user.0.path().join("state/hull/brief").exists());
    assert_eq!(state(user, "brief"), None);
}

/// A socket of the test stands for the journal's, by its native protocol.
fn journal(user: &User) {
    if !geteuid().is_root() {
        println!("left out: journald: only root may mount a socket in place of the journal's");
        return;
    }
    let run = user.0.path().join("run");
    fs::create_dir_all(run.join("systemd/journal")).expect("made");
    let socket = UnixDatagram::bind(run.join("systemd/journal/socket")).expect("a socket");
    socket.set_read_timeout(Some(machine::LIMIT)).expect("set");
    let hull = env!("CARGO_BIN_EXE_hull");
    let script = format!(
        "mount --make-rprivate / && mount --bind {} /run && exec {hull} run -d --rm --name jay \
         --log-driver journald -- sh -c 'echo to the journal; echo wrong >&2'",
        run.display()
    );
    let as_user = user.hull(&[]);
    let mut shell = Command::new("unshare");
    shell.args(["-m", "sh", "-c", &script]);
    shell.envs(
        as_user
            .get_envs()
            .filter_map(|(key, value)| Some((key, value?))),
    );
    let started = shell.stdin(Stdio::null()).output().expect("unshare starts");
    let errors = String::from_utf8_lossy(&started.stderr);
    assert_eq!((started.status.code(), &*errors), (Some(0), ""));
    let mut entries: Vec<String> = (0..2)
        .map(|_| {
            let mut bytes = [0; 1024];
            let len = socket.recv(&mut bytes).expect("an entry");
            String::from_utf8_lossy(&bytes[..len]).into_owned()
        })
        .collect();
    entries.sort();
    let entry = |priority, text| {
        format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=hull\nCONTAINER_NAME=jay\nMESSAGE={text}\n")
    };
    assert_eq!(entries, [entry(3, "wrong"), entry(6, "to the journal")]);
    wait_until(|| state(user, "jay").is_none());
}

/// Whole lines, whatever is killed, and no more files than were asked for.
fn is_rotated_and_survives_kills(user: &User) {
    let flags = ["--log-opt", "max-size=20K", "--log-opt", "max-file=3"];
    let script = "i=0; while :; do i=$((i+1)); echo line $i; done";
    assert_eq!(start(user, "busy", &flags, script).status, Some(0));
    let folder = user.0.path().join("state/hull/busy");
    wait_until(|| folder.join("log.2").exists());
    let list: Value = serde_json::from_str(&ok(user, &["ps", "--json"])).expect("JSON");
    let mut lines = list.as_array().expect("a list").iter();
    let busy = lines.find(|line| line["name"] == "busy").expect("it runs");
    let hull = busy["pid"]
        .as_i64()
        .and_then(|pid| Pid::from_raw(pid as i32))
        .expect("a pid");
    kill_process(hull, Signal::KILL).expect("it runs");
    assert_eq!(ok(user, &["wait", "busy"]), "137\n");
    let names = fs::read_dir(&folder).expect("there").flatten();
    let parts = names.filter(|entry| entry.file_name().to_string_lossy().starts_with("log"));
    let parts: Vec<_> = parts.map(|entry| entry.path()).collect();
    assert_eq!(parts.len(), 3, "{parts:?}");
    for part in parts {
        let text = fs::read_to_string(&part).expect("there");
        assert!(
            text.len() <= 20 << 10 && text.ends_with("}\n"),
            "{}",
            part.display()
        );
    }
    let shown = ok(user, &["logs", "busy"]);
    // Only the last may have been cut, in hull.
    let (whole, _) = shown.rsplit_once('\n').expect("lines");
    let number = |line: &str| {
        line.strip_prefix("line ")
            .and_then(|number| number.parse().ok())
    };
    let numbers: Vec<u64> = whole
        .lines()
        .map(|line| number(line).expect("a line"))
        .collect();
    assert!(
        numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "none is missing"
    );
    assert_eq!(ok(user, &["rm", "busy"]), "busy\n");
}
