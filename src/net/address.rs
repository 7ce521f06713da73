//! Addresses that hull chooses for a guest.

use rustix::rand::{GetRandomFlags, getrandom};

use super::config::Subnet;
use crate::devices::virtio::net::Mac;

impl Subnet {
    /// The next address of the same network, or else the one before.
    pub(super) fn neighbour(self) -> Option<Self> {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0);
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
    use std::net::Ipv4Addr;

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
