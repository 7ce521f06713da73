//! `--seccomp` of the commands that run machines.

use anyhow::bail;

use super::headings::MACHINE;
use super::output::say;
use crate::config::Lockdown;
use crate::sandbox::{self, Seccomp};

#[derive(clap::Args)]
pub struct Flag {
    /// Restrict each of hull's threads to the system calls on its list: on (another call ends hull with
    /// status 148), log (the kernel's log gets it) or off [default: on, and off with --lockdown off]
    #[arg(
        long,
        value_name = "HOW",
        value_enum,
        hide_possible_values = true,
        help_heading = MACHINE
    )]
    seccomp: Option<Seccomp>,
}

impl Flag {
    /// Whether the flag is given.
    pub fn is_given(&self) -> bool {
        self.seccomp.is_some()
    }

    /// Apply it to the threads that begin from now on, and warn if there are no restrictions.
    ///
    /// # Errors
    /// `lockdown` requires restrictions, and there are none.
    pub fn apply(&self, lockdown: Lockdown) -> anyhow::Result<()> {
        let setting = self.seccomp.unwrap_or(match lockdown {
            Lockdown::Off => Seccomp::Off,
            Lockdown::BestEffort | Lockdown::Required => Seccomp::On,
        });
        let required = lockdown == Lockdown::Required;
        if required && setting != Seccomp::On {
            bail!(
                "--lockdown required needs --seccomp on; use --lockdown best-effort to run without"
            );
        }
        match sandbox::set_seccomp(setting) {
            Ok(()) if self.seccomp == Some(Seccomp::Off) => {
                say("--seccomp off: a guest that breaks into hull may make every system call");
            }
            Ok(()) => {}
            Err(error) if required => bail!(
                "--lockdown required: this host's kernel has no seccomp filters ({error}); hull doctor \
                 says more"
            ),
            Err(error) => say(&format!(
                "this host's kernel has no seccomp filters ({error}): a guest that breaks into hull may \
                 make every system call"
            )),
        }
        Ok(())
    }

    /// As it is given to another hull.
    pub fn arguments(&self) -> Option<String> {
        let value = clap::ValueEnum::to_possible_value(&self.seccomp?)?;
        Some(format!("--seccomp={}", value.get_name()))
    }
}
