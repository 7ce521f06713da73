//! A machine's part of a network that machines share: its connection to the switch, and the passt by which it
//! reaches other networks.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::config::{Config, Kind, Subnet};
use super::error::NetError;
use super::host::own_addresses;
use super::networks::{NetworkError, Networks};
use super::passt::{Addresses, Passt};
use super::stream::Stream;
use super::switch::{self, Way, Wish, mac_of};
use crate::devices::virtio::net::{Mac, Wire};

/// A membership in a network.
#[derive(Debug)]
pub struct Shared {
    /// The network's name.
    pub name: String,
    /// The guest's MAC address in it.
    pub mac: Mac,
    /// The guest's address, and that of the switch.
    pub addresses: Addresses,
    /// Whether nothing leads out of it.
    pub internal: bool,
    socket: Arc<OwnedFd>,
    uplink: Option<Uplink>,
}

/// The way to other networks.
#[derive(Debug)]
struct Uplink {
    passt: Passt,
    /// A second connection to the switch, on which passt's socket is handed over. Made before the jail.
    request: Option<(UnixStream, Way)>,
    journal: Option<File>,
}

impl Uplink {
    fn start(
        request: UnixStream,
        addresses: &Addresses,
        way: Way,
        journal: Option<File>,
    ) -> Result<Self, NetError> {
        Ok(Self {
            passt: Passt::start(addresses, &way.publish)?,
            request: Some((request, way)),
            journal,
        })
    }
}

/// Start the switches of those networks of a machine that machines share, where none runs. To be called before
/// this process enters a control group or a jail: a switch stays when the machine has ended.
///
/// # Errors
/// There is no such network, or its switch does not start.
pub fn start_switches<'a>(configs: impl Iterator<Item = &'a Config>) -> Result<(), NetError> {
    for config in configs {
        if let Kind::Shared { network, .. } = &config.kind {
            Networks::open()?.find(network)?.start()?;
        }
    }
    Ok(())
}

/// The addresses of a machine in the network `subnet`.
fn addresses(subnet: Subnet, guest: Ipv4Addr) -> Addresses {
    let router = subnet.address;
    Addresses {
        guest: Subnet {
            address: guest,
            ..subnet
        },
        gateway: router,
        dns: router,
        host_loopback: false,
        router: Some(mac_of(router)),
        ipv4_only: true,
    }
}

impl Shared {
    /// Join the network of `config` as the machine `machine`, which has the name servers of more networks if
    /// `asks_others`. The rules of the machine on what may leave replace those of the network, and what becomes of it is
    /// told in `journal`.
    ///
    /// # Errors
    /// There is no such network, its switch refuses, or passt cannot be started.
    pub fn join(
        config: &Config,
        machine: &str,
        asks_others: bool,
        journal: Option<File>,
    ) -> Result<Self, NetError> {
        let Kind::Shared {
            network: name,
            aliases,
            publish,
        } = &config.kind
        else {
            let name = String::new();
            return Err(NetworkError::Unknown { name }.into());
        };
        let network = Networks::open()?.find(name)?;
        let failed = |reason: String| NetworkError::Switch {
            name: name.into(),
            reason,
        };
        let ended = || failed("its switch has ended; start the machine again".into());
        let wish = Wish {
            names: [std::slice::from_ref(&machine.to_string()), aliases].concat(),
            mac: config.mac,
            asks_others,
        };
        let joined = switch::join(network.connect().ok_or_else(ended)?, wish);
        let (socket, joined) = joined.map_err(|error| failed(error.to_string()))?;
        let addresses = addresses(network.record.subnet, joined.address);
        let internal = network.record.internal;
        if let Some(port) = publish.first().filter(|_| internal) {
            let reason = format!("it is internal, and {port} needs a network that is not");
            return Err(failed(reason).into());
        }
        let uplink = || -> Result<Uplink, NetError> {
            let policy = match config.policy.is_open() {
                true => &network.record.policy,
                false => &config.policy,
            };
            let way = Way {
                mac: joined.mac,
                policy: policy.clone(),
                publish: publish.clone(),
                host: own_addresses(),
            };
            let request = network.connect().ok_or_else(ended)?;
            Uplink::start(request, &addresses, way, journal)
        };
        Ok(Self {
            name: name.into(),
            mac: joined.mac,
            addresses,
            internal,
            uplink: (!internal).then(uplink).transpose()?,
            socket: Arc::new(socket),
        })
    }

    /// The wire for the device, when the way to other networks is open.
    ///
    /// # Errors
    /// passt does not come up, or the switch has ended.
    pub fn wire(&mut self) -> Result<Box<dyn Wire>, NetError> {
        if let Some(uplink) = &mut self.uplink {
            // Only its end is of use here: from now on the switch reads and writes.
            drop(uplink.passt.wait(self.mac, &self.addresses)?);
            if let Some((request, way)) = uplink.request.take() {
                let journal = uplink.journal.as_ref().map(File::as_fd);
                let handed = switch::hand_over(request, way, &*uplink.passt.socket, journal);
                handed.map_err(|error| NetworkError::Switch {
                    name: self.name.clone(),
                    reason: error.to_string(),
                })?;
            }
        }
        // The switch answers pings of itself, and drops what is for the host's loopback.
        let stream = Stream::new(self.socket.clone(), Ipv4Addr::UNSPECIFIED, true);
        Ok(Box::new(stream))
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
