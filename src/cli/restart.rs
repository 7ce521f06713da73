//! `hull restart` and `start`: machines in the background begin again.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::Command;

use anyhow::{Context, bail};

use super::kept::each;
use super::machines::no_more_restarts;
use super::output::print;
use super::stop::stop;
use crate::fleet::events;
use crate::fleet::kept::Kept;
use crate::fleet::state::boot_id;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull restart web                           stop it if it runs, and start it again

It is started with the command line and in the folder as before; its log goes on.")]
pub struct Restart {
    /// The machines, which run or ran in the background.
    #[arg(value_name = "NAME", required = true)]
    machines: Vec<String>,
    /// Kill it when it has not ended after so many seconds [default: as hull stop]
    #[arg(short = 't', long, visible_alias = "time", value_name = "S")]
    timeout: Option<u32>,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull start web                             start it again; nothing if it runs
  hull start --after-boot                    all that their restart policies start then

It is started with the command line and in the folder as before; its log goes on.")]
pub struct Start {
    /// The machines, which ran in the background.
    #[arg(value_name = "NAME", required_unless_present = "after_boot")]
    machines: Vec<String>,
    /// Start only those that their restart policy starts after a reboot of the host: always; unless-stopped and
    /// on-failure unless hull stop ended them. Without names, all that have not run since then.
    #[arg(long)]
    after_boot: bool,
}

impl Restart {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        each(&self.machines, |name| {
            let kept = Kept::open(name)?;
            if kept.runs() {
                if let Some(found) = no_more_restarts(name, false)? {
                    stop(&found, self.timeout, false)?;
                }
                kept.wait();
            }
            start_again(&kept)?;
            events::record("restart", name, &[]);
            Ok(())
        })
    }
}

impl Start {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        let mut machines = self.machines;
        if machines.is_empty() {
            let boot = boot_id();
            let kept = Kept::list().into_iter();
            let kept = kept.filter(|kept| kept.state().boot != boot && kept.starts_after_boot());
            machines.extend(kept.map(|kept| kept.record.name));
        }
        each(&machines, |name| {
            let kept = Kept::open(name)?;
            match kept.runs() {
                false if self.after_boot && !kept.starts_after_boot() => Ok(()),
                true => print(format!("{name}\n").as_bytes()),
                false => start_again(&kept),
            }
        })
    }
}

/// Start an ended machine as it was started before, which prints its name.
fn start_again(kept: &Kept) -> anyhow::Result<()> {
    let record = &kept.record;
    let mut arguments = record
        .arguments
        .iter()
        .cloned()
        .map(OsString::from_vec)
        .skip(1);
    let verb = arguments.next().unwrap_or_default();
    let status = Command::new("/proc/self/exe")
        .arg(verb)
        .args(["--again", &record.name])
        .args(arguments)
        .current_dir(&record.folder)
        .status()
        .context("hull cannot be started")?;
    match status.success() {
        true => Ok(()),
        false => bail!("machine {} did not start again", record.name),
    }
}
