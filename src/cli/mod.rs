//! The command line: flags to a library call, errors to stderr. The only place that prints.

pub mod guest;
pub mod run;
mod terminal;
mod timing;

use clap::{Parser, Subcommand};

/// A micro virtual machine monitor for Linux/KVM.
#[derive(Parser)]
#[command(name = "hull", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Boot a kernel or a flat payload in a virtual machine.
    Run(run::Run),
    /// Write out the guest that this program carries.
    #[command(subcommand)]
    Guest(guest::Guest),
}

impl Cli {
    /// Do what was asked; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        match self.verb {
            Verb::Run(run) => run.execute(),
            Verb::Guest(guest) => guest.execute().map(|()| 0),
        }
    }
}
