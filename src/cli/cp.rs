//! `hull cp`: files between the host and a running machine.

use std::io::{self, IsTerminal};

use anyhow::{Context, bail};

use super::output::say;
use crate::fleet;
use crate::launch::{archive, copy};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull cp web:/etc/hosts .                   a file of the guest's
  hull cp web:/var/log/. logs                what is in a folder of its
  hull cp site web:/srv                      a folder, as /srv/site if /srv is there
  hull cp web:/srv - > srv.tar               as a tar archive
  hull cp - web:/srv < more.tar              what is in one, into a folder

A path of the guest begins at its root. A target that is a folder gets the source
under its name; one that does not exist becomes the source. Links are copied as
links. What the guest sends never leaves the target.")]
pub struct Cp {
    /// What is copied: a path, or NAME:PATH in machine NAME; - for a tar archive on standard input.
    #[arg(value_name = "[NAME:]SOURCE")]
    source: String,
    /// Where it is copied to, - for a tar archive on standard output; one of both is in a machine.
    #[arg(value_name = "[NAME:]TARGET")]
    target: String,
    /// Keep owners and set-user-ID bits: on the host that takes root.
    #[arg(short, long)]
    archive: bool,
}

/// The machine and the path in it; `None` for a path of the host's.
fn in_machine(text: &str) -> Option<(&str, &str)> {
    let local = text.starts_with(['/', '.']);
    text.split_once(':')
        .filter(|(name, _)| !local && !name.contains('/'))
}

impl Cp {
    /// Copies, and says on standard error what was left out.
    pub fn execute(self) -> anyhow::Result<()> {
        match (in_machine(&self.source), in_machine(&self.target)) {
            (Some((name, path)), None) => {
                let found = fleet::find(name)?;
                let said = match self.target.as_str() {
                    "-" if io::stdout().is_terminal() => {
                        bail!("standard output is a terminal; send the archive to a file or a pipe")
                    }
                    "-" => archive::out_of(&found, path, io::stdout().lock()),
                    target => copy::out_of(&found, path, target, self.archive),
                };
                let said = said.with_context(|| format!("{} is not copied", self.source))?;
                if !said.is_empty() {
                    say(&format!("guest: {said}"));
                }
                Ok(())
            }
            (None, Some((name, path))) => {
                let found = fleet::find(name)?;
                let left_out = match self.source.as_str() {
                    "-" => archive::into(&found, io::stdin().lock(), path, self.archive),
                    source => copy::into(&found, source, path, self.archive),
                };
                let left_out =
                    left_out.with_context(|| format!("{} is not copied", self.source))?;
                for path in left_out {
                    say(&format!(
                        "{} is neither a file, a folder nor a link, and is not copied",
                        path.display()
                    ));
                }
                Ok(())
            }
            (Some(_), Some(_)) => {
                bail!("copy from one machine to the host, and from there to the other")
            }
            (None, None) => bail!("one of both must be in a machine, as NAME:PATH"),
        }
    }
}
