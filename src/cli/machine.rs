//! What every verb does that runs a machine: terminal, signals, reports, status.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::run::{OUTPUT, ReportFile};
use super::terminal::Raw;
use super::timing;
use crate::memory::program;
use crate::vmm::debugger::Debugger;
use crate::vmm::timeline::{Span, Timeline};
use crate::vmm::{self, Console, End, Report, Signals, Streams, VmmError};

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
pub struct OpenReports<'a> {
    timing: bool,
    json: Option<ReportFile<'a>>,
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
    pub fn open(&self) -> anyhow::Result<OpenReports<'_>> {
        let json = self.json.as_deref();
        let json = json.map(|path| ReportFile::create("--json", path));
        Ok(OpenReports {
            timing: self.timing,
            json: json.transpose()?,
        })
    }
}

impl OpenReports<'_> {
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

/// Run the machine on hull's own streams.
///
/// # Errors
/// As [`vmm::run`]; the terminal cannot be set.
pub fn run(
    config: &vmm::Config,
    timeline: Arc<Timeline>,
    signals: Signals,
    debugger: Option<&mut dyn Debugger>,
) -> anyhow::Result<Result<(End, Report), VmmError>> {
    let raw = raw(config)?;
    let streams = streams(raw.is_some());
    Ok(vmm::run(config, streams, signals, timeline, debugger))
}

/// The terminal in raw mode, if it is the guest's.
///
/// # Errors
/// It cannot be set.
pub fn raw(config: &vmm::Config) -> anyhow::Result<Option<Raw>> {
    let wanted = match &config.console {
        Console::Kernel => io::stdin().is_terminal(),
        Console::Agent { exec, .. } => exec.tty.is_some() && io::stdin().is_terminal(),
    };
    let raw = wanted.then(Raw::enter).transpose();
    raw.context("cannot set the terminal to raw mode")
}

/// hull's own, whose input is a terminal in raw mode or not.
pub fn streams(raw: bool) -> Streams {
    Streams {
        stdin: rustix::stdio::stdin(),
        stdout: rustix::stdio::stdout(),
        stderr: rustix::stdio::stderr(),
        raw,
    }
}

/// The status with which to exit.
pub fn status(end: End) -> u8 {
    match end {
        End::Off | End::Quit => 0,
        End::Exited(status) => status,
        End::Signalled(signal) => 128 + signal as u8,
    }
}

/// When this process was executed, as far as can be told: the CPU time it has used so far ago,
/// which is what the kernel and the C library's start-up took.
pub(super) fn process_start() -> Instant {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let used = Duration::try_from(used).unwrap_or_default();
    let now = Instant::now();
    now.checked_sub(used).unwrap_or(now)
}
