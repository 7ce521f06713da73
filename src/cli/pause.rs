//! `hull pause` and `hull resume`: vCPUs stand still, and run again.

use anyhow::bail;

use super::machines::{Ending, Machines};
use crate::control::{self, Action, Answer};
use crate::fleet::{Found, events};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull pause web                             its guest stands still
  hull pause --all                           and those of all machines

To the guest the time until hull resume is a gap, as on a host that was busy:
its clocks continue.")]
pub struct Pause {
    #[command(flatten)]
    machines: Machines,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull resume web                            its guest continues")]
pub struct Resume {
    #[command(flatten)]
    machines: Machines,
}

impl Pause {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        let pause = |machine: &Found| change(machine, Action::Pause, "is paused already");
        self.machines
            .each("waiting for vCPUs to stand still", Ending::No, pause)
    }
}

impl Resume {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        let resume = |machine: &Found| change(machine, Action::Resume, "runs already");
        self.machines
            .each("waiting for vCPUs to resume", Ending::No, resume)
    }
}

/// Send `action`; a line that it `already` was so, if it changed nothing.
fn change(machine: &Found, action: Action, already: &str) -> anyhow::Result<Option<String>> {
    let name = &machine.record.name;
    let happened = if action == Action::Pause {
        "pause"
    } else {
        "unpause"
    };
    match control::ask(machine, action)? {
        Answer::Done { changed: true } => {
            events::record(happened, name, &[]);
            Ok(None)
        }
        Answer::Done { changed } => Ok((!changed).then(|| format!("{name} {already}"))),
        _ => bail!("unexpected reply from {name}"),
    }
}
