//! What threads synchronize with: mutexes without poison, and eventfds.
//!
//! A panic ends the work of its thread, never that of another: a mutex whose holder panicked is
//! locked as any other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::EventfdFlags;

/// The data of `mutex`, also after a panic of a thread that held it.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wait until `changed` is notified; may return early, as [`Condvar::wait`] does.
pub fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// An eventfd: readable from [`EventFd::raise`] to [`EventFd::lower`].
#[derive(Debug)]
pub struct EventFd(OwnedFd);

/// An [`EventFd`] that is not raised. It never blocks, and is closed at exec.
///
/// # Errors
/// No file descriptor is left.
pub fn eventfd() -> io::Result<EventFd> {
    let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
    Ok(EventFd(rustix::event::eventfd(0, flags)?))
}

impl EventFd {
    /// Make it readable.
    pub fn raise(&self) {
        // Fails only when the counter is at its end, and then it is readable.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Make it unreadable; whether it was raised.
    pub fn lower(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }

    /// Another descriptor of the same event.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
