//! The socket device over its Unix sockets, with living programs at their other ends: they connect,
//! accept, write, read, hang and leave.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use hull::devices::virtio::Driver;
use hull::devices::virtio::testing::Guest;
use hull::devices::virtio::transport::Transport;
use hull::devices::virtio::vsock::{BUFFER, Vsock as Device};
use hull::vmm::vsock;

use crate::vsock::{CID, Credit, HEADER, Message, Op, Port, RESPONSE, RX, TX, encode, packet};
use crate::{Sent, Subject};

/// Ports below this one, and from 1 on, have a program.
const SERVED: u32 = 3;
/// Most programs that live at once.
const MAX_PEERS: usize = 64;
const RW: u16 = 5;

/// What stays over all inputs: hull's sockets, and those of programs.
struct Host {
    sockets: vsock::Sockets,
    path: PathBuf,
    listeners: Vec<UnixListener>,
}

fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| {
        let folder = crate::folder("sockets");
        let path = folder.join("v");
        let listen = |port| {
            let listener = UnixListener::bind(folder.join(format!("v_{port}"))).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        Host {
            sockets: vsock::Sockets::new(&path).unwrap(),
            listeners: (1..SERVED).map(listen).collect(),
            path,
        }
    })
}

/// The programs of one input.
pub struct Sockets {
    link: vsock::Link,
    peers: Vec<UnixStream>,
    /// Descriptors that were open at the beginning.
    open: usize,
    /// At the end the guest sends more than the host's socket holds.
    flood: bool,
}

/// An action of the host.
#[derive(Arbitrary, Debug)]
pub enum Call {
    /// A program connects to the device and writes a line.
    Connect(Line),
    /// The program at a port accepts.
    Accept(u8),
    Write(u8, u16),
    Read(u8, u16),
    Finish(u8, bool),
    Leave(u8),
    Tick,
}

#[derive(Arbitrary, Debug)]
pub enum Line {
    Port(u8),
    Half,
    Any(Vec<u8>),
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

impl Subject for Sockets {
    type Setup = bool;
    type Message = Message;
    type Call = Call;
    type Device = Device;

    fn renew(&mut self) -> Device {
        Device::new(CID, host().sockets.host())
    }

    fn moved(&mut self, guest: &mut Guest) {
        self.link = host().sockets.link(guest.transport.core().clone());
    }

    fn new(flood: bool) -> (Guest, Self) {
        let host = host();
        // What the last input has left in queues.
        let mut device = host.sockets.host();
        while device.accept(0).is_ok() {}
        for listener in &host.listeners {
            while listener.accept().is_ok() {}
        }
        let guest = Guest::new(Device::new(CID, device));
        let link = host.sockets.link(guest.transport.core().clone());
        let (peers, open) = (Vec::new(), open_files());
        let sockets = Self {
            link,
            peers,
            open,
            flood,
        };
        (guest, sockets)
    }

    fn encode(&self, message: &Message) -> Sent {
        encode(message)
    }

    fn call(&mut self, guest: &mut Guest, call: &Call) {
        match call {
            Call::Connect(line) => {
                let line = match line {
                    Line::Port(port) => format!("CONNECT {}\nmore", port % 6).into(),
                    Line::Half => b"CONNECT ".to_vec(),
                    Line::Any(bytes) => bytes.clone(),
                };
                if self.peers.len() < MAX_PEERS {
                    let mut peer = UnixStream::connect(&host().path).unwrap();
                    peer.set_nonblocking(true).unwrap();
                    let _ = peer.write(&line);
                    self.peers.push(peer);
                }
            }
            Call::Accept(which) => drop(self.accept(*which)),
            Call::Write(which, len) => {
                if let Some(mut peer) = self.peer(*which) {
                    let _ = peer.write(&vec![0xaa; (*len).into()]);
                }
            }
            Call::Read(which, len) => {
                if let Some(mut peer) = self.peer(*which) {
                    let _ = peer.read(&mut vec![0; (*len).into()]);
                }
            }
            Call::Finish(which, read) => {
                if let Some(peer) = self.peer(*which) {
                    let how = if *read {
                        Shutdown::Read
                    } else {
                        Shutdown::Write
                    };
                    let _ = peer.shutdown(how);
                }
            }
            Call::Leave(which) => {
                if !self.peers.is_empty() {
                    self.peers.remove(usize::from(*which) % self.peers.len());
                }
            }
            Call::Tick => {
                let tick = |vsock: &mut Device, driver: &mut Driver| vsock.tick(driver);
                guest.core().with_device(tick);
            }
        }
        self.process();
    }

    fn check(&mut self, _guest: &mut Guest) {
        // Each descriptor of hull has a program that lives, waits or has left.
        let waiting = 2 * usize::from(SERVED as u8) * 150;
        assert!(open_files() <= self.open + 2 * MAX_PEERS + waiting);
    }

    fn serve(&mut self, guest: &mut Guest) {
        self.peers.clear();
        while self.accept(0).is_some() {
            self.peers.clear();
        }
        self.process();
        answers(guest);
        let send = |guest: &mut Guest, op: u16, data: &[u8]| {
            let mut bytes = packet(&Message::Packet {
                op: Op::Any(op),
                host_port: Port::Near(1),
                guest_port: Port::Any(9999),
                flags: 0,
                credit: Credit::Plenty,
                data: data.len() as u16,
                len: None,
                wrong: None,
            });
            bytes[HEADER..].copy_from_slice(data);
            guest.send(TX, &bytes, &[], false);
            guest.notify(TX);
            assert_eq!(guest.returned(TX).len(), 1);
        };
        send(guest, 1, &[]);
        let answered = answers(guest);
        assert!(
            answered
                .iter()
                .any(|bytes| is_ours(bytes) == Some(RESPONSE)),
            "no answer"
        );
        let mut peer = self.accept(0).expect("a connection");
        // What the guest writes arrives, and what the program writes.
        let data: Vec<u8> = (0..500u16).map(|n| (n * 7 / 3) as u8).collect();
        send(guest, RW, &data);
        let mut read = vec![0; data.len()];
        peer.read_exact(&mut read).unwrap();
        assert_eq!(read, data);
        assert_eq!(
            peer.read(&mut [0]).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        peer.write_all(&data).unwrap();
        self.process();
        let ours = answers(guest)
            .into_iter()
            .filter(|bytes| is_ours(bytes) == Some(RW));
        let came: Vec<u8> = ours.flat_map(|bytes| bytes[HEADER..].to_vec()).collect();
        assert_eq!(came, data);
        if self.flood {
            self.flood(guest, &mut peer, &send);
        }
        drop(peer);
        self.process();
        answers(guest);
    }

    /// No program is left, and no connection.
    fn end(&mut self, _guest: &mut Guest) {
        self.peers.clear();
        while self.accept(0).is_some() || self.accept(1).is_some() {
            self.peers.clear();
        }
        self.process();
        assert_eq!(open_files(), self.open, "descriptors stay open");
    }
}

/// The operation of a packet, if it is one of the last connection.
fn is_ours(bytes: &[u8]) -> Option<u16> {
    let field = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i: usize| bytes[at + i]));
    let ours = field(16) == 1 && field(20) == 9999;
    ours.then(|| u16::from_le_bytes([bytes[30], bytes[31]]))
}

/// Take all packets of the device.
fn answers(guest: &mut Guest) -> Vec<Vec<u8>> {
    let mut answers = Vec::new();
    for _ in 0..400 {
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

/// The guest sends a packet of the last connection.
type Send<'a> = &'a dyn Fn(&mut Guest, u16, &[u8]);

impl Sockets {
    /// The guest sends until its credit is used up, and its program reads only then: nothing is lost.
    fn flood(&self, guest: &mut Guest, peer: &mut UnixStream, send: Send) {
        const PACKET: usize = 32 << 10;
        let (mut sent, mut known, mut first) = (0, 0, 0u8);
        let mut expected = Vec::new();
        while sent - known + PACKET <= BUFFER && sent < 2 << 20 {
            let data: Vec<u8> = (0..PACKET).map(|n| (n / 251) as u8 ^ first).collect();
            first = first.wrapping_add(1);
            send(guest, RW, &data);
            sent += PACKET;
            expected.extend(data);
            for bytes in answers(guest)
                .iter()
                .filter(|bytes| is_ours(bytes).is_some())
            {
                // fwd_cnt, in which the first bytes count.
                let fwd_cnt = u32::from_le_bytes([40, 41, 42, 43].map(|at: usize| bytes[at]));
                known = (fwd_cnt as usize).saturating_sub(500);
            }
        }
        let mut read: Vec<u8> = Vec::new();
        while read.len() < expected.len() {
            let mut part = vec![0; PACKET];
            match peer.read(&mut part) {
                Ok(len) => read.extend(&part[..len]),
                Err(error) => panic!("{error} after {} of {sent} bytes", read.len()),
            }
            self.process();
        }
        assert!(read == expected, "other bytes");
    }

    fn peer(&self, which: u8) -> Option<&UnixStream> {
        self.peers.get(usize::from(which) % self.peers.len().max(1))
    }

    /// Keep the next connection to the program at a port, and return it as well.
    fn accept(&mut self, which: u8) -> Option<UnixStream> {
        let listeners = &host().listeners;
        let (peer, _) = listeners[usize::from(which) % listeners.len()]
            .accept()
            .ok()?;
        peer.set_nonblocking(true).unwrap();
        let ours = peer.try_clone().unwrap();
        self.peers.push(peer);
        self.peers.truncate(MAX_PEERS);
        Some(ours)
    }

    /// hull handles all sockets that are ready.
    fn process(&self) {
        for _ in 0..64 {
            if !self.link.process() {
                return;
            }
        }
    }
}
