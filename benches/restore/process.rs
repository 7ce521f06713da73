//! A process that is measured: its time since exec, its output, its end.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process};

use super::{LIMIT, Result};

/// Killed when it is dropped.
pub struct Process {
    name: String,
    child: Child,
    started: Instant,
    seen: Vec<u8>,
    stderr: PathBuf,
    limit: Duration,
}

impl Process {
    /// Start it. `stderr` is a file for what it complains about.
    pub fn start(command: &mut Command, stderr: &Path) -> Result<Self> {
        let name = Path::new(command.get_program()).file_name();
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(stderr)?);
        let started = Instant::now();
        let child = command
            .spawn()
            .map_err(|error| format!("{name}: {error}"))?;
        Ok(Self {
            name,
            child,
            started,
            seen: Vec::new(),
            stderr: stderr.into(),
            limit: LIMIT,
        })
    }

    /// It may take longer than [`LIMIT`].
    pub fn patient(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Milliseconds since its exec.
    pub fn ms(&self) -> f64 {
        self.started.elapsed().as_secs_f64() * 1e3
    }

    /// Hand it input.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().ok_or("its input is closed")?;
        Ok(stdin.write_all(text.as_bytes())?)
    }

    pub fn close_input(&mut self) {
        self.child.stdin = None;
    }

    /// The time at which `text` was on its standard output.
    pub fn until(&mut self, text: &str) -> Result<f64> {
        while !self.has(text) {
            if !self.read()? {
                return Err(self.complaint("ended too early"));
            }
        }
        Ok(self.ms())
    }

    /// The time of its end, which must be a good one, with `text` in its output.
    pub fn end(&mut self, text: &str) -> Result<f64> {
        while self.read()? {}
        // Whoever closes its output is about to end; one that is not is caught by the lab's timeout.
        let status = self.child.wait()?;
        let time = self.ms();
        match status.success() && self.has(text) {
            true => Ok(time),
            false => Err(self.complaint(&format!("ended with {status}"))),
        }
    }

    /// Connect to its socket as soon as it is there.
    pub fn connect(&mut self, socket: &Path) -> Result<UnixStream> {
        loop {
            if let Ok(stream) = UnixStream::connect(socket) {
                stream.set_read_timeout(Some(LIMIT))?;
                return Ok(stream);
            }
            if self.child.try_wait()?.is_some() {
                return Err(self.complaint("ended before it had a socket"));
            }
            if self.started.elapsed() > self.limit {
                return Err(self.complaint("has no socket"));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Ask it to end, and let it.
    pub fn terminate(mut self) -> Result<()> {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            kill_process(pid, Signal::TERM)?;
        }
        while self.read()? {}
        self.child.wait()?;
        Ok(())
    }

    /// Read more of its output; whether there may be still more.
    fn read(&mut self) -> Result<bool> {
        let Some(stdout) = &mut self.child.stdout else {
            return Ok(false);
        };
        let left = self.limit.saturating_sub(self.started.elapsed());
        let mut fds = [PollFd::new(stdout, PollFlags::IN)];
        if poll(&mut fds, Some(&left.try_into()?))? == 0 {
            return Err(self.complaint(&format!(
                "has not answered within {} s",
                self.limit.as_secs()
            )));
        }
        let mut buffer = [0; 4096];
        let read = stdout.read(&mut buffer)?;
        self.seen.extend_from_slice(&buffer[..read]);
        self.seen.retain(|byte| *byte != b'\r'); // the terminal's
        Ok(read > 0)
    }

    fn has(&self, text: &str) -> bool {
        let mut windows = self.seen.windows(text.len());
        text.is_empty() || windows.any(|window| window == text.as_bytes())
    }

    fn complaint(&self, what: &str) -> Box<dyn std::error::Error> {
        let text = fs::read(&self.stderr).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let said = text.lines().rfind(|line| !line.trim().is_empty());
        let said = said.map_or(String::new(), |line| format!(": {}", line.trim()));
        format!("{} {what}{said}", self.name).into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
