//! `hull pool`, and how `hull run` uses it.

mod machine;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use machine::kvm;
use machine::terminal::Session;
use machine::user::{Running, User, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Starts a pool and waits until it is full.
fn pool(user: &User, flags: &[&str]) -> Running {
    let mut hull = user.hull(&["pool"]);
    hull.args(flags).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut pool = Running(hull.spawn().expect("hull starts"));
    let mut line = String::new();
    let stdout = pool.0.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    assert!(line.ends_with(" ready\n"), "{line:?}");
    pool
}

fn ps(user: &User) -> Vec<Value> {
    let done = user.run(&["ps", "--json"]);
    let list: Value = serde_json::from_str(&done.stdout).expect("JSON");
    list.as_array().expect("a list").clone()
}

/// Process ids of the machines in this state.
fn machines(user: &User, state: &str) -> Vec<u64> {
    let all = ps(user).into_iter();
    let these = all.filter(|line| line["state"] == state);
    these
        .map(|line| line["pid"].as_u64().expect("a pid"))
        .collect()
}

/// Whether a process runs; a zombie does not.
fn lives(pid: u64) -> bool {
    let name = std::fs::read(format!("/proc/{pid}/cmdline"));
    name.is_ok_and(|name| !name.is_empty())
}

/// A shell in a guest that reads commands from this test.
struct Shell {
    hull: Running,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn start(user: &User) -> Self {
        let mut hull = user.hull(&["run", "--", "/bin/sh"]);
        hull.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut hull = Running(hull.spawn().expect("hull starts"));
        let input = hull.0.stdin.take().expect("a pipe");
        let output = BufReader::new(hull.0.stdout.take().expect("a pipe"));
        let mut shell = Self {
            hull,
            input,
            output,
        };
        shell.does("echo $((6 * 7))", "42\n");
        shell
    }

    #[track_caller]
    fn does(&mut self, command: &str, says: &str) {
        writeln!(self.input, "{command}").expect("typed");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("a line");
        assert_eq!(line, says);
    }

    /// Ends the shell with `command`: its status and the rest of its output.
    fn end(mut self, command: &str) -> (Option<i32>, String) {
        writeln!(self.input, "{command}").expect("typed");
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).expect("text");
        (self.hull.0.wait().expect("an end").code(), rest)
    }
}

fn with_input(mut hull: Command, input: &[u8]) -> (Option<i32>, String, String) {
    for set in [Command::stdin, Command::stdout, Command::stderr] {
        set(&mut hull, Stdio::piped());
    }
    let mut hull: Child = hull.spawn().expect("hull starts");
    let mut stdin = hull.stdin.take().expect("a pipe");
    stdin.write_all(input).expect("written");
    drop(stdin);
    let output = hull.wait_with_output().expect("an end");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_command_runs_in_a_ready_machine_as_in_a_new_one() {
    if !kvm("pool") {
        return;
    }
    let user = User::new();
    let pool = pool(&user, &["1"]);
    let script = "cat; echo to stderr >&2; exit 7";
    let hull = || user.hull(&["run", "--", "/bin/sh", "-c", script]);
    let wanted = (Some(7), "in\n".into(), "to stderr\n".into());
    for _ in 0..2 {
        let first = machines(&user, "ready");
        assert_eq!(first.len(), 1);
        assert_eq!(with_input(hull(), b"in\n"), wanted);
        wait_until(|| machines(&user, "ready").len() == 1);
        wait_until(|| !lives(first[0])); // it had the command
    }
    // A machine of another shape, and a command that does not exist.
    let ready = machines(&user, "ready");
    let done = user.run(&["run", "--memory", "256M", "--", "/bin/echo", "larger"]);
    assert_eq!((done.status, done.stdout.as_str()), (Some(0), "larger\n"));
    assert_eq!(machines(&user, "ready"), ready);
    let done = user.run(&["run", "--", "/no/such"]);
    assert_eq!((done.status, done.stdout.as_str()), (Some(127), ""));
    assert!(done.stderr.contains("/no/such"), "{}", done.stderr);

    wait_until(|| machines(&user, "ready").len() == 1);
    assert_eq!(pool.terminate(), Some(0));
    assert!(!user.folder().exists());
    assert_eq!(with_input(hull(), b"in\n"), wanted, "without a pool");
}

#[test]
fn a_machine_ends_with_the_run_that_uses_it() {
    if !kvm("customers of a pool") {
        return;
    }
    let user = User::new();
    let pool = pool(&user, &["1"]);
    let first = machines(&user, "ready");
    let mut shell = Shell::start(&user);
    assert_eq!(machines(&user, "running"), first);
    // While the pool cannot make a machine, the next run boots one itself.
    let stop = |signal| kill_process(Pid::from_child(&pool.0), signal).expect("it runs");
    wait_until(|| machines(&user, "ready").len() == 1);
    stop(Signal::STOP);
    let second = machines(&user, "ready");
    let mut other = Shell::start(&user);
    let done = user.run(&["run", "--", "/bin/echo", "alone"]);
    assert_eq!((done.status, done.stdout.as_str()), (Some(0), "alone\n"));
    assert_eq!(done.stderr, "");
    stop(Signal::CONT);

    // Signals reach the command.
    shell.does("trap 'echo caught; exit 3' TERM; echo set", "set\n");
    kill_process(Pid::from_child(&shell.hull.0), Signal::TERM).expect("it runs");
    assert_eq!(
        shell.end("while :; do :; done"),
        (Some(3), "caught\n".into())
    );
    // The machine of a killed run ends, too.
    assert!(lives(second[0]));
    other.hull.0.kill().expect("it runs");
    wait_until(|| !ps(&user).iter().any(|line| line["pid"] == second[0]));

    // A machine that runs a command outlives the pool.
    wait_until(|| machines(&user, "ready").len() == 1);
    let mut shell = Shell::start(&user);
    assert_eq!(pool.terminate(), Some(0));
    shell.does("echo still here", "still here\n");
    assert_eq!(shell.end("exit 5"), (Some(5), String::new()));
    wait_until(|| !user.folder().exists());
}

#[test]
fn the_ready_machines_of_a_killed_pool_end() {
    if !kvm("kill a pool") {
        return;
    }
    let user = User::new();
    let mut pool = pool(&user, &["2"]);
    let ready = machines(&user, "ready");
    assert_eq!(ready.len(), 2);
    let refused = user.run(&["pause", &ready[0].to_string()]);
    assert_eq!(refused.status, Some(125));
    assert!(
        refused.stderr.contains("waits in a pool"),
        "{}",
        refused.stderr
    );
    // A stopped machine is replaced.
    let stopped = user.run(&["stop", &ready[0].to_string()]);
    assert_eq!((stopped.status, stopped.stderr.as_str()), (Some(0), ""));
    wait_until(|| {
        let now = machines(&user, "ready");
        now.len() == 2 && !now.contains(&ready[0])
    });
    pool.0.kill().expect("it runs");
    wait_until(|| !user.folder().exists());
    wait_until(|| !lives(ready[1]));
}

#[test]
fn a_shell_in_a_ready_machine_has_the_terminal_of_its_run() {
    if !kvm("a shell of a pool") {
        return;
    }
    let user = User::new();
    let pool = pool(&user, &["1"]);
    let ready = machines(&user, "ready");
    let mut shell = Session::of(user.hull(&["run"]));
    shell.wait_for("# ");
    assert!(shell.is_raw());
    assert_eq!(machines(&user, "running"), ready);
    shell.key("stty size; echo $TERM\r");
    shell.wait_for("30 101\r\nvt100\r\n");
    machine::terminal::resize(&shell.terminal, 25, 80);
    shell.key("while [ \"$(stty size)\" != '25 80' ]; do :; done; echo re''sized\r");
    shell.wait_for("resized");
    shell.key("\x01h");
    shell.wait_for("Ctrl-A x");
    shell.key("exit 7\r");
    assert_eq!(shell.end(), Some(7));
    assert_eq!(pool.terminate(), Some(0));
}

#[test]
fn an_impossible_pool_is_refused_with_the_reason() {
    let user = User::new();
    user.refused(&["pool", "0"], "0 is not in 1..=1000");
    user.refused(&["pool", "1", "/no/such/kernel"], "/no/such/kernel");
    let off = user.hull(&["pool", "1"]).env("HULL_CACHE", "off").output();
    let off = off.expect("hull starts");
    assert_eq!(off.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&off.stderr).contains("HULL_CACHE=off"));
}
