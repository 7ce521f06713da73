//! The end of hull when a thread makes a system call that is not on its list: SIGSYS.
//!
//! All here is async-signal-safe (signal-safety(7)): the thread may hold any lock, the allocator's too.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io;
use std::panic;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::thread;

use libc::{c_int, c_void, siginfo_t};
use rustix::termios::{OptionalActions, Termios, tcsetattr};

use super::compiled::name_of;

/// Exit status of hull after a system call that is not allowed, as Firecracker's.
pub const NOT_ALLOWED: i32 = 148;
/// `si_code` of a SIGSYS that a filter caused (uapi/asm-generic/siginfo.h).
const SYS_SECCOMP: c_int = 1;
/// Bytes of a thread's name (pthread_setname_np(3)).
const NAME: usize = 15;

thread_local! {
    static THREAD: Cell<([u8; NAME], usize)> = const { Cell::new(([0; NAME], 0)) };
    static IN_MAIN: Cell<bool> = const { Cell::new(false) };
}

/// The first violation is told, and ends hull.
static VIOLATED: AtomicBool = AtomicBool::new(false);
/// The modes that standard input's terminal had before hull set it to raw mode.
static MODES: AtomicPtr<Termios> = AtomicPtr::new(null_mut());

/// Remember the calling thread's name for the message.
pub(super) fn name_thread(name: &str) {
    let mut bytes = [0; NAME];
    let used = name.len().min(NAME);
    bytes[..used].copy_from_slice(&name.as_bytes()[..used]);
    THREAD.set((bytes, used));
}

/// Have the terminal that is standard input get these modes if hull ends so; `None` when it has its own
/// again. Only the main thread may call it.
pub fn restore_on_violation(modes: Option<&Termios>) {
    let new = modes.map_or(null_mut(), |modes| Box::into_raw(Box::new(modes.clone())));
    let old = MODES.swap(new, Ordering::AcqRel);
    if !old.is_null() {
        // SAFETY: it was made by Box::into_raw above, and the main thread's handler, which alone reads
        // it, does not run now.
        drop(unsafe { Box::from_raw(old) });
    }
}

/// Have a panic of a thread whose system calls are restricted told by one write: std's own way to tell it
/// makes calls that are on no list, to read the thread's id and, for a backtrace, the program.
pub(super) fn tell_panics(is_restricted: fn() -> bool) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if is_restricted() {
            let thread = thread::current();
            let name = thread.name().unwrap_or_default();
            let text = format!("\nthread '{name}' {info}\n");
            let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
        } else {
            before(info);
        }
    }));
}

/// Catch SIGSYS from now on. The caller is the main thread.
///
/// # Errors
/// The kernel refuses.
pub(super) fn catch() -> io::Result<()> {
    IN_MAIN.set(true);
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = violated;
    // SAFETY: an all-zero sigaction is valid, and `violated` has the signature of a handler with
    // SA_SIGINFO and is async-signal-safe.
    let caught = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSYS, &raw const action, null_mut())
    };
    match caught {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tell of the call, and end hull. Only the main thread may set the terminal's modes: another thread sends
/// the signal on to it, and ends hull itself if that takes long.
extern "C" fn violated(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel hands over a siginfo_t. With this code it has the number of the call behind the
    // call's address (struct _sigsys in uapi/asm-generic/siginfo.h).
    let (code, number) = unsafe { ((*info).si_code, info.cast::<c_int>().add(6).read()) };
    if code == SYS_SECCOMP && !VIOLATED.swap(true, Ordering::AcqRel) {
        tell(number.into());
    }
    if IN_MAIN.get() {
        let modes = MODES.load(Ordering::Acquire);
        // SAFETY: it is null or made by Box::into_raw, and this thread alone frees it.
        if let Some(modes) = unsafe { modes.as_ref() } {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, modes);
        }
    } else {
        wake_main();
    }
    // SAFETY: it ends the process and touches nothing.
    unsafe { libc::_exit(NOT_ALLOWED) }
}

/// Raise SIGSYS in the main thread, whose thread id is the process's, and wait for the end that follows.
fn wake_main() {
    let process = std::process::id();
    let second = libc::timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    let never = 0u32;
    // SAFETY: tgkill takes numbers; the word and the time that futex reads live until it returns.
    unsafe {
        libc::syscall(libc::SYS_tgkill, process, process, libc::SIGSYS);
        libc::syscall(
            libc::SYS_futex,
            &raw const never,
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            never,
            &raw const second,
        );
    }
}

/// Write which call it was, on one line.
fn tell(number: i64) {
    let (name, used) = THREAD.get();
    let thread = str::from_utf8(name.get(..used).unwrap_or_default()).unwrap_or_default();
    let mut line = Line {
        bytes: [0; 256],
        used: 0,
    };
    let named = name_of(number).unwrap_or("with the number");
    let _ = write!(
        line,
        "hull: the thread {thread} made the system call {named} ({number}) in a way that is not on its \
         list, and hull ends; --seccomp log goes on and has the kernel log such calls\r\n"
    );
    let text = line.bytes.get(..line.used).unwrap_or_default();
    let _ = rustix::io::write(rustix::stdio::stderr(), text);
}

/// A text of limited length, without an allocation.
struct Line {
    bytes: [u8; 256],
    used: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.used..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = from;
            self.used += 1;
        }
        Ok(())
    }
}
