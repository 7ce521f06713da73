//! One run of a command: when its first byte came, when it ended, how much CPU time it and its children took.
//!
//! The clock starts right before the child is created (fork, exec) and stops when its output is closed and
//! it was waited for. The command has its own process group, which is killed when a limit is reached and
//! when the command has ended.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

use super::error::RunError;
use super::stop::{POLL_INTERVAL, is_stopped};
use super::stream::Stream;

/// Bytes on standard output, after which a command is killed.
const MAX_OUTPUT: usize = 1 << 20;
/// Interval at which a socket is tried that does not exist yet.
const CONNECT_INTERVAL: Duration = Duration::from_micros(200);

/// The times of a run that ended with status 0.
#[derive(Clone, Debug)]
pub struct Timed {
    /// From the start to the first byte on standard output; `None` without output.
    pub first_byte: Option<Duration>,
    /// From the start to the last read that returned bytes.
    pub last_byte: Option<Duration>,
    pub end: Duration,
    /// CPU time, user and system, of the command and of all its children that it waited for.
    pub cpu: Duration,
    /// Standard output, without carriage returns, which a serial terminal adds.
    pub output: Vec<u8>,
}

pub fn run(command: &mut Command, timeout: Duration) -> Result<Timed, RunError> {
    Running::start(command, timeout, None)?.finish()
}

/// A running command. Dropping it kills its process group.
pub(crate) struct Running {
    child: Child,
    started: Instant,
    timeout: Duration,
    first_byte: Option<Duration>,
    last_byte: Option<Duration>,
    output: Vec<u8>,
    stderr: std::fs::File,
    /// Whether the process was waited for, so that its number may belong to another.
    waited: bool,
    /// CPU time of all children before the start.
    cpu_before: Duration,
}

impl Running {
    /// Starts `command` with its standard input closed, or with a few bytes of `input` and open.
    pub fn start(
        command: &mut Command,
        timeout: Duration,
        input: Option<&str>,
    ) -> Result<Self, RunError> {
        if is_stopped() {
            return Err(RunError::Stopped);
        }
        let stderr = tempfile::tempfile()?;
        command
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone()?)
            .process_group(0);
        let cpu_before = cpu_of_children()?;
        let started = Instant::now();
        let child = command.spawn().map_err(RunError::Start)?;
        let mut running = Self {
            child,
            started,
            timeout,
            first_byte: None,
            last_byte: None,
            output: Vec::new(),
            stderr,
            waited: false,
            cpu_before,
        };
        if let (Some(stdin), Some(input)) = (&mut running.child.stdin, input) {
            stdin.write_all(input.as_bytes())?;
        }
        Ok(running)
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits until the output contains `text`, and returns the time since the start.
    pub fn until(&mut self, text: &str) -> Result<Duration, RunError> {
        let text = text.as_bytes();
        while !self.output.windows(text.len()).any(|window| window == text) {
            if !self.read()? {
                let (status, _) = self.wait()?;
                return Err(if status.success() {
                    RunError::Output(String::from_utf8_lossy(&self.output).into())
                } else {
                    self.failed(status)
                });
            }
        }
        Ok(self.started.elapsed())
    }

    pub fn finish(mut self) -> Result<Timed, RunError> {
        while self.read()? {}
        let (status, end) = self.wait()?;
        if !status.success() {
            return Err(self.failed(status));
        }
        Ok(Timed {
            first_byte: self.first_byte,
            last_byte: self.last_byte,
            end,
            cpu: cpu_of_children()?.saturating_sub(self.cpu_before),
            output: std::mem::take(&mut self.output),
        })
    }

    /// Sends SIGTERM and waits for the end; any exit status will do.
    pub fn terminate(mut self) -> Result<(), RunError> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).map_err(io::Error::from)?;
        while self.read()? {}
        self.wait().map(drop)
    }

    /// Connects to the command's socket as soon as it exists.
    pub fn connect(&mut self, socket: &Path) -> Result<Stream, RunError> {
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                return Ok(Stream::new(stream, self.timeout)?);
            }
            self.check_alive()?;
            std::thread::sleep(CONNECT_INTERVAL);
        }
    }

    /// Fails if the command has ended or reached its timeout, or the stop flag is set: for loops that wait for
    /// something other than output.
    pub fn check_alive(&mut self) -> Result<(), RunError> {
        self.time_left()?;
        let pid = Pid::from_child(&self.child);
        let end = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?;
        let now = Some(&Timespec::default());
        match poll(&mut [PollFd::new(&end, PollFlags::IN)], now) {
            Ok(1) => {
                let (status, _) = self.wait()?;
                Err(self.failed(status))
            }
            _ => Ok(()),
        }
    }

    fn time_left(&mut self) -> Result<Duration, RunError> {
        if is_stopped() {
            return Err(RunError::Stopped);
        }
        let left = self.timeout.saturating_sub(self.started.elapsed());
        if left.is_zero() {
            return Err(RunError::Hung(self.timeout, self.last_complaint()));
        }
        Ok(left)
    }

    fn failed(&self, status: ExitStatus) -> RunError {
        RunError::Failed(status, self.last_complaint())
    }

    /// Reads more output. Returns false at its end.
    fn read(&mut self) -> Result<bool, RunError> {
        let Some(mut stdout) = self.child.stdout.take() else {
            return Ok(false);
        };
        self.wait_for(&stdout)?;
        let mut buffer = [0; 4096];
        let read = stdout.read(&mut buffer)?;
        if read == 0 {
            return Ok(false);
        }
        self.child.stdout = Some(stdout);
        self.last_byte = Some(self.started.elapsed());
        self.first_byte = self.first_byte.or(self.last_byte);
        self.output
            .extend(buffer[..read].iter().filter(|byte| **byte != b'\r'));
        if self.output.len() > MAX_OUTPUT {
            return Err(RunError::Flooded(MAX_OUTPUT));
        }
        Ok(true)
    }

    /// Waits for a command whose output is closed. Returns its status and the time of its end.
    fn wait(&mut self) -> Result<(ExitStatus, Duration), RunError> {
        let pid = Pid::from_child(&self.child);
        self.wait_for(&pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?)?;
        let end = self.started.elapsed();
        self.kill_group();
        let status = self.child.wait()?;
        self.waited = true;
        Ok((status, end))
    }

    /// Waits until `fd` is readable: there is output, or the process has ended.
    fn wait_for(&mut self, fd: &impl AsFd) -> Result<(), RunError> {
        loop {
            let timeout = self.time_left()?.min(POLL_INTERVAL);
            let timeout = timeout.try_into().map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(RunError::Watch(errno.into())),
            }
        }
    }

    /// Kills the process group. The process was not waited for, so its number is still its own.
    fn kill_group(&self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }

    /// The last line on standard error, at most 300 characters, without control characters.
    fn last_complaint(&self) -> String {
        use std::os::unix::fs::FileExt;
        const MAX_BYTES: u64 = 4096;
        let length = self.stderr.metadata().map_or(0, |file| file.len());
        let mut end = vec![0; MAX_BYTES.min(length) as usize];
        let start = length.saturating_sub(MAX_BYTES);
        let _ = self.stderr.read_exact_at(&mut end, start);
        let text = String::from_utf8_lossy(&end);
        let line = text.lines().rfind(|line| !line.trim().is_empty());
        let line = line.unwrap_or_default().trim();
        line.chars().filter(|c| !c.is_control()).take(300).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.waited {
            self.kill_group();
            let _ = self.child.wait();
        }
    }
}

/// CPU time of all children that were waited for so far.
fn cpu_of_children() -> Result<Duration, RunError> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(io::Error::from)?;
    let of = |time: TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs())
            + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    Ok(of(usage.user_time()) + of(usage.system_time()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const MINUTE: Duration = Duration::from_secs(60);
    const HALF_A_SECOND: Duration = Duration::from_millis(500);

    #[test]
    fn delays_before_output_and_end_are_measured() {
        let timed = run(&mut sh("sleep 0.2; echo hi; sleep 0.3"), MINUTE).expect("ends");
        let first = timed.first_byte.expect("a byte").as_secs_f64();
        assert!(
            first >= 0.2 && first < timed.end.as_secs_f64() - 0.25,
            "{timed:?}"
        );
        assert!(timed.end.as_secs_f64() >= 0.5);
        assert_eq!(timed.output, b"hi\n");
    }

    #[test]
    fn a_silent_command_has_no_first_byte() {
        let timed = run(&mut sh("exit 0"), MINUTE).expect("ends");
        assert_eq!((timed.first_byte, timed.output.len()), (None, 0));
    }

    #[test]
    fn a_hung_command_is_killed_with_its_children() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid = folder.path().join("pid");
        let script = format!(
            "sleep 1000 & echo $! > {}; echo trouble >&2; wait",
            pid.display()
        );
        let error = run(&mut sh(&script), HALF_A_SECOND).expect_err("hangs");
        let expected = "did not end within 0 s and was killed: trouble";
        assert_eq!(error.to_string(), expected);
        let child = std::fs::read_to_string(pid).expect("a number");
        assert_gone(child.trim());
    }

    #[test]
    fn a_background_process_is_killed_at_the_end() {
        let folder = tempfile::tempdir().expect("a folder");
        for (script, timeout) in [
            ("sleep 1000 > /dev/null & echo $! > pid; echo hi", MINUTE),
            ("sleep 1000 & echo $! > pid", HALF_A_SECOND),
        ] {
            let mut command = sh(script);
            let _ = run(command.current_dir(folder.path()), timeout);
            let child = std::fs::read_to_string(folder.path().join("pid")).expect("a number");
            assert_gone(child.trim());
        }
    }

    #[track_caller]
    fn assert_gone(pid: &str) {
        let state = format!("/proc/{pid}/stat");
        let gone = || match std::fs::read_to_string(&state) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !gone() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(gone());
    }

    #[test]
    fn each_way_to_fail_has_its_own_message() {
        let message = |script: &str| {
            let error = run(&mut sh(script), MINUTE).expect_err("no sample");
            error.to_string()
        };
        let flooded = "printed more than 1048576 bytes and was killed";
        assert_eq!(message("yes"), flooded);
        assert_eq!(message("echo no >&2; exit 3"), "ended with status 3: no");
        assert_eq!(message("kill -9 $$"), "ended with signal 9");
        let missing = run(&mut Command::new("/none"), MINUTE).expect_err("does not exist");
        assert!(missing.to_string().starts_with("cannot be started: "));
    }

    #[test]
    fn until_waits_for_a_text() {
        let start = |script| Running::start(&mut sh(script), MINUTE, None).expect("starts");
        let mut up = start("echo up; exec sleep 1000");
        up.until("up\n").expect("comes up");
        let ended = start("echo down").until("up\n");
        assert!(matches!(ended, Err(RunError::Output(text)) if text == "down\n"));
    }
}
