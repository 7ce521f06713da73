//! The command line: flags to a library call, errors to stderr. The only place that prints.

mod application;
mod attach;
mod awaited;
mod bar;
mod bench;
mod compare;
mod completions;
mod cp;
mod detach;
mod devices;
mod doctor;
mod down;
mod egress;
mod events;
mod exec;
mod explain;
mod flagged;
mod from_image;
mod gdb;
mod generate;
mod guest;
mod headings;
mod health;
mod hint;
mod image;
mod image_flags;
mod images;
mod inspect;
mod jail;
mod kept;
mod kill;
mod lazy;
mod listed;
mod logger;
mod logs;
mod machine;
mod machines;
mod man;
mod measuring;
mod mounts;
mod network;
mod network_flags;
mod network_log;
mod networks;
mod output;
mod output_file;
mod parse;
mod pause;
mod pool;
mod port;
mod process;
mod profile;
mod ps;
mod pull;
mod restart;
mod restore;
mod rmi;
mod run;
mod seccomp;
mod shape;
mod snapshot;
mod stats;
mod status;
mod steps;
mod stop;
mod table;
mod templates;
mod timing;
mod top;
mod trace;
mod tracing;
mod up;
mod update;
mod usage;
mod version;
mod volume;
mod volumes;

use crate::memory::program;
use crate::sandbox::{close_inherited, set_signals};
use lazy::Lazy;
pub use output::reader_left;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};

/// A micro virtual machine monitor for Linux/KVM.
#[derive(Parser)]
#[command(
    name = "hull",
    version,
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
    /// Run a command in a running machine.
    Exec(Box<Lazy<exec::Exec>>),
    /// Attach the terminal or the streams to a machine in the background.
    Attach(Lazy<attach::Attach>),
    /// Copy files to or from a running machine.
    Cp(Lazy<cp::Cp>),
    /// List running machines.
    Ps(Lazy<ps::Ps>),
    /// Show what machines use of the host, and their guests.
    Stats(Lazy<stats::Stats>),
    /// List the processes of a guest.
    Top(Lazy<top::Top>),
    /// Show what happens to machines.
    Events(Lazy<events::Events>),
    /// List the published ports of a machine.
    Port(Lazy<port::Port>),
    /// Start the machines of an application, which a compose file describes.
    Up(Lazy<up::Up>),
    /// End and remove the machines of an application.
    Down(Lazy<down::Down>),
    /// Print what a machine in the background has written.
    Logs(Lazy<logs::Logs>),
    /// Wait for machines in the background to end.
    Wait(Lazy<kept::Wait>),
    /// Shut machines down.
    Stop(Lazy<stop::Stop>),
    /// Kill machines, or send their commands a signal.
    Kill(Lazy<kill::Kill>),
    /// Stop machines in the background, and start them again.
    Restart(Lazy<restart::Restart>),
    /// Start machines that ran in the background again.
    Start(Lazy<restart::Start>),
    /// Remove what is known of machines that ran in the background.
    Rm(Lazy<kept::Rm>),
    /// Change when machines in the background are started again.
    Update(Lazy<update::Update>),
    /// Rename a machine.
    Rename(Lazy<kept::Rename>),
    /// Pause machines: their vCPUs stop.
    Pause(Lazy<pause::Pause>),
    /// Resume paused machines.
    #[command(visible_alias = "unpause")]
    Resume(Lazy<pause::Resume>),
    /// Look into a running machine.
    Inspect(Lazy<inspect::Inspect>),
    /// Save a running machine in a folder.
    Snapshot(Lazy<snapshot::Snapshot>),
    /// Restore a snapshot, as one machine or as several.
    Restore(Lazy<restore::Restore>),
    /// Fetch images of containers.
    Pull(Lazy<pull::Pull>),
    /// List images.
    Images(Lazy<images::Images>),
    /// Remove images.
    Rmi(Lazy<rmi::Rmi>),
    /// Look at an image.
    #[command(subcommand)]
    Image(image::Verb),
    /// Make, list and remove volumes.
    #[command(subcommand)]
    Volume(volume::Verb),
    /// Make, list and remove networks that machines share.
    #[command(subcommand)]
    Network(network::Verb),
    /// Print what other programs need to run machines.
    #[command(subcommand)]
    Generate(generate::Verb),
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
    Guest(guest::Verb),
    /// Print a script that completes hull's flags in a shell.
    Completions(Lazy<completions::Completions>),
    /// Print the manual page, or write all of them.
    Man(Lazy<man::Man>),
    /// Print the versions of hull and of the guest that it carries.
    Version(Lazy<version::Version>),
}

impl Cli {
    /// The command line of this process.
    ///
    /// # Errors
    /// It is none, or help or version were asked for.
    pub fn of_process() -> Result<Self, clap::Error> {
        let arguments: Vec<_> = std::env::args_os().collect();
        // Linux before 5.9 cannot; what it was started with stays open then.
        let _ = close_inherited(arguments.iter());
        let parsed = Self::try_parse_from(&arguments);
        parsed.map_err(|error| hint::add(error, arguments.get(1..).unwrap_or_default()))
    }

    /// Run the verb; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        program::one_heap();
        set_signals().context("cannot set the state of signals")?;
        let log = self.log;
        let Some(verb) = self.verb else {
            log.install()?;
            return Self::try_parse_from(["hull", "run"])?.execute();
        };
        match verb {
            Verb::Run(run) => run.start(log)?.execute(),
            Verb::Exec(exec) => exec.start(log)?.execute(),
            Verb::Attach(attach) => attach.start(log)?.execute(),
            Verb::Cp(cp) => cp.start(log)?.execute().map(|()| 0),
            Verb::Ps(ps) => ps.start(log)?.execute().map(|()| 0),
            Verb::Stats(stats) => stats.start(log)?.execute().map(|()| 0),
            Verb::Top(top) => top.start(log)?.execute().map(|()| 0),
            Verb::Events(events) => events.start(log)?.execute().map(|()| 0),
            Verb::Port(port) => port.start(log)?.execute().map(|()| 0),
            Verb::Up(up) => up.start(log)?.execute(),
            Verb::Down(down) => down.start(log)?.execute().map(|()| 0),
            Verb::Logs(logs) => logs.start(log)?.execute().map(|()| 0),
            Verb::Wait(wait) => Ok(wait.start(log)?.execute()),
            Verb::Kill(kill) => Ok(kill.start(log)?.execute()),
            Verb::Restart(restart) => Ok(restart.start(log)?.execute()),
            Verb::Start(start) => Ok(start.start(log)?.execute()),
            Verb::Rm(rm) => Ok(rm.start(log)?.execute()),
            Verb::Update(update) => Ok(update.start(log)?.execute()),
            Verb::Rename(rename) => rename.start(log)?.execute().map(|()| 0),
            Verb::Stop(stop) => Ok(stop.start(log)?.execute()),
            Verb::Pause(pause) => Ok(pause.start(log)?.execute()),
            Verb::Resume(resume) => Ok(resume.start(log)?.execute()),
            Verb::Inspect(inspect) => inspect.start(log)?.execute().map(|()| 0),
            Verb::Snapshot(snapshot) => snapshot.start(log)?.execute().map(|()| 0),
            Verb::Restore(restore) => restore.start(log)?.execute(),
            Verb::Pull(pull) => pull.start(log)?.execute().map(|()| 0),
            Verb::Images(images) => images.start(log)?.execute().map(|()| 0),
            Verb::Rmi(rmi) => rmi.start(log)?.execute().map(|()| 0),
            Verb::Image(image::Verb::Inspect(inspect)) => inspect.start(log)?.execute().map(|()| 0),
            Verb::Volume(verb) => verb.execute(log),
            Verb::Network(verb) => verb.execute(log),
            Verb::Doctor(doctor) => doctor.start(log)?.execute(),
            Verb::Bench(bench) => bench.start(log)?.execute(),
            Verb::Compare(compare) => compare.start(log)?.execute(),
            Verb::Trace(trace::Verb::Summary(sums)) => sums.start(log)?.execute().map(|()| 0),
            Verb::Pool(pool) => pool.start(log)?.execute(),
            Verb::Templates(templates) => templates.start(log)?.execute().map(|()| 0),
            Verb::Generate(generate::Verb::Systemd(unit)) => unit.start(log)?.execute().map(|()| 0),
            Verb::Guest(guest::Verb::Export(export)) => export.start(log)?.execute().map(|()| 0),
            Verb::Completions(completions) => {
                let completions = completions.start(log)?;
                completions.execute(Self::command()).map(|()| 0)
            }
            Verb::Man(man) => man.start(log)?.execute(Self::command()).map(|()| 0),
            Verb::Version(version) => version.start(log)?.execute().map(|()| 0),
        }
    }
}
