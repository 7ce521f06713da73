//! Networks of the host, behind the virtio network device: [`open`] gives a [`Network`] for what
//! the user asked for, either a tap device or a process of passt.
//!
//! The front end is `devices::virtio::net`; `vmm` ties the two together.

#![deny(unsafe_code)] // but in `ioctl`

pub mod config;
mod echo;
mod ioctl;
mod passt;
mod stream;
mod tap;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::rand::{GetRandomFlags, getrandom};
use thiserror::Error;

use crate::devices::rate::Limits;
pub use crate::devices::virtio::net::Mac;
use crate::devices::virtio::net::{Properties, Wire};
pub use config::{Config, Kind, Protocol, Publish, Subnet};
pub use ioctl::NAME_MOST;
use passt::{Addresses, Passt};
use tap::Tap;

/// A network cannot be had.
#[derive(Debug, Error)]
pub enum NetError {
    /// No such interface.
    #[error(
        "tap={name}: there is no {name}; `ip tuntap add {name} mode tap user $USER` and `ip link set {name} up` (as root) make one"
    )]
    TapMissing {
        /// The tap device.
        name: String,
    },
    /// Somebody else is at its far end.
    #[error("tap={name}: another program uses it; end that, or make a tap device for each machine")]
    TapInUse {
        /// The tap device.
        name: String,
    },
    /// It belongs to somebody else.
    #[error(
        "tap={name}: it is not yours; `ip tuntap del {name} mode tap` and `ip tuntap add {name} mode tap user $USER` (as root) give you one"
    )]
    TapNotOurs {
        /// The tap device.
        name: String,
    },
    /// A bridge, an Ethernet card.
    #[error(
        "tap={name}: {name} is no tap device with one queue; `ip tuntap` lists those that are, `ip tuntap add NAME mode tap user $USER` makes one"
    )]
    NotATap {
        /// The interface.
        name: String,
    },
    /// /dev/net/tun.
    #[error("tap={name}: /dev/net/tun: {error}; {hint}")]
    Tun {
        /// The tap device.
        name: String,
        /// Why not.
        error: io::Error,
        /// What helps.
        hint: &'static str,
    },
    /// Anything else.
    #[error("tap={name}: {error}")]
    Tap {
        /// The tap device.
        name: String,
        /// What it is.
        error: io::Error,
    },
    /// No address is left.
    #[error(
        "tap={name}: the network of the host's address {host} has no other; write ip=ADDRESS/PREFIX"
    )]
    NoAddress {
        /// The tap device.
        name: String,
        /// Address and prefix.
        host: String,
    },
    /// It is not installed.
    #[error(
        "user: there is no passt, which does the work; `apt install passt` (as root) brings it"
    )]
    PasstMissing,
    /// It cannot be started.
    #[error("user: passt cannot be started ({error})")]
    Passt {
        /// Why not.
        error: io::Error,
    },
    /// It gave up.
    #[error("user{publish}: passt gave up: {reason}")]
    PasstFailed {
        /// What it was to publish.
        publish: String,
        /// Its own words.
        reason: String,
    },
}

/// What hull's init gives an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The interface.
    pub mac: Mac,
    /// Its address.
    pub subnet: Subnet,
    /// The way to elsewhere.
    pub gateway: Option<Ipv4Addr>,
    /// Who knows names.
    pub dns: Option<Ipv4Addr>,
}

/// A network that is there.
#[derive(Debug)]
pub struct Network {
    /// What messages call it.
    pub name: String,
    /// What the guest is told.
    pub properties: Properties,
    /// How fast each direction may be.
    pub limits: Limits,
    /// The guest's address, if it has one without asking.
    pub assigned: Option<Assigned>,
    /// Something that the user should know.
    pub warning: Option<String>,
    far: Far,
}

#[derive(Debug)]
enum Far {
    Tap(Tap),
    User(Passt, Addresses),
}

/// The networks of a machine, in its order.
///
/// # Errors
/// One of them cannot be had; nothing is left of the others.
pub fn open<'a>(configs: impl Iterator<Item = &'a Config>) -> Result<Vec<Network>, NetError> {
    let mut networks = Vec::new();
    let mut users = 0;
    for config in configs {
        let mac = config.mac.unwrap_or_else(random_mac);
        networks.push(match &config.kind {
            Kind::Tap {
                name,
                address,
                gateway,
            } => tap_network(config, name, (*address, *gateway), mac)?,
            Kind::User { publish } => {
                users += 1;
                user_network(config, publish, mac, users)?
            }
        });
    }
    // One way to elsewhere, and one who knows names: those of the first that has them.
    let assigned = networks
        .iter_mut()
        .filter_map(|network| network.assigned.as_mut());
    let (mut gateway, mut dns) = (false, false);
    for assigned in assigned {
        assigned.gateway = assigned.gateway.filter(|_| !gateway);
        assigned.dns = assigned.dns.filter(|_| !dns);
        gateway |= assigned.gateway.is_some();
        dns |= assigned.dns.is_some();
    }
    Ok(networks)
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
        far: Far::Tap(tap),
    })
}

/// The `number`th network of its kind in this machine, from 1.
fn user_network(
    config: &Config,
    publish: &[Publish],
    mac: Mac,
    number: u8,
) -> Result<Network, NetError> {
    let station = |last| Ipv4Addr::new(10, 0, number.saturating_add(1), last);
    let addresses = Addresses {
        guest: Subnet {
            address: station(15),
            prefix: 24,
        },
        gateway: station(2),
        dns: station(3),
    };
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
        far: Far::User(passt, addresses),
    })
}

impl Network {
    /// What the device has of it, once it is up.
    ///
    /// # Errors
    /// passt does not come up.
    pub fn wire(&mut self) -> Result<Box<dyn Wire>, NetError> {
        match &mut self.far {
            Far::Tap(tap) => Ok(tap.wire()),
            Far::User(passt, addresses) => passt.wait(self.properties.mac, addresses),
        }
    }
}

/// Readable when there are frames, writable when there is room.
impl AsFd for Network {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.far {
            Far::Tap(tap) => tap.file.as_fd(),
            Far::User(passt, _) => passt.socket.as_fd(),
        }
    }
}

impl Subnet {
    /// The next address of the same network, or the one before where there is none.
    fn neighbour(self) -> Option<Self> {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0);
        let own = self.address.to_bits();
        // All zeroes and all ones are no stations', but where there are only two (RFC 3021).
        let is_station = |bits: &u32| {
            let rest = bits & !mask;
            bits & mask == own & mask && (self.prefix >= 31 || rest != 0 && rest != !mask)
        };
        let next = [own.checked_add(1), own.checked_sub(1)];
        let address = next.into_iter().flatten().find(is_station)?;
        Some(Self {
            address: address.into(),
            ..self
        })
    }
}

/// Locally administered, for one station (IEEE 802, 8.2).
fn random_mac() -> Mac {
    let mut mac = [0; 6];
    // Without an answer from the kernel all are alike, which still works for one machine.
    let _ = getrandom(&mut mac, GetRandomFlags::empty());
    mac[0] = mac[0] & 0xfc | 0x02;
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(address: [u8; 4], prefix: u8) -> Option<Ipv4Addr> {
        let address = address.into();
        Subnet { address, prefix }
            .neighbour()
            .map(|subnet| subnet.address)
    }

    #[test]
    fn the_guest_gets_the_next_address() {
        let address = |last| Some(Ipv4Addr::new(172, 16, 0, last));
        assert_eq!(neighbour([172, 16, 0, 1], 24), address(2));
        assert_eq!(neighbour([172, 16, 0, 254], 24), address(253));
        assert_eq!(neighbour([172, 16, 0, 1], 30), address(2));
        assert_eq!(neighbour([172, 16, 0, 2], 30), address(1));
        assert_eq!(neighbour([172, 16, 0, 2], 31), address(3));
        assert_eq!(neighbour([172, 16, 0, 3], 31), address(2));
        assert_eq!(neighbour([172, 16, 0, 3], 32), None);
    }

    #[test]
    fn a_random_address_is_unicast_and_local() {
        let (one, other) = (random_mac(), random_mac());
        assert_ne!(one, other);
        assert_eq!(one[0] & 3, 2);
    }
}
