//! Standard input's terminal: in raw mode while this process is in its foreground, and only then.
//!
//! The modes of a terminal belong to its foreground process group: a process that sets them from the
//! background is stopped (SIGTTOU, termios(3)), as is one that reads (SIGTTIN).

use std::io;
use std::sync::Mutex;

use nix::unistd::getpgrp;
use rustix::stdio::stdin;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};

use crate::sandbox::restore_on_violation;
use crate::sync::lock;

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
    tcgetpgrp(stdin()).map_or(true, |foreground| {
        foreground.as_raw_nonzero().get() == getpgrp().as_raw()
    })
}

/// Whether standard input is a terminal that gives single keys, not lines (non-canonical mode, termios(3)).
pub fn gives_keys() -> bool {
    tcgetattr(stdin()).is_ok_and(|modes| !modes.local_modes.contains(LocalModes::ICANON))
}
