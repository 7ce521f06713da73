use proptest::prelude::*;

use super::*;
use crate::net::frame::{ETHERNET, IP, packet};
use crate::net::policy::answer::tests::{message, section};
use crate::net::policy::packet::tests::{GUEST, ROUTER, at, segment};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FAR: [u8; 4] = [198, 51, 100, 1];

fn filter(allow: &[&str], deny_private: bool) -> Filter {
    let allow = allow
        .iter()
        .map(|text| text.parse().expect("a destination"));
    let policy = Policy {
        allow: allow.collect(),
        deny_private,
    };
    let setting = Setting {
        mac: GUEST.mac,
        guest: GUEST.address,
        gateway: ROUTER.address,
        dns: server().address,
        host: vec![Ipv4Addr::new(203, 0, 113, 5)],
        publish: vec![(TCP, 8080), (UDP, 5353)],
        asks_others: false,
    };
    Filter::new(policy, setting, None)
}

fn server() -> End {
    at([10, 0, 2, 3], DNS)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn guest(port: u16) -> End {
    End { port, ..GUEST }
}

/// A question of the guest's port 5000.
fn question(number: u8, name: &str, kind: u16) -> Vec<u8> {
    let header = [0, number, 1, 0x20, 0, 1, 0, 0, 0, 0, 0, 1];
    // With EDNS (RFC 6891), in which anything can be said.
    let more = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 6, 0, 9, 0, 2, 1, 1];
    let data = [&header[..], &section(name, kind), &more].concat();
    datagram(guest(5000), server(), &data)
}

fn answer(number: u8, name: &str, lifetime: u32, addresses: &[[u8; 4]]) -> Vec<u8> {
    let record = |address: &[u8; 4]| (vec![0xc0, 12], A, lifetime, address.to_vec());
    let records: Vec<_> = addresses.iter().map(record).collect();
    let data = message([0, number], &section(name, A), 0, &records);
    datagram(server(), guest(5000), &data)
}

/// The guest learns that `name` has these addresses.
fn resolve(filter: &mut Filter, now: u64, name: &str, lifetime: u32, addresses: &[[u8; 4]]) {
    let asked = filter.outgoing(seconds(now), &question(1, name, A));
    assert!(matches!(asked, Outgoing::Instead(_)), "{asked:?}");
    let told = filter.incoming(seconds(now), &answer(1, name, lifetime, addresses));
    assert!(matches!(told, Incoming::Instead(_)), "{told:?}");
}

fn open(filter: &mut Filter, now: u64, to: End) -> bool {
    match filter.outgoing(seconds(now), &segment(GUEST, to, SYN)) {
        Outgoing::Pass => true,
        Outgoing::Answer(reset) => {
            assert_eq!(reset[ETHERNET + IP + 13], 0x14, "a reset");
            false
        }
        other => panic!("{other:?}"),
    }
}

/// What a message to the guest says: result, and the bytes behind the question.
fn said(frame: &[u8], section: &[u8]) -> (u8, Vec<u8>) {
    let data = &frame[ETHERNET + IP + 8..];
    assert_eq!(data[2] & 0x80, 0x80, "an answer");
    assert_eq!(data[12..12 + section.len()], *section);
    (data[3] & 0xf, data[12 + section.len()..].to_vec())
}

#[test]
fn a_name_opens_its_addresses_for_as_long_as_it_has_them() {
    let mut filter = filter(&["example.org:443"], false);
    assert!(!open(&mut filter, 0, at(FAR, 443)));
    resolve(&mut filter, 0, "Example.org", 100, &[FAR]);
    assert!(open(&mut filter, 99, at(FAR, 443)));
    assert!(!open(&mut filter, 99, at(FAR, 80)), "another port");
    assert!(!open(&mut filter, 99, at([198, 51, 100, 2], 443)));
    // A connection goes on, and no new one begins.
    let sends = segment(GUEST, at(FAR, 443), ACK);
    let comes = segment(at(FAR, 443), GUEST, ACK);
    assert_eq!(filter.outgoing(seconds(500), &sends), Outgoing::Pass);
    assert_eq!(filter.incoming(seconds(500), &comes), Incoming::Pass);
    assert!(!open(&mut filter, 500, at(FAR, 443)));
    let late = filter.outgoing(seconds(500 + 7440), &sends);
    assert!(matches!(late, Outgoing::Answer(_)));
    // Short lifetimes are drawn out to the time that a guest needs.
    resolve(&mut filter, 9000, "example.org", 0, &[FAR]);
    assert!(open(&mut filter, 9029, at(FAR, 443)));
    assert!(!open(&mut filter, 9030, at(FAR, 443)));
}

#[test]
fn of_a_question_nothing_leaves_but_an_allowed_name() {
    let mut filter = filter(&["*.example.org"], false);
    let asked = filter.outgoing(seconds(0), &question(1, "a.example.org", A));
    let section_a = section("a.example.org", A);
    let plain = [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &section_a].concat();
    let expected = datagram(guest(5000), server(), &plain);
    assert_eq!(asked, Outgoing::Instead(expected));
    for (name, kind, result) in [
        ("example.org", A, NO_SUCH_NAME),
        ("secret.evil.example", A, NO_SUCH_NAME),
        ("secret.evil.example", 16, NO_SUCH_NAME),
        ("a.example.org", AAAA, 0),
        ("a.example.org", 16, 0),
    ] {
        let asked = filter.outgoing(seconds(0), &question(2, name, kind));
        let Outgoing::Answer(answer) = asked else {
            panic!("{name}: {asked:?}");
        };
        let empty = (result, Vec::new());
        assert_eq!(said(&answer, &section(name, kind)), empty, "{name}");
    }
    // A dot inside of a label is none between two.
    let dotted = [&[9][..], b"a.example", &[3], b"org", &[0, 0, 1, 0, 1]].concat();
    let data = [&plain[..12], &dotted].concat();
    let asked = filter.outgoing(seconds(0), &datagram(guest(5000), server(), &data));
    assert!(matches!(asked, Outgoing::Answer(_)), "prohibited");
}

#[test]
fn only_what_was_asked_for_is_learned() {
    let mut filter = filter(&["example.org", "other.org"], true);
    let comes = |filter: &mut Filter, frame: &[u8]| filter.incoming(seconds(1), frame);
    // Nobody asked.
    let unasked = answer(1, "example.org", 100, &[FAR]);
    assert_eq!(comes(&mut filter, &unasked), Incoming::Lost);
    filter.outgoing(seconds(0), &question(1, "example.org", A));
    for wrong in [
        answer(2, "example.org", 100, &[FAR]),
        answer(1, "other.org", 100, &[FAR]),
        datagram(at(FAR, DNS), guest(5000), &[0; 30]),
    ] {
        assert_eq!(comes(&mut filter, &wrong), Incoming::Lost);
    }
    assert!(!open(&mut filter, 1, at(FAR, 443)));
    // A name that leads to private addresses and those of the host leads nowhere.
    let private = [[10, 1, 2, 3], [127, 0, 0, 1], [203, 0, 113, 5], FAR];
    let told = comes(&mut filter, &answer(1, "example.org", 100, &private));
    let Incoming::Instead(told) = told else {
        panic!("{told:?}");
    };
    let record = [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 100, 0, 4][..], &FAR].concat();
    assert_eq!(said(&told, &section("example.org", A)), (0, record));
    for address in &private[..3] {
        assert!(!open(&mut filter, 1, at(*address, 443)), "{address:?}");
    }
    assert!(open(&mut filter, 1, at(FAR, 443)));
    // The answer came; it is not taken twice, nor late.
    let again = answer(1, "example.org", 100, &[[198, 51, 100, 2]]);
    assert_eq!(comes(&mut filter, &again), Incoming::Lost);
    filter.outgoing(seconds(1), &question(1, "example.org", A));
    assert_eq!(filter.incoming(seconds(11), &again), Incoming::Lost);
}

#[test]
fn there_is_no_way_around() {
    let mut filter = filter(&["example.org", "192.0.2.0/24"], false);
    resolve(&mut filter, 0, "example.org", 100, &[FAR]);
    let whole = segment(GUEST, at(FAR, 443), SYN);
    let changed = |place: usize, value: u8| {
        let mut frame = whole.clone();
        frame[place] = value;
        frame
    };
    let ipv6 = [&whole[..12], &IPV6, &[0x60; 60]].concat();
    for (what, frame) in [
        ("another MAC address", changed(6, 6)),
        ("another address", changed(29, 16)),
        ("options", changed(14, 0x46)),
        ("a fragment", changed(20, 0x20)),
        ("a part of one", changed(21, 1)),
        ("IPv6", ipv6),
        ("a VLAN", [&whole[..12], &[0x81, 0], &whole[12..]].concat()),
        ("nothing", Vec::new()),
    ] {
        assert_eq!(
            filter.outgoing(seconds(1), &frame),
            Outgoing::Lost,
            "{what}"
        );
    }
    let echo = |to, kind| packet(GUEST, to, ICMP, &[kind, 0, 0, 0, 0, 7, 0, 1]);
    for (what, frame) in [
        (
            "another resolver",
            datagram(GUEST, at([8, 8, 8, 8], DNS), &[0; 30]),
        ),
        (
            "another port of the resolver",
            datagram(GUEST, at([10, 0, 2, 3], 54), b"data"),
        ),
        ("DNS over TCP", segment(GUEST, server(), SYN)),
        (
            "a connection that nobody opened",
            segment(GUEST, at([8, 8, 8, 8], 80), ACK),
        ),
        ("SCTP", packet(GUEST, at(FAR, 0), 132, &[0; 20])),
        ("a ping", echo(at([8, 8, 8, 8], 0), 8)),
        ("the gateway", segment(GUEST, at([10, 0, 2, 2], 22), SYN)),
    ] {
        let outgoing = filter.outgoing(seconds(1), &frame);
        assert!(
            matches!(outgoing, Outgoing::Answer(_)),
            "{what}: {outgoing:?}"
        );
    }
    // Answers to answers would go on for ever.
    let silent = echo(at([8, 8, 8, 8], 0), 0);
    assert_eq!(filter.outgoing(seconds(1), &silent), Outgoing::Lost);
    assert_eq!(
        filter.outgoing(seconds(1), &echo(at(FAR, 0), 8)),
        Outgoing::Pass
    );
    assert!(open(&mut filter, 1, at([192, 0, 2, 7], 25)));
}

#[test]
fn others_come_in_by_published_ports_alone() {
    let mut filter = filter(&["example.org"], true);
    let far = at([10, 0, 2, 2], 40001);
    let comes = |filter: &mut Filter, to, flags| {
        let frame = segment(far, guest(to), flags);
        filter.incoming(seconds(1), &frame)
    };
    assert_eq!(comes(&mut filter, 8080, ACK), Incoming::Lost);
    assert_eq!(comes(&mut filter, 81, SYN), Incoming::Lost);
    assert_eq!(comes(&mut filter, 8080, SYN), Incoming::Pass);
    let answer = segment(guest(8080), far, SYN | ACK);
    assert_eq!(filter.outgoing(seconds(1), &answer), Outgoing::Pass);
    // The guest does not call back.
    assert!(!matches!(
        filter.outgoing(seconds(1), &segment(guest(8080), far, SYN)),
        Outgoing::Pass
    ));
    let asks = datagram(far, guest(5353), b"data");
    assert_eq!(filter.incoming(seconds(1), &asks), Incoming::Pass);
    let answer = datagram(guest(5353), far, b"data");
    assert_eq!(filter.outgoing(seconds(1), &answer), Outgoing::Pass);
    // It keeps no way open by itself.
    assert_eq!(filter.outgoing(seconds(120), &answer), Outgoing::Pass);
    assert!(matches!(
        filter.outgoing(seconds(121), &answer),
        Outgoing::Answer(_)
    ));
}

#[test]
fn without_names_all_are_answered_and_private_addresses_refused() {
    let mut filter = filter(&[], true);
    let txt = question(1, "any.example", 16);
    assert_eq!(filter.outgoing(seconds(0), &txt), Outgoing::Pass);
    let reply = datagram(server(), guest(5000), b"any answer");
    assert_eq!(filter.incoming(seconds(0), &reply), Incoming::Pass);
    let ipv6 = filter.outgoing(seconds(0), &question(1, "any.example", AAAA));
    assert!(matches!(ipv6, Outgoing::Answer(_)));
    assert!(open(&mut filter, 0, at(FAR, 443)));
    for to in [
        [10, 0, 2, 2],
        [169, 254, 169, 254],
        [203, 0, 113, 5],
        [10, 0, 2, 3],
    ] {
        assert!(!open(&mut filter, 0, at(to, 53)), "{to:?}");
    }
}

#[test]
fn a_guest_may_ask_for_its_address() {
    let mut filter = filter(&["example.org"], true);
    let own = End {
        address: Ipv4Addr::UNSPECIFIED,
        port: 68,
        ..GUEST
    };
    let asks = datagram(own, at([255; 4], 67), b"discover");
    assert_eq!(filter.outgoing(seconds(0), &asks), Outgoing::Pass);
    let told = datagram(at([10, 0, 2, 2], 67), guest(68), b"offer");
    assert_eq!(filter.incoming(seconds(0), &told), Incoming::Pass);
    let other = datagram(own, at([8, 8, 8, 8], 67), b"discover");
    assert_eq!(filter.outgoing(seconds(0), &other), Outgoing::Lost);
}

proptest! {
    /// Whatever a guest sends, packets leave to allowed addresses alone, and of a question the name alone.
    #[test]
    fn nothing_else_leaves(
        to in prop_oneof![Just(FAR), Just([10, 0, 2, 3]), any::<[u8; 4]>()],
        port in prop_oneof![Just(53), Just(443), any::<u16>()],
        protocol in prop_oneof![Just(TCP), Just(UDP), Just(ICMP), any::<u8>()],
        data in prop::collection::vec(any::<u8>(), 0..80),
        patches in prop::collection::vec((0..60usize, any::<u8>()), 0..3),
        asks in prop::option::of("(example|evil)\\.org"),
    ) {
        let mut filter = filter(&["example.org:443"], false);
        resolve(&mut filter, 0, "example.org", 100, &[FAR]);
        let to = at(to, port);
        let mut frame = match (protocol, asks) {
            (UDP, Some(name)) => question(3, &name, A),
            (UDP, None) => datagram(GUEST, to, &data),
            (TCP, _) => segment(GUEST, to, data.first().copied().unwrap_or(SYN)),
            _ => packet(GUEST, to, protocol, &data),
        };
        for (place, value) in patches {
            if let Some(byte) = frame.get_mut(place) {
                *byte = value;
            }
        }
        match filter.outgoing(seconds(1), &frame) {
            Outgoing::Pass if frame[12..14] == ARP => {}
            Outgoing::Pass => {
                let packet = Packet::of(&frame).expect("it is whole");
                let port = match packet.content {
                    Content::Tcp { to, .. } | Content::Udp { to, .. } => to,
                    other => panic!("{other:?}"),
                };
                let dhcp = packet.target.is_broadcast() && port == 67;
                prop_assert!(dhcp || packet.target.octets() == FAR && port == 443);
            }
            Outgoing::Instead(other) => {
                let plain = section("example.org", A);
                prop_assert_eq!(other.len(), ETHERNET + IP + 8 + 12 + plain.len());
                prop_assert!(other.to_ascii_lowercase().ends_with(&plain));
            }
            Outgoing::Answer(answer) => prop_assert!(answer.len() <= 600),
            Outgoing::Lost => {}
        }
        let comes = filter.incoming(seconds(1), &frame);
        prop_assert!(!matches!(comes, Incoming::Instead(_)));
    }
}
