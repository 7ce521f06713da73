//! `hull kill`: commands get signals.

use anyhow::bail;
use nix::sys::signal::Signal;

use super::machines::{Ending, Machines};
use super::stop::GONE;
use crate::config::stop::parse_signal;
use crate::control::{self, Action, Answer};
use crate::fleet::{Found, events, kept::Kept};

/// The signals by which a user ends a command: it is not started again.
const ENDING: [Signal; 4] = [
    Signal::SIGKILL,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
];

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull kill web                              end it at once
  hull kill -s HUP web                       its command gets SIGHUP")]
pub struct Kill {
    #[command(flatten)]
    machines: Machines,
    /// The signal, by its name or number; KILL ends the machine without asking its guest.
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = parse_signal)]
    signal: u8,
}

impl Kill {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        let number = i32::from(self.signal);
        let ends = number == Signal::SIGKILL as i32;
        let ending = match ends {
            true => Ending::Kill,
            false => Ending::No,
        };
        let action = match ends {
            true => Action::Kill,
            false => Action::Signal {
                number: self.signal,
            },
        };
        self.machines
            .each("waiting for machines", ending, |machine: &Found| {
                let name = &machine.record.name;
                if ENDING.iter().any(|signal| *signal as i32 == number)
                    && let Ok(kept) = Kept::open(name)
                {
                    kept.stop_restarts(false)?;
                }
                let process = machine.process();
                let Answer::Done { .. } = control::ask(machine, action.clone())? else {
                    bail!("unexpected reply from {name}");
                };
                if ends {
                    machine.wait_until_gone(process.as_ref(), GONE);
                    Kept::settle(name, GONE);
                }
                let signal = self.signal.to_string();
                events::record("kill", name, &[("signal", &signal)]);
                Ok(None)
            })
    }
}
