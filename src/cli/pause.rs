//! `hull pause`: no vCPU runs until `hull resume`.

use anyhow::bail;

use super::machines::Machines;
use crate::control::{self, Action, Answer};
use crate::fleet::Found;

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

impl Pause {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        self.machines
            .each("waiting for vCPUs to stand still", pause)
    }
}

fn pause(machine: &Found) -> anyhow::Result<Option<String>> {
    let name = &machine.record.name;
    match control::ask(machine, Action::Pause)? {
        Answer::Done { changed: true } => Ok(None),
        Answer::Done { changed: false } => Ok(Some(format!("{name} is paused already"))),
        _ => bail!("unexpected reply from {name}"),
    }
}
