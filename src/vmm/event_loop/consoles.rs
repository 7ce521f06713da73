//! The guest's consoles in the event loop: from the pipes to hull's output and to the log.

use std::time::Duration;

use super::super::console_log::{ConsoleLog, News};
use super::super::pipe::Pipe;
use super::stdio::Stdio;
use crate::agent::WindowSize;
use crate::config::Machine;
use crate::trace::Trace;

/// Where the consoles' output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Stdout,
    Stderr,
    Nowhere,
}

/// Longest beginning of a line of the kernel's that waits for its end, in bytes.
const MAX_LINE: usize = 1024;

/// What the kernel may print on.
pub struct Consoles {
    /// The first is the one to type on.
    pipes: Vec<Pipe>,
    target: Target,
    log: ConsoleLog,
    /// The beginning of a line for standard error, where messages of hull's stand between whole lines.
    line: Vec<u8>,
    first_output: Option<Duration>,
}

impl Consoles {
    /// Of `machine`: standard streams, unless hull's init runs a command on those.
    pub fn new(pipes: Vec<Pipe>, machine: &Machine) -> Self {
        Self {
            pipes,
            target: match &machine.command {
                None => Target::Stdout,
                Some(_) if machine.kernel_log => Target::Stderr,
                Some(_) => Target::Nowhere,
            },
            log: ConsoleLog::default(),
            line: Vec::new(),
            first_output: None,
        }
    }

    /// Whether the consoles are standard input and output; otherwise the command is.
    pub fn are_stdio(&self) -> bool {
        self.target == Target::Stdout
    }

    /// Whether the guest wrote nothing that was not moved.
    pub fn are_empty(&self) -> bool {
        self.pipes.iter().all(Pipe::is_empty)
    }

    /// Move output as far as there is room, or all of it to `drain` the consoles.
    pub fn move_output(
        &mut self,
        stdio: &mut Stdio,
        trace: Option<&Trace>,
        drain: bool,
        now: impl Fn() -> Duration,
    ) {
        for pipe in &self.pipes {
            let mut target = match self.target {
                Target::Stdout => Some(&mut stdio.stdout),
                Target::Stderr => Some(&mut stdio.stderr),
                Target::Nowhere => None,
            };
            let room = target.as_ref().map_or(usize::MAX, |output| output.room());
            let bytes = pipe.take(if drain { usize::MAX } else { room });
            if let Some(trace) = trace {
                trace.console(&bytes);
            }
            if self.log.push(&bytes) {
                self.first_output = Some(now());
            }
            match &mut target {
                Some(output) if self.target == Target::Stderr => {
                    self.line.extend_from_slice(&bytes);
                    let lines = match self.line.iter().rposition(|byte| *byte == b'\n') {
                        Some(end) => end + 1,
                        None if self.line.len() > MAX_LINE => self.line.len(),
                        None => 0,
                    };
                    output.push(&self.line.drain(..lines).collect::<Vec<u8>>());
                }
                Some(output) => output.push(&bytes),
                None => {}
            }
        }
    }

    /// At the end: write the beginning of a line that has no end.
    pub fn end_line(&mut self, stdio: &mut Stdio) {
        stdio.stderr.push(&std::mem::take(&mut self.line));
    }

    /// Type `bytes`; how many were taken. Without a console to type on all are dropped.
    pub fn put(&self, bytes: &[u8]) -> usize {
        match self.pipes.first() {
            Some(console) if self.are_stdio() => console.put(bytes),
            _ => bytes.len(),
        }
    }

    /// Tell the guest the size of the terminal.
    pub fn resize(&self, size: WindowSize) {
        if let Some(console) = self.pipes.first() {
            console.resize(size);
        }
    }

    /// What the kernel has said and was not taken.
    pub fn take_news(&mut self) -> Vec<News> {
        self.log.take_news()
    }

    /// The end of the output.
    pub fn log(&self) -> &ConsoleLog {
        &self.log
    }

    /// When the first byte came, on the machine's clock.
    pub fn first_output(&self) -> Option<Duration> {
        self.first_output
    }
}
