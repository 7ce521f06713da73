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

/// Whether the kernel made a thread for itself among those of a process, as KVM and vhost do, by its stat
/// (proc_pid_stat(5)). It runs no code of the process.
pub fn is_kernels(stat: &str) -> bool {
    // PF_IO_WORKER, PF_USER_WORKER, PF_KTHREAD (include/linux/sched.h).
    const KERNELS: u32 = 0x10 | 0x4000 | 0x20_0000;
    let flags = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse().ok());
    flags.is_some_and(|flags: u32| flags & KERNELS != 0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_of_the_kernels_is_told_by_its_flags() {
        let own = std::fs::read_to_string("/proc/thread-self/stat").expect("/proc");
        assert!(!is_kernels(&own), "{own}");
        assert!(is_kernels("5 (kvm-nx) 0) S 1 1 1 0 -1 16448 0 0"));
        assert!(!is_kernels("5 (a"));
    }
}
