//! Progress of long work, on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::output::columns;

/// Between two updates of a bar for bytes.
const INTERVAL: Duration = Duration::from_millis(100);
/// Between two updates of a bar for steps, the next of which may be long.
const BETWEEN_STEPS: Duration = Duration::from_millis(20);
/// Columns between the brackets of the bar.
const WIDTH: usize = 20;

/// The progress of long work on one line of standard error, which is erased at the end. It prints
/// nothing if standard error is not a terminal.
pub struct Bar {
    what: &'static str,
    next: Instant,
    shown: bool,
}

impl Bar {
    /// A bar for work that is called `what`.
    pub fn new(what: &'static str) -> Self {
        Self {
            what,
            next: Instant::now() + INTERVAL,
            shown: false,
        }
    }

    /// `done` bytes of `of` are done.
    pub fn show(&mut self, done: u64, of: u64) {
        let percent = done.saturating_mul(100) / of.max(1);
        let text = format!("hull: {} {percent:3} %", self.what);
        self.draw(&text, INTERVAL);
    }

    /// A `share` from 0 to 1 is done, and `step` is running.
    pub fn step(&mut self, share: f64, step: &str) {
        let share = share.clamp(0.0, 1.0);
        let full = (share * WIDTH as f64) as usize;
        let text = format!(
            "hull: {} [{}{}] {:3.0} % {step}",
            self.what,
            "#".repeat(full),
            "-".repeat(WIDTH - full),
            share * 100.0
        );
        self.draw(&text, BETWEEN_STEPS);
    }

    /// Not into the last column, from which a terminal may go to the next line.
    fn draw(&mut self, text: &str, interval: Duration) {
        if Instant::now() < self.next || !io::stderr().is_terminal() {
            return;
        }
        self.next = Instant::now() + interval;
        self.shown = true;
        let columns = columns(rustix::stdio::stderr()).unwrap_or(80);
        let text: String = text.chars().take(columns - 1).collect();
        let _ = io::stderr().write_all(format!("\r{text}\x1b[K").as_bytes());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.shown {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}
