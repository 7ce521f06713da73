//! `hull snapshot`: save a running machine, and put saved parts together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::bar::Bar;
use super::output::print;
use crate::control::{self, Action, Answer};
use crate::{fleet, snapshot};

/// How long saving may take: a machine's memory on a slow disk.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The flags.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  hull snapshot web /srv/web-1               save the machine named web
  hull snapshot web /srv/web-2 --diff        save what has changed since then
  hull snapshot merge /srv/web-1 /srv/web-2 /srv/web
  hull restore /srv/web                      a machine that goes on from there"
)]
pub struct Snapshot {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// The machine: its --name or process id (hull ps).
    #[arg(required = true)]
    machine: Option<String>,
    /// A folder, made if it is missing; a snapshot that is in it is replaced when the new one is
    /// whole.
    #[arg(required = true)]
    dir: Option<PathBuf>,
    /// Only the memory that has changed since this machine's last snapshot; hull snapshot merge
    /// makes a whole one of it.
    #[arg(long)]
    diff: bool,
    /// End the machine then. One that goes on writes to its disks, and what it has written is in no
    /// snapshot: that does not fit them any more.
    #[arg(long)]
    stop: bool,
    /// Print what it cost as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a whole snapshot of a whole one and what changed since.
    Merge(Merge),
}

#[derive(Args)]
struct Merge {
    /// The whole one.
    base: PathBuf,
    /// What changed since, oldest first, and last the folder for the result.
    #[arg(required = true, num_args = 2.., value_name = "DIFF... RESULT")]
    dirs: Vec<PathBuf>,
}

impl Snapshot {
    /// Do it.
    pub fn execute(self) -> anyhow::Result<()> {
        if let Some(Verb::Merge(merge)) = self.verb {
            return merge.execute();
        }
        let (Some(name), Some(dir)) = (self.machine, self.dir) else {
            bail!("name a machine and a folder"); // clap has seen to it
        };
        let machine = fleet::find(&name)?;
        // The machine may have another working directory.
        let dir = std::path::absolute(&dir).with_context(|| dir.display().to_string())?;
        let request = Action::Snapshot {
            dir,
            diff: self.diff,
            stop: self.stop,
        };
        let Answer::Saved(done) = control::ask_within(&machine, request, PATIENCE)? else {
            bail!("machine {name} answered something else");
        };
        if self.json {
            let text = serde_json::to_string_pretty(&done)? + "\n";
            return print(text.as_bytes());
        }
        let text = format!(
            "{} of memory written; the machine stood still for {:.1} ms\n",
            crate::config::size::show(done.memory_bytes),
            done.stood_still_us as f64 / 1e3
        );
        print(text.as_bytes())
    }
}

impl Merge {
    fn execute(mut self) -> anyhow::Result<()> {
        let Some(result) = self.dirs.pop() else {
            bail!("name a folder for the result"); // clap has seen to it
        };
        let diffs: Vec<&Path> = self.dirs.iter().map(PathBuf::as_path).collect();
        let mut bar = Bar::new("merging");
        snapshot::merge(&self.base, &diffs, &result, &mut |done, of| {
            bar.show(done, of)
        })?;
        Ok(())
    }
}
