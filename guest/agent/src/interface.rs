//! What an `Interface` says: `mac[6] | address[4] | prefix u8 | gateway[4] | dns[4] | index u8`, IPv4
//! addresses as on the wire. An address of zeroes is none, and so is an index of 255.

use crate::Error;

/// Bytes of it.
pub const INTERFACE_LEN: usize = 20;

const NO_INDEX: u8 = 0xff;

/// How a network interface is to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// By this address it is found.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub address: [u8; 4],
    /// Bits of the address that are the network's, 1 to 32.
    pub prefix: u8,
    /// The default route.
    pub gateway: Option<[u8; 4]>,
    /// The server for names.
    pub dns: Option<[u8; 4]>,
    /// When no interface has the address: it is ethN of this N, counted from 0 and below 255, and is
    /// given the address. For a machine that was restored from the snapshot of another; while
    /// drivers are still at their work the name says nothing.
    pub index: Option<u8>,
}

impl Interface {
    /// The bytes.
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

    /// The interface of these bytes.
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

    /// The mask of its network.
    pub fn netmask(&self) -> [u8; 4] {
        let host_bits = 32 - u32::from(self.prefix.min(32));
        u32::MAX.checked_shl(host_bits).unwrap_or(0).to_be_bytes()
    }
}
