//! `hull bench`: hull's own figures, and what has become of them.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::bar::Bar;
use super::compare::catch;
use super::figures::{changes_text, report_text};
use super::output::{print, say};
use super::output_file::OutputFile;
use crate::compare::bench::report::{Report, Rival, Settings};
use crate::compare::bench::{self, BenchError, RIVALS, Topic};
use crate::compare::report::change::Changes;

/// How often, when nothing is said.
const RUNS: usize = 10;
/// Seconds for one process, when nothing is said.
const TIMEOUT: u64 = 60;

/// The flags.
#[derive(clap::Args)]
#[command(
    override_usage = "hull bench <TOPIC> [OPTIONS]\n       hull bench --compare OLD.json [NEW.json]",
    after_help = "\
Topics:
  boot     from exec to a guest's output and end
  restore  from exec to a guest that goes on from a snapshot, and saving it
  exit     the way from a guest to hull and back
  memory   what a machine takes beyond its guest's memory
  density  what each of 10, 50 and 100 machines from one snapshot takes
  disk     a raw image, in order and at random
  net      a tap device (as root) and a socket

All programs take turns, and their order is reversed each time. A figure is the
median of its runs, with its quartiles; a ratio is of medians, to hull's, with
the range in which it lies in 95 of 100 cases. --json has every run.

Names for --vs: firecracker, cloud-hypervisor, qemu-microvm, kvmtool, each with
the same kernel, initial RAM disk, memory, vCPU and console; and hull, another
hull, which is how a change to hull is measured. One that is missing, fails, or
has no such figure is named and left out.

--compare measures again what OLD.json has, in the same way, or takes NEW.json.
A change is real if the range of the ratio of new to old excludes 1, both have 5
runs or more, and both are from the same machine. --json then has both reports
(old, new) and all changes.

Examples:
  hull bench boot --vs firecracker=/usr/bin/firecracker
  hull bench exit --vs hull=/usr/bin/hull --json exit.json
  hull bench --compare exit.json --fail-if-worse

Exit status: 0; 1 with --fail-if-worse if a figure became worse for real; 128+N
after signal N; 125 if hull itself failed."
)]
pub struct Bench {
    /// What to measure.
    #[arg(required_unless_present = "compare", value_parser = topic_parser())]
    topic: Option<Topic>,
    /// How often each program is measured (10).
    #[arg(long, value_name = "N", conflicts_with = "compare")]
    runs: Option<usize>,
    /// A program that takes turns with this one, and what it is.
    #[arg(long, value_name = "NAME=PATH", value_parser = parse_rival, conflicts_with = "compare")]
    vs: Vec<Rival>,
    /// hull's kernel as a bzImage, for kvmtool, which boots nothing else.
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    bzimage: Option<PathBuf>,
    /// Longest that one process may take, in seconds (60).
    #[arg(long, value_name = "S", conflicts_with = "compare")]
    timeout: Option<u64>,
    /// Write all of it to a file, for --compare and for scripts.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Say what has changed since OLD.json.
    #[arg(long, value_names = ["OLD.json", "NEW.json"], num_args = 1..=2, conflicts_with = "topic")]
    compare: Vec<PathBuf>,
    /// With --compare: status 1 if anything has become worse.
    // A topic conflicts with --compare, which then is required no more.
    #[arg(long, requires = "compare", conflicts_with = "topic")]
    fail_if_worse: bool,
}

impl Bench {
    /// Measure, or compare; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        let file = self.json.as_deref();
        let file = file.map(|path| OutputFile::create("--json", path));
        let file = file.transpose()?;
        // Before there is anything that one must not leave behind.
        let signal = catch()?;
        let done = match self.topic {
            Some(topic) => measure(topic, &self.settings()).map(Outcome::of_report),
            None => compare(&self.compare).map(Outcome::of_changes),
        };
        let outcome = match done {
            Err(error) if matches!(error.downcast_ref(), Some(BenchError::Stopped)) => {
                say(&error.to_string());
                return Ok(128 + signal.load(Ordering::Relaxed) as u8);
            }
            done => done??,
        };
        // The file first: who reads standard output may have left.
        if let Some(file) = file {
            file.write(outcome.json + "\n")?;
        }
        print(outcome.text.as_bytes())?;
        Ok((outcome.worse && self.fail_if_worse).into())
    }

    fn settings(&self) -> Settings {
        Settings {
            runs: self.runs.unwrap_or(RUNS),
            timeout: self.timeout.unwrap_or(TIMEOUT),
            rivals: self.vs.clone(),
            bzimage: self.bzimage.clone(),
        }
    }
}

/// What is printed, and what is written.
struct Outcome {
    text: String,
    json: String,
    worse: bool,
}

impl Outcome {
    fn of_report(report: Report) -> anyhow::Result<Self> {
        Ok(Self {
            text: report_text(&report),
            json: serde_json::to_string_pretty(&report)?,
            worse: false,
        })
    }

    fn of_changes(changes: Changes) -> anyhow::Result<Self> {
        Ok(Self {
            text: changes_text(&changes),
            json: serde_json::to_string_pretty(&changes)?,
            worse: changes.is_worse(),
        })
    }
}

fn measure(topic: Topic, settings: &Settings) -> anyhow::Result<Report> {
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let mut bar = Bar::new("measuring");
    let report = bench::measure(topic, settings, words.collect(), &mut |done, of, whose| {
        bar.step(
            done as f64 / of as f64,
            &format!("{}, {whose}", topic.name()),
        );
    });
    Ok(report?)
}

fn compare(paths: &[PathBuf]) -> anyhow::Result<Changes> {
    let old = Report::read(paths.first().context("--compare needs a report")?)?;
    let new = match paths.get(1) {
        Some(path) => Report::read(path)?,
        None => measure(old.topic, &old.settings)?,
    };
    Ok(Changes::between(old, new)?)
}

fn topic_parser() -> impl TypedValueParser<Value = Topic> {
    let names = Topic::ALL.map(Topic::name);
    PossibleValuesParser::new(names).try_map(|name| {
        let mut topics = Topic::ALL.into_iter();
        topics.find(|topic| topic.name() == name).ok_or("no topic")
    })
}

fn parse_rival(text: &str) -> Result<Rival, String> {
    let form = || {
        let names = RIVALS.join(", ");
        format!("it has the form NAME=PATH, NAME one of {names}")
    };
    let (name, path) = text.split_once('=').ok_or_else(form)?;
    if path.is_empty() || !RIVALS.contains(&name) {
        return Err(form());
    }
    Ok(Rival {
        name: name.into(),
        program: Path::new(path).into(),
    })
}
