//! `hull wait`, `rm` and `rename`: machines in the background.

use anyhow::bail;

use super::machines::no_more_restarts;
use super::output::{print, say_error};
use super::stop::stop;
use crate::config::machine::parse_name;
use crate::fleet::kept::{Kept, KeptError};
use crate::fleet::{self, events};
use crate::launch::OWN_ERROR;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull wait web                              until it ends: prints its status")]
pub struct Wait {
    /// The machines, which run or ran in the background.
    #[arg(value_name = "NAME", required = true)]
    machines: Vec<String>,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull rm web                                its log, status and name go
  hull rm -f web                             also if it runs: it is killed")]
pub struct Rm {
    /// The machines, which ran in the background.
    #[arg(value_name = "NAME", required = true)]
    machines: Vec<String>,
    /// Kill those that run; one that is not there is no failure.
    #[arg(short, long)]
    force: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull rename web old-web                    of one that runs or has ended")]
pub struct Rename {
    /// The machine, which runs, or ran in the background.
    #[arg(value_name = "NAME")]
    machine: String,
    /// Its new name.
    #[arg(value_name = "NEW", value_parser = parse_name)]
    name: String,
}

impl Wait {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        each(&self.machines, |name| {
            let end = Kept::open(name)?.wait();
            print(format!("{}\n", end.status).as_bytes())
        })
    }
}

impl Rm {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        each(&self.machines, |name| {
            let kept = match Kept::open(name) {
                // It is gone, which is what was wanted.
                Err(error @ KeptError::Unknown { .. }) if self.force => {
                    say_error(&anyhow::Error::from(error));
                    return Ok(());
                }
                opened => opened?,
            };
            if self.force && kept.runs() {
                if let Some(found) = no_more_restarts(name, false)? {
                    stop(&found, Some(0), false)?;
                }
                kept.wait();
            }
            // One of --rm is gone then.
            if let Ok(kept) = Kept::open(name) {
                kept.remove()?;
            }
            print(format!("{name}\n").as_bytes())
        })
    }
}

impl Rename {
    /// Renames the machine.
    pub fn execute(self) -> anyhow::Result<()> {
        let (old, new) = (&self.machine, &self.name);
        let found = fleet::find(old);
        match (Kept::open(old), found) {
            (Ok(kept), Ok(found)) => {
                let kept = kept.rename(new)?;
                if let Err(error) = found.rename(new) {
                    kept.rename(old)?;
                    return Err(error.into());
                }
            }
            (Ok(kept), Err(_)) if kept.runs() && !kept.is_restarting() => {
                bail!("machine {old} just starts; try again")
            }
            (Ok(kept), Err(_)) => drop(kept.rename(new)?),
            (Err(_), Ok(found)) => {
                if Kept::open(new).is_ok() {
                    return Err(KeptError::Taken { name: new.into() }.into());
                }
                found.rename(new)?;
            }
            (Err(error), Err(_)) => return Err(error.into()),
        }
        events::record("rename", new, &[("oldName", old)]);
        Ok(())
    }
}

/// Do `what` for each name, print its failures, and return the status to exit with.
pub fn each(names: &[String], what: impl Fn(&str) -> anyhow::Result<()>) -> u8 {
    let mut status = 0;
    for name in names {
        if let Err(error) = what(name) {
            say_error(&error);
            status = OWN_ERROR;
        }
    }
    status
}
