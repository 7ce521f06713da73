//! Running machines with a conversation over their streams, snapshots of them, and restored copies.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::user::{Running, User, wait_until};

/// A running hull, with the input and output of its guest.
pub struct Talk {
    pub hull: Running,
    pub stdin: Option<ChildStdin>,
    said: Arc<Mutex<Vec<u8>>>,
    errors: Arc<Mutex<Vec<u8>>>,
}

/// Reads `from` to its end in a thread of its own.
fn collect(mut from: impl Read + Send + 'static) -> Arc<Mutex<Vec<u8>>> {
    let all = Arc::new(Mutex::new(Vec::new()));
    let to = all.clone();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            to.lock().expect("no panic").extend(&buffer[..len]);
        }
    });
    all
}

impl Talk {
    pub fn start(user: &User, arguments: &[&str]) -> Self {
        Self::of(&mut user.hull(arguments))
    }

    pub fn of(hull: &mut Command) -> Self {
        let hull = hull.stdin(Stdio::piped()).stdout(Stdio::piped());
        let hull = hull.stderr(Stdio::piped()).spawn();
        let mut hull = Running(hull.expect("hull starts"));
        Self {
            stdin: hull.0.stdin.take(),
            said: collect(hull.0.stdout.take().expect("a pipe")),
            errors: collect(hull.0.stderr.take().expect("a pipe")),
            hull,
        }
    }

    /// All output of the guest so far.
    pub fn said(&self) -> Vec<u8> {
        self.said.lock().expect("no panic").clone()
    }

    pub fn said_bytes(&self) -> usize {
        self.said.lock().expect("no panic").len()
    }

    /// hull's own messages so far.
    pub fn errors(&self) -> String {
        let errors = self.errors.lock().expect("no panic");
        String::from_utf8_lossy(&errors).into_owned()
    }

    /// Waits for `bytes` bytes of the guest's output and returns all output so far.
    #[track_caller]
    pub fn says(&self, bytes: usize) -> Vec<u8> {
        wait_until(|| {
            let errors = self.errors();
            assert_eq!(errors, "", "hull complains");
            self.said_bytes() >= bytes
        });
        self.said()
    }

    #[track_caller]
    pub fn says_more(&self) {
        self.says(self.said_bytes() + 1);
    }

    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("open");
        stdin.write_all(bytes).expect("hull reads");
        stdin.flush().expect("hull reads");
    }

    /// Runs a command in the guest's shell and returns its output.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> String {
        let before = self.said_bytes();
        self.order(command);
        self.answer(before)
    }

    /// Has the guest's shell run a command and then print an end mark.
    pub fn order(&mut self, command: &str) {
        self.write(format!("{command}\necho =${{x-}}done=\n").as_bytes());
    }

    /// Waits for the end mark and returns the output from `before` up to it.
    #[track_caller]
    pub fn answer(&self, before: usize) -> String {
        let mut found = None;
        wait_until(|| {
            let errors = self.errors();
            assert_eq!(errors, "", "hull complains");
            let said = String::from_utf8_lossy(&self.said()[before..]).into_owned();
            found = said
                .split_once("=done=\n")
                .map(|(text, _)| text.to_string());
            found.is_some()
        });
        found.expect("an answer").trim().into()
    }

    /// Kills hull with SIGKILL.
    pub fn kill(mut self) {
        self.hull.0.kill().expect("it runs");
        self.hull.0.wait().expect("an end");
    }

    /// Ends the shell with `command` and returns hull's status.
    pub fn leave(mut self, command: &str) -> Option<i32> {
        self.write(format!("{command}\n").as_bytes());
        self.hull.0.wait().expect("an end").code()
    }

    /// Ends hull with SIGTERM and returns its status.
    pub fn terminate(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.hull.0), Signal::TERM).expect("it runs");
        self.hull.0.wait().expect("an end").code()
    }

    /// How many open descriptors hull has.
    pub fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.hull.0.id());
        fs::read_dir(folder).expect("it runs").count()
    }
}

impl User {
    /// Saves a machine and returns hull's JSON report.
    #[track_caller]
    pub fn snapshot(&self, machine: &str, dir: &Path, flags: &[&str]) -> Value {
        let mut all = vec!["snapshot", machine, text(dir), "--json"];
        all.extend(flags);
        let done = self.run(&all);
        assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
        serde_json::from_str(&done.stdout).expect("JSON")
    }

    pub fn restore(&self, dir: &Path, flags: &[&str]) -> Talk {
        let mut all = vec!["restore", text(dir)];
        all.extend(flags);
        Talk::start(self, &all)
    }

    #[track_caller]
    pub fn silent(&self, arguments: &[&str]) {
        let done = self.run(arguments);
        let all = (done.status, done.stdout.as_str(), done.stderr.as_str());
        assert_eq!(all, (Some(0), "", ""), "{arguments:?}");
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// The files of a folder with their sizes; a file may disappear meanwhile.
pub fn files(dir: &Path) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(dir).expect("a folder");
    let entries = entries.map(|entry| entry.expect("an entry"));
    let file = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        Some((name, entry.metadata().ok()?.len()))
    };
    entries.filter_map(file).collect()
}

/// How often a test repeats what may fail at any moment: `HULL_SOAK`, or `otherwise`.
pub fn moments(otherwise: usize) -> usize {
    let wanted = std::env::var("HULL_SOAK").ok();
    wanted.map_or(otherwise, |wanted| wanted.parse().expect("a number"))
}

/// A random number below `end`.
pub fn random(end: u64) -> u64 {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).expect("numbers");
    u64::from_le_bytes(bytes) % end
}
