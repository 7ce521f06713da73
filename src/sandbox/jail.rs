//! A jail: namespaces of a process's own, and an empty root folder.
//!
//! ```text
//!   supervisor, on the host ──┬── init: PID 1 of the jail, which waits for the supervisor's word
//!                             └── machine's hull: opens what it needs, then enters the rest of the jail
//! ```
//! A process cannot leave its PID namespace for another one, so that one is made first, and with it the user
//! namespace that an ordinary user needs (pid_namespaces(7), user_namespaces(7)). All others are
//! entered when everything is open.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::unistd::{ForkResult, fork};
use rustix::io::{read, retry_on_intr};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, chdir, getegid, geteuid, pivot_root, wait};
use rustix::thread::{
    CapabilitySet, Gid, Uid, UnshareFlags, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use thiserror::Error;

use super::lockdown::{drop_bounding, lock_down};

/// Whether this process has entered its jail.
static JAILED: AtomicBool = AtomicBool::new(false);

/// Whether this process has entered a jail, where it finds no files.
pub fn is_jailed() -> bool {
    JAILED.load(Ordering::Relaxed)
}

/// Where the empty root is mounted for the moment before it is the root: a folder that every host has.
const PLACE: &str = "/proc";
/// How long the jail's other processes may take to end after the machine's hull.
const END_TRIES: u32 = 400;
const END_PAUSE: Duration = Duration::from_millis(5);

/// Sysctls that forbid user namespaces, with the value that does and what allows them.
const FORBIDDEN: [(&str, &str, &str); 3] = [
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "sysctl user.max_user_namespaces=10000",
    ),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "sysctl kernel.unprivileged_userns_clone=1",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
];

/// Why there is no jail.
#[derive(Debug, Error)]
pub enum JailError {
    /// The host allows this user no user namespace.
    #[error("this host allows no user namespaces ({error}); {}", remedy())]
    Users {
        /// What the kernel answered.
        error: io::Error,
    },
    /// There is no other namespace, or no process.
    #[error("{what} ({error}){}", hint(error))]
    Step {
        /// What was being done.
        what: &'static str,
        /// What the kernel answered.
        error: io::Error,
    },
}

/// The first process of a PID namespace, which ends when it is told to, or with its parent.
pub(super) struct Init {
    word: OwnedFd,
    pub(super) process: Pid,
}

impl Init {
    /// Start it in a new PID namespace, in which the calling process's later children begin, too. A user
    /// other than root gets a user namespace first, as the same user. The caller has one thread, and all
    /// signals are blocked.
    pub(super) fn start() -> Result<Self, JailError> {
        if !geteuid().is_root() {
            own_users().map_err(|error| JailError::Users { error })?;
        }
        unshare(UnshareFlags::NEWPID).map_err(step("no PID namespace"))?;
        let (told, word) = pipe_with(PipeFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(step("no pipe"))?;
        // SAFETY: there is one thread; the child never returns.
        let forked = unsafe { fork() };
        match forked
            .map_err(io::Error::from)
            .map_err(step("no process"))?
        {
            ForkResult::Child => {
                drop(word);
                serve(told);
            }
            ForkResult::Parent { child } => Ok(Self {
                word,
                // fork(2) returns no other in the parent.
                process: Pid::from_raw(child.as_raw()).unwrap_or(Pid::INIT),
            }),
        }
    }

    /// Have it wait for the other processes of the namespace, for a moment, and end with them.
    pub(super) fn end(&self) {
        let _ = rustix::io::write(&self.word, b"e");
    }
}

/// Enter a user namespace that maps the calling process's user and group to themselves, and no others.
fn own_users() -> io::Result<()> {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER)?;
    // Without it no group may be mapped (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// The process of [`Init`].
fn serve(told: OwnedFd) -> ! {
    let _ = rustix::thread::set_name(c"init");
    let mut order = [0];
    if let Ok(told) = alone(told)
        && lock_down().is_ok()
        && let Ok(1) = retry_on_intr(|| read(told.as_fd(), &mut order))
    {
        for _ in 0..END_TRIES {
            // An ignored SIGCHLD reaps them; an error is that there are none.
            if wait(WaitOptions::NOHANG).is_err() {
                break;
            }
            thread::sleep(END_PAUSE);
        }
    }
    // The kernel ends all other processes of the namespace with its first.
    // SAFETY: it ends the process, without the handlers of the one that it is a copy of.
    unsafe { libc::_exit(0) }
}

/// Close every descriptor but `told`, and leave children to the kernel.
fn alone(told: OwnedFd) -> io::Result<OwnedFd> {
    rustix::stdio::dup2_stdin(&told)?;
    drop(told);
    // SAFETY: this process has no other thread, and uses none of these descriptors again; an ignored
    // signal has no handler.
    unsafe {
        libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0);
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        Ok(rustix::stdio::take_stdin())
    }
}

/// Enter the rest of the jail: a root folder that is empty and read-only, no network, no System V IPC, a host
/// name of its own; then become the user and group in `ids`, if given, with no other group.
///
/// This binds the calling thread, and those that it starts from now on. What is open stays open.
///
/// # Errors
/// [`JailError`]; this process must end then.
pub fn enter_jail(ids: Option<(u32, u32)>) -> Result<(), JailError> {
    let own =
        UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    JAILED.store(true, Ordering::Relaxed);
    unshare(own).map_err(step("no namespaces of its own"))?;
    empty_root().map_err(step("no root folder of its own"))?;
    if let Some((uid, gid)) = ids {
        become_user(uid, gid).map_err(step("cannot become another user"))?;
    }
    Ok(())
}

fn empty_root() -> io::Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(
        "hull",
        PLACE,
        "tmpfs",
        flags,
        Some(c"size=4k,nr_inodes=2,mode=0555"),
    )?;
    chdir(PLACE)?;
    // The old root comes to lie on the new one (pivot_root(2)).
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}

fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // Afterwards this takes a capability that is gone.
    drop_bounding(CapabilitySet::empty())?;
    // The system calls themselves, for this thread alone: the C library's would change the threads of
    // shares, too, which act for all users of the guest.
    set_thread_groups(&[])?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

fn unshare(what: UnshareFlags) -> io::Result<()> {
    // SAFETY: no descriptor table is unshared, and nothing here relies on a shared working directory.
    Ok(unsafe { rustix::thread::unshare_unsafe(what) }?)
}

fn step(what: &'static str) -> impl Fn(io::Error) -> JailError {
    move |error| JailError::Step { what, error }
}

/// What may help, behind the error of a step.
fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "; a jail takes CAP_SYS_ADMIN, which root in a container often lacks: run hull outside of the \
             container, or as another user where there are user namespaces"
        }
        _ => "",
    }
}

/// What an administrator can do about missing user namespaces.
fn remedy() -> String {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|it| it.trim() == value);
    let found = FORBIDDEN.iter().find(|(path, value, _)| is(path, value));
    match found {
        Some((_, _, allows)) => format!("root can allow them: {allows}; or run hull as root"),
        None => "run hull as root, or outside of the container that forbids them".into(),
    }
}
