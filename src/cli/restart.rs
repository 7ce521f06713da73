//! `hull restart`, `start` and `kill`: machines in the background begin again, and commands get signals.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::Command;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use super::kept::each;
use super::machines::Machines;
use super::output::print;
use super::stop::{GONE, stop};
use crate::config::stop::parse_signal;
use crate::control::{self, Action, Answer};
use crate::fleet::{self, Found, events, kept::Kept};

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

It is started with the command line and in the folder as before; its log goes on.")]
pub struct Start {
    /// The machines, which ran in the background.
    #[arg(value_name = "NAME", required = true)]
    machines: Vec<String>,
}

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

impl Restart {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        each(&self.machines, |name| {
            let kept = Kept::open(name)?;
            if kept.runs() {
                stop(&fleet::find(name)?, self.timeout)?;
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
        each(&self.machines, |name| {
            let kept = Kept::open(name)?;
            match kept.runs() {
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

impl Kill {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        let ends = i32::from(self.signal) == Signal::SIGKILL as i32;
        let action = match ends {
            true => Action::Kill,
            false => Action::Signal {
                number: self.signal,
            },
        };
        self.machines
            .each("waiting for machines", false, |machine: &Found| {
                let name = &machine.record.name;
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
