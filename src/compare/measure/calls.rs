//! Counts the system calls of a command and its descendants with ptrace(2).
//!
//! The count of a container includes the system calls of its workload. The count of a virtual machine has
//! those of its monitor, including `ioctl(KVM_RUN)`, which enters the guest.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::WaitOptions;

use super::error::RunError;
use crate::kvm::traced::resume;
use crate::sandbox::{Role, spawn_scoped};

/// The request `_IO(0xae, 0x80)` (`<linux/kvm.h>`).
const KVM_RUN: u64 = 0xae80;

/// A stop at a system call: PTRACE_O_TRACESYSGOOD sets bit 7 (ptrace(2)).
const CALL_STOP: i32 = libc::SIGTRAP | 0x80;

/// wait4(2) on all children and tracees of this thread.
const OF_THIS_THREAD: WaitPidFlag = WaitPidFlag::__WALL.union(WaitPidFlag::__WNOTHREAD);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Numbers are those of `<asm/unistd_64.h>`.
    pub by_number: BTreeMap<u64, u64>,
    pub kvm_runs: u64,
}

impl Calls {
    pub fn total(&self) -> u64 {
        self.by_number.values().sum()
    }

    pub fn distinct(&self) -> usize {
        self.by_number.len()
    }
}

/// Runs `command` to its end, for no longer than `limit`, and discards its output.
pub fn count(command: &Command, limit: Duration) -> Result<Calls, RunError> {
    // A thread of its own waits for its own children only.
    std::thread::scope(|scope| {
        let thread = spawn_scoped(scope, Role::Tracer, || count_here(command, limit));
        thread
            .map_err(RunError::Trace)?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn count_here(command: &Command, limit: Duration) -> Result<Calls, RunError> {
    let trace = |error: Errno| RunError::Trace(error.into());
    // A shell stops until it is traced, and then executes the command.
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        shell.current_dir(folder);
    }
    shell
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = shell.process_group(0).spawn().map_err(RunError::Trace)?;
    let root = Pid::from_raw(child.id() as i32);
    let traced = Traced { root };
    waitpid(root, Some(WaitPidFlag::WUNTRACED)).map_err(trace)?;
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(root, options).map_err(trace)?;
    kill(root, Signal::SIGCONT).map_err(trace)?;
    let calls = traced.follow(limit);
    drop(traced);
    calls
}

/// The traced process group. Dropping it kills the group.
struct Traced {
    root: Pid,
}

impl Traced {
    fn follow(&self, limit: Duration) -> Result<Calls, RunError> {
        let deadline = Instant::now() + limit;
        let mut calls = Calls::default();
        let mut counting = false;
        loop {
            let all = OF_THIS_THREAD | WaitPidFlag::WNOHANG;
            // nix fails with EINVAL when a real-time signal arrives.
            let all = WaitOptions::from_bits_retain(all.bits() as u32);
            let (pid, status) = match rustix::process::wait(all) {
                Ok(Some((pid, status))) => (pid.as_raw_nonzero().get(), status.as_raw()),
                Ok(None) if Instant::now() > deadline => return Err(RunError::TraceHung(limit)),
                Ok(None) => {
                    std::thread::sleep(Duration::from_micros(50));
                    continue;
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Ok(calls),
            };
            if !libc::WIFSTOPPED(status) {
                if pid == self.root.as_raw() {
                    return Ok(calls);
                }
                continue;
            }
            let mut delivered = 0;
            match (libc::WSTOPSIG(status), status >> 16) {
                (CALL_STOP, 0) if counting => note(Pid::from_raw(pid), &mut calls),
                (CALL_STOP | libc::SIGSTOP | libc::SIGTRAP, 0) => {}
                (signal, 0) => delivered = signal,
                // The shell has executed the command.
                (_, event) => counting |= event == libc::PTRACE_EVENT_EXEC,
            }
            resume(pid, delivered);
        }
    }
}

fn note(pid: Pid, calls: &mut Calls) {
    let Ok(info) = ptrace::syscall_info(pid) else {
        return;
    };
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return;
    }
    let Ok(registers) = ptrace::getregs(pid) else {
        return;
    };
    let (number, request) = (registers.orig_rax, registers.rsi & 0xffff_ffff);
    *calls.by_number.entry(number).or_default() += 1;
    calls.kvm_runs += u64::from((number, request) == (libc::SYS_ioctl as u64, KVM_RUN));
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = killpg(self.root, Signal::SIGKILL);
        // Reap what is left of the tree, including zombies of tracees.
        let deadline = Instant::now() + Duration::from_secs(2);
        let all = OF_THIS_THREAD | WaitPidFlag::WNOHANG;
        while Instant::now() < deadline {
            match waitpid(None, Some(all)) {
                Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
                // nix reports a real-time signal as EINVAL.
                Ok(_) | Err(Errno::EINVAL) => {}
                Err(_) => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_continues_after_a_real_time_signal() {
        // dash has no names for real-time signals.
        let mut command = Command::new("bash");
        command.args(["-c", "trap '/bin/true' RTMIN; kill -RTMIN $$; (:); (:)"]);
        let with = count(&command, Duration::from_secs(60)).expect("counted");
        let execve = 59;
        assert_eq!(
            with.by_number.get(&execve),
            Some(&1),
            "the one of /bin/true"
        );
    }

    #[test]
    fn children_are_counted_with_their_parent() {
        let calls = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            count(&command, Duration::from_secs(60))
        };
        let (getppid, one) = (110, calls(":").expect("counted"));
        let more = calls("(:); (:); (:); :").expect("counted");
        assert!(one.total() > 10 && one.distinct() > 3, "{one:?}");
        assert!(more.total() > one.total());
        assert!(
            one.by_number.contains_key(&getppid),
            "dash calls getppid at its start"
        );
        assert_eq!(one.kvm_runs, 0);
        let mut sleep = Command::new("sleep");
        sleep.arg("1000");
        let hung = count(&sleep, Duration::from_millis(300));
        assert!(matches!(hung, Err(RunError::TraceHung(_))));
    }
}
