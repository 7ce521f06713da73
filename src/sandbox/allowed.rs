//! Which system calls the seccomp filters of another thread allow, as the kernel has them.
//!
//! A filter is a program of classic BPF over `struct seccomp_data` (seccomp(2), "Filters";
//! Documentation/networking/filter.rst). The values of arguments are not known here: where a filter
//! looks at one, both ways are taken, so that a call counts as allowed if some arguments are.

use std::collections::BTreeSet;
use std::io;

use libc::sock_filter;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// A filter's most instructions (BPF_MAXINSNS, `<linux/bpf_common.h>`).
const MAX_INSTRUCTIONS: usize = 4096;
/// Most filters of a thread that are read; an engine and a monitor install one or two each.
const MAX_FILTERS: usize = 64;
/// `<linux/ptrace.h>`.
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
/// AUDIT_ARCH_X86_64 (`<linux/audit.h>`).
const X86_64: u32 = 0xc000_003e;
/// Numbers of system calls that are tried: all that Linux has on x86_64, and some room.
const CALLS: u32 = 480;

/// How many system calls the filters of `thread` allow. `None` if it has no filter.
///
/// The thread is stopped for that moment. It takes the rights to trace it and CAP_SYS_ADMIN.
///
/// # Errors
/// The thread cannot be traced, or its filters not be read.
pub fn allowed_calls(thread: u32) -> io::Result<Option<usize>> {
    let pid = i32::try_from(thread).map_err(io::Error::other)?;
    let pid = Pid::from_raw(pid);
    ptrace::seize(pid, Options::empty())?;
    let read = ptrace::interrupt(pid)
        .and_then(|()| waitpid(pid, Some(WaitPidFlag::__WALL)))
        .map_err(io::Error::from)
        .and_then(|_| filters(pid));
    let _ = ptrace::detach(pid, None);
    let filters = read?;
    if filters.is_empty() {
        return Ok(None);
    }
    let passes = |call: &u32| filters.iter().all(|filter| may_allow(filter, *call));
    Ok(Some((0..CALLS).filter(passes).count()))
}

/// The filters of a stopped thread, the last installed first.
fn filters(pid: Pid) -> io::Result<Vec<Vec<sock_filter>>> {
    let mut all = Vec::new();
    while all.len() < MAX_FILTERS {
        let mut filter = vec![
            sock_filter {
                code: 0,
                jt: 0,
                jf: 0,
                k: 0
            };
            MAX_INSTRUCTIONS
        ];
        // SAFETY: the kernel writes at most BPF_MAXINSNS instructions to `filter`, which has room for
        // them (ptrace(2), PTRACE_SECCOMP_GET_FILTER), and nothing else.
        let count = unsafe {
            libc::ptrace(
                PTRACE_SECCOMP_GET_FILTER,
                pid.as_raw(),
                all.len(),
                filter.as_mut_ptr(),
            )
        };
        match usize::try_from(count) {
            Ok(count) => {
                filter.truncate(count);
                all.push(filter);
            }
            Err(_) if Errno::last() == Errno::ENOENT => break,
            // No thread of that kernel has a filter, or this one has none.
            Err(_) if Errno::last() == Errno::EINVAL && all.is_empty() => break,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(all)
}

/// Whether a path through `filter` lets the system call `call` run.
fn may_allow(filter: &[sock_filter], call: u32) -> bool {
    let (mut ways, mut seen) = (vec![(0, None)], BTreeSet::new());
    while let Some((at, accumulator)) = ways.pop() {
        if !seen.insert((at, accumulator)) {
            continue;
        }
        let Some(step) = filter.get(at) else {
            continue; // the kernel refuses such a filter
        };
        match next(step, at, accumulator, call) {
            Next::Ends(allows) if allows => return true,
            Next::Ends(_) => {}
            Next::Goes(to) => ways.extend(to.into_iter().flatten()),
        }
    }
    false
}

/// An instruction, and what the accumulator holds there if that is known.
type Place = (usize, Option<u32>);

enum Next {
    /// The filter ends, and the call may run.
    Ends(bool),
    /// It goes on in one of these places.
    Goes([Option<Place>; 2]),
}

/// The step after `step`, which is at `at`.
fn next(step: &sock_filter, at: usize, accumulator: Option<u32>, call: u32) -> Next {
    const LOADS: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const ENDS: u32 = libc::BPF_RET | libc::BPF_K;
    const MASKS: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    const CLASS: u32 = 0x07;
    const FROM_REGISTER: u32 = 0x08;
    let code = u32::from(step.code);
    let go = |accumulator| Next::Goes([Some((at + 1, accumulator)), None]);
    match code {
        // `nr` and `arch` are the first two numbers.
        LOADS => go(match step.k {
            0 => Some(call),
            4 => Some(X86_64),
            _ => None,
        }),
        ENDS => Next::Ends(runs(step.k)),
        MASKS => go(accumulator.map(|value| value & step.k)),
        _ if code & CLASS == libc::BPF_RET => Next::Ends(true),
        _ if code & CLASS == libc::BPF_JMP => {
            let skip = |count: u32| Some((at + 1 + count as usize, accumulator));
            let (yes, no) = (skip(step.jt.into()), skip(step.jf.into()));
            let known = accumulator.filter(|_| code & FROM_REGISTER == 0);
            match (code & 0xf0, known) {
                (libc::BPF_JA, _) => Next::Goes([skip(step.k), None]),
                (libc::BPF_JEQ, Some(value)) => {
                    Next::Goes([if value == step.k { yes } else { no }, None])
                }
                (libc::BPF_JGT, Some(value)) => {
                    Next::Goes([if value > step.k { yes } else { no }, None])
                }
                (libc::BPF_JGE, Some(value)) => {
                    Next::Goes([if value >= step.k { yes } else { no }, None])
                }
                (libc::BPF_JSET, Some(value)) => {
                    Next::Goes([if value & step.k != 0 { yes } else { no }, None])
                }
                _ => Next::Goes([yes, no]),
            }
        }
        // Stores and the second register do not change the accumulator.
        _ if matches!(code & CLASS, libc::BPF_ST | libc::BPF_STX | libc::BPF_LDX) => {
            go(accumulator)
        }
        _ => go(None),
    }
}

/// Whether a call runs for which a filter returns `value`: at once, or after another process agreed.
fn runs(value: u32) -> bool {
    const AGREED: [u32; 4] = [
        libc::SECCOMP_RET_ALLOW,
        libc::SECCOMP_RET_LOG,
        libc::SECCOMP_RET_TRACE,
        libc::SECCOMP_RET_USER_NOTIF,
    ];
    AGREED.contains(&(value & libc::SECCOMP_RET_ACTION_FULL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::compiled::FILTERS;
    use crate::sandbox::filters::{DEBUG, EVERY, LISTS};

    fn step(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
        let code = code as u16;
        sock_filter { code, jt, jf, k }
    }

    #[test]
    fn a_call_counts_if_some_arguments_are_allowed() {
        let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
        let end = libc::BPF_RET | libc::BPF_K;
        // read; ioctl of one request; all from 400 on; nothing of another architecture.
        let filter = [
            step(load, 4, 0, 0),
            step(equal, X86_64, 0, 6),
            step(load, 0, 0, 0),
            step(equal, 0, 5, 0),
            step(at_least, 400, 4, 0),
            step(equal, 16, 0, 2),
            step(load, 24, 0, 0),
            step(equal, 0xae80, 1, 0),
            step(end, libc::SECCOMP_RET_TRAP, 0, 0),
            step(end, libc::SECCOMP_RET_ALLOW, 0, 0),
        ];
        let allowed: Vec<u32> = (0..CALLS)
            .filter(|call| may_allow(&filter, *call))
            .collect();
        assert_eq!(allowed[..2], [0, 16]);
        assert_eq!(allowed[2..], (400..CALLS).collect::<Vec<_>>());
        assert!(!may_allow(&[], 0));
        assert!(!may_allow(&[step(libc::BPF_JMP, u32::MAX, 0, 0)], 0));
    }
    #[test]
    fn each_filter_allows_what_its_list_has() {
        for (list, filter) in LISTS.iter().zip(FILTERS) {
            let calls = list.calls.iter().copied().chain([EVERY, DEBUG]).flatten();
            let listed: BTreeSet<u32> = calls.map(|call| call.number as u32).collect();
            let allowed = (0..CALLS).filter(|call| may_allow(filter, *call));
            assert!(allowed.eq(listed), "{}", list.thread);
        }
    }
}
