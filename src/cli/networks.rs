//! `hull network ls` and `inspect`: what is known of networks.

use std::net::Ipv4Addr;
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use super::output::{print, print_json, say};
use super::table::{Table, ago};
use crate::net::config::show_mac;
use crate::net::networks::{Network, Networks, show};
use crate::net::switch::Member;

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
    /// Names of networks.
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// A network as JSON.
#[derive(Serialize)]
struct Line {
    name: String,
    subnet: String,
    /// Of its router and name server.
    gateway: Ipv4Addr,
    internal: bool,
    /// What may leave, if not all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deny_private: bool,
    /// Seconds of Unix time.
    created: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<String>,
    machines: Vec<Machine>,
}

/// A machine in a network as JSON.
#[derive(Serialize)]
struct Machine {
    name: String,
    address: Ipv4Addr,
    mac: String,
    aliases: Vec<String>,
}

impl Line {
    fn of(network: &Network) -> anyhow::Result<Self> {
        let machines = network.members()?;
        let record = network.record.clone();
        Ok(Self {
            name: record.name,
            subnet: show(record.subnet),
            gateway: record.subnet.address,
            internal: record.internal,
            allow: record
                .policy
                .allow
                .iter()
                .map(ToString::to_string)
                .collect(),
            deny_private: record.policy.deny_private,
            created: record.created,
            project: record.project,
            machines: machines.into_iter().map(Machine::from).collect(),
        })
    }
}

impl From<Member> for Machine {
    fn from(member: Member) -> Self {
        let mut names = member.names.into_iter();
        Self {
            name: names.next().unwrap_or_default(),
            address: member.address,
            mac: show_mac(member.mac),
            aliases: names.collect(),
        }
    }
}

impl Ls {
    pub fn execute(self, networks: &Networks) -> anyhow::Result<()> {
        let lines: Vec<Line> = networks
            .list()
            .iter()
            .map(Line::of)
            .collect::<Result<_, _>>()?;
        if self.json {
            return print_json(&lines);
        }
        if self.quiet {
            let names: String = lines.iter().map(|it| format!("{}\n", it.name)).collect();
            return print(names.as_bytes());
        }
        if lines.is_empty() {
            say("no networks yet");
            return Ok(());
        }
        let mut table = Table::default();
        table.row(["NAME", "SUBNET", "INTERNAL", "CREATED", "MACHINES"]);
        for line in lines {
            let created = UNIX_EPOCH + Duration::from_secs(line.created);
            let machines: Vec<String> = line.machines.into_iter().map(|it| it.name).collect();
            table.row([
                line.name,
                line.subnet,
                if line.internal { "yes" } else { "no" }.into(),
                ago(created.elapsed().unwrap_or_default()),
                machines.join(", "),
            ]);
        }
        print(table.draw().as_bytes())
    }
}

impl Inspect {
    pub fn execute(self, networks: &Networks) -> anyhow::Result<()> {
        let found = self
            .names
            .iter()
            .map(|name| Line::of(&networks.find(name)?));
        print_json(&found.collect::<anyhow::Result<Vec<Line>>>()?)
    }
}
