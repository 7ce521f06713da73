//! Signals to hull, which the event loop can poll.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use signal_hook::SigId;
use signal_hook::consts::{
    SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2, SIGWINCH, SIGXFSZ,
};

/// The caught signals: the terminal's size, and those that a container engine forwards.
const CAUGHT: [i32; 7] = [SIGWINCH, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];

/// The signals that have arrived and were not taken.
pub struct Signals {
    came: Vec<(i32, Arc<AtomicBool>)>,
    pipe: OwnedFd,
    writer: OwnedFd,
    handlers: Vec<SigId>,
}

impl Signals {
    /// Catch them from now on, until this is dropped.
    pub fn catch() -> io::Result<Self> {
        let (pipe, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        let mut signals = Self {
            came: Vec::new(),
            pipe,
            writer,
            handlers: Vec::new(),
        };
        // A file beyond RLIMIT_FSIZE must be an I/O error for the guest, and not end hull.
        let ignored = signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        signals.handlers.push(ignored);
        signals.add(&CAUGHT)?;
        Ok(signals)
    }

    /// Catch also those that stop and continue this process: the caller then has to stop this process at
    /// SIGTSTP.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn catch_stops(&mut self) -> io::Result<()> {
        self.add(&[SIGTSTP, SIGCONT])
    }

    fn add(&mut self, signals: &[i32]) -> io::Result<()> {
        for signal in signals {
            let came = Arc::new(AtomicBool::new(false));
            // In this order: the flag is set before the pipe wakes the event loop.
            let flag = signal_hook::flag::register(*signal, came.clone())?;
            self.handlers.push(flag);
            let writer = self.writer.try_clone()?;
            let wake = signal_hook::low_level::pipe::register(*signal, writer)?;
            self.handlers.push(wake);
            self.came.push((*signal, came));
        }
        Ok(())
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

    /// Drop `signal`, if it has arrived.
    pub fn forget(&self, signal: i32) {
        let mut came = self.came.iter();
        if let Some((_, came)) = came.find(|(number, _)| *number == signal) {
            came.store(false, Ordering::Release);
        }
    }

    /// Take the signals that have arrived since the last call, each once.
    pub fn take(&mut self) -> Vec<i32> {
        let mut scratch = [0; 64];
        while matches!(rustix::io::read(&self.pipe, &mut scratch), Ok(n) if n > 0) {}
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
