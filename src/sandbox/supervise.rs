//! A process that stays outside of what holds a machine's hull, and waits for its end.

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{ForkResult, fork};
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, getppid, kill_process,
    set_parent_process_death_signal, waitpid,
};

use super::jail::{Init, JailError};

/// Whether this process has a supervisor.
static SUPERVISED: AtomicBool = AtomicBool::new(false);

/// Whether another process of hull supervises this one, stops when it stops and continues with it.
pub fn is_supervised() -> bool {
    SUPERVISED.load(Ordering::Relaxed)
}

/// A supervised process, seen by its supervisor.
pub struct Supervised {
    process: Pid,
    init: Option<Init>,
}

/// How a supervised process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Exited(u8),
    /// By this signal.
    Signalled(i32),
}

/// Fork: `None` in the new process, which goes on as this one did and ends if its parent is killed. In a
/// jail if `jailed`, whose other namespaces it is to enter ([`super::enter_jail`]). The caller has one thread.
///
/// # Errors
/// There is no process or namespace left.
pub fn fork_supervised(jailed: bool) -> Result<Option<Supervised>, JailError> {
    let system = |what| move |error: io::Error| JailError::Step { what, error };
    // The supervisor takes signals one by one.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    let before = before
        .map_err(io::Error::from)
        .map_err(system("no signals"))?;
    let init = jailed.then(Init::start).transpose()?;
    let parent = getpid();
    // SAFETY: there is one thread.
    let forked = unsafe { fork() };
    match forked
        .map_err(io::Error::from)
        .map_err(system("no process"))?
    {
        ForkResult::Child => {
            // In a jail its first process sees to that, as a new user undoes this.
            let set = set_parent_process_death_signal(Some(Signal::KILL));
            set.map_err(io::Error::from).map_err(system("no signals"))?;
            if !jailed && getppid() != Some(parent) {
                // SAFETY: it ends this process, whose parent has just been killed.
                unsafe { libc::_exit(0) }
            }
            let _ = before.thread_set_mask();
            SUPERVISED.store(true, Ordering::Relaxed);
            Ok(None)
        }
        ForkResult::Parent { child } => Ok(Some(Supervised {
            // fork(2) returns no other in the parent.
            process: Pid::from_raw(child.as_raw()).unwrap_or(Pid::INIT),
            init,
        })),
    }
}

impl Supervised {
    /// Wait for its end: signals that another process sends to this one are passed on, and when it stops,
    /// as by Ctrl-Z, this process does, too, if `has_shell` says that a shell would continue it.
    pub fn wait(&self, has_shell: impl Fn() -> bool) -> io::Result<Ended> {
        loop {
            while let Some(status) = self.look()? {
                if let Some(status) = status.exit_status() {
                    return Ok(Ended::Exited(status as u8));
                }
                if let Some(signal) = status.terminating_signal() {
                    return Ok(Ended::Signalled(signal));
                }
                if status.stopped() {
                    self.stop_too(has_shell());
                }
            }
            let (signal, sender) = next_signal()?;
            // The terminal's own signals go to all of the job.
            let passed = signal != libc::SIGCHLD
                && sender.is_some_and(|sender| sender != self.process.as_raw_nonzero().get());
            if let Some(signal) = Signal::from_named_raw(signal).filter(|_| passed) {
                // It may have ended.
                let _ = kill_process(self.process, signal);
            }
        }
    }

    fn look(&self) -> io::Result<Option<WaitStatus>> {
        let found = waitpid(
            Some(self.process),
            WaitOptions::NOHANG | WaitOptions::UNTRACED,
        )?;
        Ok(found.map(|(_, status)| status))
    }

    /// Stop the whole job, as a process that ran alone in it would have done; its other processes may be
    /// out of the supervised one's reach.
    fn stop_too(&self, has_shell: bool) {
        if has_shell {
            // To this process it is blocked.
            let _ = rustix::process::kill_current_process_group(Signal::TSTP);
            let _ = kill_process(getpid(), Signal::STOP);
        }
        let _ = kill_process(self.process, Signal::CONT);
    }

    /// Let the rest of its jail end. Returns when that has ended.
    pub fn end_jail(&self) {
        if let Some(init) = &self.init {
            init.end();
            let _ = rustix::io::retry_on_intr(|| waitpid(Some(init.process), WaitOptions::empty()));
        }
    }
}

/// End this process by `signal`, as the process that it supervised was.
pub fn end_by_signal(signal: i32) -> ! {
    let none = rustix::process::Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    // SAFETY: the default action has no handler; it ends this process.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    if let Some(signal) = Signal::from_named_raw(signal) {
        let _ = kill_process(getpid(), signal);
    }
    let _ = SigSet::empty().thread_set_mask();
    std::process::exit(128 + signal)
}

/// The next signal to this process, all of which are blocked, and the process that sent it, if one did
/// (sigaction(2), `si_code`).
fn next_signal() -> io::Result<(i32, Option<i32>)> {
    let all = SigSet::all();
    let mut about = MaybeUninit::<libc::siginfo_t>::uninit();
    loop {
        // SAFETY: the set lives as long as the call, which fills `about` if it succeeds.
        let signal = unsafe { libc::sigwaitinfo(all.as_ref(), about.as_mut_ptr()) };
        if signal > 0 {
            // SAFETY: it is filled, and has a sender where a process sent it.
            let (code, sender) = unsafe {
                let about = about.assume_init();
                (about.si_code, about.si_pid())
            };
            return Ok((signal, (code <= libc::SI_USER).then_some(sender)));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
