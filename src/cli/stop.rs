//! `hull stop`: a machine ends in good order, or is killed.

use std::time::{Duration, Instant};

use anyhow::bail;
use rustix::process::{Signal, pidfd_send_signal};

use super::machines::{Ending, Machines};
use crate::control::{self, Action, Answer, ControlError};
use crate::fleet::{self, Found, events, kept::Kept};

/// Seconds that a guest has to end unless something else is said.
const TIMEOUT: u32 = 10;
/// How much longer than its guest hull itself may take to answer and to end, before it is killed.
const MARGIN: Duration = Duration::from_secs(3);
/// How long the kernel may take to end a process that was killed.
pub const GONE: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull stop web                              in good order, or killed after 10 s
  hull stop --timeout 60 db web              two, with a minute each
  hull stop --timeout 0 --all                all machines, at once

A command gets SIGTERM or the signal of --stop-signal or its image, a guest with an init of its own the ACPI power button.
The machine's own hull exits with the command's status, or 137 if it was killed.
The name of each machine is printed, also of one that has ended already.")]
pub struct Stop {
    #[command(flatten)]
    machines: Machines,
    /// Kill it when it has not ended after so many seconds [default: 10, or what --stop-timeout of hull run
    /// said]
    #[arg(
        short = 't',
        long,
        visible_alias = "time",
        value_name = "S",
        value_parser = clap::value_parser!(u32).range(0..=86_400)
    )]
    timeout: Option<u32>,
    /// The host shuts down: hull start --after-boot starts it again, which it does not after hull stop alone.
    #[arg(long)]
    shutdown: bool,
}

impl Stop {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        let seconds = self.timeout.unwrap_or(TIMEOUT);
        let waiting = format!("waiting up to {seconds} s for guests to end");
        let ending = match self.shutdown {
            true => Ending::Shutdown,
            false => Ending::Stop,
        };
        self.machines.each(&waiting, ending, |machine| {
            stop(machine, self.timeout, self.shutdown)
        })
    }
}

/// Stop `machine` within `seconds`, or within those that it was started with, or kill it; a line that it was
/// killed. It is not started again, but `by_host`, which shuts down, after its boot.
///
/// # Errors
/// It does not end.
pub fn stop(
    machine: &Found,
    seconds: Option<u32>,
    by_host: bool,
) -> anyhow::Result<Option<String>> {
    let seconds = seconds.or(machine.record.stop_seconds).unwrap_or(TIMEOUT);
    let (name, pid) = (&machine.record.name, machine.record.pid);
    let start = Instant::now();
    let process = machine.process();
    let signal = |signal| {
        let process = process.as_ref();
        process.is_some_and(|process| pidfd_send_signal(process, signal).is_ok())
    };
    if let Ok(kept) = Kept::open(name) {
        kept.stop_restarts(by_host)?;
    }
    // A process that was stopped, as by Ctrl-Z, does nothing before it is continued.
    signal(Signal::CONT);
    let patience = Duration::from_secs(seconds.into()) + MARGIN;
    let answer = control::ask_within(machine, Action::Stop { seconds }, patience);
    let left = patience.saturating_sub(start.elapsed());
    let killed = match answer {
        Ok(Answer::Stopped { killed }) => {
            // Its hull writes the last output; without readers not for ever.
            killed
                | (!machine.wait_until_gone(process.as_ref(), left.max(MARGIN))
                    && signal(Signal::KILL))
        }
        Ok(_) => bail!("unexpected reply from {name}"),
        Err(ControlError::Refused(why)) => bail!("{name}: {why}"),
        // It may just have ended by itself; or it cannot answer, in whatever state it is.
        Err(_) => !machine.wait_until_gone(process.as_ref(), left) && signal(Signal::KILL),
    };
    if !machine.wait_until_gone(process.as_ref(), GONE) {
        bail!("machine {name} does not end; kill -9 {pid} as the user that runs it ends it");
    }
    if killed {
        fleet::sweep(); // of what its hull could not remove
    }
    Kept::settle(name, GONE);
    events::record("stop", name, &[]);
    let after = start.elapsed().as_secs();
    Ok(killed.then(|| format!("{name}: killed after {after} s")))
}
