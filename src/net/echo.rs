//! Answers to a guest's ping of the gateway, which passt does not answer (libslirp does): an ICMP
//! echo (RFC 792) over IPv4 (RFC 791) over Ethernet.

use std::net::Ipv4Addr;

use crate::devices::virtio::net::Mac;

const IPV4: [u8; 2] = [0x08, 0x00];
const ICMP: u8 = 1;
const ECHO: [u8; 2] = [8, 0];
const ETHERNET: usize = 14;
/// Bytes of an IPv4 header without options.
const IP: usize = 20;

/// The answer to `frame` if it is an echo request to `gateway`: a whole packet without options.
/// Others are left to passt.
pub fn answer(frame: &[u8], gateway: Ipv4Addr) -> Option<Vec<u8>> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
    let (ip, icmp) = packet.split_at_checked(IP)?;
    let (&to, rest) = ethernet.split_first_chunk::<{ size_of::<Mac>() }>()?;
    let (&from, kind) = rest.split_first_chunk::<{ size_of::<Mac>() }>()?;
    let &[version, _, len0, len1, _, _, part0, part1, _, protocol, ..] = ip else {
        return None;
    };
    let (source, target) = ip.get(12..)?.split_first_chunk::<4>()?;
    let whole = usize::from(u16::from_be_bytes([len0, len1])) == packet.len();
    // Neither more fragments nor an offset; "don't fragment" may be set.
    let in_one = part0 & 0x3f == 0 && part1 == 0;
    let &[kind0, code, sum0, sum1, ..] = icmp else {
        return None;
    };
    let asks = kind == IPV4 && version == 0x45 && protocol == ICMP && [kind0, code] == ECHO;
    if !(asks && whole && in_one && *target == gateway.octets()) {
        return None;
    }
    // Swapping the addresses does not change the header's checksum; the message's changes with its
    // type from 8 to 0 (RFC 1624, in ones' complement).
    let (sum, carry) = u16::from_be_bytes([sum0, sum1]).overflowing_add(u16::from_be_bytes(ECHO));
    let sum = sum.wrapping_add(carry.into());
    let mut answer = Vec::with_capacity(frame.len());
    answer.extend([from, to].concat());
    answer.extend(IPV4);
    answer.extend(ip.get(..12)?);
    answer.extend(target);
    answer.extend(source);
    answer.extend([0, 0]);
    answer.extend(sum.to_be_bytes());
    answer.extend(icmp.get(4..)?);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

    /// The Internet's checksum (RFC 1071): 0 over what has a right one in it.
    fn checksum(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| match *pair {
            [a, b] => u32::from(u16::from_be_bytes([a, b])),
            _ => u32::from(pair[0]) << 8,
        });
        let sum: u32 = words.sum();
        let sum = (sum >> 16) + (sum & 0xffff);
        !((sum >> 16) + (sum & 0xffff)) as u16
    }

    fn ping(data: &[u8]) -> Vec<u8> {
        let mut icmp = [&ECHO[..], &[0, 0, 0, 7, 0, 1], data].concat();
        let sum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let len = (IP + icmp.len()) as u16;
        let mut ip = vec![
            0x45,
            0,
            (len >> 8) as u8,
            len as u8,
            0,
            1,
            0x40,
            0,
            64,
            ICMP,
            0,
            0,
        ];
        ip.extend([10, 0, 2, 15]);
        ip.extend(GATEWAY.octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        [&[1; 6][..], &[2; 6], &IPV4, &ip, &icmp].concat()
    }

    proptest! {
        #[test]
        fn a_ping_is_answered_with_its_bytes(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let asked = ping(&data);
            let answer = answer(&asked, GATEWAY).unwrap();
            prop_assert_eq!(&answer[..12], &[[2; 6], [1; 6]].concat()[..]);
            prop_assert_eq!(&answer[26..34], &[10, 0, 2, 2, 10, 0, 2, 15]);
            prop_assert_eq!(checksum(&answer[14..34]), 0);
            prop_assert_eq!(checksum(&answer[34..]), 0);
            prop_assert_eq!(&answer[34..36], &[0, 0]);
            prop_assert_eq!(&answer[38..], &asked[38..]);
        }

        #[test]
        fn other_frames_are_not_answered(
            data in prop::collection::vec(any::<u8>(), 0..60), at in 12..36usize, bit in 0..8u8,
        ) {
            prop_assert_eq!(answer(&data, GATEWAY), None);
            let mut asked = ping(b"data");
            asked[at] ^= 1 << bit;
            // Of the header these do not matter: service, number, time to live, checksum, source.
            let free = matches!(at, 15 | 18 | 19 | 22 | 24..=29) || (at, bit) == (20, 6);
            // The last of the reserved flag.
            let free = free || (at, bit) == (20, 7);
            prop_assert_eq!(answer(&asked, GATEWAY).is_some(), free, "byte {} bit {}", at, bit);
        }
    }

    #[test]
    fn pings_of_others_and_parts_are_not() {
        let asked = ping(b"data");
        assert!(answer(&asked, Ipv4Addr::new(10, 0, 2, 3)).is_none());
        for len in 0..asked.len() {
            assert!(answer(&asked[..len], GATEWAY).is_none(), "{len}");
        }
    }
}
