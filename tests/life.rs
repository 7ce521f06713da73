//! Machines in the background: `hull run -d`, and what takes them from there.

mod machine;

use std::fs;
use std::process::Stdio;

use machine::kvm;
use machine::user::{Done, User, wait_until};
use rustix::process::{Pid, Signal, kill_process};
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
        taken.stderr.contains("machine web exists already"),
        "{}",
        taken.stderr
    );
    user.refused(&["rm", "web"], "machine web runs; hull stop web first");
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
    assert_eq!(ok(&user, &["kill", "-s", "HUP", "web"]), "");
    wait_until(|| logs().stdout == "up\nhalfhup\n");
    assert_eq!(ok(&user, &["stop", "web"]), "");
    let waited = wait.wait_with_output().expect("an end");
    assert_eq!(waited.stdout, b"3\n");
    let followed = follow.wait_with_output().expect("an end");
    assert_eq!(followed.stdout, b"up\nhalfhup\n");
    assert_eq!(followed.stderr, b"warned\nbye\n");
    assert_eq!(state(&user, "web").as_deref(), Some("exited (3)"));
    user.refused(
        &["exec", "web", "true"],
        "machine web has ended, with status 3",
    );
    logs_are_read(&user);
    begins_again(&user);
    failures(&user);
    is_rotated_and_survives_kills(&user);
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

fn begins_again(user: &User) {
    assert_eq!(ok(user, &["restart", "web"]), "web\n");
    wait_until(|| user.run(&["logs", "web"]).stdout == "up\nhalfhup\nup\n");
    user.refused(&["rename", "web", "other"], "machine web runs");
    assert_eq!(ok(user, &["kill", "web"]), "");
    assert_eq!(ok(user, &["wait", "web"]), "137\n");
    assert_eq!(ok(user, &["rename", "web", "other"]), "");
    assert_eq!(state(user, "web"), None);
    assert_eq!(state(user, "other").as_deref(), Some("exited (137)"));
    assert_eq!(ok(user, &["rm", "other"]), "");
    assert_eq!(state(user, "other"), None);
    user.refused(
        &["logs", "other"],
        "no machine other was started in the background",
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
    // One that is not to be kept.
    assert_eq!(start(user, "brief", &["--rm"], "exit 4").stdout, "brief\n");
    wait_until(|| state(user, "brief").is_none());
    assert!(!user.0.path().join("state/hull/brief").exists());
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
    assert_eq!(ok(user, &["rm", "busy"]), "");
}
