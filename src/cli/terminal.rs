//! The terminal in raw mode, and its restoration.

use std::io;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Standard input's terminal in raw mode, until this is dropped.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Set raw mode: every key goes to the guest at once and without an echo.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(rustix::stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Drain: the guest's last output still goes out raw. Nothing can be done about an error:
        // the terminal is gone then.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}
