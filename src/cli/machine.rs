//! What all verbs that run a machine share: clock, terminal, signals and reports.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::headings::OUTPUT;
use super::output::{say, say_error};
use super::output_file::OutputFile;
use super::timing;
use crate::config::Fault;
use crate::launch::{OWN_ERROR, Terminal};
use crate::vmm::timeline::{Span, Timeline};
use crate::vmm::{self, Report, Signals, Tty};

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
        let json = json.map(|path| OutputFile::open("--json", path));
        Ok(OpenReports {
            timing: self.timing,
            json: json.transpose()?,
        })
    }
}

impl OpenReports {
    /// Write and print them. Returns whether that succeeded; a failure is printed.
    pub fn tell(self, report: &Report) -> bool {
        let written = self.json.map_or(Ok(()), |json| {
            let text = serde_json::to_string_pretty(report)? + "\n";
            json.write(text.as_bytes())
        });
        if self.timing {
            timing::print(report);
        }
        written.inspect_err(|error| say_error(error)).is_ok()
    }
}

/// The status to exit with after a machine's `status`: no success if a report is missing.
pub fn status(status: u8, reported: bool) -> u8 {
    match status {
        0 if !reported => OWN_ERROR,
        status => status,
    }
}

/// A clock that starts with this process, whose start-up is its first span.
pub fn clock() -> (Instant, Arc<Timeline>) {
    let started = process_start();
    let timeline = Arc::new(Timeline::new(started));
    timeline.add(Span {
        name: "process start",
        aside: false,
        start: Duration::ZERO,
        end: timeline.now(),
    });
    (started, timeline)
}

/// Replace standard input by one that is at its end.
///
/// # Errors
/// There is no /dev/null.
pub fn leave_stdin() -> anyhow::Result<()> {
    let null = File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(null).context("cannot replace standard input")
}

/// Catch signals. To be called before anything that must be undone when a signal comes.
///
/// # Errors
/// The process has no free descriptor.
pub fn signals() -> anyhow::Result<Signals> {
    Signals::catch().context("cannot catch signals")
}

/// The terminal, if the guest gets its keys; in raw mode if this process is in its foreground.
///
/// # Errors
/// Its mode cannot be set.
pub fn tty(config: &vmm::Config) -> anyhow::Result<Option<Arc<Tty>>> {
    let command = config.machine.command.as_ref();
    let tty = command.is_none_or(|command| command.tty == Some(true));
    let wanted = tty && io::stdin().is_terminal();
    let opened = wanted.then(Tty::open).transpose();
    let opened = opened.map(|tty| tty.map(Arc::new));
    opened.context("cannot set the terminal to raw mode")
}

/// hull's terminal, if standard input and output are one.
pub fn terminal() -> Option<Terminal> {
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    terminal.then(|| Terminal {
        kind: std::env::var_os("TERM"),
    })
}

/// Name what is wrong with the machine on purpose.
pub fn say_faults(faults: &[Fault]) {
    for fault in faults {
        say(&format!("broken on purpose ({fault}): {}", fault.what()));
    }
}

/// One line of hull's own on standard error, whose terminal may be in raw mode.
pub fn say_on(tty: Option<&Tty>, line: &str) {
    let end = if tty.is_some_and(Tty::is_raw) {
        "\r"
    } else {
        ""
    };
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
