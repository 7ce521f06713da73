//! Signals to hull, as something the event loop can poll.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH, SIGXFSZ};

/// What is caught: the terminal's size, and what a container engine hands on to its process.
const CAUGHT: [i32; 7] = [SIGWINCH, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];

/// The signals that came and were not taken.
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
        // A file that may not grow (RLIMIT_FSIZE) is an I/O error for the guest and no end of hull's.
        let ignored = signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        signals.handlers.push(ignored);
        for signal in CAUGHT {
            let came = Arc::new(AtomicBool::new(false));
            // In this order: the flag stands when the pipe wakes the event loop.
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

    /// The descriptor that is readable when signals came.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Those that come within so much time, or have come.
    pub fn wait(&mut self, at_most: Duration) -> Vec<i32> {
        let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
        // An interrupted wait is one that a signal ended.
        let _ = poll(&mut fds, Timespec::try_from(at_most).ok().as_ref());
        self.take()
    }

    /// Take the signals that came since the last call, each once.
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
