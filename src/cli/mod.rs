//! The command line: flags to a library call, errors to stderr. The only place that prints.

mod balloon;
pub mod completions;
mod devices;
mod disk;
pub mod doctor;
mod explain;
mod fault;
mod gdb;
pub mod guest;
pub mod inspect;
pub mod man;
mod net;
mod profile;
mod rate;
pub mod run;
mod share;
pub mod templates;
mod terminal;
mod timing;
mod trace;
mod vsock;

use std::io::{self, Write};

use clap::{Parser, Subcommand};

/// A micro virtual machine monitor for Linux/KVM.
#[derive(Parser)]
#[command(
    name = "hull",
    version,
    disable_help_subcommand = true,
    max_term_width = 80,
    after_help = "\
Without a command: hull run, a shell in a virtual machine.

Examples:
  hull                                       a shell in a virtual machine
  hull run -- uname -a                       one command in one
  hull doctor                                can this machine run guests?

Exit status: the guest command's own, 128+N if signal N ended it, 127 if it was
not found, 126 if it could not be run, 125 if hull itself failed."
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Boot a kernel or a flat payload in a virtual machine.
    Run(Box<run::Run>),
    /// Look into a running machine.
    Inspect(inspect::Inspect),
    /// Tell whether and how this machine can run guests.
    Doctor(doctor::Doctor),
    /// Read what hull run --trace wrote.
    #[command(subcommand)]
    Trace(trace::Verb),
    /// List or remove the booted machines that later runs start from.
    Templates(templates::Templates),
    /// Write out the guest that this program carries.
    #[command(subcommand)]
    Guest(guest::Guest),
    /// Print a script that completes hull's flags in a shell.
    Completions(completions::Completions),
    /// Print the manual page, or write all of them.
    Man(man::Man),
}

impl Cli {
    /// Do what was asked; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        match self.verb {
            None => Self::try_parse_from(["hull", "run"])?.execute(),
            Some(Verb::Run(run)) => run.execute(),
            Some(Verb::Inspect(inspect)) => inspect.execute().map(|()| 0),
            Some(Verb::Doctor(doctor)) => doctor.execute(),
            Some(Verb::Trace(trace)) => trace.execute().map(|()| 0),
            Some(Verb::Templates(templates)) => templates.execute().map(|()| 0),
            Some(Verb::Guest(guest)) => guest.execute().map(|()| 0),
            Some(Verb::Completions(completions)) => completions.execute().map(|()| 0),
            Some(Verb::Man(man)) => man.execute().map(|()| 0),
        }
    }
}

/// Whether an error only says that whoever read standard output has left, which is no failure.
pub fn reader_left(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// One line of hull's own on standard error, where perhaps nobody reads.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "hull: {line}");
}

/// Print on standard output, whole.
fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text)?;
    Ok(stdout.flush()?)
}
