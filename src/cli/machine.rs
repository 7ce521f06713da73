//! What every verb does that runs a machine: terminal, signals, reports, status.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::headings::OUTPUT;
use super::output::say;
use super::output_file::OutputFile;
use super::terminal::Raw;
use super::timing;
use crate::launch::Terminal;
use crate::memory::program;
use crate::vmm::timeline::{Span, Timeline};
use crate::vmm::{self, Report, Signals, Streams};

/// What is told of a run afterwards.
#[derive(clap::Args)]
pub struct Reports {
    /// Print what the start cost on standard error.
    #[arg(long, help_heading = OUTPUT)]
    timing: bool,
    /// Write what the start cost to a file, for scripts.
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    json: Option<PathBuf>,
}

/// The reports, with their file made: nobody waits for a run whose report has no place.
pub struct OpenReports {
    timing: bool,
    json: Option<OutputFile>,
}

impl Reports {
    /// Whether anything is to be told.
    pub fn wanted(&self) -> bool {
        self.timing || self.json.is_some()
    }

    /// Make the file.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(&self) -> anyhow::Result<OpenReports> {
        let json = self.json.as_deref();
        let json = json.map(|path| OutputFile::create("--json", path));
        Ok(OpenReports {
            timing: self.timing,
            json: json.transpose()?,
        })
    }
}

impl OpenReports {
    /// Tell.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn tell(self, report: &Report) -> anyhow::Result<()> {
        if let Some(json) = self.json {
            let text = serde_json::to_string_pretty(report)? + "\n";
            json.write(text.as_bytes())?;
        }
        if self.timing {
            timing::print(report);
        }
        Ok(())
    }
}

/// A clock that started when this process did, with that as its first span.
pub fn clock() -> (Instant, Arc<Timeline>) {
    let started = process_start();
    program::bring_in();
    let timeline = Arc::new(Timeline::new(started));
    timeline.add(Span {
        name: "process start",
        aside: false,
        start: Duration::ZERO,
        end: timeline.now(),
    });
    (started, timeline)
}

/// Catch signals: before anything that one must not leave behind.
///
/// # Errors
/// No descriptor is left.
pub fn signals() -> anyhow::Result<Signals> {
    Signals::catch().context("cannot catch signals")
}

/// The terminal in raw mode, if it is the guest's.
///
/// # Errors
/// It cannot be set.
pub fn raw(config: &vmm::Config) -> anyhow::Result<Option<Raw>> {
    let command = config.machine.command.as_ref();
    let tty = command.is_none_or(|command| command.tty == Some(true));
    let wanted = tty && io::stdin().is_terminal();
    let raw = wanted.then(Raw::enter).transpose();
    raw.context("cannot set the terminal to raw mode")
}

/// hull's own streams.
pub fn streams(raw: &Option<Raw>) -> Streams {
    Streams::own(raw.is_some())
}

/// The terminal that is both standard input and output.
pub fn terminal() -> Option<Terminal> {
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    terminal.then(|| Terminal {
        kind: std::env::var_os("TERM"),
    })
}

/// One line of hull's own on standard error, whose terminal may be in raw mode.
pub fn say_on(raw: &Option<Raw>, line: &str) {
    let end = if raw.is_some() { "\r" } else { "" };
    say(&format!("{line}{end}"));
}

/// When this process was executed, as far as can be told: the CPU time it has used so far ago,
/// which is what the kernel and the C library's start-up took.
pub(super) fn process_start() -> Instant {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let used = Duration::try_from(used).unwrap_or_default();
    let now = Instant::now();
    now.checked_sub(used).unwrap_or(now)
}
