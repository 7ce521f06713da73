//! `hull snapshot`: saves a running machine, and merges snapshots.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use super::bar::Bar;
use super::output::print;
use crate::control::{self, Action, Answer};
use crate::{fleet, snapshot};

/// How long saving may take: a machine's memory on a slow disk.
const SAVE_TIMEOUT: Duration = Duration::from_secs(3600);

#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples:
  hull snapshot web /srv/web-1               save the machine named web
  hull snapshot web /srv/web-2 --diff        save what has changed since then
  hull snapshot merge /srv/web-1 /srv/web-2 /srv/web
  hull restore /srv/web                      a new machine from it"
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
    /// Save only the memory that has changed since this machine's last snapshot; hull snapshot merge
    /// makes a whole one of it.
    #[arg(long)]
    diff: bool,
    /// End the machine then. A machine that continues writes to its disks, which then no longer match
    /// the snapshot.
    #[arg(long)]
    stop: bool,
    /// Print what it cost as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Merge a whole snapshot and later differences into a new whole one.
    Merge(Merge),
}

#[derive(Args)]
struct Merge {
    /// The whole snapshot to begin with.
    base: PathBuf,
    /// The differences, oldest first, and last the folder for the result.
    #[arg(required = true, num_args = 2.., value_name = "DIFF... RESULT")]
    dirs: Vec<PathBuf>,
}

impl Snapshot {
    pub fn execute(self) -> anyhow::Result<()> {
        if let Some(Verb::Merge(merge)) = self.verb {
            return merge.execute();
        }
        let (Some(name), Some(dir)) = (self.machine, self.dir) else {
            bail!("name a machine and a folder"); // clap requires them
        };
        let machine = fleet::find(&name)?;
        // The machine may have another working directory.
        let dir = std::path::absolute(&dir).with_context(|| dir.display().to_string())?;
        // The machine's hull opens no files: it gets these.
        let (folder, files) = snapshot::Folder::open(&dir, true)?;
        let id = folder.id().0;
        let request = Action::Snapshot {
            dir,
            id,
            diff: self.diff,
            stop: self.stop,
        };
        let files = [files.memory.as_fd(), files.state.as_fd()];
        let answer = control::ask_with(&machine, request, &files, SAVE_TIMEOUT)?;
        let Answer::Saved(done) = answer else {
            bail!("unexpected reply from {name}");
        };
        let committed = folder.commit();
        if self.stop {
            committed.with_context(|| {
                format!("{name} is paused and not ended (hull resume {name} continues it)")
            })?;
        } else {
            committed?;
        }
        let kept = control::ask::<Answer>(&machine, Action::Keep { id });
        if self.stop {
            kept.with_context(|| format!("{name} is saved, but may not have ended"))?;
        } // else it may have ended since
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
            bail!("name a folder for the result"); // clap requires them
        };
        let diffs: Vec<&Path> = self.dirs.iter().map(PathBuf::as_path).collect();
        let mut bar = Bar::new("merging");
        snapshot::merge(&self.base, &diffs, &result, &mut |done, of| {
            bar.show(done, of)
        })?;
        Ok(())
    }
}
