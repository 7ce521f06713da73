//! `hull bench`: hull's own figures, and the changes between two reports.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::PossibleValuesParser;

use super::measuring::{Caught, bar, own_command};
use super::output::{print, say};
use super::output_file::OutputFile;
use crate::compare::bench::{self, BenchError};
use crate::compare::report::bench::{RIVALS, Report, Rival, Settings};
use crate::compare::report::change::Changes;
use crate::compare::report::text::{changes_text, report_text};

/// The flags.
#[derive(clap::Args)]
#[command(
    override_usage = "hull bench <TOPIC> [OPTIONS]\n       hull bench --compare OLD.json [NEW.json]",
    after_help = "\
Topics:
  start    how a machine or a container starts, runs one command and ends
  boot     from exec to a guest's output and end
  restore  from exec to a guest that was restored from a snapshot, and saving it
  exit     the round trip from a guest to hull and back
  memory   what a machine uses beyond its guest's memory
  density  what each of 10, 50 and 100 machines from one snapshot uses
  disk     a raw image, in order and at random
  net      a tap device (as root) and a socket

All programs take turns, in an order that is reversed after each round. A figure
is the median of its runs, with its quartiles; a ratio is between the medians of
a program and of hull, with its 95 % range. --json has every run.

Names for --vs: firecracker, cloud-hypervisor, qemu-microvm, kvmtool, each with
the same kernel, initial RAM disk, memory, vCPU and console; crun and runc, for
the topic start; and hull, another hull, by which a change to hull is measured. A program that is missing, fails or
does not have the figures of the topic is named and left out.

--compare measures again as OLD.json was measured, or reads NEW.json. A change
is real if the range of the ratio of new to old excludes 1, both have 5 runs or
more, and both are from the same machine. --json then has both reports (old,
new) and all changes.

Examples:
  hull bench boot --vs firecracker=/usr/bin/firecracker
  hull bench exit --vs hull=/usr/bin/hull --json exit.json
  hull bench --compare exit.json --fail-if-worse

Exit status: 0; 1 with --fail-if-worse if a figure really became worse; 128+N
after signal N; 125 if hull itself failed."
)]
pub struct Bench {
    /// What to measure.
    #[arg(required_unless_present = "compare", value_parser = PossibleValuesParser::new(bench::topics()))]
    topic: Option<String>,
    /// Runs of each program (default: 10; with --steady 3).
    #[arg(long, value_name = "N", conflicts_with = "compare", value_parser = clap::value_parser!(u16).range(1..))]
    runs: Option<u16>,
    /// A program that takes turns with this one, and its name.
    #[arg(long, value_name = "NAME=PATH", value_parser = parse_rival, conflicts_with = "compare")]
    vs: Vec<Rival>,
    /// hull's kernel as a bzImage, for kvmtool, which boots nothing else.
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    bzimage: Option<PathBuf>,
    /// Time limit of one process, in seconds (default: 60; with --steady 10).
    #[arg(long, value_name = "S", conflicts_with = "compare", value_parser = clap::value_parser!(u16).range(1..))]
    timeout: Option<u16>,
    /// Refuse to measure where the clock does not count instructions; then a run repeats.
    #[arg(long, conflicts_with = "compare")]
    steady: bool,
    /// Write everything to a file, for --compare and for scripts.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Show what has changed since OLD.json.
    #[arg(long, value_names = ["OLD.json", "NEW.json"], num_args = 1..=2, conflicts_with = "topic")]
    compare: Vec<PathBuf>,
    /// With --compare: exit status 1 if anything became worse.
    // A topic conflicts with --compare, which then is required no more.
    #[arg(long, requires = "compare", conflicts_with = "topic")]
    fail_if_worse: bool,
}

impl Bench {
    /// Measures or compares; returns the exit status.
    pub fn execute(self) -> anyhow::Result<u8> {
        let file = self.json.as_deref();
        let file = file.map(|path| OutputFile::create("--json", path));
        let file = file.transpose()?;
        // Before anything exists that a signal must not leave behind.
        let caught = Caught::new()?;
        let (text, json, worse) = match self.outcome() {
            Err(error) if matches!(error.downcast_ref(), Some(BenchError::Stopped)) => {
                say(&error.to_string());
                return Ok(caught.exit_status());
            }
            outcome => outcome?,
        };
        // The file first: the reader of standard output may have gone.
        if let Some(file) = file {
            file.write(json + "\n")?;
        }
        print(text.as_bytes())?;
        Ok((worse && self.fail_if_worse).into())
    }

    /// The text, the JSON, and whether anything became worse.
    fn outcome(&self) -> anyhow::Result<(String, String, bool)> {
        if let Some(topic) = &self.topic {
            let report = measure(topic, &self.settings())?;
            let json = serde_json::to_string_pretty(&report)?;
            return Ok((report_text(&report), json, false));
        }
        let [old, new @ ..] = &self.compare[..] else {
            anyhow::bail!("--compare needs a report");
        };
        let old = read(old)?;
        let new = match new.first() {
            Some(path) => read(path)?,
            None => measure(&old.topic, &old.settings)?,
        };
        let changes = Changes::between(old, new)?;
        let json = serde_json::to_string_pretty(&changes)?;
        Ok((changes_text(&changes), json, changes.is_worse()))
    }

    fn settings(&self) -> Settings {
        Settings {
            runs: self.runs.unwrap_or(if self.steady { 3 } else { 10 }).into(),
            timeout: self
                .timeout
                .unwrap_or(if self.steady { 10 } else { 60 })
                .into(),
            rivals: self.vs.clone(),
            bzimage: self.bzimage.clone(),
            steady: self.steady,
        }
    }
}

fn measure(topic: &str, settings: &Settings) -> anyhow::Result<Report> {
    let report = bench::measure(topic, settings, own_command(), Box::new(bar("measuring")));
    report.map_err(|error| match error {
        BenchError::UnknownRival(_) | BenchError::GivenTwice(_) => anyhow::anyhow!("--vs {error}"),
        error => error.into(),
    })
}

fn read(path: &Path) -> anyhow::Result<Report> {
    let read = || Ok::<_, anyhow::Error>(Report::read(&std::fs::read(path)?)?);
    read().with_context(|| format!("--compare {}", path.display()))
}

fn parse_rival(text: &str) -> Result<Rival, String> {
    let names = || {
        format!(
            "give NAME=PATH, with one of the names {}",
            RIVALS.join(", ")
        )
    };
    let (name, path) = text.split_once('=').ok_or_else(names)?;
    if path.is_empty() || !RIVALS.contains(&name) {
        return Err(names());
    }
    Ok(Rival {
        name: name.into(),
        program: Path::new(path).into(),
    })
}
