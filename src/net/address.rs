//! Addresses of networks, and those that hull chooses for a guest.

use std::net::Ipv4Addr;

use rustix::rand::{GetRandomFlags, getrandom};

use serde::{Deserialize, Serialize};

use crate::devices::virtio::net::Mac;

/// An address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The host part included.
    pub address: Ipv4Addr,
    /// Bits of the network prefix, 1 to 32; 0 in a rule on all addresses.
    pub prefix: u8,
}

impl Subnet {
    /// The bits of the network's prefix.
    fn mask(self) -> u32 {
        u32::MAX
            .checked_shl(32_u32.saturating_sub(self.prefix.into()))
            .unwrap_or(0)
    }

    /// The network alone: its first address, with the same prefix.
    pub fn network(self) -> Self {
        let address = Ipv4Addr::from_bits(self.address.to_bits() & self.mask());
        Self { address, ..self }
    }

    /// Whether `address` is in the network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & self.mask() == 0
    }

    /// Whether the two have addresses in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) && self.prefix <= other.prefix
            || other.contains(self.address) && other.prefix <= self.prefix
    }

    /// The addresses of stations in the network, in order: neither all zeroes nor all ones.
    pub fn stations(self) -> impl Iterator<Item = Ipv4Addr> {
        let network = self.address.to_bits() & self.mask();
        let last = network | !self.mask();
        (network.saturating_add(1)..last).map(Ipv4Addr::from_bits)
    }

    /// The next address of the same network, or else the one before.
    pub(super) fn neighbour(self) -> Option<Self> {
        let mask = self.mask();
        let own = self.address.to_bits();
        // All zeroes and all ones are not addresses of stations, except in a /31 (RFC 3021).
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

/// A random address: locally administered, unicast (IEEE 802, 8.2).
pub fn random_mac() -> Mac {
    let mut mac = [0; 6];
    // If the kernel fails, all addresses are the same, which still works for one machine.
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
    fn networks_have_stations_and_may_overlap() {
        let network = |text: &str| {
            let (address, prefix) = text.split_once('/').expect("a network");
            let address = address.parse().expect("an address");
            let prefix = prefix.parse().expect("a prefix");
            Subnet { address, prefix }
        };
        let small = network("10.1.2.5/29");
        let all: Vec<u8> = small.stations().map(|it| it.octets()[3]).collect();
        assert_eq!(all, [1, 2, 3, 4, 5, 6]);
        assert_eq!(network("10.1.2.5/32").stations().count(), 0);
        assert!(small.contains(Ipv4Addr::new(10, 1, 2, 7)));
        assert!(!small.contains(Ipv4Addr::new(10, 1, 2, 8)));
        for (one, other, overlap) in [
            ("10.0.0.0/8", "10.1.2.0/24", true),
            ("10.1.2.0/24", "10.1.3.0/24", false),
            ("10.1.2.0/24", "10.1.2.0/24", true),
            ("0.0.0.0/0", "10.1.2.0/24", true),
        ] {
            let (one, other) = (network(one), network(other));
            assert_eq!(one.overlaps(other), overlap, "{one:?} {other:?}");
            assert_eq!(other.overlaps(one), overlap, "{one:?} {other:?}");
        }
    }

    #[test]
    fn a_random_address_is_unicast_and_local() {
        let (one, other) = (random_mac(), random_mac());
        assert_ne!(one, other);
        assert_eq!(one[0] & 3, 2);
    }
}
