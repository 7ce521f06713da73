//! What this process inherits from the one that started it: blocked signals and ignored children, which
//! it undoes, and a closed standard output, which it remembers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::SigSet;
use signal_hook::consts::SIGCHLD;

static STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// Run by the loader before std, which opens /dev/null in place of a closed standard stream
/// (library/std/src/sys/pal/unix/mod.rs, `sanitize_standard_fds`).
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    let closed = rustix::io::fcntl_getfd(rustix::stdio::stdout()).is_err();
    STDOUT_CLOSED.store(closed, Ordering::Relaxed);
}

/// Whether standard output was closed when this process was executed.
pub fn stdout_closed() -> bool {
    STDOUT_CLOSED.load(Ordering::Relaxed)
}

/// Set the state of signals that hull needs: none is blocked, so that those arrive which are caught, and
/// children can be waited for. To be called before the first thread starts.
///
/// # Errors
/// The kernel refuses.
pub fn set_signals() -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    // A signal that is ignored stays so over execve(2), and an ignored SIGCHLD takes the status of every
    // child; a handler does not.
    signal_hook::flag::register(SIGCHLD, Arc::default()).map(drop)
}
