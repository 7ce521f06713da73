//! A packet of IPv4 (RFC 791) in an Ethernet frame, and what is answered to one that is refused.

use std::net::Ipv4Addr;

use crate::net::frame::{ETHERNET, End, ICMP, IP, TCP, UDP, checksum, packet};

/// Flags of TCP (RFC 9293, 3.1).
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const FIN: u8 = 0x01;
/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;
/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;
/// "Destination unreachable: communication administratively prohibited" (RFC 1812, 5.2.7.1).
const PROHIBITED: [u8; 2] = [3, 13];
/// Types of ICMP (RFC 792).
const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;

/// A whole packet without options.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Its sender.
    pub source: Ipv4Addr,
    /// Its receiver.
    pub target: Ipv4Addr,
    /// What it carries.
    pub content: Content<'a>,
    /// All of it.
    bytes: &'a [u8],
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// A segment of TCP.
    Tcp {
        /// The sender's port.
        from: u16,
        /// The receiver's port.
        to: u16,
        /// Whether it asks for a connection.
        opens: bool,
    },
    /// A datagram of UDP.
    Udp {
        /// The sender's port.
        from: u16,
        /// The receiver's port.
        to: u16,
        /// What is in it.
        data: &'a [u8],
    },
    /// A ping, or an answer to one, with its identifier.
    Echo {
        /// The sender's number for it.
        id: u16,
        /// Whether it asks.
        asks: bool,
    },
    /// Another message of ICMP.
    Icmp,
    /// Another protocol.
    Other,
}

impl<'a> Packet<'a> {
    /// The packet in a frame of IPv4; `None` if it is a part of one, has options, or does not fit its lengths.
    pub fn of(frame: &'a [u8]) -> Option<Self> {
        let rest = frame.get(ETHERNET..)?;
        let &[0x45, _, len0, len1, _, _, part0, part1, _, protocol, ..] = rest else {
            return None;
        };
        // "Don't fragment" may be set.
        if part0 & !0x40 != 0 || part1 != 0 {
            return None;
        }
        let bytes = rest.get(..usize::from(u16::from_be_bytes([len0, len1])))?;
        let (source, to) = bytes.get(12..IP)?.split_first_chunk::<4>()?;
        let content = content(protocol, bytes.get(IP..)?)?;
        Some(Self {
            source: Ipv4Addr::from(*source),
            target: Ipv4Addr::from(*to.first_chunk::<4>()?),
            content,
            bytes,
        })
    }

    /// The answer that tells its sender at once that it is refused, in a frame from `router` to `guest`. None to one
    /// that is an answer itself, or to many (RFC 1122, 3.2.2).
    pub fn refusal(&self, guest: End, router: End) -> Option<Vec<u8>> {
        if self.target.is_multicast() || self.target.is_broadcast() {
            return None;
        }
        match self.content {
            Content::Tcp { .. } => self.reset(guest, router),
            Content::Icmp | Content::Echo { asks: false, .. } => None,
            _ => {
                // The header and eight bytes more, which name the ports.
                let begin = self.bytes.get(..IP + 8).unwrap_or(self.bytes);
                let mut message = [&PROHIBITED[..], &[0; 6], begin].concat();
                let sum = checksum(&message).to_be_bytes();
                message.splice(2..4, sum);
                Some(packet(router, guest, ICMP, &message))
            }
        }
    }

    /// A reset (RFC 9293, 3.10.7.1) from the packet's receiver.
    fn reset(&self, guest: End, router: End) -> Option<Vec<u8>> {
        let segment = self.bytes.get(IP..)?;
        let &[
            f0,
            f1,
            t0,
            t1,
            s0,
            s1,
            s2,
            s3,
            a0,
            a1,
            a2,
            a3,
            offset,
            flags,
            ..,
        ] = segment
        else {
            return None;
        };
        if flags & RST != 0 {
            return None;
        }
        let (number, acknowledged, kind) = match flags & ACK != 0 {
            true => ([a0, a1, a2, a3], [0; 4], RST),
            false => {
                let data = segment.len().saturating_sub(usize::from(offset >> 4) * 4);
                let counted = [SYN, FIN].iter().filter(|it| flags & **it != 0).count();
                let next = u32::from_be_bytes([s0, s1, s2, s3]);
                let next = next.wrapping_add((data + counted) as u32);
                ([0; 4], next.to_be_bytes(), RST | ACK)
            }
        };
        let mut reset = vec![t0, t1, f0, f1];
        reset.extend([number, acknowledged].concat());
        reset.extend([0x50, kind, 0, 0, 0, 0, 0, 0]);
        // The sum is also over a header of addresses (3.1).
        let mut summed = [self.target.octets(), self.source.octets()].concat();
        summed.extend([0, TCP, 0, TCP_HEADER as u8]);
        summed.extend(&reset);
        let sum = checksum(&summed).to_be_bytes();
        reset.splice(16..18, sum);
        let from = End {
            address: self.target,
            ..router
        };
        Some(packet(from, guest, TCP, &reset))
    }
}

fn content(protocol: u8, data: &[u8]) -> Option<Content<'_>> {
    let ports = || {
        let &[f0, f1, t0, t1, ..] = data else {
            return None;
        };
        Some((u16::from_be_bytes([f0, f1]), u16::from_be_bytes([t0, t1])))
    };
    Some(match protocol {
        TCP => {
            let (from, to) = ports()?;
            let header = usize::from(data.get(12)? >> 4) * 4;
            if header < TCP_HEADER || header > data.len() {
                return None;
            }
            let opens = data.get(13)? & (SYN | ACK) == SYN;
            Content::Tcp { from, to, opens }
        }
        UDP => {
            let (from, to) = ports()?;
            let &[len0, len1] = data.get(4..6)?.first_chunk()?;
            let len = usize::from(u16::from_be_bytes([len0, len1]));
            let data = data.get(UDP_HEADER..len)?;
            Content::Udp { from, to, data }
        }
        ICMP => match data {
            [kind @ (ECHO | ECHO_REPLY), 0, _, _, id0, id1, _, _, ..] => Content::Echo {
                id: u16::from_be_bytes([*id0, *id1]),
                asks: *kind == ECHO,
            },
            _ => Content::Icmp,
        },
        _ => Content::Other,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::frame::datagram;

    pub const GUEST: End = End {
        mac: [2, 0, 0, 0, 0, 1],
        address: Ipv4Addr::new(10, 0, 2, 15),
        port: 40000,
    };
    pub const ROUTER: End = End {
        mac: [2, 0, 0, 0, 0, 2],
        address: Ipv4Addr::new(10, 0, 2, 2),
        port: 0,
    };

    /// A segment of TCP with these flags.
    pub fn segment(from: End, to: End, flags: u8) -> Vec<u8> {
        let mut segment = [from.port, to.port].map(u16::to_be_bytes).concat();
        segment.extend([0, 0, 0, 9, 0, 0, 0, 70, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        packet(from, to, TCP, &segment)
    }

    pub fn at(address: [u8; 4], port: u16) -> End {
        End {
            mac: ROUTER.mac,
            address: address.into(),
            port,
        }
    }

    #[test]
    fn a_refused_connection_is_reset_by_its_receiver() {
        let far = at([192, 0, 2, 1], 80);
        for (flags, kind, number, next) in [(SYN, RST | ACK, 0, 10), (ACK, RST, 70, 0)] {
            let frame = segment(GUEST, far, flags);
            let refused = Packet::of(&frame).expect("a packet");
            let answer = refused.refusal(GUEST, ROUTER).expect("an answer");
            let reset = Packet::of(&answer).expect("a packet");
            assert_eq!((reset.source, reset.target), (far.address, GUEST.address));
            assert_eq!(answer[..12], [GUEST.mac, ROUTER.mac].concat());
            let opens = false;
            let (from, to) = (80, GUEST.port);
            assert_eq!(reset.content, Content::Tcp { from, to, opens });
            let tcp = &answer[ETHERNET + IP..];
            assert_eq!(tcp[13], kind);
            assert_eq!(tcp[4..12], [[0, 0, 0, number], [0, 0, 0, next]].concat());
            let mut summed = [far.address.octets(), GUEST.address.octets()].concat();
            summed.extend([0, TCP, 0, 20]);
            summed.extend(tcp);
            assert_eq!(checksum(&summed), 0);
        }
        let frame = segment(GUEST, far, RST);
        let refused = Packet::of(&frame).expect("a packet");
        assert!(refused.refusal(GUEST, ROUTER).is_none());
    }

    #[test]
    fn a_refused_datagram_is_prohibited() {
        let frame = datagram(GUEST, at([192, 0, 2, 1], 99), b"data");
        let refused = Packet::of(&frame).expect("a packet");
        let answer = refused.refusal(GUEST, ROUTER).expect("an answer");
        let icmp = &answer[ETHERNET + IP..];
        assert_eq!(icmp[..2], PROHIBITED);
        assert_eq!(checksum(icmp), 0);
        assert_eq!(icmp[8..], frame[ETHERNET..ETHERNET + IP + 8]);
        assert!(
            Packet::of(&answer)
                .expect("a packet")
                .refusal(GUEST, ROUTER)
                .is_none()
        );
        let many = datagram(GUEST, at([224, 0, 0, 1], 99), b"data");
        assert!(
            Packet::of(&many)
                .expect("a packet")
                .refusal(GUEST, ROUTER)
                .is_none()
        );
    }

    #[test]
    fn parts_options_and_wrong_lengths_are_no_packets() {
        let whole = datagram(GUEST, at([192, 0, 2, 1], 99), b"data");
        // Bytes behind the packet are those that fill a short frame.
        assert!(Packet::of(&[&whole[..], &[0; 9]].concat()).is_some());
        for len in 0..whole.len() {
            assert!(Packet::of(&whole[..len]).is_none(), "{len}");
        }
        for (at, value) in [(14, 0x46), (14, 0x65), (20, 0x20), (20, 0x80), (21, 1)] {
            let mut frame = whole.clone();
            frame[at] = value;
            assert!(Packet::of(&frame).is_none(), "byte {at}");
        }
        let mut frame = segment(GUEST, at([192, 0, 2, 1], 80), SYN);
        frame[ETHERNET + IP + 12] = 0x40;
        assert!(Packet::of(&frame).is_none());
    }

    proptest! {
        #[test]
        fn any_frame_is_read_and_answered_within_bounds(
            mut frame in prop::collection::vec(any::<u8>(), 0..120), like in any::<bool>(), protocol in 0..20u8,
        ) {
            if like && frame.len() > 34 {
                let len = (frame.len() - ETHERNET) as u16;
                frame[14..18].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8]);
                frame[20..22].copy_from_slice(&[0, 0]);
                frame[23] = protocol;
            }
            if let Some(packet) = Packet::of(&frame)
                && let Some(answer) = packet.refusal(GUEST, ROUTER)
            {
                prop_assert!(answer.len() <= ETHERNET + IP + 8 + IP + 8);
                prop_assert!(Packet::of(&answer).is_some());
            }
        }
    }
}
