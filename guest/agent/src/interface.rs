//! The payload of an `Interface`: `mac[6] | address[4] | prefix u8 | gateway[4] | dns[4] | index u8`, IPv4
//! addresses as on the wire. An address of zeroes, or an index of 255, means that there is none.

use crate::Error;

/// Length of the payload in bytes.
pub const INTERFACE_LEN: usize = 20;

const NO_INDEX: u8 = 0xff;

/// The configuration of a network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Identifies the interface.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub address: [u8; 4],
    /// Length of the network prefix in bits, 1 to 32.
    pub prefix: u8,
    /// The default route.
    pub gateway: Option<[u8; 4]>,
    /// The DNS server.
    pub dns: Option<[u8; 4]>,
    /// If no interface has the MAC address, the interface is ethN with this N, 0 to 254, and gets the
    /// address. For restored machines only: while drivers are still probing, the names are not final.
    pub index: Option<u8>,
}

impl Interface {
    /// Encode it as a payload.
    pub fn encode(&self) -> [u8; INTERFACE_LEN] {
        let mut bytes = [0; INTERFACE_LEN];
        bytes[..6].copy_from_slice(&self.mac);
        bytes[6..10].copy_from_slice(&self.address);
        bytes[10] = self.prefix;
        bytes[11..15].copy_from_slice(&self.gateway.unwrap_or_default());
        bytes[15..19].copy_from_slice(&self.dns.unwrap_or_default());
        bytes[19] = self.index.unwrap_or(NO_INDEX);
        bytes
    }

    /// Decode a payload.
    ///
    /// # Errors
    /// [`Error::WrongInterface`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let wrong = Error::WrongInterface;
        let (mac, rest) = bytes.split_first_chunk().ok_or(wrong)?;
        let (address, rest) = rest.split_first_chunk().ok_or(wrong)?;
        let (&prefix, rest) = rest.split_first().ok_or(wrong)?;
        let (gateway, rest) = rest.split_first_chunk().ok_or(wrong)?;
        let (dns, rest) = rest.split_first_chunk().ok_or(wrong)?;
        let &[index] = rest else {
            return Err(wrong);
        };
        let some = |address: [u8; 4]| (address != [0; 4]).then_some(address);
        match prefix {
            1..=32 if *address != [0; 4] => Ok(Self {
                mac: *mac,
                address: *address,
                prefix,
                gateway: some(*gateway),
                dns: some(*dns),
                index: (index != NO_INDEX).then_some(index),
            }),
            _ => Err(wrong),
        }
    }

    /// The prefix as a mask, such as 255.255.255.0.
    pub fn netmask(&self) -> [u8; 4] {
        let host_bits = 32 - u32::from(self.prefix.min(32));
        u32::MAX.checked_shl(host_bits).unwrap_or(0).to_be_bytes()
    }
}
