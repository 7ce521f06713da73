//! The socket device as Linux's driver meets it, and as one that means ill.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::super::testing::*;
use super::super::{Driver, F_EVENT_IDX, F_INDIRECT_DESC};
use super::connection::Stream;
use super::device::{F_STREAM, HOST_PORTS, RX, TX};
use super::packet::{HOST_CID, Header, MAX_DATA, NO_MORE, NO_RECEIVE, NO_SEND, Op, STREAM};
use super::{BUFFER, Host, Id, MAX_CONNECTIONS, Vsock};

const CID: u32 = 7;
const EVENTS: usize = 2;
/// Entries of a queue.
const ENTRIES: u16 = 64;
/// Ring features that Linux accepts.
const RING: u64 = F_EVENT_IDX | F_INDIRECT_DESC;
/// The port that a host program serves.
const SERVED: u32 = 53;
/// A port of the guest.
const PORT: u32 = 1000;

/// The other end of a stream.
#[derive(Default)]
struct Far {
    /// What the device can read.
    input: VecDeque<u8>,
    /// Nothing follows `input`.
    input_ended: bool,
    /// What the device wrote.
    output: Vec<u8>,
    /// Bytes that it may still write.
    room: usize,
    /// No program reads.
    broken: bool,
    shut: Vec<Shutdown>,
    dropped: bool,
    /// Reads that brought something.
    reads: u32,
}

#[derive(Default)]
struct World {
    streams: HashMap<Id, Far>,
    /// Programs that wait to be let in, with what they have written.
    callers: VecDeque<Vec<u8>>,
    /// Ports that were connected to.
    connected: Vec<u32>,
    ticks: u32,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<World>>);

struct End(Fake, Id);

impl Fake {
    fn with<R>(&self, id: Id, look: impl FnOnce(&mut Far) -> R) -> R {
        look(self.0.lock().unwrap().streams.get_mut(&id).unwrap())
    }

    fn stream(&self, id: Id, input: Vec<u8>) -> Box<dyn Stream> {
        let far = Far {
            input: input.into(),
            room: usize::MAX,
            ..Far::default()
        };
        assert!(self.0.lock().unwrap().streams.insert(id, far).is_none());
        Box::new(End(self.clone(), id))
    }

    fn output(&self, id: Id) -> Vec<u8> {
        self.with(id, |far| std::mem::take(&mut far.output))
    }

    /// Ids so far, oldest first.
    fn ids(&self) -> Vec<Id> {
        let mut ids: Vec<Id> = self.0.lock().unwrap().streams.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn held(&self) -> usize {
        let world = self.0.lock().unwrap();
        world.streams.values().filter(|far| !far.dropped).count()
    }
}

impl Host for Fake {
    fn accept(&mut self, id: Id) -> io::Result<Box<dyn Stream>> {
        let caller = self.0.lock().unwrap().callers.pop_front();
        match caller {
            Some(input) => Ok(self.stream(id, input)),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn connect(&mut self, port: u32, id: Id) -> io::Result<Box<dyn Stream>> {
        self.0.lock().unwrap().connected.push(port);
        match port {
            SERVED => Ok(self.stream(id, Vec::new())),
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    fn tick_later(&mut self) {
        self.0.lock().unwrap().ticks += 1;
    }
}

impl Stream for End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!buffer.is_empty());
        self.0.with(self.1, |far| {
            if far.input.is_empty() && !far.input_ended {
                return Err(ErrorKind::WouldBlock.into());
            }
            far.reads += 1;
            let len = far.input.len().min(buffer.len());
            for (to, from) in buffer.iter_mut().zip(far.input.drain(..len)) {
                *to = from;
            }
            Ok(len)
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!bytes.is_empty());
        self.0.with(self.1, |far| match far.room.min(bytes.len()) {
            _ if far.broken => Err(ErrorKind::BrokenPipe.into()),
            0 => Err(ErrorKind::WouldBlock.into()),
            len => {
                far.room -= len;
                far.output.extend(&bytes[..len]);
                Ok(len)
            }
        })
    }

    fn shutdown(&mut self, how: Shutdown) {
        self.0.with(self.1, |far| far.shut.push(how));
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.0.with(self.1, |far| far.dropped = true);
    }
}

/// A live guest with `buffers` to receive in.
fn guest_with(buffers: usize) -> (Guest, Fake) {
    let fake = Fake::default();
    let mut guest = Guest::new(Vsock::new(CID, Box::new(fake.clone())));
    guest.start(RING | F_STREAM, ENTRIES);
    for _ in 0..buffers {
        guest.lend(RX, 4096);
    }
    guest.run();
    (guest, fake)
}

/// A packet of the guest's, between `PORT` and the served port.
fn packet(op: Op) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: PORT,
        dst_port: SERVED,
        kind: STREAM,
        op: op as u16,
        buf_alloc: 1 << 18,
        ..Header::default()
    }
}

fn send(guest: &mut Guest, header: Header, data: &[u8]) {
    let len = header.len.max(data.len() as u32);
    let mut bytes = Header { len, ..header }.encode();
    bytes.extend(data);
    guest.send(TX, &bytes, &[44], false);
    guest.notify(TX);
    guest.returned(TX);
}

/// Packets since the last call, for whose buffers the device gets others.
fn heard(guest: &mut Guest) -> Vec<(Header, Vec<u8>)> {
    let mut packets = Vec::new();
    loop {
        let chains = guest.received(RX);
        if chains.is_empty() {
            return packets;
        }
        for chain in chains {
            let (head, data) = chain.split_first_chunk().expect("a header");
            let header = Header::decode(head);
            assert_eq!(header.len as usize, data.len());
            assert_eq!(header.dst_cid, u64::from(CID));
            packets.push((header, data.to_vec()));
            guest.lend(RX, 4096);
        }
        guest.notify(RX);
    }
}

fn ops(packets: &[(Header, Vec<u8>)]) -> Vec<Op> {
    let op = |packet: &(Header, Vec<u8>)| Op::from_code(packet.0.op).unwrap();
    packets.iter().map(op).collect()
}

fn heard_ops(guest: &mut Guest) -> Vec<Op> {
    ops(&heard(guest))
}

fn callers(guest: &mut Guest) {
    let call = |device: &mut Vsock, driver: &mut Driver| device.callers(driver);
    guest.core().with_device(call).unwrap();
    guest.run();
}

fn ready(guest: &mut Guest, id: Id, hung_up: bool) {
    let call = |device: &mut Vsock, driver: &mut Driver| device.ready(driver, id, hung_up);
    guest.core().with_device(call).unwrap();
    guest.run();
}

fn tick(guest: &mut Guest) {
    let call = |device: &mut Vsock, driver: &mut Driver| device.tick(driver);
    guest.core().with_device(call).unwrap();
    guest.run();
}

/// A connection that the guest has opened to the served port.
fn connected() -> (Guest, Fake, Id) {
    let (mut guest, fake) = guest_with(8);
    send(&mut guest, packet(Op::Request), b"");
    assert_eq!(heard_ops(&mut guest), [Op::Response]);
    let id = fake.ids()[0];
    (guest, fake, id)
}

/// A program that called, its stream, and the REQUEST that came of it.
fn called(line: &[u8]) -> (Guest, Fake, Id, Header) {
    let (mut guest, fake) = guest_with(8);
    fake.0.lock().unwrap().callers.push_back(line.to_vec());
    callers(&mut guest);
    let packets = heard(&mut guest);
    assert_eq!(ops(&packets), [Op::Request]);
    let id = fake.ids()[0];
    (guest, fake, id, packets[0].0)
}

/// The guest's answer to a packet of the device.
fn answer(to: &Header, op: Op) -> Header {
    Header {
        src_port: to.dst_port,
        dst_port: to.src_port,
        ..packet(op)
    }
}

#[test]
fn the_device_tells_the_guests_cid() {
    let (mut guest, _) = guest_with(0);
    assert_eq!(guest.read(reg::DEVICE_ID), 19);
    assert_eq!(guest.read(reg::CONFIG), CID);
    assert_eq!(guest.read(reg::CONFIG + 4), 0);
    guest.lend(EVENTS, 8);
    guest.notify(EVENTS);
    assert!(guest.returned(EVENTS).is_empty());
}

#[test]
fn a_program_on_the_host_reaches_the_guest() {
    let (mut guest, fake, id, request) = called(b"CONNECT 52\nfirst words");
    assert_eq!((request.src_cid, request.dst_port), (HOST_CID, 52));
    assert_eq!((request.src_port, request.kind), (HOST_PORTS.start, STREAM));
    assert_eq!(request.buf_alloc, BUFFER as u32);
    assert!(fake.output(id).is_empty(), "told before the guest agreed");

    send(&mut guest, answer(&request, Op::Response), b"");
    assert_eq!(fake.output(id), b"OK 1073741824\n");
    let packets = heard(&mut guest);
    assert_eq!(ops(&packets), [Op::Rw]);
    assert_eq!(packets[0].1, b"first words");
    send(&mut guest, answer(&request, Op::Rw), b"an answer");
    assert_eq!(fake.output(id), b"an answer");
}

#[test]
fn a_refused_program_is_disconnected() {
    let (mut guest, fake, id, request) = called(b"connect 52\n");
    send(&mut guest, answer(&request, Op::Rst), b"");
    assert!(fake.with(id, |far| far.dropped && far.output.is_empty()));
    assert!(heard(&mut guest).is_empty());
}

#[test]
fn an_invalid_or_endless_line_closes_the_connection() {
    let endless = [b'5'; 1000];
    let lines: [&[u8]; 8] = [
        b"\n",
        b"CONNECT\n",
        b"CONNECT 52 53\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"HELLO 52\n",
        b"\xff\xfe\n",
        &endless,
    ];
    let (mut guest, fake) = guest_with(8);
    for line in lines {
        fake.0.lock().unwrap().callers.push_back(line.to_vec());
        callers(&mut guest);
        assert_eq!(fake.held(), 0, "{line:?}");
    }
    let last = *fake.ids().last().unwrap();
    assert_eq!(fake.with(last, |far| far.input.len()), 1000 - 32);
    assert!(heard(&mut guest).is_empty());
}

#[test]
fn a_line_may_come_in_pieces_and_callers_before_the_driver() {
    let fake = Fake::default();
    let mut guest = Guest::new(Vsock::new(CID, Box::new(fake.clone())));
    fake.0.lock().unwrap().callers.push_back(b"CONN".to_vec());
    callers(&mut guest);
    assert!(fake.ids().is_empty(), "let in without a driver");
    guest.start(RING | F_STREAM, ENTRIES);
    guest.run();
    let id = fake.ids()[0];
    guest.lend(RX, 4096);
    fake.with(id, |far| far.input.extend(b"ECT 9\n"));
    ready(&mut guest, id, false);
    assert_eq!(heard_ops(&mut guest), [Op::Request]);
}

#[test]
fn the_guest_reaches_open_ports_and_is_reset_elsewhere() {
    let (mut guest, fake, id) = connected();
    send(&mut guest, packet(Op::Rw), b"hello");
    assert_eq!(fake.output(id), b"hello");
    let elsewhere = Header {
        dst_port: 54,
        ..packet(Op::Request)
    };
    send(&mut guest, elsewhere, b"");
    let packets = heard(&mut guest);
    assert_eq!(ops(&packets), [Op::Rst]);
    let reset = packets[0].0;
    assert_eq!((reset.src_port, reset.dst_port), (54, PORT));
    assert_eq!(fake.0.lock().unwrap().connected, [SERVED, 54]);
    assert!(guest.events.take().is_empty(), "no fault of the driver's");
}

#[test]
fn packets_without_a_connection_are_reset_and_a_reset_is_not_answered() {
    let (mut guest, fake) = guest_with(8);
    for op in [Op::Response, Op::Shutdown, Op::Rw, Op::CreditRequest] {
        send(&mut guest, packet(op), b"");
        assert_eq!(heard_ops(&mut guest), [Op::Rst], "{op:?}");
    }
    for bad in [
        Header {
            kind: 2,
            ..packet(Op::Request)
        },
        Header {
            dst_cid: 9,
            ..packet(Op::Request)
        },
        Header {
            dst_cid: HOST_CID | 1 << 32,
            ..packet(Op::Request)
        },
        Header {
            op: 77,
            ..packet(Op::Request)
        },
    ] {
        send(&mut guest, bad, b"");
        let packets = heard(&mut guest);
        assert_eq!(ops(&packets), [Op::Rst]);
        assert_eq!(
            (packets[0].0.src_cid, packets[0].0.kind),
            (bad.dst_cid, bad.kind)
        );
    }
    send(&mut guest, packet(Op::Rst), b"");
    // Not from the guest's CID: there is no peer to answer.
    send(
        &mut guest,
        Header {
            src_cid: 8,
            ..packet(Op::Request)
        },
        b"",
    );
    assert!(heard(&mut guest).is_empty());
    assert_eq!(fake.held(), 0);
    assert_eq!(guest.events.take().len(), 1);
    assert_eq!(guest.status(), LIVE);
}

#[test]
fn broken_rules_end_a_connection_and_not_the_device() {
    let over = vec![0; MAX_DATA];
    let cases: [(Header, &[u8]); 7] = [
        (packet(Op::Request), b""),
        (packet(Op::Response), b""),
        (
            Header {
                op: 0,
                ..packet(Op::Rw)
            },
            b"",
        ),
        (
            Header {
                op: 8,
                ..packet(Op::Rw)
            },
            b"",
        ),
        (
            Header {
                len: 6,
                ..packet(Op::Rw)
            },
            b"hello",
        ),
        (
            Header {
                len: u32::MAX,
                ..packet(Op::Rw)
            },
            b"hello",
        ),
        (packet(Op::Rw), &over),
    ];
    for (header, data) in cases {
        let (mut guest, fake, id) = connected();
        fake.with(id, |far| far.room = 10);
        send(&mut guest, packet(Op::Rw), b"twenty bytes waiting");
        // Half of what may wait.
        send(&mut guest, packet(Op::Rw), &over);
        send(&mut guest, header, data);
        assert_eq!(heard_ops(&mut guest), [Op::Rst], "{header:?}");
        assert!(fake.with(id, |far| far.dropped));
        assert_eq!(guest.events.take().len(), 1, "{header:?}");
        assert_eq!(guest.status(), LIVE);
    }
    // A packet without a whole header belongs to none.
    let (mut guest, fake, _) = connected();
    guest.send(TX, &[0; 43], &[], false);
    guest.notify(TX);
    assert_eq!((fake.held(), guest.events.take().len()), (1, 1));
}

#[test]
fn the_guest_has_credit_for_what_the_host_has_not_taken() {
    let (mut guest, fake, id) = connected();
    fake.with(id, |far| far.room = 0);
    let half = vec![1; BUFFER / 2];
    send(&mut guest, packet(Op::Rw), &half);
    send(&mut guest, packet(Op::Rw), &half);
    assert!(heard(&mut guest).is_empty());
    send(&mut guest, packet(Op::CreditRequest), b"");
    let packets = heard(&mut guest);
    assert_eq!(ops(&packets), [Op::CreditUpdate]);
    assert_eq!(packets[0].0.fwd_cnt, 0);

    fake.with(id, |far| far.room = BUFFER / 2);
    ready(&mut guest, id, false);
    let packets = heard(&mut guest);
    assert_eq!(
        ops(&packets),
        [Op::CreditUpdate],
        "told without having asked"
    );
    assert_eq!(packets[0].0.fwd_cnt as usize, BUFFER / 2);
    assert_eq!(fake.output(id).len(), BUFFER / 2);

    send(&mut guest, packet(Op::Rw), &half);
    assert_eq!(heard_ops(&mut guest), []);
    send(&mut guest, packet(Op::Rw), b"x");
    assert_eq!(heard_ops(&mut guest), [Op::Rst]);
}

#[test]
fn the_device_keeps_to_the_guests_credit() {
    let (mut guest, fake, id, request) = called(b"CONNECT 52\n");
    let credit = |fwd_cnt, op| Header {
        buf_alloc: 100,
        fwd_cnt,
        ..answer(&request, op)
    };
    send(&mut guest, credit(0, Op::Response), b"");
    fake.with(id, |far| far.input.extend([5; 250]));
    ready(&mut guest, id, false);
    let packets = heard(&mut guest);
    assert_eq!(ops(&packets), [Op::Rw, Op::CreditRequest]);
    assert_eq!(packets[0].1.len(), 100);
    // A guest that says no more than before is not asked again.
    send(&mut guest, credit(0, Op::CreditUpdate), b"");
    ready(&mut guest, id, false);
    assert!(heard(&mut guest).is_empty());
    send(&mut guest, credit(60, Op::CreditUpdate), b"");
    let packets = heard(&mut guest);
    assert_eq!(ops(&packets), [Op::Rw, Op::CreditRequest]);
    assert_eq!(packets[0].1.len(), 60);
    // More taken than was sent is no credit.
    send(&mut guest, credit(1000, Op::CreditUpdate), b"");
    assert!(heard(&mut guest).is_empty());
}

#[test]
fn halves_close_apart_and_the_rest_arrives() {
    let (mut guest, fake, id) = connected();
    fake.with(id, |far| {
        far.input.extend(b"the end");
        far.input_ended = true;
    });
    ready(&mut guest, id, false);
    let packets = heard(&mut guest);
    assert_eq!(ops(&packets), [Op::Rw, Op::Shutdown]);
    assert_eq!(packets[1].0.flags, NO_SEND);

    fake.with(id, |far| far.room = 2);
    send(&mut guest, packet(Op::Rw), b"last");
    let flags = |flags| Header {
        flags,
        ..packet(Op::Shutdown)
    };
    send(&mut guest, flags(NO_SEND), b"");
    assert!(fake.with(id, |far| far.shut.is_empty()), "cut off");
    send(&mut guest, flags(NO_RECEIVE), b"");
    assert_eq!(heard_ops(&mut guest), [Op::Rst], "both halves are closed");
    assert!(!fake.with(id, |far| far.dropped));
    fake.with(id, |far| far.room = usize::MAX);
    ready(&mut guest, id, false);
    assert_eq!(fake.output(id), b"last");
    assert!(fake.with(id, |far| far.dropped));
}

#[test]
fn the_end_of_what_the_guest_sends_is_passed_on_after_it() {
    let (mut guest, fake, id) = connected();
    fake.with(id, |far| far.room = 2);
    send(&mut guest, packet(Op::Rw), b"last");
    let no_more = Header {
        flags: NO_SEND,
        ..packet(Op::Shutdown)
    };
    send(&mut guest, no_more, b"");
    fake.with(id, |far| far.room = 2);
    ready(&mut guest, id, false);
    assert_eq!(fake.with(id, |far| far.shut.clone()), [Shutdown::Write]);
    assert_eq!(fake.output(id), b"last");
    send(&mut guest, packet(Op::Rw), b"more");
    assert_eq!(heard_ops(&mut guest), [Op::Rst]);
}

#[test]
fn a_connection_times_out_when_the_guest_does_not_answer() {
    // To a REQUEST.
    let (mut guest, fake, id, _) = called(b"CONNECT 52\n");
    assert_eq!(fake.0.lock().unwrap().ticks, 1);
    tick(&mut guest);
    assert!(!fake.with(id, |far| far.dropped));
    assert_eq!(fake.0.lock().unwrap().ticks, 2);
    tick(&mut guest);
    assert!(fake.with(id, |far| far.dropped));
    assert_eq!(heard_ops(&mut guest), [Op::Rst]);
    assert_eq!(fake.0.lock().unwrap().ticks, 2, "ticks for nothing");

    // To a REQUEST for which it has no buffer: it need not hear of the end either.
    let (mut guest, fake) = guest_with(0);
    let line = b"CONNECT 52\n".to_vec();
    fake.0.lock().unwrap().callers.push_back(line);
    callers(&mut guest);
    assert_eq!(fake.held(), 1);
    tick(&mut guest);
    tick(&mut guest);
    assert_eq!(fake.held(), 0);
    guest.lend(RX, 4096);
    guest.notify(RX);
    assert!(heard(&mut guest).is_empty());

    // To the end of the host's program.
    let (mut guest, fake, id) = connected();
    fake.with(id, |far| (far.input_ended, far.broken) = (true, true));
    ready(&mut guest, id, true);
    let packets = heard(&mut guest);
    assert_eq!(ops(&packets).last(), Some(&Op::Shutdown));
    assert_eq!(packets.last().unwrap().0.flags, NO_MORE);
    assert_eq!(fake.0.lock().unwrap().ticks, 1);
    tick(&mut guest);
    tick(&mut guest);
    assert_eq!(heard_ops(&mut guest), [Op::Rst]);
    assert_eq!(fake.held(), 0);
}

#[test]
fn a_read_fills_several_buffers_and_takes_no_more_than_it_needs() {
    // Eight buffers of 4052 bytes of data: one, two and four of them, and the last one.
    let (mut guest, fake, id) = connected();
    let data: Vec<u8> = (0..7 * 4052 + 5).map(|n| (n % 251) as u8).collect();
    fake.with(id, |far| far.input.extend(&data));
    ready(&mut guest, id, false);
    assert_eq!(fake.with(id, |far| far.reads), 4);
    let packets = heard(&mut guest);
    let lens: Vec<usize> = packets.iter().map(|(_, data)| data.len()).collect();
    assert_eq!(lens, [4052, 4052, 4052, 4052, 4052, 4052, 4052, 5]);
    assert!(packets.iter().all(|(header, _)| header.op == Op::Rw as u16));
    let received: Vec<u8> = packets.into_iter().flat_map(|(_, data)| data).collect();
    assert!(received == data);
    // Those that were not needed are still the device's.
    let data = vec![7; 3 * 4052 + 1];
    fake.with(id, |far| far.input.extend(&data));
    ready(&mut guest, id, false);
    assert_eq!(guest.received(RX).len(), 4);
    for _ in 0..4 {
        fake.with(id, |far| far.input.push_back(9));
        ready(&mut guest, id, false);
        assert_eq!(guest.received(RX).len(), 1);
    }
}

#[test]
fn a_program_that_left_costs_the_guest_no_credit() {
    let (mut guest, fake, id) = connected();
    fake.with(id, |far| far.room = 0);
    send(&mut guest, packet(Op::Rw), &[0; MAX_DATA]);
    fake.with(id, |far| far.broken = true);
    ready(&mut guest, id, false);
    let packets = heard(&mut guest);
    assert_eq!(ops(&packets), [Op::CreditUpdate, Op::Shutdown]);
    assert_eq!(packets[0].0.fwd_cnt as usize, MAX_DATA);
    assert_eq!(packets[1].0.flags, NO_RECEIVE);
    send(&mut guest, packet(Op::Rw), &[0; MAX_DATA]);
    assert_eq!(heard(&mut guest)[0].0.fwd_cnt as usize, 2 * MAX_DATA);
}

#[test]
fn the_number_of_connections_is_limited() {
    let (mut guest, fake) = guest_with(8);
    for src_port in 0..MAX_CONNECTIONS as u32 + 1 {
        send(
            &mut guest,
            Header {
                src_port,
                ..packet(Op::Request)
            },
            b"",
        );
        let expected = match (src_port as usize) < MAX_CONNECTIONS {
            true => Op::Response,
            false => Op::Rst,
        };
        assert_eq!(heard_ops(&mut guest), [expected]);
    }
    assert_eq!(fake.held(), MAX_CONNECTIONS);
    let line = b"CONNECT 52\n".to_vec();
    fake.0.lock().unwrap().callers.push_back(line.clone());
    callers(&mut guest);
    assert_eq!(fake.held(), MAX_CONNECTIONS);
    send(
        &mut guest,
        Header {
            src_port: 5,
            ..packet(Op::Rst)
        },
        b"",
    );
    fake.0.lock().unwrap().callers.push_back(line);
    callers(&mut guest);
    assert_eq!(heard_ops(&mut guest), [Op::Request]);
    assert_eq!(fake.held(), MAX_CONNECTIONS);
}

#[test]
fn packets_wait_while_resets_wait_for_buffers() {
    let (mut guest, _) = guest_with(0);
    for _ in 0..3 {
        for _ in 0..ENTRIES {
            guest.send(TX, &packet(Op::Rw).encode(), &[], false);
        }
        guest.notify(TX);
        if guest.returned(TX).len() < usize::from(ENTRIES) {
            break;
        }
    }
    assert_eq!(
        guest.in_flight(TX),
        ENTRIES,
        "RSTs are kept without a bound"
    );
    for _ in 0..8 {
        guest.lend(RX, 4096);
    }
    guest.notify(RX);
    assert_eq!(heard(&mut guest).len(), 2 * usize::from(ENTRIES));
    assert_eq!(guest.returned(TX).len(), usize::from(ENTRIES));
}

#[test]
fn connections_that_come_and_go_without_buffers_leave_nothing() {
    let (mut guest, fake) = guest_with(0);
    for _ in 0..200 {
        send(&mut guest, packet(Op::Request), b"");
        send(&mut guest, packet(Op::Rst), b"");
    }
    assert_eq!((fake.ids().len(), fake.held()), (200, 0));
    let pending = |vsock: &mut Vsock, _: &mut Driver| Ok(vsock.tx_pending.len());
    assert_eq!(guest.core().with_device(pending), Some(0));
}

#[test]
fn a_reset_forgets_connections() {
    let (mut guest, fake, _) = connected();
    guest.set_status(0);
    assert_eq!(fake.held(), 0);
    guest.start(RING | F_STREAM, ENTRIES);
    guest.lend(RX, 4096);
    send(&mut guest, packet(Op::Rw), b"still there?");
    assert_eq!(heard_ops(&mut guest), [Op::Rst]);
}

#[test]
fn invalid_buffers_stop_the_device() {
    for pieces in [[(BUFFERS, 44, true)], [(BUFFERS, 4096, false)]] {
        let (mut guest, _) = guest_with(0);
        guest.offer(RX, &pieces, false);
        send(&mut guest, packet(Op::Rw), b"");
        assert_eq!(guest.status(), LIVE | NEEDS_RESET);
    }
}

/// Have the guest go on with another device, of another CID, and other streams.
fn moved(guest: &mut Guest) -> Fake {
    let fake = Fake::default();
    let device = Vsock::new(CID, Box::new(fake.clone()));
    guest.move_to(device).unwrap();
    fake
}

/// Lend a buffer for events, as Linux does once it has handled one.
fn lend_event(guest: &mut Guest) {
    guest.lend(EVENTS, 4);
    guest.kick(EVENTS, true);
    guest.run();
}

/// That the guest can connect and be connected to, and bytes go both ways.
fn talk(guest: &mut Guest, fake: &Fake) {
    let before = fake.ids().len();
    let header = Header {
        src_port: PORT + 1,
        ..packet(Op::Request)
    };
    send(guest, header, b"");
    assert_eq!(heard_ops(guest), [Op::Response]);
    let id = fake.ids()[before];
    let rw = Header {
        op: Op::Rw as u16,
        ..header
    };
    send(guest, rw, b"there");
    assert_eq!(fake.output(id), b"there");
    fake.with(id, |far| far.input.extend(b"and back"));
    ready(guest, id, false);
    assert_eq!(heard(guest)[0].1, b"and back");

    let line = b"CONNECT 52\nfrom outside".to_vec();
    fake.0.lock().unwrap().callers.push_back(line);
    callers(guest);
    let packets = heard(guest);
    assert_eq!(ops(&packets), [Op::Request]);
    let id = fake.ids()[before + 1];
    send(guest, answer(&packets[0].0, Op::Response), b"");
    assert_eq!(heard(guest)[0].1, b"from outside");
    send(guest, answer(&packets[0].0, Op::Rw), b"from inside");
    assert!(fake.output(id).ends_with(b"\nfrom inside"));
}

#[test]
fn a_restored_guest_learns_that_its_connections_are_gone_and_opens_new_ones() {
    // However many of its buffers are used, in both rings.
    for used in [0, 1, 5, 70] {
        let (mut guest, old, id) = connected();
        for _ in 0..3 {
            guest.lend(EVENTS, 4);
        }
        guest.notify(EVENTS);
        for _ in 0..used {
            old.with(id, |far| far.input.extend(b"x"));
            ready(&mut guest, id, false);
            assert_eq!(heard_ops(&mut guest), [Op::Rw]);
        }
        let fake = moved(&mut guest);
        assert!(old.with(id, |far| far.dropped));
        assert_eq!(guest.received(EVENTS), [[0; 4]]);
        assert!(heard(&mut guest).is_empty(), "an RST is a clean end");
        lend_event(&mut guest);
        // For a socket that Linux would not reset by itself.
        let packets = heard(&mut guest);
        assert_eq!(ops(&packets), [Op::Rst]);
        let reset = packets[0].0;
        assert_eq!((reset.src_port, reset.dst_port), (SERVED, PORT));
        talk(&mut guest, &fake);
        assert!(guest.returned(EVENTS).is_empty(), "told once");
        assert_eq!(guest.status(), LIVE);
    }
}

#[test]
fn nothing_is_connected_before_the_guest_has_read_the_event() {
    let (mut guest, _, _) = connected();
    let fake = moved(&mut guest);
    let line = b"CONNECT 52\n".to_vec();
    fake.0.lock().unwrap().callers.push_back(line);
    callers(&mut guest);
    send(&mut guest, packet(Op::Request), b"");
    assert!(
        heard(&mut guest).is_empty(),
        "there is no buffer for the event"
    );
    for _ in 0..2 {
        lend_event(&mut guest);
    }
    assert_eq!(guest.received(EVENTS).len(), 1);
    // The second buffer came after the event was written.
    let mut opened = heard_ops(&mut guest);
    opened.sort_by_key(|op| *op as u16);
    assert_eq!(opened, [Op::Request, Op::Response, Op::Rst]);
}

#[test]
fn waiting_for_event_buffers_times_out() {
    let (mut guest, _, _) = connected();
    let fake = moved(&mut guest);
    assert_eq!(fake.0.lock().unwrap().ticks, 1);
    tick(&mut guest);
    assert_eq!(heard_ops(&mut guest), [Op::Rst]);
    talk(&mut guest, &fake);
    // Then it has one after all, and is told the truth.
    guest.lend(EVENTS, 4);
    guest.notify(EVENTS);
    assert_eq!(guest.received(EVENTS), [[0; 4]]);
    assert_eq!(fake.held(), 0);
    assert!(heard(&mut guest).is_empty());
    tick(&mut guest);
    assert_eq!(heard_ops(&mut guest), [Op::Rst, Op::Rst]);
    talk(&mut guest, &fake);
}

#[test]
fn a_port_is_not_used_again_at_once_and_a_cid_may_be_another() {
    let (mut guest, _, _, request) = called(b"CONNECT 52\n");
    let fake = Fake::default();
    guest
        .move_to(Vsock::new(CID + 1, Box::new(fake.clone())))
        .unwrap();
    assert_eq!(guest.read(reg::CONFIG), CID + 1);
    guest.lend(EVENTS, 4);
    guest.notify(EVENTS);
    tick(&mut guest);
    let line = b"CONNECT 52\n".to_vec();
    fake.0.lock().unwrap().callers.push_back(line);
    callers(&mut guest);
    let chains = guest.received(RX);
    let header = |chain: &Vec<u8>| Header::decode(chain.first_chunk().unwrap());
    let packets: Vec<Header> = chains.iter().map(header).collect();
    let about = |packet: &Header| (packet.dst_cid, packet.op, packet.src_port);
    let cid = u64::from(CID) + 1;
    assert_eq!(
        packets.iter().map(about).collect::<Vec<_>>(),
        [
            (cid, Op::Rst as u16, request.src_port),
            (cid, Op::Request as u16, request.src_port + 1)
        ]
    );
}

#[test]
fn a_saved_machine_that_resumes_keeps_its_connections() {
    let (mut guest, fake, id) = connected();
    use crate::devices::bus::BusDevice;
    let state = guest.transport.save().unwrap();
    assert_eq!(guest.transport.save().unwrap(), state);
    send(&mut guest, packet(Op::Rw), b"still");
    assert_eq!(fake.output(id), b"still");
    assert!(heard(&mut guest).is_empty());
}

#[test]
fn an_impossible_state_is_refused() {
    let (guest, _) = guest_with(0);
    let many: Vec<(u32, u32)> = (0..5000).map(|port| (port, 1)).collect();
    let states = [
        crate::devices::state::encode(&(many, HOST_PORTS.start)).unwrap(),
        crate::devices::state::encode(&(Vec::<(u32, u32)>::new(), 1u32)).unwrap(),
        vec![0xff; 30],
        vec![],
    ];
    for state in states {
        let loaded = guest.core().with_device(|device: &mut Vsock, driver| {
            Ok(crate::devices::virtio::Device::load(device, &state, driver).is_err())
        });
        assert_eq!(loaded, Some(true));
    }
}

/// What one of both sides may do.
#[derive(Clone, Debug)]
enum Step {
    /// The guest sends a packet with so many bytes.
    Send(Header, usize),
    /// A program calls, with these bytes.
    Call(Vec<u8>),
    /// The nth stream gets input, room, an end, or breaks.
    Stream(usize, usize, usize, bool, bool),
    /// The guest lends a buffer of so many bytes.
    Lend(u32),
    Tick,
    /// It goes on with another device; the guest lends so many buffers for events before.
    Move(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let port = prop_oneof![6 => 0..3u32, 2 => Just(HOST_PORTS.start), 1 => any::<u32>()];
    let host_port = prop_oneof![4 => Just(SERVED), 3 => (0..3u32).prop_map(|n| HOST_PORTS.start + n), 1 => any::<u32>()];
    let credit = prop_oneof![3 => Just(1 << 18), 2 => 0..5000u32, 1 => any::<u32>()];
    let header = (
        prop_oneof![20 => Just(u64::from(CID)), 1 => any::<u64>()],
        prop_oneof![20 => Just(HOST_CID), 1 => any::<u64>()],
        (port, host_port),
        prop_oneof![20 => Just(0u32), 1 => any::<u32>()],
        prop_oneof![20 => Just(STREAM), 1 => any::<u16>()],
        prop_oneof![12 => 1..8u16, 1 => any::<u16>()],
        any::<u32>(),
        (credit, 0..5000u32),
    );
    let header =
        header.prop_map(
            |(src_cid, dst_cid, ports, len, kind, op, flags, credit)| Header {
                src_cid,
                dst_cid,
                src_port: ports.0,
                dst_port: ports.1,
                len,
                kind,
                op,
                flags,
                buf_alloc: credit.0,
                fwd_cnt: credit.1,
            },
        );
    let line = prop_oneof![
        6 => (0..3u32).prop_map(|port| format!("CONNECT {port}\nhi").into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..50),
    ];
    prop_oneof![
        8 => (header, prop_oneof![Just(0usize), 0..3000usize]).prop_map(|(h, n)| Step::Send(h, n)),
        2 => line.prop_map(Step::Call),
        4 => (0..4usize, 0..9000usize, 0..9000usize, prop::bool::weighted(0.1), prop::bool::weighted(0.05))
            .prop_map(|(nth, input, room, end, broken)| Step::Stream(nth, input, room, end, broken)),
        6 => prop_oneof![Just(4096u32), 45..200u32].prop_map(Step::Lend),
        1 => Just(Step::Tick),
        1 => (0..3usize).prop_map(Step::Move),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the guest sends: the device lives, sends whole packets to the guest alone, never
    /// more data than it has credit for on a connection, loses no stream, and comes to rest.
    #[test]
    fn no_packet_harms_the_device(steps in prop::collection::vec(step(), 1..120)) {
        let (mut guest, mut fake) = guest_with(0);
        // By the ports of host and guest: bytes sent since it was opened, and all that could be
        // in flight by the guest's words so far.
        let mut sent: HashMap<(u32, u32), (u64, u64)> = HashMap::new();
        for step in steps {
            match step {
                Step::Send(header, len) => {
                    let ports = (header.dst_port, header.src_port);
                    let entry = sent.entry(ports).or_default();
                    entry.1 = entry.1.max(u64::from(header.buf_alloc) + u64::from(header.fwd_cnt));
                    if guest.in_flight(TX) < ENTRIES / 2 {
                        send(&mut guest, header, &vec![9; len]);
                    }
                }
                Step::Call(line) => {
                    fake.0.lock().unwrap().callers.push_back(line);
                    callers(&mut guest);
                }
                Step::Stream(nth, input, room, end, broken) => {
                    let ids = fake.ids();
                    if let Some(&id) = ids.get(ids.len().saturating_sub(nth + 1)) {
                        fake.with(id, |far| {
                            far.input.extend(vec![3; input]);
                            far.room = room;
                            far.input_ended |= end;
                            far.broken |= broken;
                        });
                        ready(&mut guest, id, broken);
                    }
                }
                Step::Lend(len) if guest.in_flight(RX) < ENTRIES => {
                    guest.lend(RX, len);
                    guest.notify(RX);
                }
                Step::Lend(_) => {}
                Step::Tick => tick(&mut guest),
                Step::Move(buffers) => {
                    for _ in 0..buffers.min(usize::from(ENTRIES - guest.in_flight(EVENTS))) {
                        lend_event(&mut guest);
                    }
                    fake = moved(&mut guest);
                    sent.clear();
                }
            }
            guest.returned(EVENTS);
            for chain in guest.received(RX) {
                let (head, data) = chain.split_first_chunk().expect("a header");
                let header = Header::decode(head);
                let op = Op::from_code(header.op);
                prop_assert_eq!(header.len as usize, data.len());
                prop_assert_eq!(header.dst_cid, u64::from(CID));
                prop_assert!(op.is_some());
                prop_assert!(op == Some(Op::Rw) || data.is_empty());
                prop_assert!(op == Some(Op::Rst) || header.src_cid == HOST_CID);
                let entry = sent.entry((header.src_port, header.dst_port)).or_default();
                match op {
                    Some(Op::Request | Op::Response) => entry.0 = 0,
                    Some(Op::Rw) => entry.0 += u64::from(header.len),
                    _ => {}
                }
                prop_assert!(entry.0 <= entry.1, "{} of {} bytes", entry.0, entry.1);
            }
            prop_assert_eq!(guest.status(), LIVE);
            let count = |device: &mut Vsock, _: &mut Driver| {
                Ok((device.streams(), device.connections.len(), device.ids.len()))
            };
            let (streams, connections, ids) = guest.core().with_device(count).unwrap();
            prop_assert_eq!(streams, fake.held(), "a stream is lost");
            prop_assert_eq!(connections, ids);
        }
    }

    /// What the guest sends within its credit arrives as it was, however slow the program reads.
    #[test]
    fn a_stream_arrives_whole(
        pieces in prop::collection::vec(1..MAX_DATA, 1..20),
        rooms in prop::collection::vec(0..40_000usize, 1..40),
    ) {
        let (mut guest, fake, id) = connected();
        let mut all = Vec::new();
        let (mut fwd_cnt, mut rooms) = (0u32, rooms.into_iter().cycle());
        fake.with(id, |far| far.room = 0);
        for piece in pieces {
            let piece: Vec<u8> = (0..piece).map(|n| (n + all.len()) as u8).collect();
            let mut turns = 0;
            while all.len() as u32 + piece.len() as u32 > fwd_cnt + BUFFER as u32 {
                fake.with(id, |far| far.room = rooms.next().unwrap() + turns);
                turns += 1;
                ready(&mut guest, id, false);
                send(&mut guest, packet(Op::CreditRequest), b"");
                fwd_cnt = heard(&mut guest).last().unwrap().0.fwd_cnt;
            }
            send(&mut guest, packet(Op::Rw), &piece);
            all.extend(piece);
            prop_assert!(!heard_ops(&mut guest).contains(&Op::Rst));
        }
        fake.with(id, |far| far.room = usize::MAX);
        ready(&mut guest, id, false);
        prop_assert!(fake.output(id) == all);
    }
}
