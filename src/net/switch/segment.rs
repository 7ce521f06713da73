//! An Ethernet segment of machines as a model: where each frame goes. No descriptor is known here.
//!
//! Every machine has the MAC address and the IPv4 address that the segment has given it. A frame that claims
//! another one is lost, so there is nothing to learn from frames, and no frame goes to a machine that it is not
//! for. Of protocols there are IPv4 and ARP alone: with IPv6 a machine could take any address.

use std::net::Ipv4Addr;

use crate::devices::virtio::net::Mac;
use crate::net::address::Subnet;
use crate::net::echo;
use crate::net::frame::{ARP, Arp, DNS, ETHERNET, End, IP, IPV4, UDP, datagram, ethernet};
use crate::net::names::{self, Verdict};
use crate::net::stream::is_to_loopback;

/// Most machines of a network.
pub const MAX_STATIONS: usize = 128;
/// Most names of a machine, its own included.
pub const MAX_NAMES: usize = 16;

/// A machine in the segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// Its name and its further ones, in lower case.
    pub names: Vec<String>,
    /// Its MAC address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Whether another name server of the machine knows more names.
    pub asks_others: bool,
}

/// Where a frame goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Nowhere.
    Lost,
    /// To the machine at this port.
    To(usize),
    /// To all other machines.
    All,
    /// To other networks.
    Up,
    /// This one goes back in its place.
    Back(Vec<u8>),
}

/// The machines of a network, by their ports.
#[derive(Debug)]
pub struct Segment {
    subnet: Subnet,
    internal: bool,
    stations: Vec<Option<Station>>,
}

/// The MAC address that belongs to an address: a locally administered one, as docker has it.
pub fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

impl Segment {
    /// An empty one. The address in `subnet` is the segment's own, of its router and its name server; without
    /// a way to other networks, if `internal`.
    pub fn new(subnet: Subnet, internal: bool) -> Self {
        Self {
            subnet,
            internal,
            stations: Vec::new(),
        }
    }

    /// Add a machine with these names, and with this MAC address or the one that belongs to its address. Returns
    /// its port.
    ///
    /// # Errors
    /// There is no address or port left, or the MAC address is taken.
    pub fn join(
        &mut self,
        names: Vec<String>,
        mac: Option<Mac>,
        asks_others: bool,
    ) -> Result<usize, String> {
        let free = || self.subnet.stations().find(|it| !self.is_taken(*it));
        let count = self.stations().count();
        let address = (count < MAX_STATIONS).then(free).flatten();
        let address = address
            .ok_or_else(|| format!("no address is left: {count} machines are in the network"))?;
        let mac = mac.unwrap_or_else(|| mac_of(address));
        if mac == self.mac() || self.stations().any(|(_, it)| it.mac == mac) {
            return Err("another machine of the network has this MAC address".into());
        }
        let mut names: Vec<String> = names.iter().map(|it| it.to_ascii_lowercase()).collect();
        names.truncate(MAX_NAMES);
        let station = Some(Station {
            names,
            mac,
            address,
            asks_others,
        });
        let port = self.stations.iter().position(Option::is_none);
        let port = port.unwrap_or(self.stations.len());
        match self.stations.get_mut(port) {
            Some(free) => *free = station,
            None => self.stations.push(station),
        }
        Ok(port)
    }

    /// Remove the machine at a port.
    pub fn leave(&mut self, port: usize) {
        if let Some(station) = self.stations.get_mut(port) {
            *station = None;
        }
    }

    /// The machine at a port.
    pub fn station(&self, port: usize) -> Option<&Station> {
        self.stations.get(port)?.as_ref()
    }

    /// The machines with their ports.
    pub fn stations(&self) -> impl Iterator<Item = (usize, &Station)> {
        let all = self.stations.iter().enumerate();
        all.filter_map(|(port, station)| Some((port, station.as_ref()?)))
    }

    /// The port of the machine with this MAC address.
    pub fn port_of(&self, mac: Mac) -> Option<usize> {
        let with = self.stations().find(|(_, it)| it.mac == mac);
        with.map(|(port, _)| port)
    }

    fn is_taken(&self, address: Ipv4Addr) -> bool {
        address == self.subnet.address || self.stations().any(|(_, it)| it.address == address)
    }

    /// The segment's own address, of its router and its name server.
    pub fn address(&self) -> Ipv4Addr {
        self.subnet.address
    }

    /// The segment's own MAC address.
    fn mac(&self) -> Mac {
        mac_of(self.subnet.address)
    }

    /// Where `frame` goes, which came from the machine at `port`.
    pub fn route(&self, port: usize, frame: &[u8]) -> Route {
        self.checked(port, frame).unwrap_or(Route::Lost)
    }

    fn checked(&self, port: usize, frame: &[u8]) -> Option<Route> {
        let station = self.station(port)?;
        let (to, from, kind) = ethernet(frame)?;
        if from != station.mac {
            return None;
        }
        let own = station.address.octets();
        let is_for_us = match kind {
            ARP => {
                let arp = Arp::of(frame)?;
                // Without a sender's address it asks whether one is taken (RFC 5227).
                let is_own = arp.sender == station.mac && (arp.from == own || arp.from == [0; 4]);
                if !is_own {
                    return None;
                }
                arp.asks && arp.target == self.subnet.address.octets()
            }
            IPV4 => {
                let header = frame.get(ETHERNET..ETHERNET + IP)?;
                let is_own = header.get(12..16)? == own && header.first()? >> 4 == 4;
                if !is_own {
                    return None;
                }
                to == self.mac()
            }
            _ => return None,
        };
        if is_for_us {
            return Some(match kind {
                ARP => Route::Back(self.arp_reply(station)),
                _ => self.routed(station, frame)?,
            });
        }
        if to.first()? & 1 != 0 {
            return Some(Route::All);
        }
        let other = self.port_of(to).filter(|other| *other != port);
        other.map(Route::To)
    }

    /// Where a packet goes that was sent to the router.
    fn routed(&self, station: &Station, frame: &[u8]) -> Option<Route> {
        let to = frame.get(30..34)?;
        let to = Ipv4Addr::from(<[u8; 4]>::try_from(to).ok()?);
        if to == self.subnet.address {
            if let Some(pong) = echo::answer(frame, to) {
                return Some(Route::Back(pong));
            }
            if let Some(answer) = self.dns(station, frame) {
                return Some(answer);
            }
        }
        let stays = to != self.subnet.address && self.subnet.contains(to);
        let away = !self.internal && !stays && !to.is_multicast() && !is_to_loopback(frame);
        away.then_some(Route::Up)
    }

    /// What becomes of a question for a name; `None` if the frame is none.
    fn dns(&self, station: &Station, frame: &[u8]) -> Option<Route> {
        let packet = frame.get(ETHERNET..)?;
        let header = usize::from(packet.first()? & 0xf) * 4;
        // In one piece: neither more fragments nor an offset.
        let whole = packet.get(6)? & 0x3f == 0 && *packet.get(7)? == 0;
        let udp = packet.get(header.max(IP)..)?;
        let &[from0, from1, to0, to1, len0, len1, _, _, ..] = udp else {
            return None;
        };
        let is_question = *packet.get(9)? == UDP && whole && u16::from_be_bytes([to0, to1]) == DNS;
        if !is_question {
            return None;
        }
        let len = usize::from(u16::from_be_bytes([len0, len1]));
        let query = udp.get(8..len)?;
        let known = |name: &str| -> Vec<Ipv4Addr> {
            let with = self
                .stations()
                .filter(|(_, it)| it.names.iter().any(|it| it == name));
            with.map(|(_, it)| it.address).collect()
        };
        let answer = match names::answer(query, known)? {
            Verdict::Known(answer) => answer,
            Verdict::Unknown(_) if !self.internal => return Some(Route::Up),
            Verdict::Unknown(unknown) => unknown.refusal(station.asks_others),
        };
        let end = |mac, address, port| End { mac, address, port };
        let from = end(self.mac(), self.subnet.address, DNS);
        let port = u16::from_be_bytes([from0, from1]);
        let reply = datagram(from, end(station.mac, station.address, port), &answer);
        Some(Route::Back(reply))
    }

    /// Whether a frame that came from other networks is for the machine at `port`.
    pub fn is_from_above(&self, port: usize, frame: &[u8]) -> bool {
        let checked = || {
            let station = self.station(port)?;
            let (to, from, kind) = ethernet(frame)?;
            let source = <[u8; 4]>::try_from(frame.get(26..30)?).ok()?;
            let source = Ipv4Addr::from(source);
            // No host elsewhere passes for a machine of the network.
            let elsewhere = source == self.subnet.address || !self.subnet.contains(source);
            let right = to == station.mac && from == self.mac() && kind == IPV4;
            (right && elsewhere && !self.internal).then_some(())
        };
        checked().is_some()
    }

    /// "The segment's address is at its MAC address" (RFC 826).
    fn arp_reply(&self, to: &Station) -> Vec<u8> {
        let mut reply = [to.mac, self.mac()].concat();
        reply.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2]);
        reply.extend(self.mac());
        reply.extend(self.subnet.address.octets());
        reply.extend(to.mac);
        reply.extend(to.address.octets());
        reply
    }
}

#[cfg(test)]
mod tests;
