//! What the host's kernel takes long to close is left to a process that outlives this one.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{Timespec, poll};
use rustix::process::{Signal, getpid, set_parent_process_death_signal};
use rustix::thread::futex;

/// Bytes of the process's stack.
const STACK: usize = 16 << 10;

/// How long the process stays at most: its parent may have been killed before the process asked to end with
/// it.
const LONGEST: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// What that process is told, and what it answers.
struct Order {
    kept: RawFd,
    /// Set when it holds nothing else.
    ready: AtomicU32,
}

/// Start a process that holds `kept` and this process's memory, and nothing else, until this process has
/// ended.
///
/// The last descriptor of a virtual machine waits for RCU grace periods when it is closed, tens of
/// milliseconds (`kvm_destroy_vm` in virt/kvm/kvm_main.c), and so would the user who waits for hull's end. For
/// the same reason the memory in the machine's slots stays mapped. In a PID namespace whose first process this
/// is, it gains nothing, as the kernel waits for all processes there: nothing is started.
///
/// # Errors
/// There is no process or memory left; the caller closes it itself then.
pub fn outlive(kept: BorrowedFd<'_>) -> io::Result<()> {
    if getpid().is_init() {
        return Ok(());
    }
    let stack = Box::leak(vec![0u128; STACK / size_of::<u128>()].into_boxed_slice());
    let order: &'static Order = Box::leak(Box::new(Order {
        kept: kept.as_raw_fd(),
        ready: AtomicU32::new(0),
    }));
    // The process would handle signals by this one's handlers, in this one's memory.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    // SAFETY: the stack and `order` are never freed, and `hold` touches nothing else of the memory that both
    // processes use: it calls the kernel alone, and allocates nothing.
    let started = unsafe {
        libc::clone(
            hold,
            stack.as_mut_ptr_range().end.cast(),
            libc::CLONE_VM | libc::SIGCHLD,
            (&raw const *order).cast_mut().cast(),
        )
    };
    let started = match started {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    before.thread_set_mask()?;
    started?;
    while order.ready.load(Ordering::Acquire) == 0 {
        // An error is that it is ready, or a signal.
        let _ = futex::wait(&order.ready, futex::Flags::empty(), 0, None);
    }
    Ok(())
}

/// The process: it ends with its parent. All signals but SIGKILL are blocked.
extern "C" fn hold(order: *mut c_void) -> c_int {
    // SAFETY: `outlive` passes an Order that lives as long as the memory.
    let order = unsafe { &*order.cast::<Order>() };
    let kept = order.kept as u32;
    // SAFETY: the table of descriptors is this process's own copy, which no object refers to.
    unsafe {
        if kept > 0 {
            libc::close_range(0, kept - 1, 0);
        }
        libc::close_range(kept + 1, u32::MAX, 0);
    }
    let told = set_parent_process_death_signal(Some(Signal::KILL));
    order.ready.store(1, Ordering::Release);
    let _ = futex::wake(&order.ready, futex::Flags::empty(), 1);
    if told.is_ok() {
        let _ = poll(&mut [], Some(&LONGEST));
    }
    0
}
