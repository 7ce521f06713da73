//! `hull pool`: restored machines that wait for the commands of `hull run`.

use std::process;

use super::bar::Bar;
use super::output::{print, say, say_error};
use super::shape::Shape;
use super::{flagged, machine, seccomp};
use crate::config::{Command, Draft};
use crate::launch::{member, pool};
use crate::vmm::VmmError;

/// Most machines of a pool.
const MAX_MACHINES: u16 = 1000;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull pool 4                                four of the machine of hull run
  hull pool 2 --memory 1G --cpus 2           for hull run --memory 1G --cpus 2

A hull run with the same flags, without devices, --name and reports takes a
machine of a pool if one is ready, and starts as usual if none is. The pool
then makes another. Ctrl-C or SIGTERM ends it and the machines that wait;
machines that run a command continue.")]
pub struct Pool {
    /// Number of machines to keep ready, 1 to 1000.
    #[arg(
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_MACHINES))
    )]
    machines: u16,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    seccomp: seccomp::Flag,
    /// Be one of the machines.
    #[arg(long, hide = true)]
    member: bool,
}

impl Pool {
    /// Keep the machines until a signal comes; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        let machines = usize::from(self.machines);
        let mut draft = Draft::default();
        self.shape.set(&mut draft.machine);
        draft.machine.command = Some(Command {
            argv: vec!["/bin/true".into()],
            ..Command::default()
        });
        let machine = draft.machine().map_err(flagged::config)?;
        if self.member {
            self.seccomp.apply(machine.lockdown)?;
            let clock = || machine::clock().1;
            let failed = |error: &VmmError| say_error(error);
            return member::run(machine, &clock, &say, &failed).map_err(flagged::error);
        }
        let mut bar = Some(Bar::new("making machines ready"));
        let mut progress = |ready: usize| {
            if let Some(bar) = &mut bar {
                bar.show(ready as u64, machines as u64);
            }
            if ready == machines {
                bar = None;
                let s = if machines == 1 { "" } else { "s" };
                let _ = print(format!("{machines} machine{s} ready\n").as_bytes());
            }
        };
        let signals = machine::signals()?;
        pool::keep(machines, machine, signals, &member_command, &mut progress)
            .map_err(flagged::error)?;
        Ok(0)
    }
}

/// The same program with the same flags, even if another was installed since.
fn member_command() -> process::Command {
    let mut command = process::Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1)).arg("--member");
    command
}
