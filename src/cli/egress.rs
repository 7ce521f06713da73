//! The flags of `hull run` and `hull network create` for what may leave.

use anyhow::{anyhow, bail};

use super::headings::DEVICES;
use crate::config::{Device, Machine};
use crate::net::config::Kind;
use crate::net::policy::{Allow, Policy};

#[derive(clap::Args)]
#[command(next_help_heading = DEVICES)]
pub struct Egress {
    /// Only what goes to this destination leaves the machine's networks: a name, *.NAME for those below it, an address
    /// or a network, with :PORT for one port alone. All else is refused at once, other names do not exist, and there is
    /// no IPv6. May be repeated. hull logs --network tells what was refused. Examples: --allow example.org:443, --allow
    /// 10.1.0.0/16
    #[arg(long, value_name = "HOST|CIDR[:PORT]")]
    allow: Vec<Allow>,
    /// Nothing leaves to private addresses, those of the host, its loopback or a cloud's metadata, but for a network
    /// that --allow names; a name that leads there is refused.
    #[arg(long)]
    deny_private: bool,
}

impl Egress {
    /// What the flags say.
    ///
    /// # Errors
    /// There are too many.
    pub fn policy(&self) -> anyhow::Result<Policy> {
        let policy = Policy {
            allow: self.allow.clone(),
            deny_private: self.deny_private,
        };
        let checked = policy.check_size();
        checked.map_err(|reason| anyhow!("--allow: {reason}"))?;
        Ok(policy)
    }

    /// `machine` with its networks held to what the flags say.
    ///
    /// # Errors
    /// It has none, or one that cannot be held to it.
    pub fn hold(&self, mut machine: Machine) -> anyhow::Result<Machine> {
        let policy = self.policy()?;
        if policy.is_open() {
            return Ok(machine);
        }
        let flag = match policy.allow.is_empty() {
            true => "--deny-private",
            false => "--allow",
        };
        let root = machine.command.as_ref().and_then(|it| it.root.as_ref());
        if !policy.allow.is_empty() && root.is_some_and(|it| it.resolver.contains("nameserver")) {
            bail!("--allow: names are asked of the network's name server alone; leave out --dns");
        }
        let mut held = 0;
        for device in &mut machine.devices {
            let Device::Net(net) = device else {
                continue;
            };
            if let Kind::Tap { name, .. } = &net.kind {
                bail!(
                    "{flag}: what leaves by tap={name} is the host's to decide, by nftables for example; hull holds \
                     --net user and networks of hull network create to rules"
                );
            }
            net.policy = policy.clone();
            held += 1;
        }
        match held {
            0 => Err(anyhow!(
                "{flag}: the machine has no network; --net user gives it one"
            )),
            _ => Ok(machine),
        }
    }
}
