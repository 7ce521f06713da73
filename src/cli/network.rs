//! `hull network`: makes and removes networks that machines share; `networks` lists them.

use std::io::Write;

use anyhow::bail;

use super::egress::Egress;
use super::kept::each;
use super::lazy::Lazy;
use super::logger;
use super::networks::{Inspect, Ls};
use super::output::print;
use crate::net::Subnet;
use crate::net::networks::{Network, NetworkError, Networks, Ways, parse_subnet};
use crate::net::switch;
use crate::sandbox::fork_keeper;

/// What is done with networks.
#[derive(clap::Subcommand)]
pub enum Verb {
    /// Make a network.
    Create(Lazy<Create>),
    /// List networks.
    #[command(visible_alias = "list")]
    Ls(Lazy<Ls>),
    /// Print what is known of networks as JSON.
    Inspect(Lazy<Inspect>),
    /// Remove networks.
    #[command(visible_alias = "remove")]
    Rm(Lazy<Rm>),
    /// Remove the networks in which no machine is.
    Prune(Lazy<Prune>),
    /// Be the switch of a network; for hull run.
    #[command(hide = true)]
    Serve(Lazy<Serve>),
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull network create web
  hull network create --internal --subnet 10.20.0.0/24 db
  hull network create --allow example.org:443 app
  hull run -d --name db --network web --image postgres
  hull run --network web --image alpine -- ping -c 1 db

They are kept in $XDG_DATA_HOME/hull/networks, or ~/.local/share/hull/networks.")]
pub struct Create {
    /// Its name.
    #[arg(value_name = "NAME")]
    name: String,
    /// Its addresses; the first is that of its router and name server [default: the next free one of 10.90.0.0/24,
    /// 10.90.1.0/24 and so on]
    #[arg(long, value_name = "ADDR/PREFIX", value_parser = parse_subnet)]
    subnet: Option<Subnet>,
    /// Nothing leads out of it: its machines reach each other alone.
    #[arg(long)]
    internal: bool,
    #[command(flatten)]
    egress: Egress,
}

#[derive(clap::Args)]
pub struct Rm {
    /// Names of networks.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// It is no error if there is none of that name.
    #[arg(short, long)]
    force: bool,
}

#[derive(clap::Args)]
pub struct Prune {
    /// Nothing is asked in any case; for those used to docker network prune -f.
    #[arg(short, long)]
    force: bool,
}

#[derive(clap::Args)]
pub struct Serve {
    #[arg(value_name = "NAME")]
    name: String,
}

impl Verb {
    /// Do it; the status to exit with.
    pub fn execute(self, log: logger::Flags) -> anyhow::Result<u8> {
        let networks = Networks::open()?;
        match self {
            Self::Create(create) => create.start(log)?.execute(&networks).map(|()| 0),
            Self::Ls(list) => list.start(log)?.execute(&networks).map(|()| 0),
            Self::Inspect(inspect) => inspect.start(log)?.execute(&networks).map(|()| 0),
            Self::Rm(remove) => Ok(remove.start(log)?.execute(&networks)),
            Self::Prune(prune) => prune.start(log)?.execute(&networks).map(|()| 0),
            Self::Serve(serve) => serve.start(log)?.execute(&networks).map(|()| 0),
        }
    }
}

impl Create {
    fn execute(self, networks: &Networks) -> anyhow::Result<()> {
        let ways = Ways {
            internal: self.internal,
            policy: self.egress.policy()?,
        };
        if ways.internal && !ways.policy.is_open() {
            bail!("--internal: nothing leaves the network; leave out --allow and --deny-private");
        }
        networks.create(&self.name, self.subnet, ways, None)?;
        print(format!("{}\n", self.name).as_bytes())
    }
}

impl Rm {
    fn execute(self, networks: &Networks) -> u8 {
        each(&self.names, |name| {
            match networks.find(name).and_then(Network::remove) {
                Err(NetworkError::Unknown { .. }) if self.force => Ok(()),
                removed => {
                    removed?;
                    print(format!("{name}\n").as_bytes())
                }
            }
        })
    }
}

impl Prune {
    fn execute(self, networks: &Networks) -> anyhow::Result<()> {
        let mut text = String::new();
        for network in networks.list() {
            let name = network.record.name.clone();
            match network.remove() {
                Ok(()) => text += &format!("{name}\n"),
                Err(NetworkError::Used { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !text.is_empty() {
            text = format!("Deleted Networks:\n{text}");
        }
        print(text.as_bytes())
    }
}

impl Serve {
    /// Listen, and go on in a process of its own, which outlives the one that starts it.
    fn execute(self, networks: &Networks) -> anyhow::Result<()> {
        let network = networks.find(&self.name)?;
        let Some((_lock, listener)) = network.listen()? else {
            return Ok(());
        };
        // It may have been removed before it was locked.
        let record = networks.find(&self.name)?.record;
        if fork_keeper()?.is_some() {
            return Ok(());
        }
        std::io::stderr().flush()?;
        let null = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        std::env::set_current_dir("/")?;
        drop((null, network));
        Ok(switch::serve(listener, record.subnet, record.internal)?)
    }
}
