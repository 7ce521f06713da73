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

    /// Apply it to the threads that begin from now on, and warn once of what this host lacks.
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
        if self.seccomp == Some(Seccomp::Off) {
            say("--seccomp off: a guest that breaks into hull may make every system call");
        }
        let filters = sandbox::set_seccomp(setting).is_ok();
        let confines = lockdown == Lockdown::Off || sandbox::landlock_version().is_some();
        let lacks = [(filters, "seccomp filters"), (confines, "Landlock")];
        let lacks = lacks
            .into_iter()
            .filter_map(|(has, what)| (!has).then_some(what));
        let lacks = lacks.collect::<Vec<_>>().join(" and no ");
        match (lacks.is_empty(), required) {
            (true, _) => {}
            (false, true) => bail!(
                "--lockdown required: this host's kernel has no {lacks}; hull doctor says what helps"
            ),
            (false, false) => say(&format!(
                "this host's kernel has no {lacks}: a guest that breaks into hull finds less in its way"
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
