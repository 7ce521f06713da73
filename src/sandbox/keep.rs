//! The processes of a machine in the background: its keeper, and under that its hull.

use std::io;

use nix::unistd::{ForkResult, fork, setsid};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

/// Fork: `None` in the new process, which is in a session of its own. The caller has one thread.
///
/// # Errors
/// There is no process left.
pub fn fork_keeper() -> io::Result<Option<Pid>> {
    // SAFETY: there is one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            setsid()?;
            Ok(None)
        }
        ForkResult::Parent { child } => Ok(Pid::from_raw(child.as_raw())),
    }
}

/// Fork: `None` in the new process, which is killed when this one ends. The caller has one thread.
///
/// # Errors
/// There is no process left.
pub fn fork_kept() -> io::Result<Option<Pid>> {
    let parent = getpid();
    // SAFETY: there is one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if getppid() != Some(parent) {
                // SAFETY: it ends this process, whose parent has just been killed.
                unsafe { libc::_exit(0) }
            }
            Ok(None)
        }
        ForkResult::Parent { child } => Ok(Pid::from_raw(child.as_raw())),
    }
}

/// Fork a process that does `main` and ends. It is killed when this one ends. The caller has one thread.
///
/// # Errors
/// There is no process left.
pub fn fork_beside(main: impl FnOnce()) -> io::Result<Pid> {
    if let Some(process) = fork_kept()? {
        return Ok(process);
    }
    main();
    // SAFETY: it ends this process, without what the one that it is a copy of does at its end.
    unsafe { libc::_exit(0) }
}
