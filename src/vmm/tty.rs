//! Standard input's terminal: in raw mode while this process is in its foreground, and only then.
//!
//! The modes of a terminal belong to its foreground process group: a process that sets them from the
//! background is stopped (SIGTTOU, termios(3)), as is one that reads (SIGTTIN).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, OnceLock};

use nix::unistd::getpgrp;
use rustix::stdio::stdin;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

use crate::sandbox::restore_on_violation;
use crate::sync::lock;

/// Longest text of /proc/self/stat: a name of 15 characters and some 50 numbers.
const MAX_STAT: usize = 1024;

/// The terminal, whose modes are restored when this is dropped.
pub struct Tty {
    /// The modes from before raw mode; `None` while it is not raw.
    before: Mutex<Option<Termios>>,
}

impl Tty {
    /// Standard input, in raw mode if this process is in the foreground.
    ///
    /// # Errors
    /// Its modes cannot be set.
    pub fn open() -> io::Result<Self> {
        let tty = Self {
            before: Mutex::new(None),
        };
        tty.take()?;
        Ok(tty)
    }

    /// Set raw mode if this process is in the foreground: every key goes to the guest at once and
    /// without an echo. Returns whether that has changed something.
    ///
    /// # Errors
    /// The modes cannot be set.
    pub fn take(&self) -> io::Result<bool> {
        let mut before = lock(&self.before);
        if before.is_some() || !in_foreground() {
            return Ok(false);
        }
        let modes = tcgetattr(stdin())?;
        let mut raw = modes.clone();
        raw.make_raw();
        restore_on_violation(Some(&modes));
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        *before = Some(modes);
        Ok(true)
    }

    /// Restore the modes. In the background they are those of another process, and stay.
    pub fn give_back(&self) {
        let Some(before) = lock(&self.before).take() else {
            return;
        };
        if in_foreground() {
            // Drain: the guest's last output still goes out raw. Nothing can be done about an error:
            // the terminal is gone then.
            let _ = tcsetattr(stdin(), OptionalActions::Drain, &before);
        }
        restore_on_violation(None);
    }

    /// Whether it is in raw mode.
    pub fn is_raw(&self) -> bool {
        lock(&self.before).is_some()
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Whether standard input may be read and its modes set: it is no terminal with job control, or this
/// process is in the terminal's foreground.
pub fn in_foreground() -> bool {
    let own = getpgrp().as_raw();
    if own == 0 {
        return in_hidden_foreground();
    }
    tcgetpgrp(stdin()).map_or(true, |foreground| foreground.as_raw_nonzero().get() == own)
}

/// As [`in_foreground`] in a process group that began outside of this process's PID namespace, where the
/// system calls say 0 for it and for that in the foreground. /proc is of the namespace in which it was
/// mounted, and tells (`pgrp` and `tpgid` in proc_pid_stat(5)); a jail has none, so the file stays open.
fn in_hidden_foreground() -> bool {
    static STAT: OnceLock<Option<File>> = OnceLock::new();
    let stat = STAT.get_or_init(|| File::open("/proc/self/stat").ok());
    let mut text = [0; MAX_STAT];
    let read = stat
        .as_ref()
        .and_then(|stat| stat.read_at(&mut text, 0).ok());
    let text = String::from_utf8_lossy(text.get(..read.unwrap_or(0)).unwrap_or_default());
    let fields = text.rsplit(')').next().unwrap_or_default();
    let mut fields = fields.split_whitespace().skip(2);
    let (own, foreground) = (fields.next(), fields.nth(2));
    foreground.is_none_or(|foreground| foreground == "-1" || Some(foreground) == own)
}

/// Whether standard input is a terminal that gives single keys, not lines (non-canonical mode, termios(3)).
pub fn gives_keys() -> bool {
    tcgetattr(stdin()).is_ok_and(|modes| !modes.local_modes.contains(LocalModes::ICANON))
}
