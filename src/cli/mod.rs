//! The command line: flags to a library call, errors to stderr. The only place that prints.

mod balloon;
mod bar;
pub mod completions;
mod devices;
mod disk;
pub mod doctor;
mod explain;
mod fault;
mod gdb;
pub mod guest;
pub mod inspect;
mod machine;
mod machines;
pub mod man;
mod net;
pub mod pause;
pub mod pool;
mod pooled;
mod profile;
pub mod ps;
mod rate;
pub mod restore;
pub mod resume;
pub mod run;
mod share;
pub mod snapshot;
pub mod stop;
pub mod templates;
mod terminal;
mod timing;
mod trace;
mod vsock;
mod warm;

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
  hull ps                                    the machines that run
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
    /// List the machines that run.
    Ps(ps::Ps),
    /// End machines in good order.
    Stop(stop::Stop),
    /// Have machines stand still.
    Pause(pause::Pause),
    /// Let paused machines go on.
    Resume(resume::Resume),
    /// Look into a running machine.
    Inspect(inspect::Inspect),
    /// Save a running machine in a folder.
    Snapshot(snapshot::Snapshot),
    /// Go on from a snapshot, as one machine or as many.
    Restore(restore::Restore),
    /// Tell whether and how this machine can run guests.
    Doctor(doctor::Doctor),
    /// Read what hull run --trace wrote.
    #[command(subcommand)]
    Trace(trace::Verb),
    /// Keep machines ready for hull run.
    Pool(pool::Pool),
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
            Some(Verb::Ps(ps)) => ps.execute().map(|()| 0),
            Some(Verb::Stop(stop)) => Ok(stop.execute()),
            Some(Verb::Pause(pause)) => Ok(pause.execute()),
            Some(Verb::Resume(resume)) => Ok(resume.execute()),
            Some(Verb::Inspect(inspect)) => inspect.execute().map(|()| 0),
            Some(Verb::Snapshot(snapshot)) => snapshot.execute().map(|()| 0),
            Some(Verb::Restore(restore)) => restore.execute(),
            Some(Verb::Doctor(doctor)) => doctor.execute(),
            Some(Verb::Trace(trace)) => trace.execute().map(|()| 0),
            Some(Verb::Pool(pool)) => pool.execute(),
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
