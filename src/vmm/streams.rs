//! hull's own standard streams, as the event loop drives them: never blocking, never raising
//! O_NONBLOCK on a file description that the shell shares.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::agent::WindowSize;

/// Bytes that may wait for a slow reader before the guest has to.
const FULL: usize = 64 << 10;
/// PIPE_BUF: a pipe that polls writable takes that much without blocking (pipe(7)).
const CHUNK: usize = 4096;

/// Where the guest's input comes from and its output goes.
#[derive(Clone, Copy)]
pub struct Streams {
    /// Read when the guest has room for it.
    pub stdin: BorrowedFd<'static>,
    /// The guest's output.
    pub stdout: BorrowedFd<'static>,
    /// The guest's errors, and hull's messages.
    pub stderr: BorrowedFd<'static>,
    /// Standard input is a terminal in raw mode: Ctrl-A is hull's key, and lines of hull's own
    /// need a carriage return.
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

    /// Bytes that may be added before the guest has to wait.
    pub fn room(&self) -> usize {
        FULL.saturating_sub(self.waiting.len())
    }

    /// Add bytes behind those that wait. To nobody, once the reader is gone.
    pub fn push(&mut self, bytes: &[u8]) {
        if !self.closed {
            self.waiting.extend(bytes);
        }
    }

    /// The descriptor polled writable: write some. False when the reader has gone.
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
