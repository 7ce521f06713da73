//! One run of a command: when its first byte came, when it ended, what CPU time it and its children
//! took.
//!
//! The clock starts right before the child is made (fork, exec) and stops when its output is closed and
//! it was waited for. It runs in a process group of its own, which is killed when it takes too long or
//! prints too much; and what it left behind with it.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use thiserror::Error;

use super::stream::Stream;

/// Between two looks at whether this process was told to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Raised by a signal to this process: no run goes on then, and none begins.
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// What a handler of signals raises: every run ends with [`RunError::Stopped`] then, at once, and so do
/// those that would follow.
pub fn stop() -> Arc<AtomicBool> {
    STOP.clone()
}

/// Whether [`stop`] was raised.
pub fn is_stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Do nothing for so long.
///
/// # Errors
/// [`RunError::Stopped`].
pub fn pause(time: Duration) -> Result<(), RunError> {
    let start = Instant::now();
    while !is_stopped() {
        let left = time.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK));
    }
    Err(RunError::Stopped)
}

/// How long a run may take, and how much it may say.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From its start to its end.
    pub time: Duration,
    /// Bytes on standard output.
    pub output: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(60),
            output: 1 << 20,
        }
    }
}

/// A run that ended well.
#[derive(Clone, Debug)]
pub struct Timed {
    /// From the start to the first byte on standard output; `None` if there was none.
    pub first_byte: Option<Duration>,
    /// From the start to the last byte, or the last few that came at once.
    pub last_byte: Option<Duration>,
    /// From the start to the end.
    pub end: Duration,
    /// CPU time of it and of its children that were waited for, user and system.
    pub cpu: Duration,
    /// All of its standard output, without the carriage returns of a serial terminal.
    pub output: Vec<u8>,
}

/// Why there is no figure.
#[derive(Debug, Error)]
pub enum RunError {
    /// It could not be started.
    #[error("cannot be started: {0}")]
    Start(io::Error),
    /// It did not end.
    #[error("did not end within {} s and was killed{}", limit.as_secs(), said(stderr))]
    Hung {
        /// What it was given.
        limit: Duration,
        /// The last line of its standard error.
        stderr: String,
    },
    /// It printed without end.
    #[error("printed more than {limit} bytes and was killed")]
    Flooded {
        /// What it was given.
        limit: usize,
    },
    /// It ended with another status than 0.
    #[error("ended with {}{}", how(*status), said(stderr))]
    Failed {
        /// The status.
        status: ExitStatus,
        /// The last line of its standard error.
        stderr: String,
    },
    /// It ended well, but what ran in it did not; how, in words that "it" may stand before.
    #[error("{0}")]
    Judged(String),
    /// It did not print what it should have.
    #[error("did not print what it should have, but {0:?}")]
    Output(String),
    /// This process was told to stop.
    #[error("was stopped")]
    Stopped,
    /// The host's kernel refused.
    #[error("cannot watch it: {0}")]
    Watch(#[from] io::Error),
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("status {code}"),
        (None, signal) => format!("signal {}", signal.unwrap_or(0)),
    }
}

fn said(stderr: &str) -> String {
    match stderr.is_empty() {
        true => String::new(),
        false => format!(": {stderr}"),
    }
}

/// Run `command` to its end, with its standard input closed.
///
/// # Errors
/// It hangs, floods, fails; see [`RunError`].
pub fn run(command: &mut Command, limits: Limits) -> Result<Timed, RunError> {
    Running::start(command, limits)?.finish()
}

/// A command that runs; killed with its process group when dropped.
pub struct Running {
    child: Child,
    started: Instant,
    limits: Limits,
    first_byte: Option<Duration>,
    last_byte: Option<Duration>,
    output: Vec<u8>,
    stderr: std::fs::File,
    /// Its number may be another's.
    waited: bool,
    /// What children had taken of the processor before.
    cpu_before: Duration,
}

impl Running {
    /// Start `command`, with its standard input closed.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command, limits: Limits) -> Result<Self, RunError> {
        command.stdin(Stdio::null());
        Self::spawn(command, limits)
    }

    /// Start `command`, with `input` for it, of a few bytes, behind which more could come: its standard
    /// input stays open.
    ///
    /// # Errors
    /// It cannot be started, or takes no input.
    pub fn start_with(
        command: &mut Command,
        limits: Limits,
        input: &str,
    ) -> Result<Self, RunError> {
        command.stdin(Stdio::piped());
        let mut running = Self::spawn(command, limits)?;
        if let Some(stdin) = &mut running.child.stdin {
            stdin.write_all(input.as_bytes())?;
        }
        Ok(running)
    }

    fn spawn(command: &mut Command, limits: Limits) -> Result<Self, RunError> {
        if is_stopped() {
            return Err(RunError::Stopped);
        }
        let stderr = tempfile::tempfile()?;
        command
            .stdout(Stdio::piped())
            .stderr(stderr.try_clone()?)
            .process_group(0);
        let cpu_before = cpu_of_children()?;
        let started = Instant::now();
        let child = command.spawn().map_err(RunError::Start)?;
        Ok(Self {
            child,
            started,
            limits,
            first_byte: None,
            last_byte: None,
            output: Vec::new(),
            stderr,
            waited: false,
            cpu_before,
        })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Since its start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Wait until `text` is in its output; how long that took since its start.
    ///
    /// # Errors
    /// It ended, hung or flooded before.
    pub fn until(&mut self, text: &str) -> Result<Duration, RunError> {
        let text = text.as_bytes();
        while !self.output.windows(text.len()).any(|window| window == text) {
            if !self.read()? {
                let (status, _) = self.wait()?;
                return Err(match status.success() {
                    true => RunError::Output(String::from_utf8_lossy(&self.output).into()),
                    false => self.failed(status),
                });
            }
        }
        Ok(self.started.elapsed())
    }

    /// Let it run to its end.
    ///
    /// # Errors
    /// It hangs, floods, fails.
    pub fn finish(mut self) -> Result<Timed, RunError> {
        while self.read()? {}
        let (status, end) = self.wait()?;
        match status.success() {
            true => Ok(Timed {
                first_byte: self.first_byte,
                last_byte: self.last_byte,
                end,
                cpu: cpu_of_children()?.saturating_sub(self.cpu_before),
                output: std::mem::take(&mut self.output),
            }),
            false => Err(self.failed(status)),
        }
    }

    /// Ask it to end (SIGTERM), and let it, however it does.
    ///
    /// # Errors
    /// It does not.
    pub fn terminate(mut self) -> Result<(), RunError> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).map_err(io::Error::from)?;
        while self.read()? {}
        self.wait().map(drop)
    }

    /// Connect to its socket as soon as it is there.
    ///
    /// # Errors
    /// It ends, or has none in time.
    pub fn connect(&mut self, socket: &Path) -> Result<Stream, RunError> {
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                return Ok(Stream::unix(stream, self.limits.time)?);
            }
            self.alive()?;
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Whether it is as it should be while somebody waits for something else than its output.
    ///
    /// # Errors
    /// It has ended, or took too long, or this process was told to stop.
    pub fn alive(&mut self) -> Result<(), RunError> {
        let left = self.limits.time.saturating_sub(self.started.elapsed());
        if is_stopped() {
            return Err(RunError::Stopped);
        }
        if left.is_zero() {
            return Err(self.hung());
        }
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

    fn failed(&mut self, status: ExitStatus) -> RunError {
        let stderr = self.complaint();
        RunError::Failed { status, stderr }
    }

    /// Read more of its output; whether there may be still more.
    fn read(&mut self) -> Result<bool, RunError> {
        let Some(mut stdout) = self.child.stdout.take() else {
            return Ok(false);
        };
        self.ready(&stdout)?;
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
        match self.output.len() > self.limits.output {
            true => Err(RunError::Flooded {
                limit: self.limits.output,
            }),
            false => Ok(true),
        }
    }

    /// Its output is closed: whoever does that is about to end. How it ended, and when.
    fn wait(&mut self) -> Result<(ExitStatus, Duration), RunError> {
        let pid = Pid::from_child(&self.child);
        self.ready(&pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?)?;
        let end = self.started.elapsed();
        self.kill_group();
        let status = self.child.wait()?;
        self.waited = true;
        Ok((status, end))
    }

    /// Wait until there is something to read from it, or it has ended.
    fn ready(&mut self, what: &impl AsFd) -> Result<(), RunError> {
        loop {
            if is_stopped() {
                return Err(RunError::Stopped);
            }
            let left = self.limits.time.saturating_sub(self.started.elapsed());
            if left.is_zero() {
                return Err(self.hung());
            }
            let timeout = left.min(LOOK).try_into().map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(what, PollFlags::IN)], Some(&timeout)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                ready => {
                    return ready
                        .map(drop)
                        .map_err(|errno| RunError::Watch(errno.into()));
                }
            }
        }
    }

    /// It and what it left behind. It was not waited for: its number is nobody else's.
    fn kill_group(&self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }

    fn hung(&mut self) -> RunError {
        RunError::Hung {
            limit: self.limits.time,
            stderr: self.complaint(),
        }
    }

    /// The last line of its standard error, cut to what fits a line, without control characters.
    fn complaint(&mut self) -> String {
        use std::os::unix::fs::FileExt;
        const MOST: u64 = 4096;
        let length = self.stderr.metadata().map_or(0, |file| file.len());
        let mut end = vec![0; MOST.min(length) as usize];
        let _ = self
            .stderr
            .read_exact_at(&mut end, length.saturating_sub(MOST));
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

/// Of all children that were waited for, so far.
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

    fn limits(milliseconds: u64) -> Limits {
        Limits {
            time: Duration::from_millis(milliseconds),
            output: 1000,
        }
    }

    #[test]
    fn delays_are_measured_where_they_are() {
        let timed = run(&mut sh("sleep 0.2; echo hi; sleep 0.3"), limits(60_000)).expect("ends");
        let first = timed.first_byte.expect("a byte").as_secs_f64();
        assert!(
            first >= 0.2 && first < timed.end.as_secs_f64() - 0.25,
            "{timed:?}"
        );
        assert!(timed.end.as_secs_f64() >= 0.5);
        assert_eq!(timed.output, b"hi\n");
    }

    #[test]
    fn a_silent_one_has_no_first_byte() {
        let timed = run(&mut sh("exit 0"), limits(60_000)).expect("ends");
        assert_eq!((timed.first_byte, timed.output.len()), (None, 0));
    }

    #[test]
    fn what_hangs_is_killed_with_its_children() {
        let folder = tempfile::tempdir().expect("a folder");
        let pid = folder.path().join("pid");
        let script = format!(
            "sleep 1000 & echo $! > {}; echo trouble >&2; wait",
            pid.display()
        );
        let error = run(&mut sh(&script), limits(500)).expect_err("hangs");
        assert_eq!(
            error.to_string(),
            "did not end within 0 s and was killed: trouble"
        );
        let child = std::fs::read_to_string(pid).expect("a number");
        assert_gone(child.trim());
    }

    #[test]
    fn what_it_left_behind_is_killed_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        for (script, milliseconds) in [
            ("sleep 1000 > /dev/null & echo $! > pid; echo hi", 60_000),
            ("sleep 1000 & echo $! > pid", 500),
        ] {
            let mut command = sh(script);
            let _ = run(command.current_dir(folder.path()), limits(milliseconds));
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
    fn what_floods_fails_or_dies_is_told_from_the_others() {
        let message = |script: &str| {
            let error = run(&mut sh(script), limits(20_000)).expect_err("no figure");
            error.to_string()
        };
        assert_eq!(
            message("yes"),
            "printed more than 1000 bytes and was killed"
        );
        assert_eq!(message("echo no >&2; exit 3"), "ended with status 3: no");
        assert_eq!(message("kill -9 $$"), "ended with signal 9");
        let missing = run(&mut Command::new("/none"), limits(100)).expect_err("is not there");
        assert!(missing.to_string().starts_with("cannot be started: "));
    }

    #[test]
    fn a_line_is_waited_for() {
        let mut running =
            Running::start(&mut sh("echo up; exec sleep 1000"), limits(60_000)).expect("starts");
        running.until("up\n").expect("comes up");
        let mut ended = Running::start(&mut sh("echo down"), limits(60_000)).expect("starts");
        assert!(matches!(ended.until("up\n"), Err(RunError::Output(text)) if text == "down\n"));
    }
}
