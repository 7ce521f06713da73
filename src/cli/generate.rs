//! `hull generate`: what other programs need to run machines.

use anyhow::Context;
use rustix::process::geteuid;

use super::lazy::Lazy;
use super::output::{print, say};
use crate::fleet::kept::Kept;
use crate::fleet::unit::{Host, unit, variables};

/// `hull generate`.
#[derive(clap::Subcommand)]
pub enum Verb {
    /// Print a unit of systemd that brings a machine in the background back after a reboot.
    Systemd(Lazy<Systemd>),
}

/// `hull generate systemd`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull generate systemd web > ~/.config/systemd/user/hull-web.service
  systemctl --user enable hull-web
  loginctl enable-linger                     so that it runs without a login

As root it is a unit of the system, for /etc/systemd/system. hull start, stop and
logs work as before. The machine's restart policy is kept by its keeper; systemd
starts the machine again only if the keeper itself was killed.")]
pub struct Systemd {
    /// The machine, which runs or ran in the background.
    #[arg(value_name = "NAME")]
    machine: String,
    /// Make the machine anew at each start, by the same command line, and remove it at each stop.
    #[arg(long)]
    new: bool,
}

impl Systemd {
    /// Prints the unit.
    pub fn execute(self) -> anyhow::Result<()> {
        let kept = Kept::open(&self.machine)?;
        let user = geteuid();
        let variables = variables();
        let of_user = format!("/run/user/{}", user.as_raw());
        let runtime = variables
            .iter()
            .any(|(name, value)| name == "XDG_RUNTIME_DIR" && value.to_str() == Some(&of_user));
        let host = Host {
            hull: std::env::current_exe().context("the path of hull is not known")?,
            variables,
            system: user.is_root(),
            runtime_of: runtime.then_some(user.as_raw()),
        };
        let name = &self.machine;
        if kept.record.remove && !self.new {
            say(&format!(
                "machine {name} is removed at its end (--rm), and then cannot be started again; --new makes it anew"
            ));
        }
        let text = unit(&kept.record, &host, self.new)?;
        print(text.as_bytes())
    }
}
