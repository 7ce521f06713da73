//! hull's standard streams for the event loop: they never block, although O_NONBLOCK is not set, since
//! the shell shares their file descriptions.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::agent::WindowSize;

/// Bytes that wait for a slow reader before the guest must wait.
const FULL: usize = 64 << 10;
/// PIPE_BUF: a pipe that polls writable takes that much without blocking (pipe(7)).
const CHUNK: usize = 4096;

/// Where the guest's input comes from, and where its output goes.
#[derive(Clone, Copy)]
pub struct Streams {
    /// Read when the guest has room for it.
    pub stdin: BorrowedFd<'static>,
    /// Takes the guest's output.
    pub stdout: BorrowedFd<'static>,
    /// Takes the guest's errors and hull's messages.
    pub stderr: BorrowedFd<'static>,
    /// Whether standard input is a terminal in raw mode: then Ctrl-A is hull's key, and hull's own
    /// lines need a carriage return.
    pub raw: bool,
}

impl Streams {
    /// Those of this process, whose input is a terminal in `raw` mode or not.
    pub fn own(raw: bool) -> Self {
        Self {
            stdin: rustix::stdio::stdin(),
            stdout: rustix::stdio::stdout(),
            stderr: rustix::stdio::stderr(),
            raw,
        }
    }

    /// The size of the terminal that standard input is, if it is one.
    pub fn window_size(&self) -> Option<WindowSize> {
        let size = rustix::termios::tcgetwinsize(self.stdin).ok()?;
        Some(WindowSize {
            rows: size.ws_row,
            cols: size.ws_col,
        })
    }
}

/// Output that waits until its descriptor polls writable.
pub struct Output {
    fd: BorrowedFd<'static>,
    waiting: VecDeque<u8>,
    closed: bool,
}

impl Output {
    /// An output to `fd`.
    pub fn new(fd: BorrowedFd<'static>) -> Self {
        Self {
            fd,
            waiting: VecDeque::new(),
            closed: false,
        }
    }

    /// The descriptor to poll for writing while something waits.
    pub fn pending(&self) -> Option<BorrowedFd<'static>> {
        (!self.waiting.is_empty()).then_some(self.fd)
    }

    /// Bytes that may be added before the guest must wait.
    pub fn room(&self) -> usize {
        FULL.saturating_sub(self.waiting.len())
    }

    /// Add bytes. They are dropped once the reader is gone.
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.closed {
            self.waiting.extend(bytes);
        }
    }

    /// Write some bytes to a descriptor that polled writable. False when the reader is gone.
    pub fn write_some(&mut self) -> bool {
        let (front, _) = self.waiting.as_slices();
        let chunk = front.get(..CHUNK).unwrap_or(front);
        match rustix::io::write(self.fd, chunk) {
            Ok(n) => {
                self.waiting.drain(..n);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => {
                self.waiting.clear();
                self.closed = true;
                false
            }
        }
    }
}
