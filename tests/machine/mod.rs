//! Starts hull for the tests, as a user does but with a time limit. The KVM is this machine's or, when
//! tests/suite runs them there, the lab's.
#![allow(dead_code)] // each test program uses some of it

pub mod guest_program;
pub mod saving;
pub mod terminal;
pub mod tmux;
pub mod user;
pub mod vsock_program;

use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Time limit of one run; a software KVM on a busy machine is slow.
pub const LIMIT: Duration = Duration::from_secs(200);

/// Status and output of a run that has ended.
pub struct Finished {
    /// `None` after a signal.
    pub status: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Finished {
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[track_caller]
    pub fn assert(&self, status: i32, stdout: &str, stderr: &str) {
        assert_eq!(
            (
                self.status,
                self.stdout_text().as_str(),
                self.stderr.as_str()
            ),
            (Some(status), stdout, stderr)
        );
    }
}

/// Run the program with `input` as its standard input.
pub fn run_with<S: AsRef<OsStr>>(arguments: &[S], input: &[u8]) -> Finished {
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
    hull.args(arguments);
    finish(hull, input)
}

/// Run `hull`, a command of the program's, to its end with `input` as its standard input.
pub fn finish(hull: Command, input: &[u8]) -> Finished {
    let output = assert_cmd::Command::from_std(hull)
        .write_stdin(input)
        .timeout(LIMIT)
        .output()
        .expect("hull starts");
    Finished {
        status: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Run the program without input.
pub fn run<S: AsRef<OsStr>>(arguments: &[S]) -> Finished {
    run_with(arguments, b"")
}

/// Run `hull run FLAGS -- /bin/sh -c SCRIPT`.
pub fn script(flags: &[&str], script: &str) -> Finished {
    let mut arguments = vec!["run"];
    arguments.extend(flags);
    arguments.extend(["--", "/bin/sh", "-c", script]);
    run(&arguments)
}

/// Whether this machine can run guests; prints that `test` is skipped if not, and why.
pub fn kvm(test: &str) -> bool {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &opened {
        println!("skipped: {test}: /dev/kvm: {error}");
    }
    opened.is_ok()
}

/// Whether the tests run in the lab.
pub fn in_lab() -> bool {
    std::env::var_os("HULL_TEST_HOST").is_some_and(|host| host == "lab")
}

/// Whether the tests run in the lab; prints that `test` is skipped if not, and why.
pub fn lab(test: &str, why: &str) -> bool {
    let here = in_lab();
    if !here {
        println!("skipped: {test}: only in the lab ({why})");
    }
    here
}

/// Whether the tests run in the lab; prints that `part` of a test is left out if not, and why.
pub fn lab_also(part: &str, why: &str) -> bool {
    let here = in_lab();
    if !here {
        println!("left out: {part}: only in the lab ({why})");
    }
    here
}

/// The path of a file that `make` has put in target/.
pub fn built(file: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("target")
        .join(file);
    assert!(
        path.exists(),
        "{} is missing: make test-deps build",
        path.display()
    );
    path.display().to_string()
}
