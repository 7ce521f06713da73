//! `hull stop`: a machine ends in good order, or is killed.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::machines::Machines;
use crate::control::{self, Action, Answer, ControlError};
use crate::fleet::Found;

/// How much longer than its guest hull itself may take to end.
const MARGIN: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull stop web                              in good order, or killed after 10 s
  hull stop --timeout 60 db web              two, with a minute each
  hull stop --timeout 0 --all                all machines, at once

A command gets SIGTERM, a guest with an init of its own the ACPI power button.
The machine's own hull exits with the command's status, or 137 if it was killed.")]
pub struct Stop {
    #[command(flatten)]
    machines: Machines,
    /// Kill it when it has not ended after so many seconds.
    #[arg(
        long,
        value_name = "S",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(0..=86_400)
    )]
    timeout: u32,
}

impl Stop {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        let waiting = format!("waiting up to {} s for guests to end", self.timeout);
        self.machines
            .each(&waiting, |machine| stop(machine, self.timeout))
    }
}

fn stop(machine: &Found, seconds: u32) -> anyhow::Result<Option<String>> {
    let (name, pid) = (&machine.record.name, machine.record.pid);
    let start = Instant::now();
    let process = machine.process();
    let patience = Duration::from_secs(seconds.into()) + MARGIN;
    let killed = match control::ask_within(machine, Action::Stop { seconds }, patience) {
        Ok(Answer::Stopped { killed }) => killed.then(|| start.elapsed().as_secs()),
        Ok(_) => bail!("unexpected reply from {name}"),
        // It may just have ended by itself.
        Err(error @ (ControlError::Connect { .. } | ControlError::Ended { .. })) => {
            match machine.wait_until_gone(process.as_ref(), MARGIN / 10) {
                true => None,
                false => return Err(error.into()),
            }
        }
        Err(error @ ControlError::Lost { .. }) => {
            return Err(error).with_context(|| format!("kill -9 {pid} ends it"));
        }
        Err(error) => return Err(error.into()),
    };
    if !machine.wait_until_gone(process.as_ref(), MARGIN) {
        bail!("the guest of machine {name} has ended, but its hull has not; kill -9 {pid} ends it");
    }
    Ok(killed.map(|after| format!("{name}: killed after {after} s")))
}
