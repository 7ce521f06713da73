//! Which system calls a thread may make from now on: a seccomp filter for each [`Role`].
//!
//! The lists are in `filters.rs`, which the build script compiles: at start a filter is a copy of some
//! hundred instructions and two system calls. A filter stays until its thread ends, and nothing widens it
//! (Documentation/userspace-api/seccomp_filter.rst). A call that is not on the list raises SIGSYS
//! ([`super::violation`]).

use std::cell::Cell;
use std::io;
use std::process;
use std::sync::atomic::{AtomicU8, Ordering};

use libc::{c_uint, sock_filter, sock_fprog};
use rustix::thread::set_no_new_privs;

use super::compiled::{FILTERS, OWN_PROCESS};
use super::confine::{Rules, enter_folders, set_rules};
use super::role::Role;
use super::violation;

/// What becomes of a system call that is not on its thread's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[repr(u8)]
pub enum Seccomp {
    /// It ends hull with status 148.
    On,
    /// It is made, and the kernel's log has it.
    Log,
    /// It is made: there are no filters.
    Off,
}

/// hull's status where it fails.
const FAILED: i32 = 125;

/// The setting of this process; before it is set, as in other commands than those that run machines,
/// there are no filters.
static SETTING: AtomicU8 = AtomicU8::new(Seccomp::Off as u8);

thread_local! {
    static RESTRICTED: Cell<bool> = const { Cell::new(false) };
    static CONFINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread's system calls are restricted.
pub fn has_filter() -> bool {
    RESTRICTED.get()
}

/// Have threads that begin from now on be filtered, and be confined as [`super::allow_folders`] or
/// [`super::allow_all_folders`] says before the first of them. To be called while there is one thread.
///
/// # Errors
/// The host's kernel has no seccomp filters (before Linux 4.14, or without CONFIG_SECCOMP_FILTER).
pub fn set_seccomp(setting: Seccomp) -> io::Result<()> {
    set_rules(Rules::Unknown);
    if setting != Seccomp::Off {
        for action in [libc::SECCOMP_RET_TRAP, libc::SECCOMP_RET_LOG] {
            seccomp(libc::SECCOMP_GET_ACTION_AVAIL, &raw const action)?;
        }
        violation::catch()?;
        violation::tell_panics(has_filter);
    }
    SETTING.store(setting as u8, Ordering::Relaxed);
    Ok(())
}

/// Confine the calling thread to the folders and the system calls of its `role`, for good.
pub fn restrict(role: Role) {
    match enter_folders() {
        Ok(entered) => CONFINED.set(CONFINED.get() || entered),
        Err(error) => fail(role, &error),
    }
    restrict_calls(role);
}

/// Whether the calling thread is restricted in any way.
pub fn is_restricted() -> bool {
    RESTRICTED.get() || CONFINED.get()
}

/// The thread must not run without its restrictions.
fn fail(role: Role, error: &io::Error) -> ! {
    log::error!("the thread {} cannot be restricted: {error}", role.name());
    process::exit(FAILED)
}

/// Allow the calling thread the system calls of its `role` and no others, for good. If the kernel has no
/// memory for that, this process ends: the thread must not run without its filter.
pub fn restrict_calls(role: Role) {
    let Some(filter) = role.list().and_then(|index| FILTERS.get(index)) else {
        return;
    };
    let unlisted = match SETTING.load(Ordering::Relaxed) {
        setting if setting == Seccomp::On as u8 => libc::SECCOMP_RET_TRAP,
        setting if setting == Seccomp::Log as u8 => libc::SECCOMP_RET_LOG,
        _ => return,
    };
    violation::name_thread(&role.name());
    let installed = match RESTRICTED.replace(true) {
        // Without it only the superuser may install filters; what this process executes then gets no
        // rights by its file. It stays, and a second filter needs no more.
        false => set_no_new_privs(true).map_err(io::Error::from),
        true => Ok(()),
    };
    if let Err(error) = installed.and_then(|()| install(filter, unlisted)) {
        fail(role, &error);
    }
}

/// Install `filter`, with `unlisted` as the result for calls that it does not list.
pub(super) fn install(filter: &[sock_filter], unlisted: u32) -> io::Result<()> {
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const IS_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let process = rustix::process::getpid().as_raw_nonzero().get() as u32;
    let mut filter = filter.to_vec();
    for instruction in &mut filter {
        match (instruction.code, instruction.k) {
            (RETURN, libc::SECCOMP_RET_TRAP) => instruction.k = unlisted,
            (IS_EQUAL, OWN_PROCESS) => instruction.k = process,
            _ => {}
        }
    }
    let program = sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    seccomp(libc::SECCOMP_SET_MODE_FILTER, &raw const program)
}

/// seccomp(2) without flags.
fn seccomp<T>(operation: c_uint, argument: *const T) -> io::Result<()> {
    // SAFETY: the operations above read what `argument` points at, a u32 or a program whose
    // instructions live until the call returns.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, operation, 0, argument) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
