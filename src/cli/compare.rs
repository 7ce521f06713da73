//! `hull compare`: flags to [`compare::measure()`], and its report to a table and files.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::termios::tcgetwinsize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::bar::Bar;
use super::output::{print, say};
use super::output_file::OutputFile;
use crate::compare::measure::timed::{self, Limits};
use crate::compare::report::saved::{Report, Workload};
use crate::compare::report::{markdown, page, table};
use crate::compare::subject::second::SecondKernel;
use crate::compare::subject::{self, NAMES, Stage, Subject};
use crate::compare::turns::{Progress, Turns};
use crate::compare::{self, CompareError, rows};

/// Longest name of a subject of the user's, for the heads of columns.
const NAME_MOST: usize = 24;
/// Columns of text where there is no terminal to ask.
const WIDTH: usize = 100;

/// The flags.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull compare                               all that is there, ten runs each
  hull compare --subjects process,runc,hull-warm --rows startup
  hull compare --html report.html            the same as a page, with charts
  hull compare --from old.json --html old.html   a report of --json, shown again
  hull compare --subjects process,mine=./run-it -- /bin/busybox uname -a

Subjects: process, bwrap, runc, crun, docker, podman, hull-warm, hull-cold,
firecracker, cloud-hypervisor, qemu-microvm, kvmtool. What is not on PATH is
left out, and said so. mine=./run-it is a program of yours that runs the
command it is given as arguments.")]
pub struct Compare {
    /// Runs of each subject for each time that is measured.
    #[arg(
        long,
        value_name = "COUNT",
        default_value = "10",
        value_parser = clap::value_parser!(u16).range(1..=1000)
    )]
    runs: u16,
    /// Who takes part; NAME=PATH has the program of a subject there.
    #[arg(long, value_name = "NAME[=PATH],..", value_delimiter = ',')]
    subjects: Vec<String>,
    /// What is measured, by the beginnings of the rows' names: startup,density.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    rows: Vec<String>,
    /// Seconds that a run of the command may take.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "60",
        value_parser = clap::value_parser!(u16).range(1..=3600)
    )]
    timeout: u16,
    /// hull's kernel as a bzImage, for monitors that take no other.
    #[arg(long, value_name = "FILE")]
    bzimage: Option<PathBuf>,
    /// Another kernel than hull's own, to run at the same time: the newest
    /// /boot/vmlinuz-* that can be read, if none is named.
    #[arg(long, value_name = "FILE")]
    second_kernel: Option<SecondKernel>,
    /// Show a report of --json again, and measure nothing.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["runs", "subjects", "rows", "timeout", "bzimage", "second_kernel", "command"]
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
    /// The command whose start is measured, instead of an echo, a loop and a
    /// walk through memory.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Compare {
    /// Measure and tell; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        if let Some(path) = &self.from {
            let report = saved(path).with_context(|| format!("--from {}", path.display()))?;
            return tell(&report, Files::prepare(&self)?).map(|()| 0);
        }
        let rows = rows::chosen(&self.rows).map_err(|word| no_such_row(&word))?;
        let named = self.named()?;
        let second = self.second_kernel.as_ref().map(|kernel| &kernel.0);
        for (flag, path) in [
            ("--bzimage", self.bzimage.as_ref()),
            ("--second-kernel", second),
        ] {
            if let Some(path) = path {
                let open = std::fs::File::open(path);
                open.with_context(|| format!("{flag} {}", path.display()))?;
            }
        }
        let files = Files::prepare(&self)?;
        // Before there is anything that one must not leave behind.
        let signal = catch()?;
        let stage = Stage::new(self.bzimage.clone())?;
        let command = match self.command.is_empty() {
            true => None,
            false => Some(stage.command(&self.command)?),
        };
        let subjects = subjects_of(&named, &stage)?;
        let mut turns = Turns::new(
            &stage,
            subjects,
            usize::from(self.runs),
            Limits {
                time: Duration::from_secs(self.timeout.into()),
                ..Limits::default()
            },
            progress(),
        );
        turns.second_kernel = self.second_kernel.or_else(SecondKernel::usual);
        if let Some(words) = command {
            turns.workloads = vec![Workload {
                name: "the command".into(),
                words,
            }];
        }
        let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        let measured = compare::measure(&mut turns, &rows, words.collect());
        drop(turns); // its bar, before anything is printed
        match measured {
            Ok(report) => tell(&report, files).map(|()| 0),
            Err(CompareError::Stopped) => {
                say(&CompareError::Stopped.to_string());
                Ok(128 + signal.load(Ordering::Relaxed) as u8)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The subjects' names and paths; all that are known if none are named.
    fn named(&self) -> anyhow::Result<Vec<(String, Option<PathBuf>)>> {
        let mut named: Vec<(String, Option<PathBuf>)> = Vec::new();
        for word in &self.subjects {
            let (name, path) = match word.split_once('=') {
                Some((name, path)) => (name, Some(PathBuf::from(path))),
                None => (word.as_str(), None),
            };
            check_name(name)?;
            if path.is_none() && !NAMES.contains(&name) {
                bail!(
                    "--subjects {name}: not a subject that hull knows, which are {}; {name}=PATH is a \
                     program of yours",
                    NAMES.join(", ")
                );
            }
            if path.as_deref() == Some(Path::new("")) {
                bail!("--subjects {name}=: no path after the =");
            }
            if named.iter().any(|(other, _)| other == name) {
                bail!("--subjects {name}: named twice; give the second one another name");
            }
            named.push((name.into(), path));
        }
        if named.is_empty() {
            named.extend(NAMES.map(|name| (name.into(), None)));
        }
        Ok(named)
    }
}

/// A report of an earlier run.
fn saved(path: &Path) -> anyhow::Result<Report> {
    Ok(Report::read(&std::fs::read(path)?)?)
}

/// Names stand in tables, in file names and on a terminal.
fn check_name(name: &str) -> anyhow::Result<()> {
    let fit = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    if name.is_empty() || name.len() > NAME_MOST || !name.chars().all(fit) {
        bail!(
            "--subjects {name:?}: a subject's name has 1 to {NAME_MOST} letters, digits, or characters of \
             -_.+"
        );
    }
    Ok(())
}

fn no_such_row(word: &str) -> anyhow::Error {
    let names: Vec<&str> = rows::ROWS.iter().map(|(name, _)| *name).collect();
    anyhow::anyhow!(
        "--rows {word:?}: the beginning of no single row's name; the rows are {}",
        names.join(", ")
    )
}

fn subjects_of<'a>(
    named: &[(String, Option<PathBuf>)],
    stage: &'a Stage,
) -> anyhow::Result<Vec<Box<dyn Subject + 'a>>> {
    let subject = |(name, path): &(String, Option<PathBuf>)| {
        subject::by_name(name, path.as_deref(), stage).with_context(|| {
            format!("--subjects {name}=: it has no program of its own; leave out the path")
        })
    };
    named.iter().map(subject).collect()
}

/// Have signals end what runs, from now on; which one it was.
pub(super) fn catch() -> anyhow::Result<Arc<AtomicUsize>> {
    let which = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
        // In this order: whoever sees that it is to stop can see why.
        signal_hook::flag::register_usize(signal, which.clone(), signal as usize)
            .and_then(|_| signal_hook::flag::register(signal, timed::stop()))
            .context("cannot catch signals")?;
    }
    Ok(which)
}

/// A bar on a terminal, elsewhere a line a row.
fn progress() -> Box<dyn FnMut(Progress)> {
    if io::stderr().is_terminal() {
        let mut bar = Bar::new("comparing");
        return Box::new(move |progress| bar.step(progress.share, progress.what));
    }
    let mut last = String::new();
    Box::new(move |progress| {
        if progress.row != last {
            last = progress.row.into();
            say(&format!("measuring: {last}"));
        }
    })
}

/// The reports that were asked for, in files that can be written.
#[derive(Default)]
struct Files {
    html: Option<OutputFile>,
    json: Option<OutputFile>,
    markdown: Option<OutputFile>,
}

impl Files {
    fn prepare(flags: &Compare) -> anyhow::Result<Self> {
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
        Ok(Self {
            html: prepare("--html", &flags.html)?,
            json: prepare("--json", &flags.json)?,
            markdown: prepare("--markdown", &flags.markdown)?,
        })
    }
}

/// The files first: who reads standard output may have left.
fn tell(report: &Report, files: Files) -> anyhow::Result<()> {
    if let Some(json) = files.json {
        json.write(serde_json::to_string_pretty(report)? + "\n")?;
    }
    if let Some(html) = files.html {
        html.write(page::render(report))?;
    }
    if let Some(markdown) = files.markdown {
        markdown.write(markdown::render(report))?;
    }
    let coloured = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let width = match tcgetwinsize(rustix::stdio::stdout()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => WIDTH,
    };
    print(table::render(report, width, coloured).as_bytes())
}
