//! What all verbs that run a machine share: clock, terminal, signals and reports.

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

/// Reports that are printed after the run.
#[derive(clap::Args)]
#[command(next_help_heading = OUTPUT)]
pub struct Reports {
    /// Print what the start cost on standard error.
    #[arg(long)]
    timing: bool,
    /// Write what the start cost to a file, for scripts.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The reports; their file was tried before the run, so that no run ends without a place for them.
pub struct OpenReports {
    timing: bool,
    json: Option<OutputFile>,
}

impl Reports {
    /// Whether any report was asked for.
    pub fn wanted(&self) -> bool {
        self.timing || self.json.is_some()
    }

    /// Try the file.
    ///
    /// # Errors
    /// The file cannot be written.
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
    /// Write and print them.
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

/// A clock that starts with this process, whose start-up is its first span.
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

/// Catch signals. To be called before anything that must be undone when a signal comes.
///
/// # Errors
/// The process has no free descriptor.
pub fn signals() -> anyhow::Result<Signals> {
    Signals::catch().context("cannot catch signals")
}

/// Put the terminal into raw mode if the guest uses it.
///
/// # Errors
/// Its mode cannot be set.
pub fn raw(config: &vmm::Config) -> anyhow::Result<Option<Raw>> {
    let command = config.machine.command.as_ref();
    let tty = command.is_none_or(|command| command.tty == Some(true));
    let wanted = tty && io::stdin().is_terminal();
    let raw = wanted.then(Raw::enter).transpose();
    raw.context("cannot set the terminal to raw mode")
}

/// hull's own standard streams.
pub fn streams(raw: &Option<Raw>) -> Streams {
    Streams::own(raw.is_some())
}

/// hull's terminal, if standard input and output are one.
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

/// When this process was executed, estimated: now less the CPU time used so far, which is what the
/// kernel and the start-up of the C library took.
pub(super) fn process_start() -> Instant {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let used = Duration::try_from(used).unwrap_or_default();
    let now = Instant::now();
    now.checked_sub(used).unwrap_or(now)
}
