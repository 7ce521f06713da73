//! Signals to hull, which the event loop can poll.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH, SIGXFSZ};

/// The caught signals: the terminal's size, and those that a container engine forwards.
const CAUGHT: [i32; 7] = [SIGWINCH, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];

/// The signals that have arrived and were not taken.
pub struct Signals {
    came: Vec<(i32, Arc<AtomicBool>)>,
    pipe: UnixStream,
    handlers: Vec<SigId>,
}

impl Signals {
    /// Catch them from now on, until this is dropped.
    pub fn catch() -> io::Result<Self> {
        let (pipe, writer) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        let mut signals = Self {
            came: Vec::new(),
            pipe,
            handlers: Vec::new(),
        };
        // A file beyond RLIMIT_FSIZE must be an I/O error for the guest, and not end hull.
        let ignored = signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        signals.handlers.push(ignored);
        for signal in CAUGHT {
            let came = Arc::new(AtomicBool::new(false));
            // In this order: the flag is set before the pipe wakes the event loop.
            let handlers = &mut signals.handlers;
            handlers.push(signal_hook::flag::register(signal, came.clone())?);
            handlers.push(signal_hook::low_level::pipe::register(
                signal,
                writer.try_clone()?,
            )?);
            signals.came.push((signal, came));
        }
        Ok(signals)
    }

    /// The descriptor that is readable when signals have arrived.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// The signals that have arrived, or arrive within the timeout.
    pub fn wait(&mut self, timeout: Duration) -> Vec<i32> {
        let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
        // A signal interrupts the wait.
        let _ = poll(&mut fds, Timespec::try_from(timeout).ok().as_ref());
        self.take()
    }

    /// Take the signals that have arrived since the last call, each once.
    pub fn take(&mut self) -> Vec<i32> {
        let mut scratch = [0; 64];
        while matches!(self.pipe.read(&mut scratch), Ok(n) if n > 0) {}
        let came = self.came.iter();
        came.filter(|(_, came)| came.swap(false, Ordering::AcqRel))
            .map(|(signal, _)| *signal)
            .collect()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            signal_hook::low_level::unregister(handler);
        }
    }
}
