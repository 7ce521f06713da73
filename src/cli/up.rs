//! `hull up`: starts the machines of an application.

use anyhow::Context;

use super::application::{Application, follow};
use super::steps::{Made, check_volumes, fetch_images, start, stop};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull up -d                                 all services of compose.yaml here
  hull up                                    the same; what they write, until ctrl-c
  hull up -d shop.yaml --profile debug       another file, and more services

Again, it changes the machines whose services have changed, and starts those that have ended.
docs/applications.md has the keys of the file.")]
pub struct Up {
    #[command(flatten)]
    application: Application,
    /// Leave the machines in the background; without it hull prints what they write and stops them on ctrl-c.
    #[arg(short, long)]
    detach: bool,
    /// Also the services of this profile. May be repeated.
    #[arg(long, value_name = "NAME")]
    profile: Vec<String>,
}

impl Up {
    /// Do it; the status to exit with.
    pub fn execute(self) -> anyhow::Result<u8> {
        let opened = self.application.read(self.profile)?;
        opened.lock()?;
        std::env::set_current_dir(&opened.folder).context("the file's folder")?;
        let images = fetch_images(&opened)?;
        opened.check_health(&images)?;
        check_volumes(&opened)?;
        let planned = opened.planned(&images);
        let mut made = Made::default();
        if let Err(error) = start(&opened, &planned, &mut made) {
            made.undo(&opened);
            return Err(error);
        }
        opened.unlock();
        if self.detach {
            return Ok(0);
        }
        let machines = planned
            .iter()
            .map(|it| (it.service.clone(), it.machine.clone()));
        let stopped = follow(&machines.collect::<Vec<_>>(), true)?;
        if stopped {
            for machine in planned.iter().rev() {
                stop(&opened, &machine.machine)?;
            }
        }
        Ok(if stopped { 130 } else { 0 })
    }
}
