//! What the verbs `compare` and `bench` share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::bar::Bar;
use super::output::columns;
use crate::compare::measure::stop;
use crate::compare::turns::Progress;

/// Width of text if standard output is not a terminal.
const DEFAULT_WIDTH: usize = 100;

/// The signal that ended a measurement.
pub struct Caught(Arc<AtomicUsize>);

impl Caught {
    /// Makes signals end the measurement from now on.
    pub fn new() -> anyhow::Result<Self> {
        let which = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            // The number is stored first, so that it is known when the flag is set.
            signal_hook::flag::register_usize(signal, which.clone(), signal as usize)
                .and_then(|_| signal_hook::flag::register(signal, stop::flag()))
                .context("cannot catch signals")?;
        }
        Ok(Self(which))
    }

    pub fn exit_status(&self) -> u8 {
        128 + self.0.load(Ordering::Relaxed) as u8
    }
}

/// The command line of this process, for a report.
pub fn own_command() -> Vec<String> {
    let words = std::env::args_os();
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// Shows progress on a bar, on a terminal.
pub fn bar(what: &'static str) -> impl FnMut(Progress) {
    let mut bar = Bar::new(what);
    move |progress| bar.step(progress.share, progress.step)
}

/// The width of standard output, in columns.
pub fn output_width() -> usize {
    columns(rustix::stdio::stdout()).unwrap_or(DEFAULT_WIDTH)
}
