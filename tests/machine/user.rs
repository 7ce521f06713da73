//! A user with several machines, who inspects and controls them.

use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

use super::{LIMIT, built};

/// A user with a separate runtime folder, which holds the records of machines.
pub struct User(pub tempfile::TempDir);

/// A user who is not root.
pub const NOBODY: u32 = 65534;

/// Status and output of a command that has ended.
pub struct Done {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl User {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub fn hull(&self, arguments: &[&str]) -> Command {
        let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
        hull.args(arguments).env("XDG_RUNTIME_DIR", self.0.path());
        hull.env("XDG_STATE_HOME", self.0.path().join("state"));
        hull
    }

    pub fn run(&self, arguments: &[&str]) -> Done {
        let output = self.hull(arguments).stdin(Stdio::null()).output();
        let output = output.expect("hull starts");
        Done {
            status: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The output of `hull inspect MACHINE ARGUMENTS --json`.
    #[track_caller]
    pub fn inspect(&self, machine: &str, arguments: &[&str]) -> Value {
        let mut all = vec!["inspect", machine, "--json"];
        all.extend(arguments);
        let done = self.run(&all);
        assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
        serde_json::from_str(&done.stdout).expect("JSON")
    }

    #[track_caller]
    pub fn refused(&self, arguments: &[&str], message: &str) {
        let done = self.run(arguments);
        assert!(done.stderr.contains(message), "{}", done.stderr);
        assert_eq!((done.status, done.stdout.as_str()), (Some(125), ""));
    }

    /// hull succeeds and prints the name of the machine, the last argument, alone.
    #[track_caller]
    pub fn named(&self, arguments: &[&str]) {
        let done = self.run(arguments);
        let all = (done.status, done.stdout.as_str(), done.stderr.as_str());
        let name = format!("{}\n", arguments.last().expect("a name"));
        assert_eq!(all, (Some(0), &*name, ""), "{arguments:?}");
    }

    /// Starts a payload that never ends and waits until it can be inspected.
    pub fn spin(&self, flags: &[&str]) -> Running {
        let payload = built("guest/payloads/spin.bin");
        let mut arguments = vec!["run", &payload];
        arguments.extend(flags);
        let mut hull = self.hull(&arguments);
        let hull = hull.stdin(Stdio::null()).stdout(Stdio::null());
        let running = Running(hull.spawn().expect("hull starts"));
        let pid = running.0.id().to_string();
        wait_until(|| self.run(&["inspect", &pid]).status == Some(0));
        running
    }

    /// A shell that runs `script` as `uid`, who may use /dev/kvm and owns the folder. It takes root, unless
    /// `uid` is this user.
    pub fn shell_of(&self, uid: u32, script: &str) -> Command {
        let mut shell = Command::new("sh");
        if uid == geteuid().as_raw() {
            shell.args(["-c", script]);
        } else {
            chown(self.0.path(), Some(uid), Some(uid)).expect("its folder");
            let node = self.0.path().join("kvm").display().to_string();
            let as_user = format!(
                "set -e; mount --make-rprivate /; [ -e {node} ] || mknod {node} c 10 232; chmod 666 {node}
                 mount --bind {node} /dev/kvm
                 exec setpriv --reuid {uid} --regid {uid} --clear-groups sh -c '{script}'"
            );
            shell = Command::new("unshare");
            shell.args(["-m", "sh", "-c", &as_user]);
        }
        shell.env("XDG_RUNTIME_DIR", self.0.path());
        shell
    }

    pub fn folder(&self) -> PathBuf {
        self.0.path().join("hull")
    }
}

/// A running hull, killed when a test fails.
pub struct Running(pub Child);

impl Running {
    /// Ends hull with SIGTERM and returns its status.
    pub fn terminate(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.0), Signal::TERM).expect("it runs");
        self.0.wait().expect("an end").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn wait_until(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "never");
        thread::sleep(Duration::from_millis(20));
    }
}
