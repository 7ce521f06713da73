//! `hull attach`: the streams of a machine in the background.

use anyhow::{Context, bail};

use super::machine::{self, say_on};
use crate::control::{self, Action, Answer};
use crate::fleet::kept::Kept;
use crate::fleet::{self, FleetError, events};
use crate::launch::detach_keys::DetachKeys;
use crate::launch::exec::{self, Ended, Wanted};
use crate::vmm::Streams;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull run -dit --name sh -- sh              a shell in the background
  hull attach sh                             its terminal; ctrl-p ctrl-q leaves it
  hull attach --no-stdin web                 only see what it writes

What the machine has written before is in hull logs. Several may be attached at
once. One that takes no output for 10 s while the machine waits for it is let go.

Exit status: the machine's own, 0 after the keys that detach, 125 if hull itself
failed.")]
pub struct Attach {
    /// The machine, which runs in the background.
    #[arg(value_name = "NAME")]
    machine: String,
    /// The keys that leave the machine's terminal, with commas between them.
    #[arg(
        long,
        value_name = "KEYS",
        default_value = "ctrl-p,ctrl-q",
        value_parser = DetachKeys::parse
    )]
    detach_keys: DetachKeys,
    /// Leave standard input alone.
    #[arg(long)]
    no_stdin: bool,
    /// Whether signals to this hull go to the machine's command, if that has no terminal; otherwise they
    /// end this hull.
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    sig_proxy: bool,
}

impl Attach {
    /// Do it; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        let kept = Kept::open(&self.machine)?;
        if let Some(end) = kept.end() {
            return Err(self.ended(end.status));
        }
        let (terminal, stdin) = (kept.record.terminal, kept.record.input && !self.no_stdin);
        self.refuse_paused()?;
        let signals = machine::signals()?;
        let socket = kept.connect();
        let socket = socket.map_err(|error| match kept.end() {
            Some(end) => self.ended(end.status),
            None => anyhow::Error::from(error).context(format!(
                "the keeper of machine {} cannot be reached",
                self.machine
            )),
        })?;
        let tty = match terminal && stdin {
            false => None,
            true => exec::terminal()?,
        };
        if terminal && stdin && tty.is_none() {
            bail!("the input device is not a TTY; --no-stdin shows what it writes");
        }
        events::record("attach", &self.machine, &[]);
        let wanted = Wanted {
            streams: Streams::own(tty.clone()),
            stdin,
            detach: false,
            keys: terminal.then_some(self.detach_keys.clone()),
            pass_signals: self.sig_proxy && !terminal,
        };
        let ended = exec::attach(socket, wanted, signals, terminal);
        if let Some(tty) = &tty {
            tty.give_back();
        }
        match ended? {
            Ended::Exited(status) => Ok(status),
            Ended::Left(signal) => Ok(128 + signal as u8),
            Ended::Detached => {
                say_on(None, "read escape sequence");
                Ok(0)
            }
            Ended::WithMachine => {
                if let Some(end) = kept.end() {
                    return Ok(end.status);
                }
                bail!(
                    "the keeper of machine {} has let this hull go: it took nothing for 10 s, or too \
                     many are attached; the machine goes on",
                    self.machine
                )
            }
        }
    }

    fn ended(&self, status: u8) -> anyhow::Error {
        let name = self.machine.clone();
        let error = anyhow::Error::from(FleetError::Ended { name, status });
        error.context("you cannot attach to a stopped machine")
    }

    fn refuse_paused(&self) -> anyhow::Result<()> {
        let found = fleet::find(&self.machine)?;
        let status = control::ask(&found, Action::Status);
        let status = status.context("the machine's state is not known")?;
        if let Answer::Status(status) = status
            && status.state == "paused"
        {
            let name = &self.machine;
            bail!("you cannot attach to a paused machine: hull resume {name} first");
        }
        Ok(())
    }
}
