//! The device: its connections, and the programs on the host that open them.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};

use super::connection::{Connection, Outlet, Ports, Stream};
use super::packet::{HOST_CID, Header, MAX_DATA, Op, STREAM};
use crate::devices::state::StateError;
use crate::devices::virtio::{Device, DeviceError, Driver, Kind, read_config_bytes};

const KIND: Kind = Kind {
    id: 19,
    name: "socket",
    features: &[(0, "STREAM"), (1, "SEQPACKET")],
    fields: &[("guest_cid", 0, 8)],
};
/// Least CID of a guest: 0 to 2 are the hypervisor, the local machine and the host.
pub const MIN_CID: u32 = 3;
/// Greatest CID of a guest: 2^32 - 1 is VMADDR_CID_ANY.
pub const MAX_CID: u32 = u32::MAX - 1;
/// Connections, including those being opened and those with bytes left for the host.
pub const MAX_CONNECTIONS: usize = 1023;

/// VIRTIO_VSOCK_F_STREAM (virtio 1.2, 5.10.3).
pub(super) const F_STREAM: u64 = 1 << 0;

/// Queue of packets to the guest.
pub(super) const RX: usize = 0;
/// Queue of packets from the guest.
pub(super) const TX: usize = 1;
/// Queue of events (see `saved`).
pub(super) const EVENTS: usize = 2;
/// Entries of receive, transmit and event queue.
const QUEUE_SIZES: [u16; 3] = [128; 3];

/// The ports that programs on the host get: 2^30 to 2^31 - 1.
pub(super) const HOST_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;
/// Longest `CONNECT <port>\n`, with room for one word more than it needs.
const MAX_LINE: usize = 32;
/// RSTs that may wait for buffers of the guest; with more, no packet of the guest is taken.
pub(super) const MAX_RESETS: usize = 64;
/// Programs that are accepted in one turn.
const CALLERS_PER_TURN: usize = 64;

/// A number for a stream, never used again.
pub type Id = u64;

/// Where streams come from. Called with the core locked, on the event loop's thread: do not
/// block, do not call the core.
pub trait Host: Send {
    /// The next program that has connected to the device's socket; its stream is `id`.
    ///
    /// # Errors
    /// `WouldBlock` when there is none: [`Vsock::callers`] is called when there is. After another
    /// error it is tried again later.
    fn accept(&mut self, id: Id) -> io::Result<Box<dyn Stream>>;
    /// Connect to the server for `port`; the stream is `id`.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused` when there is none, or why connecting failed.
    fn connect(&mut self, port: u32, id: Id) -> io::Result<Box<dyn Stream>>;
    /// Have [`Vsock::tick`] called, once, some seconds from now.
    fn tick_later(&mut self);
}

/// A program that has connected and has not yet named a port.
struct Caller {
    stream: Box<dyn Stream>,
    line: Vec<u8>,
}

/// A socket device with its connections.
pub struct Vsock {
    pub(super) cid: u32,
    pub(super) host: Box<dyn Host>,
    next_id: Id,
    pub(super) next_port: u32,
    /// Programs may be waiting to be accepted.
    accept_pending: bool,
    callers: HashMap<Id, Caller>,
    pub(super) connections: HashMap<Id, Connection>,
    pub(super) ids: HashMap<Ports, Id>,
    /// What is left of connections that the guest has closed.
    pub(super) draining: HashMap<Id, Outlet>,
    /// Connections that have a packet for the guest, each once, in turn.
    pub(super) tx_pending: VecDeque<Id>,
    pub(super) resets: VecDeque<Header>,
    /// Packets of the guest wait until there is room in `resets`.
    pub(super) rx_held: bool,
    /// The guest has to learn, by its event queue, that all connections are lost.
    pub(super) transport_reset: Option<TransportReset>,
    /// The guest may have had another CID.
    pub(super) restored: bool,
    ticking: bool,
    /// A buffer of [`MAX_DATA`] bytes.
    scratch: Vec<u8>,
}

/// State of the event by which the guest learns that its connections are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransportReset {
    /// There was no buffer for it.
    Unsent,
    /// Nor was there one for some seconds: connections are made now, and reset when there is one.
    Late,
    /// It is in a buffer, and this many are left: the guest adds one when it has read it.
    Sent(usize),
}

impl Vsock {
    /// A device for the guest `cid` ([`MIN_CID`] to [`MAX_CID`]).
    pub fn new(cid: u32, host: Box<dyn Host>) -> Self {
        Self {
            cid,
            host,
            next_id: 0,
            next_port: HOST_PORTS.start,
            accept_pending: false,
            callers: HashMap::new(),
            connections: HashMap::new(),
            ids: HashMap::new(),
            draining: HashMap::new(),
            tx_pending: VecDeque::new(),
            resets: VecDeque::new(),
            rx_held: false,
            transport_reset: None,
            restored: false,
            ticking: false,
            scratch: vec![0; MAX_DATA],
        }
    }

    /// A program has connected to the device's socket. It is accepted when the guest has a driver.
    ///
    /// # Errors
    /// The driver broke the rules.
    pub fn callers(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        self.accept_pending = true;
        self.turn(driver)
    }

    /// Stream `id` has become readable or writable, or its other end has closed (`hung_up`). May
    /// be called late or without a reason.
    ///
    /// # Errors
    /// The driver broke the rules.
    pub fn ready(&mut self, driver: &mut Driver, id: Id, hung_up: bool) -> Result<(), DeviceError> {
        if self.callers.contains_key(&id) {
            self.read_line(id);
        } else if let Some(connection) = self.connections.get_mut(&id) {
            connection.ready(hung_up);
            self.queue_tx(id);
        } else if let Some(outlet) = self.draining.get_mut(&id)
            && (outlet.flush().is_err() || outlet.is_empty())
        {
            self.draining.remove(&id);
        }
        self.turn(driver)
    }

    /// Some seconds have passed: reset connections that the guest has not answered for several
    /// ticks.
    ///
    /// # Errors
    /// The driver broke the rules.
    pub fn tick(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        self.ticking = false;
        self.transport_reset_tick();
        let connections = self.connections.iter_mut();
        let late: Vec<Id> = connections
            .filter_map(|(id, connection)| connection.tick().then_some(*id))
            .collect();
        for id in late {
            self.reset_connection(id);
        }
        if self.connections.values().any(Connection::waits) {
            self.tick_later();
        }
        self.turn(driver)
    }

    pub(super) fn tick_later(&mut self) {
        if !std::mem::replace(&mut self.ticking, true) {
            self.host.tick_later();
        }
    }

    pub(super) fn streams(&self) -> usize {
        self.callers.len() + self.connections.len() + self.draining.len()
    }

    pub(super) fn new_id(&mut self) -> Id {
        self.next_id += 1;
        self.next_id
    }

    /// Do all that is possible now.
    fn turn(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let done = self
            .send_transport_reset(driver)
            .and_then(|()| self.receive(driver, &mut scratch))
            .and_then(|()| self.accept_callers(driver))
            .and_then(|()| self.transmit(driver, &mut scratch));
        self.scratch = scratch;
        done
    }
}

/// Programs on the host.
impl Vsock {
    fn accept_callers(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let Some(queue) = driver.queue(RX) else {
            return Ok(());
        };
        for _ in 0..CALLERS_PER_TURN {
            if !self.accept_pending {
                return Ok(());
            }
            let id = self.new_id();
            match self.host.accept(id) {
                // One too many is closed; the protocol has no message for it.
                Ok(stream) if self.streams() < MAX_CONNECTIONS => {
                    let line = Vec::new();
                    self.callers.insert(id, Caller { stream, line });
                    self.read_line(id);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.accept_pending = false,
                Err(_) => return Ok(()),
            }
        }
        queue.process_again();
        Ok(())
    }

    /// Read more of a caller's line, byte by byte: what follows it is for the guest.
    fn read_line(&mut self, id: Id) {
        let Some(caller) = self.callers.get_mut(&id) else {
            return;
        };
        while caller.line.len() < MAX_LINE && caller.line.last() != Some(&b'\n') {
            let mut byte = [0];
            match caller.stream.read(&mut byte) {
                Ok(1) => caller.line.extend(byte),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => break,
            }
        }
        if let Some(caller) = self.callers.remove(&id)
            && let Some(guest) = wanted_port(&caller.line)
        {
            let host = self.free_port(guest);
            let ports = Ports { host, guest };
            self.add(id, Connection::requested(ports, caller.stream));
            self.tick_later();
        }
    }

    /// A port of the host without a connection to port `guest`; there are far more ports than
    /// connections.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = match host + 1 {
                next if HOST_PORTS.contains(&next) => next,
                _ => HOST_PORTS.start,
            };
            if !self.ids.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }
}

/// P of the line `CONNECT P\n`.
fn wanted_port(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let mut words = line.split_ascii_whitespace();
    let verb = words.next()?;
    let port = words.next()?.parse().ok()?;
    (verb.eq_ignore_ascii_case("connect") && words.next().is_none()).then_some(port)
}

/// The table of connections.
impl Vsock {
    pub(super) fn add(&mut self, id: Id, connection: Connection) {
        self.ids.insert(connection.ports(), id);
        self.connections.insert(id, connection);
        self.queue_tx(id);
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        self.ids.remove(&connection.ports());
        if connection.tx_queued {
            // Without buffers of the guest nothing else takes it out, and connections come and go.
            self.tx_pending.retain(|pending| *pending != id);
        }
        Some(connection)
    }

    pub(super) fn reset_connection(&mut self, id: Id) -> Option<Connection> {
        let connection = self.remove(id)?;
        // Not of those that the guest does not know: without buffers they would pile up.
        if connection.is_known() {
            let reset = self.reset_of(connection.ports());
            self.resets.push_back(reset);
        }
        Some(connection)
    }

    pub(super) fn reset_of(&self, ports: Ports) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.cid.into(),
            src_port: ports.host,
            dst_port: ports.guest,
            kind: STREAM,
            op: Op::Rst as u16,
            ..Header::default()
        }
    }

    pub(super) fn queue_tx(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.has_packet()
            && !std::mem::replace(&mut connection.tx_queued, true)
        {
            self.tx_pending.push_back(id);
        }
    }
}

impl Device for Vsock {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// struct virtio_vsock_config (virtio 1.2, 5.10.4): guest_cid.
    fn config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        // Programs that connected before are accepted on the event loop's thread.
        if let Some(queue) = driver.queue(RX) {
            queue.process_again();
        }
        Ok(())
    }

    /// Keeps programs that have not named a port, and what is still to be written.
    fn reset(&mut self) {
        self.connections.clear();
        self.ids.clear();
        self.tx_pending.clear();
        self.resets.clear();
        self.rx_held = false;
        self.transport_reset = None;
    }

    fn process(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        match queue {
            RX | TX | EVENTS => self.turn(driver),
            _ => Ok(()),
        }
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        self.saved()
    }

    fn load(&mut self, state: &[u8], driver: &mut Driver) -> Result<(), StateError> {
        self.restore(state, driver)
    }
}
