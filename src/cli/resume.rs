//! `hull resume`: vCPUs that `hull pause` stopped run again.

use anyhow::bail;

use super::machines::Machines;
use crate::control::{self, Action, Answer};
use crate::fleet::Found;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull resume web                            its guest continues")]
pub struct Resume {
    #[command(flatten)]
    machines: Machines,
}

impl Resume {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        self.machines.each("waiting for vCPUs to resume", resume)
    }
}

fn resume(machine: &Found) -> anyhow::Result<Option<String>> {
    let name = &machine.record.name;
    match control::ask(machine, Action::Resume)? {
        Answer::Done { changed: true } => Ok(None),
        Answer::Done { changed: false } => Ok(Some(format!("{name} runs already"))),
        _ => bail!("unexpected reply from {name}"),
    }
}
