//! `hull volume`: makes and removes volumes; `volumes` lists them.

use super::kept::each;
use super::lazy::Lazy;
use super::logger;
use super::output::print;
use super::volumes::{Inspect, Ls};
use crate::config::size;
use crate::volume::{Store, VolumeError, parse_size};

/// What is done with volumes.
#[derive(clap::Subcommand)]
pub enum Verb {
    /// Make a volume.
    Create(Lazy<Create>),
    /// List volumes.
    #[command(visible_alias = "list")]
    Ls(Lazy<Ls>),
    /// Print what is known of volumes as JSON.
    Inspect(Lazy<Inspect>),
    /// Remove volumes, and what is in them.
    #[command(visible_alias = "remove")]
    Rm(Lazy<Rm>),
    /// Remove the volumes that no machine has.
    Prune(Lazy<Prune>),
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull volume create data                    64 GiB, of which what is written takes room
  hull volume create --size 2T data          larger

They lie in $XDG_DATA_HOME/hull/volumes, or ~/.local/share/hull/volumes.")]
pub struct Create {
    /// Its name; one is made up when left out.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// How much it can hold, 8M to 16T [default: 64G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
}

#[derive(clap::Args)]
pub struct Rm {
    /// Names of volumes.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// It is no error if there is none of that name.
    #[arg(short, long)]
    force: bool,
}

#[derive(clap::Args)]
#[command(after_help = "\
As with docker, volumes that have a name stay unless --all is there; those
without one are gone with their machines.")]
pub struct Prune {
    /// Those that have a name: all that no machine has, neither one that runs nor one in the background that
    /// has ended.
    #[arg(short, long)]
    all: bool,
    /// Nothing is asked in any case; for those used to docker volume prune -f.
    #[arg(short, long)]
    force: bool,
}

impl Verb {
    /// Do it; the status to exit with.
    pub fn execute(self, log: logger::Flags) -> anyhow::Result<u8> {
        let store = Store::open()?;
        match self {
            Self::Create(create) => create.start(log)?.execute(&store).map(|()| 0),
            Self::Ls(list) => list.start(log)?.execute(&store).map(|()| 0),
            Self::Inspect(inspect) => inspect.start(log)?.execute(&store).map(|()| 0),
            Self::Rm(remove) => Ok(remove.start(log)?.execute(&store)),
            Self::Prune(prune) => prune.start(log)?.execute(&store).map(|()| 0),
        }
    }
}

impl Create {
    fn execute(self, store: &Store) -> anyhow::Result<()> {
        let name = self.name.map_or_else(new_name, Ok)?;
        store.create(&name, self.size)?;
        print(format!("{name}\n").as_bytes())
    }
}

impl Rm {
    fn execute(self, store: &Store) -> u8 {
        each(&self.names, |name| match store.remove(name) {
            Err(VolumeError::Unknown { .. }) if self.force => Ok(()),
            removed => print(format!("{}\n", removed?.name).as_bytes()),
        })
    }
}

impl Prune {
    fn execute(self, store: &Store) -> anyhow::Result<()> {
        let volumes = if self.all { store.list() } else { Vec::new() };
        let (mut text, mut bytes) = (String::new(), 0);
        // One that a machine has stays.
        for volume in volumes {
            if let Ok(removed) = store.remove(&volume.name) {
                text += &format!("{}\n", removed.name);
                bytes += removed.used;
            }
        }
        if !text.is_empty() {
            text = format!("Deleted Volumes:\n{text}\n");
        }
        print(format!("{text}Total reclaimed space: {}\n", size::show(bytes)).as_bytes())
    }
}

/// A name as docker makes one up.
fn new_name() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
