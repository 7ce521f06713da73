//! The socket device, with programs on the host that connect, close, read and write at any time.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use hull::devices::virtio::Driver;
use hull::devices::virtio::testing::Guest;
use hull::devices::virtio::vsock::{BUFFER, Host, Id, MAX_CONNECTIONS, Stream, Vsock as Device};

use crate::{Sent, Subject};

pub(crate) const CID: u32 = 7;
const HOST_CID: u64 = 2;
/// The lowest port of a program on the host.
const HOST_PORT: u32 = 1 << 30;
pub(crate) const RX: usize = 0;
pub(crate) const TX: usize = 1;
/// Ports below this one are served.
const SERVED: u32 = 4;
pub(crate) const HEADER: usize = 44;
const REQUEST: u16 = 1;
pub(crate) const RESPONSE: u16 = 2;
const RST: u16 = 3;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;
const STREAM: u16 = 1;
/// RSTs that may wait for buffers of the guest.
const MAX_RESETS: usize = 64;

/// The host's end of a stream.
#[derive(Default)]
struct Far {
    input: usize,
    input_ended: bool,
    output: usize,
    room: usize,
    broken: bool,
}

#[derive(Default)]
struct World {
    streams: BTreeMap<Id, Far>,
    callers: VecDeque<Vec<u8>>,
    /// Bytes that callers have written and the device has not read.
    lines: BTreeMap<Id, VecDeque<u8>>,
    fails: bool,
    tick_due: bool,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<World>>);

struct End(Shared, Id);

impl Shared {
    fn stream(&self, id: Id, line: Vec<u8>) -> Box<dyn Stream> {
        let mut world = self.0.lock().unwrap();
        let far = Far {
            room: 1 << 20,
            ..Far::default()
        };
        assert!(world.streams.insert(id, far).is_none(), "an id twice");
        // One more than the limit for a moment, which the device closes.
        assert!(world.streams.len() <= MAX_CONNECTIONS + 1);
        world.lines.insert(id, line.into());
        Box::new(End(self.clone(), id))
    }
}

impl Host for Shared {
    fn accept(&mut self, id: Id) -> io::Result<Box<dyn Stream>> {
        let mut world = self.0.lock().unwrap();
        if world.fails {
            return Err(ErrorKind::OutOfMemory.into());
        }
        let caller = world.callers.pop_front();
        drop(world);
        match caller {
            Some(line) => Ok(self.stream(id, line)),
            None => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn connect(&mut self, port: u32, id: Id) -> io::Result<Box<dyn Stream>> {
        let fails = self.0.lock().unwrap().fails;
        match port {
            _ if fails => Err(ErrorKind::OutOfMemory.into()),
            0..SERVED => Ok(self.stream(id, Vec::new())),
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    fn tick_later(&mut self) {
        self.0.lock().unwrap().tick_due = true;
    }
}

impl Stream for End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!buffer.is_empty());
        let mut world = self.0.0.lock().unwrap();
        if let Some(line) = world.lines.get_mut(&self.1)
            && let Some(byte) = line.pop_front()
        {
            buffer[0] = byte;
            return Ok(1);
        }
        let far = world.streams.get_mut(&self.1).expect("a stream");
        if far.broken {
            return Err(ErrorKind::ConnectionReset.into());
        }
        if far.input == 0 && !far.input_ended {
            return Err(ErrorKind::WouldBlock.into());
        }
        let len = far.input.min(buffer.len());
        buffer[..len].fill(0xaa);
        far.input -= len;
        Ok(len)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!bytes.is_empty());
        let mut world = self.0.0.lock().unwrap();
        let far = world.streams.get_mut(&self.1).expect("a stream");
        match far.room.min(bytes.len()) {
            _ if far.broken => Err(ErrorKind::BrokenPipe.into()),
            0 => Err(ErrorKind::WouldBlock.into()),
            len => {
                far.room -= len;
                far.output += len;
                Ok(len)
            }
        }
    }

    fn shutdown(&mut self, _how: Shutdown) {}
}

impl Drop for End {
    fn drop(&mut self) {
        let mut world = self.0.0.lock().unwrap();
        world.streams.remove(&self.1);
        world.lines.remove(&self.1);
    }
}

/// The state of the host's side, and what happens at the end.
pub struct Vsock(Shared, Last);

/// What the driver does at the end, beside a request.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Last {
    Nothing,
    /// It gives credit twice, and the host's program has more bytes than that.
    Credit(u16, u16),
    /// It sends as many bytes as it has credit for, in such packets, and one more.
    Fill(u16),
    /// It sends packets of no connection, and has no buffer for the answers.
    Resets,
}

/// A request that the guest sends.
#[derive(Arbitrary, Debug)]
pub enum Message {
    Packet {
        op: Op,
        host_port: Port,
        guest_port: Port,
        flags: u8,
        credit: Credit,
        /// Bytes after the header, and the length in the header if it is wrong.
        data: u16,
        len: Option<u32>,
        /// Other errors in the header.
        wrong: Option<Wrong>,
    },
    /// A buffer for packets from the host.
    Lend(u16),
    Events(u8),
}

#[derive(Arbitrary, Debug)]
pub enum Op {
    Known(u8),
    Any(u16),
}

#[derive(Arbitrary, Debug)]
pub enum Port {
    /// A port that is served, or one of a waiting program.
    Near(u8),
    Host(u8),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
pub enum Credit {
    Plenty,
    Little(u8, u8),
    Any(u32, u32),
}

#[derive(Arbitrary, Debug)]
pub enum Wrong {
    From(u64),
    To(u64),
    Type(u16),
    /// The packet is truncated to this length.
    Cut(u8),
}

impl Port {
    fn value(&self) -> u32 {
        match self {
            Self::Near(port) => (port % 6).into(),
            Self::Host(port) => HOST_PORT + u32::from(port % 8),
            Self::Any(port) => *port,
        }
    }
}

/// An action of the host.
#[derive(Arbitrary, Debug)]
pub enum Call {
    /// Programs connect and write.
    Callers(Vec<Line>),
    /// The nth stream becomes ready.
    Ready {
        which: u8,
        hung_up: bool,
    },
    Input {
        which: u8,
        len: u16,
        end: bool,
    },
    Room {
        which: u8,
        room: u16,
    },
    Break(u8),
    Tick,
    /// The host runs out of resources, or has some again.
    Fail(bool),
    /// An event of an unknown stream.
    Unknown(u64),
}

#[derive(Arbitrary, Debug)]
pub enum Line {
    Connect(u8),
    Half,
    Any(Vec<u8>),
}

impl Subject for Vsock {
    type Setup = Last;
    type Message = Message;
    type Call = Call;
    type Device = Device;

    fn new(last: Last) -> (Guest, Self) {
        let mut vsock = Self(Shared::default(), last);
        (Guest::new(vsock.renew()), vsock)
    }

    fn renew(&mut self) -> Device {
        Device::new(CID, Box::new(self.0.clone()))
    }

    fn encode(&self, message: &Message) -> Sent {
        encode(message)
    }

    fn call(&mut self, guest: &mut Guest, call: &Call) {
        let mut world = self.0.0.lock().unwrap();
        let streams = world.streams.len().max(1);
        let mut nth = |which: u8, change: &dyn Fn(&mut Far)| {
            let nth = world.streams.iter_mut().nth(usize::from(which) % streams);
            nth.map_or(u64::MAX, |(id, far)| {
                change(far);
                *id
            })
        };
        let (id, hung_up) = match call {
            Call::Ready { which, hung_up } => (nth(*which, &|_| ()), *hung_up),
            Call::Input { which, len, end } => {
                let change = |far: &mut Far| {
                    far.input += usize::from(*len);
                    far.input_ended |= *end;
                };
                (nth(*which, &change), false)
            }
            Call::Room { which, room } => (nth(*which, &|far| far.room = (*room).into()), false),
            Call::Break(which) => (nth(*which, &|far| far.broken = true), true),
            Call::Unknown(id) => (*id, false),
            Call::Fail(fails) => {
                world.fails = *fails;
                return;
            }
            Call::Callers(lines) => {
                world
                    .callers
                    .extend(lines.iter().take(100).map(Line::bytes));
                drop(world);
                self.callers(guest);
                return;
            }
            Call::Tick => {
                let due = std::mem::take(&mut world.tick_due);
                drop(world);
                if due {
                    let tick = |vsock: &mut Device, driver: &mut Driver| vsock.tick(driver);
                    guest.core().with_device(tick);
                }
                return;
            }
        };
        drop(world);
        let ready = |vsock: &mut Device, driver: &mut Driver| vsock.ready(driver, id, hung_up);
        guest.core().with_device(ready);
    }

    fn mend(&mut self) {
        let mut world = self.0.0.lock().unwrap();
        world.fails = false;
        world.callers.clear();
    }

    fn serve(&mut self, guest: &mut Guest) {
        // Earlier programs may still connect, at most as many as the buffers hold.
        let request = Message::Packet {
            op: Op::Known(REQUEST as u8),
            host_port: Port::Near(1),
            guest_port: Port::Any(9999),
            flags: 0,
            credit: Credit::Plenty,
            data: 0,
            len: None,
            wrong: None,
        };
        guest.send(TX, &packet(&request), &[], false);
        guest.notify(TX);
        assert_eq!(guest.returned(TX), [(0, 0)]);
        let answers = self.answers(guest);
        let answered = |bytes: &Vec<u8>| {
            let field = |at| u32::from_le_bytes([0, 1, 2, 3].map(|i: usize| bytes[at + i]));
            field(16) == 1 && field(20) == 9999 && bytes[30] == RESPONSE as u8
        };
        let full = self.0.0.lock().unwrap().streams.len() >= MAX_CONNECTIONS;
        assert!(full || answers.iter().any(answered), "no answer");
        if !full {
            match self.1 {
                Last::Nothing => {}
                Last::Credit(one, two) => self.credit(guest, one.into(), two.into()),
                Last::Fill(len) => self.fill(guest, len),
                Last::Resets => self.resets(guest),
            }
        }
    }
}

/// A packet of the last connection.
fn ours(op: u16, credit: (u32, u32), data: u16) -> Vec<u8> {
    packet(&Message::Packet {
        op: Op::Any(op),
        host_port: Port::Near(1),
        guest_port: Port::Any(9999),
        flags: 0,
        credit: Credit::Any(credit.0, credit.1),
        data,
        len: None,
        wrong: None,
    })
}

/// Operation and bytes of data, if it is a packet of the last connection.
fn of_ours(bytes: &[u8]) -> Option<(u16, usize)> {
    let field = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i: usize| bytes[at + i]));
    let op = u16::from_le_bytes([bytes[30], bytes[31]]);
    (field(16) == 1 && field(20) == 9999).then_some((op, bytes.len() - HEADER))
}

impl Vsock {
    /// Send a packet of the last connection, and return the device's.
    fn say(&self, guest: &mut Guest, packet: &[u8]) -> Vec<(u16, usize)> {
        guest.send(TX, packet, &[], false);
        guest.notify(TX);
        assert_eq!(guest.returned(TX).len(), 1);
        let answers = self.answers(guest);
        answers.iter().filter_map(|bytes| of_ours(bytes)).collect()
    }

    /// The stream of the last connection.
    fn last(&self) -> Id {
        let world = self.0.0.lock().unwrap();
        *world.streams.keys().next_back().expect("a stream")
    }

    fn with_last(&self, change: impl FnOnce(&mut Far)) {
        let mut world = self.0.0.lock().unwrap();
        world.streams.values_mut().next_back().map(change);
    }

    /// The device sends as many bytes as the guest has room for, and then asks for more.
    fn credit(&self, guest: &mut Guest, one: u32, two: u32) {
        let mut bytes = 0;
        let mut take = |answers: Vec<(u16, usize)>| {
            bytes += answers.iter().map(|(_, len)| len).sum::<usize>();
            let asks = answers.iter().any(|(op, _)| *op == CREDIT_REQUEST);
            (bytes, asks)
        };
        let known = self.say(guest, &ours(CREDIT_UPDATE, (one, 0), 0));
        take(known);
        self.with_last(|far| far.input = 1 << 18);
        let id = self.last();
        let ready = |vsock: &mut Device, driver: &mut Driver| vsock.ready(driver, id, false);
        guest.core().with_device(ready);
        let answers = self.answers(guest);
        let answers = answers.iter().filter_map(|bytes| of_ours(bytes)).collect();
        assert_eq!(take(answers).0, one as usize, "of its credit");
        // The guest's program has read all of it, and the buffer is another.
        let answers = self.say(guest, &ours(CREDIT_UPDATE, (two, one), 0));
        let (bytes, asks) = take(answers);
        assert_eq!(bytes, (one + two) as usize, "of its credit");
        assert!(asks || two == 0, "it does not ask for more");
    }

    /// The device keeps as many bytes as it has said, and no more.
    fn fill(&self, guest: &mut Guest, len: u16) {
        self.with_last(|far| far.room = 0);
        let len = usize::from(len).clamp(2048, 32 << 10);
        let mut sent = 0;
        while sent < BUFFER {
            let now = len.min(BUFFER - sent);
            let answers = self.say(guest, &ours(RW, (1 << 18, 0), now as u16));
            assert!(answers.iter().all(|(op, _)| *op != RST), "too early");
            sent += now;
        }
        let answers = self.say(guest, &ours(RW, (1 << 18, 0), 1));
        assert_eq!(answers, [(RST, 0)]);
    }

    /// The device keeps few answers, and loses none.
    fn resets(&self, guest: &mut Guest) {
        // Buffers that the device has still.
        let lent = usize::from(guest.in_flight(RX));
        let mut taken = 0;
        let mut unknown = ours(RW, (0, 0), 0);
        unknown[16..20].copy_from_slice(&77u32.to_le_bytes());
        loop {
            guest.send(TX, &unknown, &[], false);
            guest.notify(TX);
            if guest.returned(TX).is_empty() {
                break;
            }
            taken += 1;
            assert!(taken <= MAX_RESETS + lent, "they pile up");
        }
        let answers = self.answers(guest);
        let of_unknown = |bytes: &&Vec<u8>| bytes[20..24] == 77u32.to_le_bytes() && bytes[30] == 3;
        // The one that waited was taken when there was room.
        assert_eq!(answers.iter().filter(of_unknown).count(), taken + 1);
        assert_eq!(guest.returned(TX).len(), 1);
    }
}

impl Vsock {
    fn callers(&self, guest: &mut Guest) {
        let callers = |vsock: &mut Device, driver: &mut Driver| vsock.callers(driver);
        guest.core().with_device(callers);
    }

    /// Take all packets of the device.
    fn answers(&self, guest: &mut Guest) -> Vec<Vec<u8>> {
        let mut answers = Vec::new();
        for _ in 0..200 {
            // A buffer of the last time may be left, and the ring is small.
            if guest.in_flight(RX) == 0 {
                guest.lend(RX, 4096);
            }
            guest.notify(RX);
            let more = guest.received(RX);
            if more.is_empty() {
                break;
            }
            answers.extend(more);
        }
        answers
    }
}

impl Line {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Connect(port) => format!("CONNECT {}\nmore", port % 6).into(),
            Self::Half => b"CONNECT ".to_vec(),
            Self::Any(bytes) => bytes.clone(),
        }
    }
}

/// The request of a message.
pub(crate) fn encode(message: &Message) -> Sent {
    let (queue, bytes, room) = match message {
        Message::Packet { .. } => (TX, packet(message), 0),
        Message::Lend(room) => (RX, Vec::new(), *room),
        Message::Events(room) => (2, Vec::new(), (*room).into()),
    };
    Sent {
        queue,
        bytes,
        room: room.into(),
        again: 0,
    }
}

/// The bytes of a packet.
pub(crate) fn packet(message: &Message) -> Vec<u8> {
    let Message::Packet {
        op,
        host_port,
        guest_port,
        flags,
        credit,
        data,
        len,
        wrong,
    } = message
    else {
        return Vec::new();
    };
    let op = match op {
        Op::Known(op) => u16::from(op % 8),
        Op::Any(op) => *op,
    };
    let (buf_alloc, fwd_cnt) = match credit {
        Credit::Plenty => (1 << 18, 0),
        Credit::Little(buf_alloc, fwd_cnt) => ((*buf_alloc).into(), (*fwd_cnt).into()),
        Credit::Any(buf_alloc, fwd_cnt) => (*buf_alloc, *fwd_cnt),
    };
    let (mut from, mut to, mut kind, mut cut) = (CID.into(), HOST_CID, STREAM, usize::MAX);
    match wrong {
        Some(Wrong::From(cid)) => from = *cid,
        Some(Wrong::To(cid)) => to = *cid,
        Some(Wrong::Type(other)) => kind = *other,
        Some(Wrong::Cut(len)) => cut = (*len).into(),
        None => {}
    }
    let mut bytes = Vec::new();
    bytes.extend(u64::to_le_bytes(from));
    bytes.extend(to.to_le_bytes());
    bytes.extend(guest_port.value().to_le_bytes());
    bytes.extend(host_port.value().to_le_bytes());
    bytes.extend(len.unwrap_or(u32::from(*data)).to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(op.to_le_bytes());
    bytes.extend(u32::from(*flags).to_le_bytes());
    bytes.extend(buf_alloc.to_le_bytes());
    bytes.extend(fwd_cnt.to_le_bytes());
    assert_eq!(bytes.len(), HEADER);
    bytes.resize(HEADER + usize::from(*data), 0x55);
    bytes.truncate(cut);
    bytes
}
