//! Frames of a guest whose way out is held to rules, and frames that come in.
//!
//! Whatever both say, packets leave to addresses alone that a rule names, that the name server gave, or from which
//! somebody came in by a published port; and of a question nothing leaves but an allowed name.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use arbitrary::Arbitrary;
use hull::net::policy::{Filter, Incoming, Outgoing, Policy, Setting};

use crate::patch::Patches;

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OWN: [u8; 4] = [10, 0, 2, 15];
const SERVER: [u8; 4] = [10, 0, 2, 3];
/// Addresses of the rule on addresses.
const NAMED: [u8; 3] = [192, 0, 2];
/// The port that is published.
const PUBLISHED: u16 = 8080;

/// Rules, and frames.
#[derive(Arbitrary, Debug)]
pub struct Input {
    deny_private: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Sends(Frame, Patches),
    Comes(Frame, Patches),
    Wait(u16),
}

#[derive(Arbitrary, Debug)]
enum Frame {
    /// To or from an address and port, with the guest's port.
    Tcp([u8; 4], u16, u16, u8),
    Udp([u8; 4], u16, u16, Vec<u8>),
    Other([u8; 4], u8, Vec<u8>),
    /// A question or an answer of the name server, with the number of a name and addresses.
    Dns(u8, u8, u8, Vec<[u8; 4]>),
    Any(Vec<u8>),
}

/// The names: the first two are allowed.
const NAMES: [&[u8]; 4] = [
    b"\x07example\x03org\0",
    b"\x01a\x05below\x03org\0",
    b"\x04evil\x03org\0",
    b"\x09a.example\x03org\0",
];

impl Frame {
    fn bytes(&self, sends: bool) -> Vec<u8> {
        let tcp = |from: u16, to: u16, flags: u8| {
            let ports = [from, to].map(u16::to_be_bytes).concat();
            [&ports[..], &[0; 8], &[0x50, flags], &[0; 6]].concat()
        };
        let udp = |from: u16, to: u16, data: &[u8]| {
            let words = [from, to, 8 + data.len() as u16, 0];
            [&words.map(u16::to_be_bytes).concat(), data].concat()
        };
        let turn = |far: u16, own: u16| if sends { (own, far) } else { (far, own) };
        let (far, protocol, data) = match self {
            Self::Tcp(far, port, own, flags) => {
                let (from, to) = turn(*port, *own);
                (*far, 6, tcp(from, to, *flags))
            }
            Self::Udp(far, port, own, data) => {
                let (from, to) = turn(*port, *own);
                (*far, 17, udp(from, to, &data[..data.len().min(1400)]))
            }
            Self::Other(far, protocol, data) => (*far, *protocol, data.clone()),
            Self::Dns(number, name, kind, addresses) => {
                let name = NAMES[usize::from(*name) % NAMES.len()];
                let count = addresses.len().min(20) as u8;
                let mut data = vec![0, *number, 0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0];
                if sends {
                    data[2..8].copy_from_slice(&[1, 0, 0, 1, 0, 0]);
                }
                data.extend(name);
                data.extend([0, if *kind < 200 { 1 } else { *kind }, 0, 1]);
                for address in addresses.iter().take(count.into()) {
                    data.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, *kind, 0, 4]);
                    data.extend(address);
                }
                let (from, to) = turn(53, 5000);
                (SERVER, 17, udp(from, to, &data))
            }
            Self::Any(bytes) => return bytes.clone(),
        };
        let len = (20 + data.len() as u16).to_be_bytes();
        let (from, to) = if sends { (OWN, far) } else { (far, OWN) };
        let head = [0x45, 0, len[0], len[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
        let ends = if sends {
            [ROUTER, GUEST]
        } else {
            [GUEST, ROUTER]
        };
        [&ends.concat()[..], &[8, 0], &head, &from, &to, &data].concat()
    }
}

/// Send frames both ways, and check what leaves.
pub fn check(input: &Input) {
    let allow = ["example.org", "*.below.org:443", "192.0.2.0/24"];
    let policy = Policy {
        allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
        deny_private: input.deny_private,
    };
    let setting = Setting {
        mac: GUEST,
        guest: OWN.into(),
        gateway: Ipv4Addr::new(10, 0, 2, 2),
        dns: SERVER.into(),
        host: vec![Ipv4Addr::new(203, 0, 113, 5)],
        publish: vec![(6, PUBLISHED), (17, PUBLISHED)],
        asks_others: false,
    };
    let mut filter = Filter::new(policy, setting, None);
    let mut open = BTreeSet::new();
    let mut now = Duration::ZERO;
    for step in input.steps.iter().take(200) {
        match step {
            Step::Wait(seconds) => now += Duration::from_secs((*seconds).into()),
            Step::Sends(frame, damage) => {
                let mut frame = frame.bytes(true);
                damage.apply(&mut frame);
                leaves(filter.outgoing(now, &frame), &frame, &open);
            }
            Step::Comes(frame, damage) => {
                let mut frame = frame.bytes(false);
                damage.apply(&mut frame);
                match filter.incoming(now, &frame) {
                    // An answer of the name server: addresses behind the question.
                    Incoming::Instead(told) => {
                        assert!(told.len() <= 14 + 20 + 8 + 512);
                        let records = told[54..].windows(6);
                        let all = records.filter(|it| it[..2] == [0, 4]);
                        open.extend(all.map(|it| [it[2], it[3], it[4], it[5]]));
                    }
                    Incoming::Pass if frame[12..14] == [8, 0] && matches!(frame[23], 6 | 17) => {
                        let own = u16::from_be_bytes([frame[36], frame[37]]);
                        let from = [frame[26], frame[27], frame[28], frame[29]];
                        if own == PUBLISHED {
                            open.insert(from);
                        }
                        let known = open.contains(&from) || from[..3] == NAMED;
                        assert!(
                            known || from == [10, 0, 2, 2] && own == 68,
                            "{from:?} came in"
                        );
                    }
                    _ => {}
                }
            }
        }
    }
}

fn leaves(outgoing: Outgoing, frame: &[u8], open: &BTreeSet<[u8; 4]>) {
    match outgoing {
        Outgoing::Pass if frame[12..14] == [8, 6] => assert_eq!(frame[6..12], GUEST),
        Outgoing::Pass => {
            assert_eq!(frame[6..14], [2, 0, 0, 0, 0, 1, 8, 0]);
            assert_eq!(frame[14], 0x45);
            let to = [frame[30], frame[31], frame[32], frame[33]];
            let dhcp = to == [255; 4] && frame[36..38] == [0, 67];
            assert!(dhcp || frame[26..30] == OWN);
            let known = open.contains(&to) || to[..3] == NAMED;
            assert!(known || dhcp, "a packet leaves to {to:?}");
        }
        Outgoing::Instead(question) => {
            let data = question[42..].to_ascii_lowercase();
            let name = &data[12..data.len() - 4];
            let below = name.ends_with(b"\x05below\x03org\0") && name[0] != 5;
            assert!(name == NAMES[0] || below, "a question for {name:?}");
            assert_eq!(data[4..12], [0, 1, 0, 0, 0, 0, 0, 0]);
        }
        Outgoing::Answer(answer) => {
            assert_eq!(answer[..6], GUEST);
            assert!(answer.len() <= 14 + 20 + 8 + 512);
        }
        Outgoing::Lost => {}
    }
}
