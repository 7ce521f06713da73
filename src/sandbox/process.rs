//! Processes beside hull, which do what no thread of a machine may, or serve what no thread should: each is
//! a copy of hull with its own list of system calls, and ends when hull does, however that ends.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{ForkResult, fork};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::role::Role;
use super::supervise::is_supervised;

/// The highest descriptor that is closed where close_range(2) is missing (before Linux 5.9).
const MAX_DESCRIPTOR: i32 = 1024;

/// Longest status of a process that is read, in bytes.
const MAX_STATUS: usize = 4096;

/// The statuses of all processes that were started, open: a thread that is locked down could not open them.
static STATUSES: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// What the kernel tells of those that run (proc_pid_status(5)).
pub fn statuses_beside() -> Vec<String> {
    let files = STATUSES.lock().unwrap_or_else(PoisonError::into_inner);
    let status = |file: &File| {
        let mut text = vec![0; MAX_STATUS];
        let read = file.read_at(&mut text, 0).ok()?; // it has ended
        text.truncate(read);
        String::from_utf8(text).ok()
    };
    files.iter().filter_map(status).collect()
}

/// The status of the child that was started last, which is `child` here. To a supervised process in a jail /proc
/// has other numbers, those of the namespace in which it was mounted.
fn open_status(child: i32) -> Option<File> {
    let child = match is_supervised() {
        false => child.to_string(),
        true => {
            let all = std::fs::read_to_string("/proc/thread-self/children").ok()?;
            all.split_whitespace().last()?.into()
        }
    };
    File::open(format!("/proc/{child}/status")).ok()
}

/// A process that ends when this is dropped.
pub struct Process {
    /// `None` only while it is dropped.
    socket: Option<OwnedFd>,
    process: Pid,
}

impl Process {
    /// Start a process that does `main`, with its end of a pair of sockets (SOCK_SEQPACKET), and `kept`. It
    /// has a copy of this process's memory, so there should be little yet, no other descriptors but standard
    /// error, and all rights: `main` gives up what it does not need.
    ///
    /// # Errors
    /// The host has no descriptor or process left.
    pub fn start(
        role: Role,
        kept: Option<OwnedFd>,
        main: impl FnOnce(OwnedFd, Option<OwnedFd>),
    ) -> io::Result<Self> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (socket, far) = socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
        // It shares this process's handlers: what Ctrl-C signals is not for it. Violations are.
        let mut blocked = SigSet::all();
        blocked.remove(Signal::SIGSYS);
        let before = blocked.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        // SAFETY: the C library keeps its locks consistent over fork(3), and the child uses nothing else of
        // this process's threads; it never returns.
        let forked = unsafe { fork() };
        if let Ok(ForkResult::Child) = forked {
            if let Ok(name) = CString::new(&*role.name()) {
                let _ = rustix::thread::set_name(&name);
            }
            if let Some((far, kept)) = alone(far, kept) {
                main(far, kept);
            }
            // SAFETY: it ends the process, without the handlers of the one that it is a copy of.
            unsafe { libc::_exit(0) }
        }
        let _ = before.thread_set_mask();
        match forked? {
            ForkResult::Parent { child } => {
                if let Some(status) = open_status(child.as_raw()) {
                    let mut statuses = STATUSES.lock().unwrap_or_else(PoisonError::into_inner);
                    statuses.push(status);
                }
                Ok(Self {
                    socket: Some(socket),
                    process: Pid::from_raw(child.as_raw()).ok_or(Errno::SRCH)?,
                })
            }
            ForkResult::Child => unreachable!("it has ended"),
        }
    }

    /// This end of the pair of sockets.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] while it is dropped.
    pub fn socket(&self) -> io::Result<&OwnedFd> {
        self.socket
            .as_ref()
            .ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.socket = None;
        let _ = retry_on_intr(|| waitpid(Some(self.process), WaitOptions::empty()));
    }
}

/// Close every descriptor but these and standard error, the other streams too: their readers wait for
/// their end.
fn alone(far: OwnedFd, kept: Option<OwnedFd>) -> Option<(OwnedFd, Option<OwnedFd>)> {
    let is_kept = kept.is_some();
    rustix::stdio::dup2_stdin(&far).ok()?;
    rustix::stdio::dup2_stdout(kept.as_ref().unwrap_or(&far)).ok()?;
    drop((far, kept));
    // SAFETY: this process has no other thread, and uses none of these descriptors again.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) != 0 {
            for descriptor in 3..MAX_DESCRIPTOR {
                let _ = libc::close(descriptor);
            }
        }
        let (far, kept) = (rustix::stdio::take_stdin(), rustix::stdio::take_stdout());
        Some((far, is_kept.then_some(kept)))
    }
}
