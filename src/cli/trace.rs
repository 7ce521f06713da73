//! `--trace` and `--explain=exits` of `hull run`, and `hull trace`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, bail};

use super::headings::OUTPUT;
use super::output::print;
use super::output_file::OutputFile;
use crate::sandbox::{Role, spawn};
use crate::sync::lock;
use crate::trace::summary::{self, Queue, Summary, Times};
use crate::trace::{Recording, Trace, perfetto};
use crate::vmm;

/// Most exits of one kind that are told of.
const EXITS_MOST: u32 = 1000;

/// The flags of `hull run`.
#[derive(clap::Args)]
pub struct Tracing {
    /// Write what happened and when to a file for ui.perfetto.dev or chrome://tracing, at the end
    /// and, as far as it has come, on SIGUSR1. See hull trace summary.
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    trace: Option<PathBuf>,
    /// Tell the boot as it happens on standard error, step by step: what is done, why, with which
    /// values, and what would happen without it. With =exits also the first N exits of each kind
    /// (1 when N is left out), with the instruction that made them. Example: --explain=exits,3
    #[arg(
        long,
        value_name = "exits[,N]",
        value_parser = explain,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        hide_default_value = true,
        help_heading = OUTPUT
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
    let number = number.filter(|number| (1..=EXITS_MOST).contains(number));
    number.ok_or_else(|| format!("it is exits or exits,N, with N from 1 to {EXITS_MOST}"))
}

impl Tracing {
    /// Have a machine whose clock started at `started` record and tell what was asked for.
    ///
    /// # Errors
    /// The file cannot be written, or no thread could be had.
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
        let writer = Writer::start(path, trace.clone())?;
        attached.trace = Some(trace);
        Ok(Some(writer))
    }
}

/// Writes a trace to its file: at the end, and from a thread of its own when it is asked to.
pub struct Writer {
    trace: Arc<Trace>,
    file: Arc<OutputFile>,
    thread: Option<JoinHandle<()>>,
    /// Why it could not be written when somebody asked for it.
    failure: Arc<Mutex<Option<io::Error>>>,
}

impl Writer {
    fn start(path: &Path, trace: Arc<Trace>) -> anyhow::Result<Self> {
        let file = Arc::new(OutputFile::create("--trace", path)?);
        let failure = Arc::<Mutex<Option<io::Error>>>::default();
        let (to, from, told) = (file.clone(), trace.clone(), failure.clone());
        let write = move || {
            while from.asked() {
                if let Err(error) = write(&to, &from.recording()) {
                    *lock(&told) = Some(error);
                }
            }
        };
        let thread = spawn(Role::TraceWriter, write).context("cannot start a thread")?;
        Ok(Self {
            trace,
            file,
            thread: Some(thread),
            failure,
        })
    }

    /// The machine has ended: write all. What goes wrong is told, and changes nothing else.
    pub fn finish(mut self) {
        self.stop();
        let recording = self.trace.recording();
        if recording.is_empty() {
            return; // no machine came to be, and why is told otherwise
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
            let name = self.file.path().display();
            // It fails where nobody reads.
            let _ = writeln!(io::stderr(), "hull: --trace {name}: {what}");
        }
    }

    fn stop(&mut self) {
        self.trace.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed by its hook
        }
    }
}

fn write(file: &OutputFile, recording: &Recording) -> io::Result<()> {
    file.fill(|to| perfetto::write(recording, to))
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// `hull trace`.
#[derive(clap::Subcommand)]
pub enum Verb {
    /// Sum up a trace: exits by reason and device, the vCPUs' time, queues, interrupts.
    Summary(Sums),
}

/// `hull trace summary`.
#[derive(clap::Args)]
pub struct Sums {
    /// A file that hull run --trace wrote.
    file: PathBuf,
    /// Print JSON, for scripts.
    #[arg(long)]
    json: bool,
}

impl Verb {
    /// Do what was asked.
    pub fn execute(self) -> anyhow::Result<()> {
        let Self::Summary(Sums { file, json }) = self;
        let summary = summary_of(&file).with_context(|| file.display().to_string())?;
        match json {
            true => print((serde_json::to_string_pretty(&summary)? + "\n").as_bytes()),
            false => print(table(&summary).as_bytes()),
        }
    }
}

fn summary_of(path: &Path) -> anyhow::Result<Summary> {
    let mut content = Vec::new();
    let mut file = File::open(path)?.take(summary::MAX_FILE + 1);
    file.read_to_end(&mut content)?;
    if content.len() as u64 > summary::MAX_FILE {
        bail!("larger than 1 GiB, which is more than hull writes");
    }
    Ok(summary::of(&content)?)
}

fn table(summary: &Summary) -> String {
    let mut rows = vec![row([
        "exits", "device", "count", "share", "total", "p50", "p90", "p99", "max",
    ])];
    for exits in &summary.exits {
        let [count, total, p50, p90, p99, max] = times(&exits.times);
        let share = format!("{:.1} %", exits.share * 100.0);
        let (reason, device) = (exits.reason.clone(), exits.device.clone());
        rows.push(vec![
            reason, device, count, share, total, p50, p90, p99, max,
        ]);
    }
    let mut text = align(&rows, 2);
    rows = vec![row(["vCPU", "exits", "in KVM_RUN", "in hull", "share"])];
    for vcpu in &summary.vcpus {
        let share = vcpu.hull_us * 100.0 / (vcpu.guest_us + vcpu.hull_us).max(f64::MIN_POSITIVE);
        rows.push(vec![
            vcpu.name.clone(),
            vcpu.exits.to_string(),
            time(vcpu.guest_us),
            time(vcpu.hull_us),
            format!("{share:.1} %"),
        ]);
    }
    text += &align(&rows, 1);
    rows = vec![row([
        "queue",
        "notified",
        "batches",
        "chains",
        "interrupts",
        "p50",
        "p90",
        "p99",
        "max",
    ])];
    rows.extend(summary.queues.iter().map(queue));
    text += &align(&rows, 1);
    rows = vec![row(["interrupts of", "count"])];
    for (device, count) in &summary.interrupts {
        rows.push(vec![device.clone(), count.to_string()]);
    }
    text += &align(&rows, 1);
    rows = vec![row(["phase of hull's", "from", "long"])];
    for phase in &summary.phases {
        rows.push(vec![phase.name.clone(), time(phase.at_us), time(phase.us)]);
    }
    text += &align(&rows, 1);
    text += &format!("{} lines on the console\n", summary.console_lines);
    if summary.dropped > 0 {
        text += &format!("{} events are missing, the oldest\n", summary.dropped);
    }
    text
}

fn queue(queue: &Queue) -> Vec<String> {
    let [batches, _, p50, p90, p99, max] = times(&queue.batches);
    let numbers = [queue.notifications, queue.chains, queue.interrupts];
    let [notified, chains, interrupts] = numbers.map(|number| number.to_string());
    let name = queue.name.clone();
    vec![
        name, notified, batches, chains, interrupts, p50, p90, p99, max,
    ]
}

fn times(times: &Times) -> [String; 6] {
    [
        times.count.to_string(),
        time(times.total_us),
        time(times.p50_us),
        time(times.p90_us),
        time(times.p99_us),
        time(times.max_us),
    ]
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}

/// Microseconds, with three digits or more.
fn time(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.1} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Rows in columns, the first `left` of them aligned to the left; nothing without a row below the
/// head.
fn align(rows: &[Vec<String>], left: usize) -> String {
    let [head, _, ..] = rows else {
        return String::new();
    };
    let cell = |row: &'_ [String], at: usize| row.get(at).map_or(0, |cell| cell.chars().count());
    let width = |at| rows.iter().map(|row| cell(row, at)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(at, (cell, &width))| match at < left {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text += "\n";
    }
    text + "\n"
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

    #[test]
    fn columns_are_aligned() {
        let rows = [row(["name", "n"]), row(["a", "100"])];
        assert_eq!(align(&rows, 1), "name    n\na     100\n\n");
        assert_eq!(align(&rows[..1], 1), "");
    }
}
