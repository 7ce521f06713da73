//! `hull volume ls` and `inspect`: what is known of volumes.

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::output::{print, print_json, say};
use super::table::{Table, ago};
use crate::config::size;
use crate::volume::{Store, Volume};

#[derive(clap::Args)]
pub struct Ls {
    /// Print the list as JSON.
    #[arg(long)]
    json: bool,
    /// Print the names alone.
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
}

#[derive(clap::Args)]
pub struct Inspect {
    /// Names of volumes.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// A volume as JSON.
#[derive(Serialize)]
struct Line {
    name: String,
    path: String,
    bytes: u64,
    used_bytes: u64,
    /// Seconds of Unix time.
    created: u64,
    /// Machines that run with it.
    in_use_by: Vec<String>,
    /// Machines in the background that have it.
    machines: Vec<String>,
    damaged: Option<String>,
}

impl From<Volume> for Line {
    fn from(volume: Volume) -> Self {
        Self {
            name: volume.name,
            path: volume.path.display().to_string(),
            bytes: volume.bytes,
            used_bytes: volume.used,
            created: volume.created,
            in_use_by: volume.users,
            machines: volume.machines,
            damaged: volume.damaged,
        }
    }
}

impl Ls {
    pub fn execute(self, store: &Store) -> anyhow::Result<()> {
        let volumes = store.list();
        if self.json {
            let lines: Vec<Line> = volumes.into_iter().map(Line::from).collect();
            return print_json(&lines);
        }
        if self.quiet {
            let names: String = volumes.iter().map(|it| format!("{}\n", it.name)).collect();
            return print(names.as_bytes());
        }
        if volumes.is_empty() {
            say("no volumes yet");
            return Ok(());
        }
        let mut table = Table::default();
        table.row(["NAME", "SIZE", "USED", "CREATED", "MACHINES"]);
        for volume in volumes {
            let created = UNIX_EPOCH + Duration::from_secs(volume.created);
            let mut machines = volume.users;
            machines.extend(volume.machines);
            machines.sort();
            machines.dedup();
            table.row([
                volume.name,
                size::show(volume.bytes),
                size::show(volume.used),
                match volume.damaged {
                    None => ago(created.elapsed().unwrap_or_default()),
                    Some(_) => "damaged".into(),
                },
                machines.join(", "),
            ]);
        }
        print(table.draw().as_bytes())
    }
}

impl Inspect {
    pub fn execute(self, store: &Store) -> anyhow::Result<()> {
        let found = self.names.iter().map(|name| Ok(store.find(name)?.into()));
        print_json(&found.collect::<anyhow::Result<Vec<Line>>>()?)
    }
}
