//! `hull exec`: a command beside the own one of a machine that runs.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::bail;

use super::machine::{self, say_on};
use super::process::{Variable, variables_of};
use crate::agent::{Exec as Command, WindowSize};
use crate::config::machine::{parse_folder, parse_user};
use crate::fleet::{self, events};
use crate::launch::exec::{self, Ended, Wanted};
use crate::vmm::Streams;

/// The status of a command that ends with its machine: as one that was killed.
const KILLED: u8 = 137;
/// The size of a terminal that none of hull's gives a size.
const SIZE: WindowSize = WindowSize { rows: 24, cols: 80 };

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull exec web ps                           what runs in machine web
  hull exec -it web sh                       a shell in it
  hull exec -u www -w /srv -e A=1 web make   as another user, elsewhere
  hull exec -i web tar x < files.tar         standard input for it
  hull exec -d web sleep 1000                and do not wait for it

The command has the variables, folder, user and capabilities of the machine's own
command, unless a flag says otherwise. It ends with the machine, which ends with
that command. Signals to this hull go to it; it goes on if this hull is killed.

Exit status: the command's own, 128+N if signal N ended it, 127 if it was not
found, 126 if it could not be run, 137 if the machine ended before it, 125 if
hull itself failed.")]
pub struct Exec {
    /// The machine: its --name, or the process id of its hull.
    #[arg(value_name = "NAME|PID")]
    machine: String,
    /// What to run, with its arguments.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "CMD"
    )]
    command: Vec<OsString>,
    /// Give it standard input; without this flag it reads nothing.
    #[arg(short, long)]
    interactive: bool,
    /// Run it on a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Do not wait for it; its output is dropped.
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// The user of the guest as whom it runs: a name of its /etc/passwd or a number, and a group.
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = parse_user)]
    user: Option<OsString>,
    /// The folder of the guest in which it runs.
    #[arg(short, long, value_name = "DIR", value_parser = parse_folder)]
    workdir: Option<OsString>,
    /// A variable for it; without a value the one that hull itself has, if any. May be repeated.
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = Variable::parser())]
    env: Vec<Variable>,
    /// Read variables from a file: one a line as for --env; lines that begin with # are comments.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

impl Exec {
    /// Do it; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        let found = fleet::find(&self.machine)?;
        let signals = machine::signals()?;
        let connection = exec::connect(&found)?;
        let tty = match self.tty && self.interactive {
            false => None,
            true => exec::terminal()?,
        };
        if self.tty && self.interactive && tty.is_none() {
            bail!("the input device is not a TTY; leave out --tty");
        }
        let streams = Streams::own(tty.clone());
        let size = streams.window_size().unwrap_or(SIZE);
        let mut command = Command {
            env: variables_of(&self.env_file, &self.env)?,
            argv: self.command,
            cwd: self.workdir.unwrap_or_default(),
            user: self.user.unwrap_or_default(),
            tty: self.tty.then_some(size),
            ..Command::default()
        };
        connection.complete(&mut command);
        let shown: Vec<_> = command.argv.iter().map(|it| it.to_string_lossy()).collect();
        events::record("exec", &found.record.name, &[("command", &shown.join(" "))]);
        let wanted = Wanted {
            streams,
            stdin: self.interactive,
            detach: self.detach,
            keys: None,
            pass_signals: true,
        };
        let say = |line: &str| say_on(tty.as_deref(), line);
        let ended = connection.run(command, wanted, signals, &say);
        if let Some(tty) = &tty {
            tty.give_back();
        }
        Ok(match ended? {
            Ended::Exited(status) => status,
            Ended::Detached => 0,
            Ended::Left(signal) => 128 + signal as u8,
            Ended::WithMachine => {
                say(&format!(
                    "machine {} ended before the command",
                    self.machine
                ));
                KILLED
            }
        })
    }
}
