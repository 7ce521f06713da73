//! `hull compare`: a process, a container and a virtual machine, measured side by side.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use super::measuring::{Caught, bar, output_width, own_command};
use super::output::{coloured, print, say};
use super::output_file::OutputFile;
use crate::compare::comparison::{CompareError, Request, measure};
use crate::compare::report::comparison::{ChosenError, Report};
use crate::compare::report::{markdown, page, table};
use crate::compare::turns::OnProgress;

/// The flags.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull compare                               all that is there, ten runs each
  hull compare --subjects process,runc,hull-warm --rows startup
  hull compare --html report.html            also as a page with charts
  hull compare --from old.json --html old.html   show a report of --json again
  hull compare --subjects process,mine=./run-it -- /bin/busybox uname -a

Subjects: process, bwrap, runc, crun, docker, podman, hull-warm, hull-cold,
firecracker, cloud-hypervisor, qemu-microvm, kvmtool. Those that are not on PATH
are left out, and named. mine=./run-it is a program of yours that runs the
command in its arguments.")]
pub struct Compare {
    /// Runs of each subject for each figure of times.
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "10",
        value_parser = clap::value_parser!(u16).range(1..=1000)
    )]
    runs: u16,
    /// The participants; with NAME=PATH, the subject's program is there. With --from, those
    /// that are shown.
    #[arg(long, value_name = "NAME[=PATH],..", value_delimiter = ',')]
    subjects: Vec<String>,
    /// What to measure, by the beginnings of the rows' names: startup,density.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    rows: Vec<String>,
    /// Time limit of one run, in seconds.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "60",
        value_parser = clap::value_parser!(u16).range(1..=3600)
    )]
    timeout: u16,
    /// hull's kernel as a bzImage, for monitors that boot nothing else.
    #[arg(long, value_name = "FILE")]
    bzimage: Option<PathBuf>,
    /// A kernel other than hull's, to run at the same time (default: the newest
    /// readable /boot/vmlinuz-*).
    #[arg(long, value_name = "FILE")]
    second_kernel: Option<PathBuf>,
    /// Show a report of --json again instead of measuring, or only its --rows and --subjects.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["runs", "timeout", "bzimage", "second_kernel", "command"]
    )]
    from: Option<PathBuf>,
    /// Write a page with charts.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write every sample, for scripts.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a table for a README.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Measure the start of this command instead of an echo, a loop and a walk
    /// through memory.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Compare {
    /// Measures and shows the report; returns the exit status.
    pub fn execute(self) -> anyhow::Result<u8> {
        let files = self.files()?;
        if let Some(path) = &self.from {
            let read = || Ok::<_, anyhow::Error>(Report::read(&std::fs::read(path)?)?);
            let mut report = read().with_context(|| format!("--from {}", path.display()))?;
            let chosen = report.choose(&self.rows, &self.subjects);
            chosen.map_err(|error| match error {
                ChosenError::Row(..) => anyhow!("--rows {error}"),
                ChosenError::Subject(..) => anyhow!("--subjects {error}"),
            })?;
            return files.show(&report);
        }
        // Before anything exists that a signal must not leave behind.
        let caught = Caught::new()?;
        let request = Request {
            rows: self.rows,
            subjects: self.subjects,
            runs: self.runs.into(),
            timeout: Duration::from_secs(self.timeout.into()),
            bzimage: self.bzimage,
            second_kernel: self.second_kernel,
            command: self.command,
        };
        let (flag, error) = match measure(request, own_command(), on_progress()) {
            Ok(report) => return files.show(&report),
            Err(error @ CompareError::Stopped) => {
                say(&error.to_string());
                return Ok(caught.exit_status());
            }
            Err(error @ CompareError::Row(_)) => ("--rows ", error),
            Err(error @ CompareError::Subject(_)) => ("--subjects ", error),
            Err(error @ CompareError::Bzimage(..)) => ("--bzimage ", error),
            Err(error @ CompareError::SecondKernel(..)) => ("--second-kernel ", error),
            Err(error) => ("", error),
        };
        bail!("{flag}{error}")
    }

    fn files(&self) -> anyhow::Result<Files> {
        let mut taken: Vec<PathBuf> = Vec::new();
        let mut prepare = |flag, path: &Option<PathBuf>| {
            let Some(path) = path else { return Ok(None) };
            let file = OutputFile::create(flag, path)?;
            if taken.iter().any(|other| other == file.path()) {
                bail!("{flag} {}: another report goes there", path.display());
            }
            taken.push(file.path().into());
            Ok(Some(file))
        };
        Ok(Files {
            html: prepare("--html", &self.html)?,
            json: prepare("--json", &self.json)?,
            markdown: prepare("--markdown", &self.markdown)?,
        })
    }
}

/// A bar on a terminal, otherwise a line for each row.
fn on_progress() -> OnProgress<'static> {
    if io::stderr().is_terminal() {
        return Box::new(bar("comparing"));
    }
    let mut last = String::new();
    Box::new(move |progress| {
        if progress.part != last {
            last = progress.part.into();
            say(&format!("measuring: {last}"));
        }
    })
}

/// The files of the report.
struct Files {
    html: Option<OutputFile>,
    json: Option<OutputFile>,
    markdown: Option<OutputFile>,
}

impl Files {
    /// Writes the files, then prints the table: the reader of standard output may have gone.
    fn show(self, report: &Report) -> anyhow::Result<u8> {
        if let Some(json) = self.json {
            json.write(serde_json::to_string_pretty(report)? + "\n")?;
        }
        if let Some(html) = self.html {
            html.write(page::render(report))?;
        }
        if let Some(markdown) = self.markdown {
            markdown.write(markdown::render(report))?;
        }
        let coloured = coloured(io::stdout().is_terminal());
        let table = table::render(report, output_width(), coloured);
        print(table.as_bytes())?;
        Ok(0)
    }
}
