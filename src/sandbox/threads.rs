//! Where threads begin: the only place that uses `std::thread::Builder`.

use std::hash::RandomState;
use std::io;
use std::thread::{JoinHandle, Scope, ScopedJoinHandle};

use nix::sys::signal::{SigSet, Signal};

use super::role::Role;
use super::seccomp::restrict;

/// Signals whose handlers run in the main thread alone: they make system calls that are on its list.
const MAIN_ALONE: [Signal; 13] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
    Signal::SIGCHLD,
    Signal::SIGXFSZ,
    Signal::SIGPIPE,
    Signal::SIGALRM,
];

/// Start a thread that does `work`.
///
/// # Errors
/// The host has no thread or memory left.
pub fn spawn<T: Send + 'static>(
    role: Role,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    role.builder().spawn(move || {
        begin(role);
        work()
    })
}

/// The first steps of a thread of a machine.
fn begin(role: Role) {
    if role.list().is_none() {
        return;
    }
    let signals: SigSet = MAIN_ALONE.into_iter().collect();
    // It cannot fail with a valid set.
    let _ = signals.thread_block();
    // The keys of a thread's first hash map come from getrandom(2), which is on few lists.
    std::hint::black_box(RandomState::new());
    if !role.prepares() {
        restrict(role);
    }
}

/// As [`spawn`], for a thread that ends within `scope`.
///
/// # Errors
/// As there.
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    role: Role,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    role.builder().spawn_scoped(scope, work)
}
