//! The running machines that a verb names, and the loop over them.

use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::output::{print, say, say_error};
use crate::fleet::kept::Kept;
use crate::fleet::{self, FleetError, Found};
use crate::launch::OWN_ERROR;
use crate::sandbox::{Role, spawn_scoped};

/// Machines that are handled at once.
const AT_ONCE: usize = 64;
/// How long a machine may take to be found after its start.
const MAX_START: Duration = Duration::from_secs(30);
/// How often a machine is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(10);
/// How long hull waits before it says on a terminal what it waits for.
const SILENCE: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub struct Machines {
    /// The machines: each its --name, or the process id of its hull.
    #[arg(value_name = "NAME|PID", required_unless_present = "all")]
    machines: Vec<String>,
    /// All running machines.
    #[arg(long, conflicts_with = "machines")]
    all: bool,
}

/// The result for one machine: a line to print, or why it failed.
type Outcome = anyhow::Result<Option<String>>;

impl Machines {
    /// Do `what` for all of them at once, and print the name of each when it is done. A failure is printed and
    /// does not stop the others. If it takes long, `waiting` is printed. The status to exit with.
    pub fn each(
        &self,
        waiting: &str,
        ending: Ending,
        what: impl Fn(&Found) -> Outcome + Sync,
    ) -> u8 {
        let mut outcomes = Vec::new();
        let mut found = if self.all { fleet::list() } else { Vec::new() };
        let mut wanted = self.machines.clone();
        if self.all && ending != Ending::No {
            let waiting = Kept::list().into_iter().filter(Kept::is_restarting);
            wanted.extend(waiting.map(|kept| kept.record.name));
        }
        if self.all && found.is_empty() && wanted.is_empty() {
            say(NONE);
        }
        for wanted in wanted {
            match fleet::find(&wanted) {
                Ok(machine) => found.push(machine),
                Err(FleetError::Ended { name, .. }) if ending.is_met() => {
                    outcomes.push((name, Ok(None)));
                }
                Err(FleetError::NotYet { name, .. }) if ending != Ending::No => {
                    match no_more_restarts(&name, ending == Ending::Shutdown) {
                        Ok(Some(machine)) => found.push(machine),
                        Ok(None) => outcomes.push((name, Ok(None))),
                        Err(error) => outcomes.push((name, Err(error))),
                    }
                }
                Err(error) => outcomes.push((wanted, Err(error.into()))),
            }
        }
        for some in found.chunks(AT_ONCE) {
            let names = some.iter().map(|machine| machine.record.name.clone());
            outcomes.extend(names.zip(at_once(some, waiting, &what)));
        }
        let mut status = 0;
        for (name, outcome) in outcomes {
            match outcome {
                Ok(line) => {
                    // A reader that has left wants no more of them.
                    let _ = print(format!("{name}\n").as_bytes());
                    line.iter().for_each(|line| say(line));
                }
                Err(error) => {
                    status = OWN_ERROR;
                    say_error(&error);
                }
            }
        }
        status
    }
}

/// What a verb means to machines that do not run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It needs one that runs.
    No,
    /// It ends them: one that waits for its next start has none.
    Kill,
    /// As `Kill`, and one that has ended is what was wanted.
    Stop,
    /// As `Stop`, for the host.
    Shutdown,
}

impl Ending {
    /// Whether one that has ended is what was wanted.
    fn is_met(self) -> bool {
        matches!(self, Self::Stop | Self::Shutdown)
    }
}

/// Have the machine `name` in the background not start again, `by_host` if that shuts down. It is returned if it runs: one that waits for its
/// next start has ended, and one that has just been started is waited for.
///
/// # Errors
/// It cannot be recorded, or does not start.
pub fn no_more_restarts(name: &str, by_host: bool) -> anyhow::Result<Option<Found>> {
    if let Ok(kept) = Kept::open(name)
        && kept.runs()
    {
        kept.stop_restarts(by_host)?;
        let until = Instant::now() + MAX_START;
        while kept.runs() && Instant::now() < until {
            if let Ok(found) = fleet::find(name) {
                return Ok(Some(found));
            }
            thread::sleep(LOOK);
        }
        if kept.runs() {
            bail!("machine {name} is still starting; try again");
        }
    }
    Ok(fleet::find(name).ok())
}

/// Printed when there is nothing to do.
pub const NONE: &str = "no machine is running";

/// Do `what` for each of `found`, each in its own thread.
fn at_once(
    found: &[Found],
    waiting: &str,
    what: &(impl Fn(&Found) -> Outcome + Sync),
) -> Vec<Outcome> {
    thread::scope(|scope| {
        let (done, all_done) = mpsc::channel::<()>();
        let each: Vec<_> = found
            .iter()
            .map(|machine| {
                let done = done.clone();
                spawn_scoped(scope, Role::Client, move || {
                    let _done = done; // dropped with the last thread
                    what(machine)
                })
            })
            .collect();
        drop(done);
        let long = all_done.recv_timeout(SILENCE) == Err(RecvTimeoutError::Timeout);
        if long && io::stderr().is_terminal() {
            say(waiting);
        }
        let joined = each.into_iter().map(|thread| {
            let outcome = thread.context("cannot start a thread")?.join();
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        joined.collect()
    })
}
