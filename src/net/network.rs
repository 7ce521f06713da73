//! A machine's networks: tap devices, processes of passt and networks that machines share, with the addresses
//! of the guest.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};

use super::address::random_mac;
use super::config::{Config, Kind, Publish, Subnet};
use super::error::NetError;
use super::host::own_addresses;
use super::passt::{self, Addresses, Passt};
use super::policy::{Filter, Journal, Setting};
use super::shared::Shared;
use super::tap::Tap;
use crate::devices::rate::Limits;
use crate::devices::virtio::net::{Mac, Properties, Wire};

/// The configuration that hull's init gives an interface of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The address by which init finds the interface.
    pub mac: Mac,
    /// Its IPv4 address.
    pub subnet: Subnet,
    /// Router to other networks.
    pub gateway: Option<Ipv4Addr>,
    /// Name server.
    pub dns: Option<Ipv4Addr>,
}

/// A network that is open.
#[derive(Debug)]
pub struct Network {
    /// Its name in messages.
    pub name: String,
    /// What the driver reads of the device.
    pub properties: Properties,
    /// Rate limits of each direction.
    pub limits: Limits,
    /// The guest's configuration, if hull assigns one.
    pub assigned: Option<Assigned>,
    /// A warning for the user.
    pub warning: Option<String>,
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    Tap(Tap),
    User(Passt, Addresses, Option<Filter>),
    Shared(Shared),
}

/// Open the networks of the machine `name`, in order. What leaves and what is refused is told in `journal`, if there
/// are rules on it.
///
/// # Errors
/// One of them cannot be used; the others are closed again.
pub fn open<'a>(
    name: &str,
    configs: impl Iterator<Item = &'a Config> + Clone,
    journal: Option<&File>,
) -> Result<Vec<Network>, NetError> {
    let mut networks = Vec::new();
    let mut users = 0;
    let is_shared = |config: &&Config| matches!(config.kind, Kind::Shared { .. });
    let mut shared_left = configs.clone().filter(is_shared).count();
    for config in configs {
        let mac = config.mac.unwrap_or_else(random_mac);
        networks.push(match &config.kind {
            Kind::Tap {
                name,
                address,
                gateway,
            } => tap_network(config, name, (*address, *gateway), mac)?,
            Kind::User {
                publish,
                host_loopback,
            } => {
                users += 1;
                let journal = journal.and_then(|it| it.try_clone().ok());
                user_network(config, (publish, *host_loopback), mac, users, journal)?
            }
            Kind::Shared { .. } => {
                shared_left -= 1;
                shared_network(config, name, shared_left > 0, journal)?
            }
        });
    }
    // The guest has one router: the first.
    let assigned = networks
        .iter_mut()
        .filter_map(|network| network.assigned.as_mut());
    let mut gateway = false;
    for assigned in assigned {
        assigned.gateway = assigned.gateway.filter(|_| !gateway);
        gateway |= assigned.gateway.is_some();
    }
    Ok(networks)
}

/// Join a network as the machine `name`, which has the name servers of more networks if `asks_others`.
fn shared_network(
    config: &Config,
    name: &str,
    asks_others: bool,
    journal: Option<&File>,
) -> Result<Network, NetError> {
    let journal = journal.and_then(|it| it.try_clone().ok());
    let shared = Shared::join(config, name, asks_others, journal)?;
    let own = shared.addresses;
    Ok(Network {
        name: format!("net {}", shared.name),
        properties: Properties {
            mac: shared.mac,
            mtu: passt::MTU,
            offloads: false,
        },
        limits: config.limits,
        assigned: Some(Assigned {
            mac: shared.mac,
            subnet: own.guest,
            gateway: (!shared.internal).then_some(own.gateway),
            dns: Some(own.dns),
        }),
        warning: None,
        backend: Backend::Shared(shared),
    })
}

fn tap_network(
    config: &Config,
    name: &str,
    (address, gateway): (Option<Subnet>, Option<Ipv4Addr>),
    mac: Mac,
) -> Result<Network, NetError> {
    let tap = Tap::open(name)?;
    let (subnet, gateway) = match (address, tap.subnet) {
        (Some(subnet), _) => (Some(subnet), gateway),
        (None, Some(host)) => {
            let next = host.neighbour().ok_or_else(|| NetError::NoAddress {
                name: name.into(),
                host: format!("{}/{}", host.address, host.prefix),
            })?;
            (Some(next), gateway.or(Some(host.address)))
        }
        (None, None) => (None, None),
    };
    let down = || format!("the tap device is down; `ip link set {name} up` (as root) changes that");
    Ok(Network {
        name: format!("net {name}"),
        properties: Properties {
            mac,
            mtu: tap.mtu,
            offloads: true,
        },
        limits: config.limits,
        assigned: subnet.map(|subnet| Assigned {
            mac,
            subnet,
            gateway,
            dns: None,
        }),
        warning: (!tap.up).then(down),
        backend: Backend::Tap(tap),
    })
}

/// The guest's address in the first network of the kind user.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// The `number`th network of its kind in this machine, from 1.
fn user_network(
    config: &Config,
    (publish, host_loopback): (&[Publish], bool),
    mac: Mac,
    number: u8,
    journal: Option<File>,
) -> Result<Network, NetError> {
    let station = |last| Ipv4Addr::new(10, 0, number.saturating_add(1), last);
    let addresses = Addresses {
        guest: Subnet {
            address: station(15),
            prefix: 24,
        },
        gateway: station(2),
        dns: station(3),
        host_loopback,
        router: None,
        ipv4_only: !config.policy.is_open(),
    };
    let setting = || Setting {
        mac,
        guest: addresses.guest.address,
        gateway: addresses.gateway,
        dns: addresses.dns,
        host: own_addresses(),
        publish: publish.iter().map(Publish::reaches).collect(),
        asks_others: false,
    };
    let filter = (!config.policy.is_open()).then(|| {
        let journal = journal.map(Journal::new);
        Filter::new(config.policy.clone(), setting(), journal)
    });
    let passt = Passt::start(&addresses, publish)?;
    Ok(Network {
        name: "net user".into(),
        properties: Properties {
            mac,
            mtu: passt::MTU,
            offloads: false,
        },
        limits: config.limits,
        assigned: Some(Assigned {
            mac,
            subnet: addresses.guest,
            gateway: Some(addresses.gateway),
            dns: Some(addresses.dns),
        }),
        warning: None,
        backend: Backend::User(passt, addresses, filter),
    })
}

impl Network {
    /// The wire for the device, when the backend is up.
    ///
    /// # Errors
    /// passt does not come up.
    pub fn wire(&mut self) -> Result<Box<dyn Wire>, NetError> {
        match &mut self.backend {
            Backend::Tap(tap) => Ok(tap.wire()),
            Backend::User(passt, addresses, filter) => {
                let mut stream = passt.wait(self.properties.mac, addresses)?;
                if let Some(filter) = filter.take() {
                    stream.set_filter(filter);
                }
                Ok(Box::new(stream))
            }
            Backend::Shared(shared) => shared.wire(),
        }
    }
}

/// Readable when there are frames, writable when there is room.
impl AsFd for Network {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.backend {
            Backend::Tap(tap) => tap.file.as_fd(),
            Backend::User(passt, ..) => passt.socket.as_fd(),
            Backend::Shared(shared) => shared.as_fd(),
        }
    }
}
