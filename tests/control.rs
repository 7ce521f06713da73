//! `hull pause`, `resume`, `stop` and `ps`.

mod machine;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use machine::kvm;
use machine::user::{Running, User, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Sends one request to a machine's control socket and returns the answer's line.
fn order(user: &User, machine: &str, request: &str) -> String {
    let socket = user.folder().join(machine).join("socket");
    let mut stream = UnixStream::connect(socket).expect("a socket");
    writeln!(stream, "{{\"version\":1,\"request\":{request}}}").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

const CHANGED: &str = "{\"done\":{\"changed\":true}}\n";

fn ps(user: &User) -> Vec<Value> {
    let done = user.run(&["ps", "--json"]);
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
    let list: Value = serde_json::from_str(&done.stdout).expect("JSON");
    list.as_array().expect("a list").clone()
}

fn state(user: &User, machine: &str) -> Value {
    let all = ps(user).into_iter();
    let mut this = all.filter(|line| line["name"] == machine);
    this.next().expect("it runs")["state"].clone()
}

/// A command in a guest that has printed its first line.
struct Talking {
    hull: Running,
    lines: Arc<AtomicU64>,
    rest: JoinHandle<Vec<String>>,
}

impl Talking {
    fn start(user: &User, name: &str, script: &str) -> Self {
        let mut hull = user.hull(&["run", "--name", name, "--", "/bin/sh", "-c", script]);
        let hull = hull.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut hull = Running(hull.spawn().expect("hull starts"));
        let stdout = hull.0.stdout.take().expect("a pipe");
        let lines = Arc::new(AtomicU64::new(0));
        let counted = lines.clone();
        let rest = thread::spawn(move || {
            let all = BufReader::new(stdout).lines().map_while(Result::ok);
            all.inspect(|_| _ = counted.fetch_add(1, Ordering::Relaxed))
                .collect()
        });
        let talking = Self { hull, lines, rest };
        talking.says_more();
        talking
    }

    fn said(&self) -> u64 {
        self.lines.load(Ordering::Relaxed)
    }

    fn says_more(&self) {
        let said = self.said();
        wait_until(|| self.said() > said);
    }

    fn falls_silent(&self) {
        let mut said = self.said();
        wait_until(|| {
            thread::sleep(Duration::from_millis(300));
            std::mem::replace(&mut said, self.said()) == self.said()
        });
    }

    /// Waits for the end: hull's status and all lines.
    fn end(mut self) -> (Option<i32>, Vec<String>) {
        let status = self.hull.0.wait().expect("an end").code();
        (status, self.rest.join().expect("lines"))
    }
}

#[test]
fn a_command_is_paused_and_resumed_a_thousand_times_and_then_stopped() {
    if !kvm("pause a command") {
        return;
    }
    let user = User::new();
    let script = "trap 'echo bye; exit 3' TERM
        i=0; while :; do i=$((i+1)); echo $i; done";
    let talking = Talking::start(&user, "counts", script);
    for _ in 0..1000 {
        assert_eq!(order(&user, "counts", "\"pause\""), CHANGED);
        assert_eq!(order(&user, "counts", "\"resume\""), CHANGED);
    }
    talking.says_more();
    user.named(&["pause", "counts"]);
    assert_eq!(state(&user, "counts"), "paused");
    talking.falls_silent();
    let done = user.run(&["pause", "counts"]);
    let twice = (done.status, done.stderr.as_str());
    assert_eq!(twice, (Some(0), "hull: counts is paused already\n"));
    user.named(&["resume", "counts"]);
    talking.says_more();
    let done = user.run(&["resume", "--all"]);
    let twice = (done.status, done.stderr.as_str());
    assert_eq!(twice, (Some(0), "hull: counts runs already\n"));

    // Stopping resumes a paused machine.
    user.named(&["pause", "counts"]);
    user.named(&["stop", "--timeout", "100", "counts"]);
    let (status, mut lines) = talking.end();
    assert_eq!(status, Some(3));
    assert_eq!(lines.pop().as_deref(), Some("bye"));
    let all = lines.iter().zip(1u64..);
    for (line, number) in all {
        assert_eq!(*line, number.to_string(), "nothing is lost or said twice");
    }
    assert!(!user.folder().exists());
}

#[test]
fn a_command_that_ignores_signals_is_killed_for_every_waiting_stop() {
    if !kvm("stop a command") {
        return;
    }
    let user = User::new();
    let talking = Talking::start(&user, "deaf", "trap '' TERM; echo up; while :; do :; done");
    let patient = user
        .hull(&["stop", "--timeout", "1000", "deaf"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("hull starts");
    let done = user.run(&["stop", "--timeout", "1", "deaf"]);
    assert_eq!(done.status, Some(0));
    assert!(
        done.stderr.starts_with("hull: deaf: killed after "),
        "{}",
        done.stderr
    );
    // If it came after the other, the machine had already ended.
    let patient = patient.wait_with_output().expect("an end");
    let told = String::from_utf8_lossy(&patient.stderr);
    assert!(
        (patient.status.code() == Some(0) && (told.is_empty() || told.contains("killed after")))
            || told.contains("no such machine: deaf"),
        "{told}"
    );
    assert_eq!(talking.end(), (Some(137), vec!["up".into()]));
    assert!(!user.folder().exists());
}

#[test]
fn machines_are_listed_and_each_gets_its_own_requests() {
    if !kvm("list machines") {
        return;
    }
    let user = User::new();
    let done = user.run(&["ps"]);
    let none = (done.status, done.stdout.as_str(), done.stderr.as_str());
    assert_eq!(none, (Some(0), "", "hull: no machine is running\n"));
    assert_eq!(user.run(&["ps", "--json"]).stdout, "[]\n");
    let done = user.run(&["stop", "--all"]);
    assert_eq!(
        (done.status, done.stderr.as_str()),
        (Some(0), "hull: no machine is running\n")
    );
    user.refused(
        &["resume", "nobody"],
        "error: no such machine: nobody; none is running\n",
    );

    let mut one = user.spin(&["--name", "one", "--cpus", "2", "--memory", "64M"]);
    let mut two = user.spin(&["--name", "two"]);
    // A client that connects and sends nothing delays no other client.
    let socket = user.folder().join("one/socket");
    let mute: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket)).collect();
    let done = user.run(&["pause", "one", "nobody"]);
    assert_eq!((done.status, done.stdout.as_str()), (Some(125), "one\n"));
    let why = "no such machine: nobody; these are running: one (process ";
    assert!(done.stderr.contains(why), "{}", done.stderr);
    drop(mute);
    assert_eq!(
        state(&user, "one"),
        "paused",
        "in spite of the error about another"
    );
    assert_eq!(state(&user, "two"), "running");
    let listed = user.run(&["ps"]).stdout;
    let lines: Vec<Vec<&str>> = listed
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let heads = [
        "NAME", "PID", "STATE", "CPUS", "MEMORY", "RESIDENT", "STATUS",
    ];
    assert_eq!(lines[0], heads);
    let pid = one.0.id().to_string();
    assert_eq!(lines[1][..6], ["one", &pid, "paused", "2", "64", "MiB"]);
    let first = &ps(&user)[0];
    assert_eq!(first["memory_bytes"], 64 << 20);
    assert!(first["resident_bytes"].as_u64() > Some(1 << 20), "{first}");

    let process = Pid::from_child(&two.0);
    kill_process(process, Signal::STOP).expect("it runs");
    assert_eq!(state(&user, "two"), "stopped");
    let message = format!(
        "machine two is stopped, as by Ctrl-Z; `fg` in its shell or kill -CONT {} continues it",
        two.0.id()
    );
    user.refused(&["inspect", "two"], &message);
    kill_process(process, Signal::CONT).expect("it runs");
    assert_eq!(state(&user, "two"), "running");

    // A flat payload ignores the power button.
    let done = user.run(&["stop", "--timeout", "0", "one"]);
    let killed = (done.status, done.stderr.as_str());
    assert_eq!(killed, (Some(0), "hull: one: killed after 0 s\n"));
    assert_eq!(one.0.wait().expect("an end").code(), Some(137));

    // The record of a killed machine is removed automatically.
    kill_process(process, Signal::KILL).expect("it runs");
    two.0.wait().expect("an end");
    assert!(user.folder().join("two").exists());
    assert_eq!(ps(&user), Vec::<Value>::new());
    assert!(!user.folder().join("two").exists());
}

#[test]
fn sigterm_ends_a_paused_machine() {
    if !kvm("SIGTERM to a paused machine") {
        return;
    }
    let user = User::new();
    let hull = user.spin(&["--name", "still"]);
    user.named(&["pause", "still"]);
    assert_eq!(hull.terminate(), Some(143));
}
