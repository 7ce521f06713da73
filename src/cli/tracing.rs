//! `--trace` and `--explain` of `hull run`.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::headings::OUTPUT;
use super::output::say;
use super::output_file::OutputFile;
use crate::sync::lock;
use crate::trace::{Recording, Trace, perfetto};
use crate::vmm;

/// Most exits of one kind that are described.
const MAX_EXITS: u32 = 1000;

#[derive(clap::Args)]
#[command(next_help_heading = OUTPUT)]
pub struct Tracing {
    /// Record events with their times in a file for ui.perfetto.dev or chrome://tracing; it is
    /// written at the end and, with the events so far, on SIGUSR1. See hull trace summary.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Describe the boot as it happens on standard error, step by step: what is done, why, with
    /// which values, and what would happen without it. With =exits also the first N exits of each
    /// kind (1 when N is left out), with the instruction that caused them. Example: --explain=exits,3
    #[arg(
        long,
        value_name = "exits[,N]",
        value_parser = explain,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        hide_default_value = true
    )]
    explain: Option<u32>,
}

fn explain(text: &str) -> Result<u32, String> {
    let number = match text.split_once(',') {
        None if text.is_empty() => return Ok(0),
        None if text == "exits" => Some(1),
        Some(("exits", number)) => number.parse().ok(),
        _ => None,
    };
    let number = number.filter(|number| (1..=MAX_EXITS).contains(number));
    number.ok_or_else(|| format!("it is exits or exits,N, with N from 1 to {MAX_EXITS}"))
}

impl Tracing {
    /// Attach to `config` what was asked for; the clock of the machine started at `started`.
    ///
    /// # Errors
    /// The file cannot be written, or no thread can be started.
    pub fn set_up(
        &self,
        config: &mut vmm::Config,
        started: Instant,
    ) -> anyhow::Result<Option<Writer>> {
        let attached = &mut config.attachments;
        attached.story = self.explain.map(|_| super::explain::listener());
        attached.explain_exits = self.explain.filter(|exits| *exits > 0);
        let Some(path) = &self.trace else {
            return Ok(None);
        };
        let trace = Arc::new(Trace::new(started, config.machine.cpus));
        let file = Arc::new(OutputFile::open("--trace", path)?);
        let failure = Arc::<Mutex<Option<io::Error>>>::default();
        let (to, from, told) = (file.clone(), trace.clone(), failure.clone());
        let write_when_asked = move || {
            while from.asked() {
                if let Err(error) = write(&to, &from.recording()) {
                    *lock(&told) = Some(error);
                }
            }
        };
        attached.trace = Some(trace.clone());
        attached.trace_writer = Some(vmm::TraceWriter(Arc::new(write_when_asked)));
        Ok(Some(Writer {
            trace,
            file,
            failure,
        }))
    }
}

/// Writes a trace to its file: at the end, and on SIGUSR1 as the attached writer.
pub struct Writer {
    trace: Arc<Trace>,
    file: Arc<OutputFile>,
    /// Why it could not be written on SIGUSR1.
    failure: Arc<Mutex<Option<io::Error>>>,
}

impl Writer {
    /// Write all after the machine's end. Returns whether that succeeded; a failure is printed.
    pub fn finish(self) -> bool {
        let recording = self.trace.recording();
        if recording.is_empty() {
            return true; // no machine was started, and the error says why
        }
        let failure = lock(&self.failure);
        let failure = match write(&self.file, &recording) {
            Err(error) => Some(format!("cannot be written ({error})")),
            Ok(()) => failure
                .as_ref()
                .map(|error| format!("could not be written on SIGUSR1 ({error})")),
        };
        let dropped = match recording.dropped() {
            0 => None,
            dropped => Some(format!("{dropped} events are missing, the oldest")),
        };
        for what in failure.iter().chain(&dropped) {
            say(&format!("--trace {}: {what}", self.file.path().display()));
        }
        failure.is_none()
    }
}

fn write(file: &OutputFile, recording: &Recording) -> io::Result<()> {
    file.fill(|to| perfetto::write(recording, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_asked_for_by_number() {
        assert_eq!(explain(""), Ok(0));
        assert_eq!(explain("exits"), Ok(1));
        assert_eq!(explain("exits,12"), Ok(12));
        for bad in [
            "exit",
            "exits,",
            "exits,0",
            "exits,1001",
            "exits,-1",
            "boot",
        ] {
            assert!(explain(bad).is_err(), "{bad}");
        }
    }
}
