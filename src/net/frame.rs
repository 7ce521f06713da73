//! Ethernet frames with ARP, IPv4 and UDP, as far as hull looks into them or makes them.

use std::net::Ipv4Addr;

use crate::devices::virtio::net::Mac;

/// The type of frames with ARP (RFC 826).
pub(super) const ARP: [u8; 2] = [0x08, 0x06];
/// The type of frames with IPv4 (RFC 894).
pub(super) const IPV4: [u8; 2] = [0x08, 0x00];
/// The type of frames with IPv6 (RFC 2464).
pub(super) const IPV6: [u8; 2] = [0x86, 0xdd];
/// Protocols of IP (RFC 791).
pub(super) const ICMP: u8 = 1;
/// See [`ICMP`].
pub(super) const TCP: u8 = 6;
/// See [`ICMP`].
pub(super) const UDP: u8 = 17;
/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options (RFC 791).
pub(super) const IP: usize = 20;
/// The port of name servers.
pub(super) const DNS: u16 = 53;

/// Target, source and type of a frame.
pub(super) fn ethernet(frame: &[u8]) -> Option<(Mac, Mac, [u8; 2])> {
    let (&to, rest) = frame.split_first_chunk()?;
    let (&from, rest) = rest.split_first_chunk()?;
    Some((to, from, *rest.first_chunk()?))
}

/// An ARP message for IPv4 over Ethernet (RFC 826).
pub(super) struct Arp {
    pub asks: bool,
    pub sender: Mac,
    pub from: [u8; 4],
    pub target: [u8; 4],
}

impl Arp {
    pub fn of(frame: &[u8]) -> Option<Self> {
        let rest = frame.get(ETHERNET..)?;
        let rest = rest.strip_prefix(&[0, 1, 0x08, 0, 6, 4, 0])?;
        let (operation, rest) = rest.split_first()?;
        let (&sender, rest) = rest.split_first_chunk()?;
        let (&from, rest) = rest.split_first_chunk()?;
        let target = *rest.get(size_of::<Mac>()..)?.first_chunk()?;
        matches!(operation, 1 | 2).then_some(Self {
            asks: *operation == 1,
            sender,
            from,
            target,
        })
    }
}

/// One end of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub port: u16,
}

/// A frame with a UDP datagram (RFC 768), without a checksum of its own. `data` has at most 65507 bytes.
pub(super) fn datagram(from: End, to: End, data: &[u8]) -> Vec<u8> {
    let len = 8 + data.len();
    let words = [from.port, to.port, len as u16, 0];
    let header = words.map(u16::to_be_bytes).concat();
    packet(from, to, UDP, &[&header, data].concat())
}

/// A frame with an IPv4 packet of this protocol. `data` has at most 65515 bytes.
pub(super) fn packet(from: End, to: End, protocol: u8, data: &[u8]) -> Vec<u8> {
    let mut ip = vec![0x45, 0];
    ip.extend(((IP + data.len()) as u16).to_be_bytes());
    // Never cut into fragments, so its number does not matter (RFC 6864).
    ip.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    ip.extend(from.address.octets());
    ip.extend(to.address.octets());
    let sum = checksum(&ip).to_be_bytes();
    ip.splice(10..12, sum);
    let mut frame = [to.mac, from.mac].concat();
    frame.extend(IPV4);
    frame.extend(ip);
    frame.extend(data);
    frame
}

/// The Internet's checksum (RFC 1071): 0 over what has a right one in it.
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |last| u32::from(*last) << 8);
    let sum = words.iter().fold(last, |sum, word| {
        sum.wrapping_add(u16::from_be_bytes(*word).into())
    });
    let sum = (sum >> 16) + (sum & 0xffff);
    !((sum >> 16) + (sum & 0xffff)) as u16
}
