use proptest::prelude::*;

use super::*;
use crate::net::frame::checksum;

const OWN: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 1);
const BROADCAST: Mac = [0xff; 6];

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 90, 0, last)
}

/// The machines a, b and c at 10.90.0.2 and so on, at ports 0 to 2.
fn segment(internal: bool) -> Segment {
    let subnet = Subnet {
        address: OWN,
        prefix: 24,
    };
    let mut segment = Segment::new(subnet, internal);
    for (port, name) in ["a", "B", "c"].iter().enumerate() {
        let joined = segment.join(vec![name.to_string()], None, port == 2);
        assert_eq!(joined, Ok(port));
    }
    segment
}

fn ip(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), protocol: u8, data: &[u8]) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend(((IP + data.len()) as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    frame.extend(from.1.octets());
    frame.extend(to.1.octets());
    frame.extend(data);
    frame
}

fn arp(from: (Mac, Ipv4Addr), to: Mac, operation: u8, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = [to, from.0].concat();
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation]);
    frame.extend(from.0);
    frame.extend(from.1.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

fn at(last: u8) -> (Mac, Ipv4Addr) {
    (mac_of(address(last)), address(last))
}

#[test]
fn machines_reach_each_other_and_the_router_at_their_addresses() {
    let segment = segment(false);
    let remote = Ipv4Addr::new(192, 0, 2, 1);
    for (frame, route) in [
        (ip(at(2), at(3), 6, b"data"), Route::To(1)),
        (arp(at(2), BROADCAST, 1, address(3)), Route::All),
        (arp(at(2), mac_of(address(4)), 2, address(4)), Route::To(2)),
        (ip(at(2), (mac_of(OWN), remote), 6, b"data"), Route::Up),
        (
            ip(at(2), (BROADCAST, address(255)), 17, b"data"),
            Route::All,
        ),
        (
            ip(at(2), (mac_of(address(9)), address(9)), 6, b""),
            Route::Lost,
        ),
        // No way around the machines' own MAC addresses, nor to the host's loopback.
        (ip(at(2), (mac_of(OWN), address(3)), 6, b""), Route::Lost),
        (
            ip(at(2), (mac_of(OWN), Ipv4Addr::LOCALHOST), 6, b""),
            Route::Lost,
        ),
        (ip(at(2), at(2), 6, b""), Route::Lost),
    ] {
        assert_eq!(segment.route(0, &frame), route, "{frame:x?}");
    }
    assert_eq!(segment.route(9, &ip(at(2), at(3), 6, b"")), Route::Lost);
}

#[test]
fn an_internal_network_leads_nowhere() {
    let segment = segment(true);
    let remote = (mac_of(OWN), Ipv4Addr::new(192, 0, 2, 1));
    assert_eq!(segment.route(0, &ip(at(2), remote, 6, b"")), Route::Lost);
    assert_eq!(segment.route(0, &ip(at(2), at(3), 6, b"")), Route::To(1));
    let inward = ip(remote, at(2), 6, b"");
    assert!(!segment.is_from_above(0, &inward));
}

#[test]
fn no_machine_passes_for_another() {
    let segment = segment(false);
    let stolen = (mac_of(address(2)), address(3));
    for frame in [
        ip(at(3), at(4), 6, b""),
        ip(stolen, at(4), 6, b""),
        arp(at(3), BROADCAST, 1, address(4)),
        arp(stolen, BROADCAST, 1, address(4)),
        arp(stolen, mac_of(address(4)), 2, address(4)),
    ] {
        assert_eq!(segment.route(0, &frame), Route::Lost, "{frame:x?}");
    }
    let above = (mac_of(OWN), address(3));
    assert!(!segment.is_from_above(0, &ip(above, at(2), 6, b"")));
    let above = (mac_of(OWN), OWN);
    assert!(segment.is_from_above(0, &ip(above, at(2), 6, b"")));
    assert!(!segment.is_from_above(1, &ip(above, at(2), 6, b"")));
}

#[test]
fn the_router_says_where_it_is() {
    let Route::Back(reply) = segment(false).route(1, &arp(at(3), BROADCAST, 1, OWN)) else {
        panic!("a reply");
    };
    assert_eq!(reply[..12], [at(3).0, mac_of(OWN)].concat());
    assert_eq!(reply[20..22], [0, 2]);
    assert_eq!(reply[22..32], [&mac_of(OWN)[..], &OWN.octets()].concat());
}

/// A question for `name`, of the machine at `last`.
fn question(last: u8, name: &str) -> Vec<u8> {
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8];
    message.extend(name.as_bytes());
    message.extend([0, 0, 1, 0, 1]);
    let mut udp = vec![0x30, 0x39, 0, 53];
    udp.extend((8 + message.len() as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(message);
    ip(at(last), (mac_of(OWN), OWN), UDP, &udp)
}

#[test]
fn names_are_answered_and_others_asked_elsewhere() {
    let mut open = segment(false);
    let Route::Back(reply) = open.route(0, &question(2, "b")) else {
        panic!("an answer");
    };
    assert_eq!(checksum(&reply[ETHERNET..ETHERNET + IP]), 0);
    assert_eq!(reply[30..34], address(2).octets());
    assert_eq!(reply[34..38], [0, 53, 0x30, 0x39]);
    assert!(reply.ends_with(&address(3).octets()));
    assert_eq!(open.route(0, &question(2, "example")), Route::Up);
    open.leave(1);
    assert_eq!(open.route(0, &question(2, "b")), Route::Up);
    // An internal one refuses, and a machine with another name server is to ask there.
    let closed = segment(true);
    let result = |port: usize, last| match closed.route(port, &question(last, "example")) {
        Route::Back(reply) => reply[ETHERNET + IP + 8 + 3] & 0xf,
        other => panic!("{other:?}"),
    };
    assert_eq!((result(0, 2), result(2, 4)), (3, 5));
}

#[test]
fn addresses_are_given_once_and_again() {
    let subnet = Subnet {
        address: Ipv4Addr::new(10, 90, 0, 1),
        prefix: 29,
    };
    let mut small = Segment::new(subnet, false);
    for _ in 0..5 {
        small.join(vec![], None, false).expect("an address");
    }
    let full = small.join(vec![], None, false).expect_err("full");
    assert!(full.contains("no address is left"), "{full}");
    small.leave(2);
    let port = small.join(vec![], None, false).expect("the free one");
    assert_eq!(small.station(port).map(|it| it.address), Some(address(4)));
    small.leave(0);
    let taken = small.join(vec![], Some(mac_of(address(4))), false);
    assert!(taken.expect_err("taken").contains("MAC address"));
}

proptest! {
    /// Whatever a machine sends: what reaches others is from its own addresses, and what comes back is for it.
    #[test]
    fn hostile_frames_go_nowhere(
        bytes in prop::collection::vec(any::<u8>(), 0..120),
        own_head: bool, arps: bool, changes in prop::collection::vec((0..64usize, any::<u8>()), 0..6),
    ) {
        let segment = segment(false);
        let mut frame = bytes;
        if own_head {
            let begin = match arps {
                true => arp(at(2), BROADCAST, 1, OWN),
                false => question(2, "b"),
            };
            frame.splice(..begin.len().min(frame.len()), begin);
        }
        for (place, byte) in changes {
            if let Some(changed) = frame.get_mut(place) {
                *changed = byte;
            }
        }
        match segment.route(0, &frame) {
            Route::Lost => {}
            Route::Back(reply) => {
                prop_assert_eq!(&reply[..6], &at(2).0);
                prop_assert!(reply.len() <= 1514);
            }
            Route::To(0) => prop_assert!(false, "to itself"),
            Route::To(_) | Route::All | Route::Up => {
                prop_assert_eq!(&frame[6..12], &at(2).0);
                match &frame[12..14] {
                    [0x08, 0x00] => prop_assert_eq!(&frame[26..30], &address(2).octets()),
                    kind => {
                        prop_assert_eq!(kind, &ARP);
                        prop_assert_eq!(&frame[22..28], &at(2).0);
                    }
                }
            }
        }
        let _ = segment.is_from_above(1, &frame);
    }
}
