//! `hull update`: when a machine in the background is started again.

use std::str::FromStr;

use anyhow::bail;

use super::kept::each;
use super::output::print;
use crate::fleet::kept::Kept;
use crate::fleet::restart::RestartPolicy;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull update --restart always web           from now on")]
pub struct Update {
    /// The machines, which run or ran in the background.
    #[arg(value_name = "NAME", required = true)]
    machines: Vec<String>,
    /// When they are started again: no, on-failure, on-failure:N, always or unless-stopped.
    #[arg(long, value_name = "POLICY", value_parser = RestartPolicy::from_str)]
    restart: RestartPolicy,
}

impl Update {
    /// Do it; the status to exit with.
    pub fn execute(self) -> u8 {
        each(&self.machines, |name| {
            let mut kept = Kept::open(name)?;
            if kept.record.remove && self.restart != RestartPolicy::No {
                bail!("machine {name} was started with --rm: its restart policy cannot be changed");
            }
            kept.set_restart(self.restart)?;
            print(format!("{name}\n").as_bytes())
        })
    }
}
