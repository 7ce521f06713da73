//! The command line: flags to a library call, errors to stderr. The only place that prints.

mod bar;
mod bench;
mod compare;
mod completions;
mod devices;
mod doctor;
mod explain;
mod flagged;
mod gdb;
mod guest;
mod headings;
mod inspect;
mod logger;
mod machine;
mod machines;
mod man;
mod measuring;
mod output;
mod output_file;
mod parse;
mod pause;
mod pool;
mod profile;
mod ps;
mod restore;
mod run;
mod shape;
mod snapshot;
mod stop;
mod table;
mod templates;
mod terminal;
mod timing;
mod trace;
mod tracing;

use crate::memory::program;
pub use output::reader_left;

use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};

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
  hull ps                                    running machines
  hull doctor                                can this host run guests?

Exit status: the guest command's own, 128+N if signal N ended it, 127 if it was
not found, 126 if it could not be run, 125 if hull itself failed."
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    log: logger::Flags,
}

#[derive(Subcommand)]
enum Verb {
    /// Boot a kernel or a flat payload in a virtual machine.
    Run(Box<Lazy<run::Run>>),
    /// List running machines.
    Ps(Lazy<ps::Ps>),
    /// Shut machines down.
    Stop(Lazy<stop::Stop>),
    /// Pause machines: their vCPUs stop.
    Pause(Lazy<pause::Pause>),
    /// Resume paused machines.
    Resume(Lazy<pause::Resume>),
    /// Look into a running machine.
    Inspect(Lazy<inspect::Inspect>),
    /// Save a running machine in a folder.
    Snapshot(Lazy<snapshot::Snapshot>),
    /// Restore a snapshot, as one machine or as several.
    Restore(Lazy<restore::Restore>),
    /// Check whether this host can run guests.
    Doctor(Lazy<doctor::Doctor>),
    /// Measure hull, beside other programs or beside an earlier day.
    Bench(Lazy<bench::Bench>),
    /// Measure a process, containers and virtual machines side by side.
    Compare(Lazy<compare::Compare>),
    /// Read what hull run --trace wrote.
    #[command(subcommand)]
    Trace(trace::Verb),
    /// Keep machines ready for hull run.
    Pool(Lazy<pool::Pool>),
    /// List or remove the booted machines that later runs start from.
    Templates(Lazy<templates::Templates>),
    /// Write out the guest that this program carries.
    #[command(subcommand)]
    Guest(guest::Guest),
    /// Print a script that completes hull's flags in a shell.
    Completions(Lazy<completions::Completions>),
    /// Print the manual page, or write all of them.
    Man(Lazy<man::Man>),
}

impl Cli {
    /// Run the verb; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        program::one_heap();
        self.log.install()?;
        match self.verb {
            None => Self::try_parse_from(["hull", "run"])?.execute(),
            Some(Verb::Run(run)) => run.0.execute(),
            Some(Verb::Ps(ps)) => ps.0.execute().map(|()| 0),
            Some(Verb::Stop(stop)) => Ok(stop.0.execute()),
            Some(Verb::Pause(pause)) => Ok(pause.0.execute()),
            Some(Verb::Resume(resume)) => Ok(resume.0.execute()),
            Some(Verb::Inspect(inspect)) => inspect.0.execute().map(|()| 0),
            Some(Verb::Snapshot(snapshot)) => snapshot.0.execute().map(|()| 0),
            Some(Verb::Restore(restore)) => restore.0.execute(),
            Some(Verb::Doctor(doctor)) => doctor.0.execute(),
            Some(Verb::Bench(bench)) => bench.0.execute(),
            Some(Verb::Compare(compare)) => compare.0.execute(),
            Some(Verb::Trace(trace)) => trace.execute().map(|()| 0),
            Some(Verb::Pool(pool)) => pool.0.execute(),
            Some(Verb::Templates(templates)) => templates.0.execute().map(|()| 0),
            Some(Verb::Guest(guest)) => guest.execute().map(|()| 0),
            Some(Verb::Completions(completions)) => {
                completions.0.execute(Self::command()).map(|()| 0)
            }
            Some(Verb::Man(man)) => man.0.execute(Self::command()).map(|()| 0),
        }
    }
}

/// The flags of a verb, which clap builds only when the verb is used: building dozens of flags with
/// their texts takes longer than a restore.
pub struct Lazy<T>(T);

impl<T: Args> FromArgMatches for Lazy<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        T::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl<T: Args> Args for Lazy<T> {
    fn augment_args(verb: Command) -> Command {
        verb.defer(Self::define)
    }

    fn augment_args_for_update(verb: Command) -> Command {
        Self::augment_args(verb)
    }
}

impl<T: Args> Lazy<T> {
    /// The verb's description is that of the list of verbs, not that of the flags.
    fn define(verb: Command) -> Command {
        let about = verb.get_about().cloned();
        let verb = T::augment_args(verb);
        match about {
            Some(about) => verb.about(about).long_about(None),
            None => verb,
        }
    }
}
