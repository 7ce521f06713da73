//! hull's standard streams for the event loop: they never block, although O_NONBLOCK is not set, since
//! the shell shares their file descriptions.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::termios::isatty;

use super::tty::{Tty, gives_keys, in_foreground};
use crate::agent::WindowSize;
use crate::sandbox::stdout_closed;

/// Bytes that wait for a slow reader before the guest must wait.
const FULL: usize = 64 << 10;
/// PIPE_BUF: a pipe that polls writable takes that much without blocking (pipe(7)).
const CHUNK: usize = 4096;

/// Where the guest's input comes from, and where its output goes.
#[derive(Clone)]
pub struct Streams {
    /// Read when the guest has room for it.
    pub stdin: BorrowedFd<'static>,
    /// Takes the guest's output.
    pub stdout: BorrowedFd<'static>,
    /// Takes the guest's errors and hull's messages.
    pub stderr: BorrowedFd<'static>,
    /// The terminal whose keys the guest gets, if this process looks after it.
    pub tty: Option<Arc<Tty>>,
    /// Whether standard input is a terminal that another process has in raw mode.
    pub raw: bool,
    /// Whether `stdout` only stands for one that was closed.
    pub no_stdout: bool,
}

impl Streams {
    /// Those of this process; `tty` is its input if the guest gets a terminal's keys.
    pub fn own(tty: Option<Arc<Tty>>) -> Self {
        Self {
            stdin: rustix::stdio::stdin(),
            stdout: rustix::stdio::stdout(),
            stderr: rustix::stdio::stderr(),
            tty,
            raw: false,
            no_stdout: stdout_closed(),
        }
    }

    /// Whether standard input is a terminal in raw mode: then Ctrl-A is hull's key, and hull's own
    /// lines need a carriage return.
    pub fn is_raw(&self) -> bool {
        self.raw || self.tty.as_ref().is_some_and(|tty| tty.is_raw())
    }

    /// Whether standard input must not be read now: it is a terminal that has another process in its
    /// foreground.
    pub fn in_background(&self) -> bool {
        !self.raw && isatty(self.stdin) && !in_foreground()
    }

    /// Whether another program of the same job, such as a pager that shows this one's output, has set the
    /// terminal to give single keys: they are meant for that program.
    pub fn is_taken(&self) -> bool {
        self.tty.is_none() && !self.raw && gives_keys()
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
    /// Why nothing can be written any more.
    closed: Option<Errno>,
    /// Whether bytes were dropped.
    lossy: bool,
    /// Whether the last byte did not end a line.
    in_line: bool,
}

impl Output {
    /// An output to nothing.
    pub fn closed(fd: BorrowedFd<'static>) -> Self {
        Self {
            closed: Some(Errno::BADF),
            ..Self::new(fd)
        }
    }

    /// An output to `fd`.
    pub fn new(fd: BorrowedFd<'static>) -> Self {
        Self {
            fd,
            waiting: VecDeque::new(),
            closed: None,
            lossy: false,
            in_line: false,
        }
    }

    /// The descriptor while something waits to be written.
    pub fn pending(&self) -> Option<BorrowedFd<'static>> {
        (!self.waiting.is_empty()).then_some(self.fd)
    }

    /// The descriptor to poll, and what for: to write, or only to learn that its reader has left, which
    /// is always reported.
    pub fn watched(&self) -> Option<(BorrowedFd<'static>, PollFlags)> {
        let flags = match self.waiting.is_empty() {
            true => PollFlags::empty(),
            false => PollFlags::OUT,
        };
        self.closed.is_none().then_some((self.fd, flags))
    }

    /// Whether nothing can be written any more.
    pub fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Bytes that may be added before the guest must wait.
    pub fn room(&self) -> usize {
        FULL.saturating_sub(self.waiting.len())
    }

    /// Whether the last byte added did not end a line.
    pub fn in_line(&self) -> bool {
        self.in_line
    }

    /// Why nothing can be written any more, if bytes were lost by it.
    pub fn loss(&self) -> Option<Errno> {
        self.closed.filter(|_| self.lossy)
    }

    /// Add bytes. They are dropped once nothing can be written any more.
    pub fn push(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last() {
            self.in_line = *last != b'\n';
        }
        if self.closed.is_none() {
            self.waiting.extend(bytes);
        } else {
            self.lossy |= !bytes.is_empty();
        }
    }

    /// The descriptor polled ready: write some bytes, if any wait.
    ///
    /// # Errors
    /// Why nothing can be written any more.
    pub fn write_some(&mut self) -> Result<(), Errno> {
        let (front, _) = self.waiting.as_slices();
        let chunk = front.get(..CHUNK).unwrap_or(front);
        let result = match chunk.is_empty() {
            true => Err(Errno::PIPE), // polled for its reader's leave alone
            false => rustix::io::write(self.fd, chunk),
        };
        match result {
            Ok(n) => drop(self.waiting.drain(..n)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => {
                self.lossy |= !self.waiting.is_empty();
                self.waiting.clear();
                self.closed = Some(errno);
                return Err(errno);
            }
        }
        Ok(())
    }
}
