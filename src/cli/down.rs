//! `hull down`: ends and removes the machines of an application.

use super::application::{Application, hull};
use super::output::say;
use super::steps::stop;
use crate::compose::plan::there;
use crate::net::networks::Networks;
use crate::volume::{Store, VolumeError};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull down                                  the application of compose.yaml here
  hull down -v                               and its volumes")]
pub struct Down {
    #[command(flatten)]
    application: Application,
    /// Remove its volumes, too, and what is in them; but not external ones.
    #[arg(short, long)]
    volumes: bool,
}

impl Down {
    /// Do it.
    pub fn execute(self) -> anyhow::Result<()> {
        let opened = self.application.read(vec!["*".into()])?;
        opened.lock()?;
        let order = |service: &str| {
            opened
                .project
                .services
                .iter()
                .position(|it| it.name == service)
        };
        let mut machines = there(&opened.name);
        // Those that need others go before them; those of services that the file no longer has, first.
        machines.sort_by_key(|it| std::cmp::Reverse(order(&it.service).unwrap_or(usize::MAX)));
        for machine in &machines {
            stop(&opened, &machine.machine)?;
            // One of --rm is gone then.
            hull(&opened.folder, &["rm", "-f", &machine.machine])?;
            say(&format!("machine {} removed", machine.machine));
        }
        for network in Networks::open()?.list() {
            if network.record.project.as_ref() == Some(&opened.name) {
                let name = network.record.name.clone();
                network.remove()?;
                say(&format!("network {name} removed"));
            }
        }
        if self.volumes {
            let store = Store::open()?;
            let own = opened.project.volumes.iter().filter(|(_, it)| !it.external);
            for name in own.map(|(name, _)| opened.volume(name)) {
                match store.remove(&name) {
                    Err(VolumeError::Unknown { .. }) => {}
                    removed => {
                        removed?;
                        say(&format!("volume {name} removed"));
                    }
                }
            }
        }
        Ok(())
    }
}
