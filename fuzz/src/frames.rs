//! Frames between a guest and passt, which are the only ones that hull looks into: it answers pings of
//! the gateway, and drops packets to the host's loopback.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use arbitrary::Arbitrary;
use hull::devices::virtio::net::{HEADER, MAX_FRAME, Wire};
use hull::memory::GuestMemory;
use hull::memory::transfer::{Pieces, Segment};
use hull::net::Stream;
use vm_memory::{Bytes, GuestAddress};

use crate::patch::Patches;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Where frames lie in guest memory, each in two parts.
const SENT: u64 = 0x1000;
const RECEIVED: u64 = 0x4_0000;

/// A network, and what is sent on it.
#[derive(Arbitrary, Debug)]
pub struct Input {
    host_loopback: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A frame of the guest, in two pieces of which the first has this length.
    Guest(Frame, u16),
    /// A whole frame of this length from passt.
    Passt(u16),
    /// Bytes from passt, which may be a part of a frame.
    Bytes(Vec<u8>),
    /// The guest receives a frame, in memory or in a buffer.
    Receive(bool),
    Flush,
    Read,
    Close,
}

#[derive(Arbitrary, Debug)]
enum Frame {
    Ping {
        data: Vec<u8>,
        to: Option<[u8; 4]>,
        damage: Patches,
    },
    V4 {
        to: [u8; 4],
        data: Vec<u8>,
    },
    V6 {
        to: [u8; 16],
        mapped: bool,
        data: Vec<u8>,
    },
    Any(Vec<u8>),
    Long(u16),
}

impl Frame {
    fn bytes(&self) -> Vec<u8> {
        let ethernet = |kind: [u8; 2]| [&[1; 6][..], &[2; 6], &kind].concat();
        match self {
            Self::Ping { data, to, damage } => {
                let icmp = [&[8, 0, 0, 0, 0, 7, 0, 1], &data[..]].concat();
                let mut packet = v4(1, to.unwrap_or(GATEWAY.octets()), &with_sum(icmp, 2));
                packet = with_sum(packet, 10);
                let mut frame = [ethernet([8, 0]), packet].concat();
                damage.apply(&mut frame);
                frame
            }
            Self::V4 { to, data } => [ethernet([8, 0]), v4(17, *to, data)].concat(),
            Self::V6 { to, mapped, data } => {
                let mut to = *to;
                if *mapped {
                    to[..10].fill(0);
                    let fill = if to[10] & 1 == 0 { 0xff } else { 0 };
                    to[10..12].fill(fill);
                }
                let head = [&[0x60, 0, 0, 0, 0, 0, 17, 64][..], &[0; 16], &to].concat();
                [ethernet([0x86, 0xdd]), head, data.clone()].concat()
            }
            Self::Any(bytes) => bytes.clone(),
            Self::Long(len) => vec![0x55; usize::from(*len).min(MAX_FRAME - HEADER)],
        }
    }
}

fn v4(protocol: u8, to: [u8; 4], data: &[u8]) -> Vec<u8> {
    let len = (20 + data.len() as u16).to_be_bytes();
    let head = [
        0x45, 0, len[0], len[1], 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 2, 15,
    ];
    [&head[..], &to, data].concat()
}

/// The Internet's checksum (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// `bytes` with the checksum of their first 20 bytes, or of all of a message, at `at`.
fn with_sum(mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
    let len = if at == 10 { 20 } else { bytes.len() };
    let sum = sum(&bytes[..len]).to_be_bytes();
    bytes[at..at + 2].copy_from_slice(&sum);
    bytes
}

/// The target of a packet.
fn target(frame: &[u8]) -> Option<IpAddr> {
    match (frame.get(12)?, frame.get(13)?) {
        (8, 0) => Some(IpAddr::V4((*frame.get(30..)?.first_chunk::<4>()?).into())),
        (0x86, 0xdd) => Some(IpAddr::V6((*frame.get(38..)?.first_chunk::<16>()?).into())),
        _ => None,
    }
}

/// Whether a host takes a packet to `target` for itself.
fn is_loopback(target: IpAddr) -> bool {
    let v4 = |to: u32| to >> 24 == 127 || to >> 24 == 0;
    match target {
        IpAddr::V4(to) => v4(to.into()),
        IpAddr::V6(to) => {
            let to: u128 = Ipv6Addr::into(to);
            matches!(to >> 32, 0 | 0xffff) && v4(to as u32)
        }
    }
}

/// Whether `frame` is a whole ping of the gateway, as hull answers it.
fn is_ping(frame: &[u8]) -> bool {
    let Some(packet) = frame.get(14..).filter(|packet| packet.len() >= 24) else {
        return false;
    };
    let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    frame[12..14] == [8, 0]
        && packet[0] == 0x45
        && len == packet.len()
        && packet[6] & 0x3f == 0
        && packet[7] == 0
        && packet[9] == 1
        && packet[16..20] == GATEWAY.octets()
        && packet[20..22] == [8, 0]
}

struct Net {
    stream: Stream,
    far: Option<UnixStream>,
    memory: GuestMemory,
    host_loopback: bool,
    /// Frames that passt is to receive, as bytes with lengths.
    expected: Vec<u8>,
    /// Bytes that passt received.
    arrived: Vec<u8>,
    /// Frames from passt that the guest has not received, and what follows them.
    incoming: VecDeque<u8>,
    /// Pings whose answers the guest has not received.
    pings: VecDeque<Vec<u8>>,
}

/// Send frames both ways, and check what arrives.
pub fn check(input: &Input) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    let mut net = Net {
        stream: Stream::new(Arc::new(near.into()), GATEWAY, input.host_loopback),
        far: Some(far),
        memory: GuestMemory::from_ranges(&[(GuestAddress(0), 0x8_0000)]).unwrap(),
        host_loopback: input.host_loopback,
        expected: Vec::new(),
        arrived: Vec::new(),
        incoming: VecDeque::new(),
        pings: VecDeque::new(),
    };
    for step in input.steps.iter().take(64) {
        net.step(step);
    }
    for _ in 0..32 {
        net.step(&Step::Flush);
        net.step(&Step::Read);
    }
    if net.far.is_some() {
        assert!(net.arrived == net.expected, "passt received something else");
    }
    for _ in 0..200 {
        net.step(&Step::Receive(false));
    }
}

impl Net {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Guest(frame, first) => self.send(&frame.bytes(), *first),
            Step::Passt(len) => {
                // Some have about the greatest length.
                let longest = (MAX_FRAME - HEADER) as u32;
                let len = match *len {
                    len @ 0xff00.. => longest - 8 + u32::from(len % 16),
                    len => len.into(),
                };
                self.passt_sends(&[&len.to_be_bytes()[..], &vec![7; len as usize]].concat());
            }
            Step::Bytes(bytes) => self.passt_sends(bytes),
            Step::Receive(buffered) => self.receive(*buffered),
            Step::Flush => match self.stream.flush() {
                Ok(waiting) => assert_eq!(waiting, !self.pings.is_empty()),
                Err(error) => {
                    assert!(self.far.is_none() && error.kind() == ErrorKind::BrokenPipe);
                }
            },
            Step::Read => {
                if let Some(far) = &mut self.far {
                    let _ = far.read_to_end(&mut self.arrived);
                }
            }
            Step::Close => self.far = None,
        }
    }

    fn passt_sends(&mut self, bytes: &[u8]) {
        if let Some(far) = &mut self.far {
            let sent = far.write(bytes).unwrap_or(0);
            self.incoming.extend(&bytes[..sent]);
        }
    }

    fn pieces(&self, at: u64, first: usize, len: usize) -> Pieces {
        let parts = [
            (at, first.min(len)),
            (at + 0x2_0000, len.saturating_sub(first)),
        ];
        let parts = parts.into_iter().filter(|(_, len)| *len > 0);
        let segment = |(at, len)| Segment {
            addr: GuestAddress(at),
            len: len as u32,
        };
        let parts: Vec<Segment> = parts.map(segment).collect();
        Pieces::new(&self.memory, &parts).unwrap()
    }

    fn send(&mut self, frame: &[u8], first: u16) {
        let bytes = [&[0; HEADER][..], frame].concat();
        let first = usize::from(first).min(bytes.len());
        let (one, two) = bytes.split_at(first);
        self.memory.write_slice(one, GuestAddress(SENT)).unwrap();
        let at = GuestAddress(SENT + 0x2_0000);
        self.memory.write_slice(two, at).unwrap();
        match self.stream.send(&self.pieces(SENT, first, bytes.len())) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => {
                assert!(self.far.is_none(), "{error}");
                return;
            }
            Ok(()) => {}
        }
        if is_ping(frame) {
            if self.pings.len() < 64 {
                self.pings.push_back(frame.to_vec());
            }
        } else if self.host_loopback || !target(frame).is_some_and(is_loopback) {
            self.expected.extend((frame.len() as u32).to_be_bytes());
            self.expected.extend(frame);
        }
    }

    /// The next frame from passt, or whether an error is right.
    fn next(&mut self) -> Result<Vec<u8>, ErrorKind> {
        let length: Vec<u8> = self.incoming.iter().take(4).copied().collect();
        let closed = if self.far.is_none() {
            ErrorKind::UnexpectedEof
        } else {
            ErrorKind::WouldBlock
        };
        let length = *length.first_chunk::<4>().ok_or(closed)?;
        let len = u32::from_be_bytes(length) as usize;
        if len > MAX_FRAME - HEADER {
            return Err(ErrorKind::InvalidData);
        }
        if self.incoming.len() < 4 + len {
            return Err(closed);
        }
        Ok(self.incoming.drain(..4 + len).skip(4).collect())
    }

    fn receive(&mut self, buffered: bool) {
        let mut frame = vec![0x11; MAX_FRAME];
        let received = if buffered {
            self.stream.receive_buffered(&mut frame)
        } else {
            let received = self.stream.receive(&self.pieces(RECEIVED, 100, MAX_FRAME));
            self.memory
                .read_slice(&mut frame[..100], GuestAddress(RECEIVED))
                .unwrap();
            let at = GuestAddress(RECEIVED + 0x2_0000);
            self.memory.read_slice(&mut frame[100..], at).unwrap();
            received
        };
        if let Some(ping) = self.pings.pop_front() {
            return answers(&ping, &frame[HEADER..received.unwrap()]);
        }
        match (received, self.next()) {
            (Ok(len), Ok(expected)) => {
                assert_eq!(frame[..HEADER], [0; HEADER]);
                assert!(frame[HEADER..len] == expected, "another frame");
            }
            (Err(error), Err(_)) if self.far.is_none() => drop(error),
            (Err(error), Err(kind)) => assert_eq!(error.kind(), kind),
            (received, expected) => panic!("{received:?}, {expected:?}"),
        }
    }
}

/// `answer` is the right one to `ping`.
fn answers(ping: &[u8], answer: &[u8]) {
    assert_eq!(answer.len(), ping.len());
    assert_eq!(answer[..6], ping[6..12]);
    assert_eq!(answer[6..12], ping[..6]);
    assert_eq!(answer[26..30], ping[30..34]);
    assert_eq!(answer[30..34], ping[26..30]);
    assert_eq!(answer[34..36], [0, 0]);
    assert_eq!(answer[38..], ping[38..]);
    // The sums over both differ by as much, in ones' complement where 0 has two forms.
    let value = |bytes: &[u8]| sum(bytes) % 0xffff;
    assert_eq!(value(&answer[14..34]), value(&ping[14..34]));
    assert_eq!(value(&answer[34..]), value(&ping[34..]));
}
