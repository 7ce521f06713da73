//! Progress of long work, on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two looks at it.
const INTERVAL: Duration = Duration::from_millis(100);

/// How far something is, on one line of standard error that is gone afterwards. Nothing elsewhere
/// than on a terminal.
pub struct Bar {
    what: &'static str,
    next: Instant,
    shown: bool,
}

impl Bar {
    /// Of work that is called `what`.
    pub fn new(what: &'static str) -> Self {
        Self {
            what,
            next: Instant::now() + INTERVAL,
            shown: false,
        }
    }

    /// `done` bytes `of` all are.
    pub fn show(&mut self, done: u64, of: u64) {
        if Instant::now() < self.next || !io::stderr().is_terminal() {
            return;
        }
        self.next = Instant::now() + INTERVAL;
        self.shown = true;
        let percent = done.saturating_mul(100) / of.max(1);
        let text = format!("\rhull: {} {percent:3} %", self.what);
        let _ = io::stderr().write_all(text.as_bytes());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.shown {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}
