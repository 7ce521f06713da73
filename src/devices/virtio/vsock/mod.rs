//! The socket device (virtio 1.2, 5.10): streams between ports of the guest and programs on the
//! host, which meet it as Firecracker has them do (its docs/vsock.md).
//!
//! A program on the host connects to the device's socket and writes `CONNECT <port>\n`; when the
//! guest has accepted, it reads `OK <its own port>\n`, and bytes from then on. A program in the
//! guest connects to port P of CID 2 and reaches whoever the [`Host`] has for P.
//!
//! A `connection` is a pair of ports with a [`Stream`]; `packet` is what passes between device
//! and driver. Nothing is read from a stream before the guest has buffers and credit for it, and
//! no connection keeps more than [`BUFFER`] bytes of the guest's.
//!
//! A saved machine goes on without its connections, of which the other halves are elsewhere:
//! `saved` has the guest told.

mod connection;
mod packet;
mod saved;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};

use super::queue::{Chain, VirtQueue};
use super::{Device, DeviceError, Driver, StateError, read_config_bytes};
pub use connection::{BUFFER, Stream};
use connection::{Connection, Outlet, Ports, Verdict};
use packet::{DATA_MOST, HOST_CID, Header, Op, STREAM};
use saved::Moved;

/// Device type (virtio 1.2, 5.10.1).
pub const ID: u32 = 19;
/// Least CID of a guest: 0 to 2 are the hypervisor, the local machine and the host.
pub const CID_LEAST: u32 = 3;
/// Most CID of a guest: 2^32 - 1 is VMADDR_CID_ANY.
pub const CID_MOST: u32 = u32::MAX - 1;
/// Most connections, with those that are about to be or still have bytes for the host.
pub const CONNECTIONS_MOST: usize = 1023;

/// VIRTIO_VSOCK_F_STREAM (virtio 1.2, 5.10.3).
const F_STREAM: u64 = 1 << 0;

const RX: usize = 0;
const TX: usize = 1;
/// Here the guest is told that it was moved (see `saved`).
const EVENTS: usize = 2;
/// Entries of receive, transmit and event queue.
const QUEUE_SIZES: [u16; 3] = [128; 3];

/// The ports that programs on the host get: 2^30 to 2^31 - 1.
const HOST_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;
/// Longest `CONNECT <port>\n`, with room for a word more than it takes.
const LINE_MOST: usize = 32;
/// RSTs that wait for buffers of the guest before no more is heard of it.
const RESETS_MOST: usize = 64;
/// Programs that are let in in one turn.
const CALLERS_PER_TURN: usize = 64;

/// Most buffers of the guest's that are filled by one read: a Linux guest has 4 KiB in each.
const TOGETHER: usize = 16;

/// A number for a stream, never used again.
pub type Id = u64;

/// Where streams come from. Called with the transport locked, on the event loop's thread: do not
/// block, do not call the transport.
pub trait Host: Send {
    /// The next program that has connected to the device's socket; its stream is `id`.
    ///
    /// # Errors
    /// `WouldBlock` when there is none: [`Vsock::callers`] says when there is. Another error
    /// has it tried again later.
    fn accept(&mut self, id: Id) -> io::Result<Box<dyn Stream>>;
    /// Connect to whoever serves `port`; the stream is `id`.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused` when nobody does, or what kept it from connecting.
    fn connect(&mut self, port: u32, id: Id) -> io::Result<Box<dyn Stream>>;
    /// Have [`Vsock::tick`] called, once, some seconds from now.
    fn tick_later(&mut self);
}

/// A program that has connected and has not said where to.
struct Caller {
    stream: Box<dyn Stream>,
    line: Vec<u8>,
}

/// The device.
pub struct Vsock {
    cid: u32,
    host: Box<dyn Host>,
    next_id: Id,
    next_port: u32,
    /// Programs may be waiting to be let in.
    calling: bool,
    callers: HashMap<Id, Caller>,
    connections: HashMap<Id, Connection>,
    ids: HashMap<Ports, Id>,
    /// What is left of connections that the guest has closed.
    leaving: HashMap<Id, Outlet>,
    /// Connections that have something to say, each once, in turn.
    line: VecDeque<Id>,
    resets: VecDeque<Header>,
    /// The guest has more to say, which waits for room in `resets`.
    held: bool,
    /// The guest is to be told, in its event queue, that all connections are gone.
    moved: Option<Moved>,
    /// The guest may have had another CID.
    restored: bool,
    ticking: bool,
    /// [`DATA_MOST`] bytes.
    scratch: Vec<u8>,
}

impl Vsock {
    /// A device for the guest `cid` ([`CID_LEAST`] to [`CID_MOST`]).
    pub fn new(cid: u32, host: Box<dyn Host>) -> Self {
        Self {
            cid,
            host,
            next_id: 0,
            next_port: HOST_PORTS.start,
            calling: false,
            callers: HashMap::new(),
            connections: HashMap::new(),
            ids: HashMap::new(),
            leaving: HashMap::new(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            held: false,
            moved: None,
            restored: false,
            ticking: false,
            scratch: vec![0; DATA_MOST],
        }
    }

    /// A program has connected to the device's socket. It is let in when the guest has a driver.
    ///
    /// # Errors
    /// The driver broke the rules.
    pub fn callers(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        self.calling = true;
        self.turn(driver)
    }

    /// Stream `id` has become readable or writable, or its other end has gone (`hung_up`). May
    /// come late or for nothing.
    ///
    /// # Errors
    /// The driver broke the rules.
    pub fn ready(&mut self, driver: &mut Driver, id: Id, hung_up: bool) -> Result<(), DeviceError> {
        if self.callers.contains_key(&id) {
            self.read_line(id);
        } else if let Some(connection) = self.connections.get_mut(&id) {
            connection.ready(hung_up);
            self.join_line(id);
        } else if let Some(outlet) = self.leaving.get_mut(&id)
            && (outlet.flush().is_err() || outlet.is_empty())
        {
            self.leaving.remove(&id);
        }
        self.turn(driver)
    }

    /// Some seconds have passed: give up what the guest has not answered in several of these.
    ///
    /// # Errors
    /// The driver broke the rules.
    pub fn tick(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        self.ticking = false;
        self.lose_patience();
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

    fn tick_later(&mut self) {
        if !std::mem::replace(&mut self.ticking, true) {
            self.host.tick_later();
        }
    }

    /// Streams that are held.
    fn streams(&self) -> usize {
        self.callers.len() + self.connections.len() + self.leaving.len()
    }

    fn new_id(&mut self) -> Id {
        self.next_id += 1;
        self.next_id
    }

    /// Do all that can be done now.
    fn turn(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let done = self
            .tell_of_move(driver)
            .and_then(|()| self.listen(driver, &mut scratch))
            .and_then(|()| self.let_in(driver))
            .and_then(|()| self.speak(driver, &mut scratch));
        self.scratch = scratch;
        done
    }
}

/// Programs on the host.
impl Vsock {
    fn let_in(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let Some(queue) = driver.queue(RX) else {
            return Ok(());
        };
        for _ in 0..CALLERS_PER_TURN {
            if !self.calling {
                return Ok(());
            }
            let id = self.new_id();
            match self.host.accept(id) {
                // One too many is let go, which is all that it can be told.
                Ok(stream) if self.streams() < CONNECTIONS_MOST => {
                    let line = Vec::new();
                    self.callers.insert(id, Caller { stream, line });
                    self.read_line(id);
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.calling = false,
                Err(_) => return Ok(()),
            }
        }
        queue.process_again();
        Ok(())
    }

    /// Read on in a caller's line, byte by byte: what follows it is for the guest.
    fn read_line(&mut self, id: Id) {
        let Some(caller) = self.callers.get_mut(&id) else {
            return;
        };
        while caller.line.len() < LINE_MOST && caller.line.last() != Some(&b'\n') {
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

    /// A port of the host's that has no connection with port `guest`; there are far more ports
    /// than connections.
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

/// P of `CONNECT P\n`, if that is what a line says.
fn wanted_port(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let mut words = line.split_ascii_whitespace();
    let verb = words.next()?;
    let port = words.next()?.parse().ok()?;
    (verb.eq_ignore_ascii_case("connect") && words.next().is_none()).then_some(port)
}

/// Connections.
impl Vsock {
    fn add(&mut self, id: Id, connection: Connection) {
        self.ids.insert(connection.ports(), id);
        self.connections.insert(id, connection);
        self.join_line(id);
    }

    fn remove(&mut self, id: Id) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        self.ids.remove(&connection.ports());
        Some(connection)
    }

    fn reset_connection(&mut self, id: Id) -> Option<Connection> {
        let connection = self.remove(id)?;
        // A guest without buffers is not told of ever more that it never heard of.
        if connection.is_known() {
            let reset = self.reset_of(connection.ports());
            self.resets.push_back(reset);
        }
        Some(connection)
    }

    fn reset_of(&self, ports: Ports) -> Header {
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

    fn join_line(&mut self, id: Id) {
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.wants_to_speak()
            && !std::mem::replace(&mut connection.in_line, true)
        {
            self.line.push_back(id);
        }
    }
}

/// What the guest says.
impl Vsock {
    fn listen(&mut self, driver: &mut Driver, scratch: &mut [u8]) -> Result<(), DeviceError> {
        loop {
            let Some(queue) = driver.queue(TX) else {
                return Ok(());
            };
            self.held = self.resets.len() >= RESETS_MOST;
            if self.held {
                return Ok(());
            }
            let Some(chain) = queue.pop()? else {
                return Ok(());
            };
            if !chain.writable().is_empty() {
                return Err(queue.refuse(&chain, "is to be written, in a queue to be read"));
            }
            let mut bytes = [0; Header::SIZE];
            let whole = queue.read(&chain, 0, &mut bytes)? == bytes.len();
            let header = Header::decode(&bytes);
            let len = usize::try_from(header.len).unwrap_or(usize::MAX);
            let space = scratch.get_mut(..len).unwrap_or_default();
            let there = queue.read(&chain, Header::SIZE as u64, space)?;
            queue.finish(chain, 0)?;
            let heard = match whole {
                false => Err("a packet without a whole header; ignored".into()),
                // The data of a packet that is too long was not read either.
                true if there < len => self.hear(&header, None),
                true => self.hear(&header, scratch.get(..len)),
            };
            if let Err(what) = heard {
                driver.warn(&what);
            }
        }
    }

    /// React to one packet, whose data is missing if it has less or more than it may; or say
    /// what was wrong with it.
    fn hear(&mut self, header: &Header, data: Option<&[u8]>) -> Result<(), String> {
        if header.src_cid != u64::from(self.cid) {
            // There is nobody to answer. A guest that was restored may have said it with the CID that
            // it had, before it heard of another.
            if self.restored {
                return Ok(());
            }
            return Err(format!(
                "a packet from CID {}, which is not the guest's; ignored",
                header.src_cid
            ));
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let op = Op::from_code(header.op);
        let known = header.dst_cid == HOST_CID && header.kind == STREAM;
        let id = self.ids.get(&ports).copied().filter(|_| known);
        let Some(id) = id else {
            match op {
                Some(Op::Rst) => {}
                Some(Op::Request) if known && data.is_some() => return self.open(ports, header),
                // virtio 1.2, 5.10.6.4.1 for unknown types; the same for unknown CIDs.
                _ => self.resets.push_back(header.reset()),
            }
            return Ok(());
        };
        let verdict = match (self.connections.get_mut(&id), op, data) {
            (Some(connection), Some(op), Some(data)) => connection.hear(op, header, data),
            (Some(_), None, _) => Verdict::Reset("was sent an unknown operation"),
            _ => Verdict::Reset("was sent a packet whose length is wrong"),
        };
        let reason = match verdict {
            Verdict::Stay => {
                self.join_line(id);
                return Ok(());
            }
            Verdict::Drop => {
                self.remove(id);
                return Ok(());
            }
            Verdict::Close => {
                if let Some(connection) = self.reset_connection(id) {
                    self.leaving.insert(id, connection.into_outlet());
                    self.leaving.retain(|_, outlet| !outlet.is_empty());
                }
                return Ok(());
            }
            Verdict::Reset(reason) => reason,
        };
        self.reset_connection(id);
        match reason {
            "" => Ok(()),
            _ => Err(format!(
                "the connection of port {} to {} {reason}; reset",
                ports.guest, ports.host
            )),
        }
    }

    /// The guest wants to connect.
    fn open(&mut self, ports: Ports, request: &Header) -> Result<(), String> {
        let id = self.new_id();
        let stream = match self.streams() < CONNECTIONS_MOST {
            true => self.host.connect(ports.host, id),
            false => {
                self.resets.push_back(request.reset());
                return Err(format!("more than {CONNECTIONS_MOST} connections; reset"));
            }
        };
        match stream {
            Ok(stream) => {
                self.add(id, Connection::accepted(ports, stream, request));
                Ok(())
            }
            Err(error) => {
                self.resets.push_back(request.reset());
                match error.kind() {
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused => Ok(()),
                    _ => Err(format!("port {} cannot be reached: {error}", ports.host)),
                }
            }
        }
    }
}

/// What the guest is told.
impl Vsock {
    fn speak(&mut self, driver: &mut Driver, scratch: &mut [u8]) -> Result<(), DeviceError> {
        let Some(queue) = driver.queue(RX) else {
            return Ok(());
        };
        let mut together = 1;
        while !self.resets.is_empty() || !self.line.is_empty() {
            let (chains, room) = buffers(queue, together)?;
            if chains.is_empty() {
                break;
            }
            let Some(header) = self.next_packet(scratch.get_mut(..room).unwrap_or_default()) else {
                chains.into_iter().for_each(|chain| queue.put_back(chain));
                break;
            };
            let data = scratch.get(..header.len as usize).unwrap_or_default();
            together = match data.len() == room {
                true => (2 * together).min(TOGETHER),
                false => 1,
            };
            tell(queue, chains, header, data)?;
        }
        if self.held
            && self.resets.len() < RESETS_MOST
            && let Some(queue) = driver.queue(TX)
        {
            queue.process_again();
        }
        Ok(())
    }

    /// The next packet, with its data in `buffer`: RSTs first, then a packet of each connection
    /// in turn.
    fn next_packet(&mut self, buffer: &mut [u8]) -> Option<Header> {
        // A connection that the guest hears is over by an RST has come to a clean end, as it takes it.
        if self.is_deaf() {
            return None;
        }
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(id) = self.line.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            connection.in_line = false;
            if let Some(header) = connection.speak(self.cid.into(), buffer) {
                if connection.waits() {
                    self.tick_later();
                }
                self.join_line(id);
                return Some(header);
            }
        }
        None
    }
}

/// Buffers of the guest's for what one read brings, up to `count`, and how much data they hold.
fn buffers(queue: &mut VirtQueue, count: usize) -> Result<(Vec<Chain>, usize), DeviceError> {
    let (mut chains, mut space) = (Vec::new(), 0);
    while chains.len() < count
        && space < DATA_MOST
        && let Some(chain) = queue.pop()?
    {
        if !chain.readable().is_empty() {
            return Err(queue.refuse(&chain, "is to be read, in a queue to be written"));
        }
        match room(&chain) {
            0 => return Err(queue.refuse(&chain, "is too short for a packet")),
            room => space += room,
        }
        chains.push(chain);
    }
    Ok((chains, space.min(DATA_MOST)))
}

/// Bytes of data that fit into a buffer, behind a header.
fn room(chain: &Chain) -> usize {
    let room = chain.writable_len().saturating_sub(Header::SIZE as u64);
    usize::try_from(room).unwrap_or(usize::MAX).min(DATA_MOST)
}

/// Send a packet with `data`, as one for each buffer that it needs; the other `chains` come again.
fn tell(
    queue: &mut VirtQueue,
    chains: Vec<Chain>,
    mut header: Header,
    mut data: &[u8],
) -> Result<(), DeviceError> {
    for (index, chain) in chains.into_iter().enumerate() {
        if index > 0 && data.is_empty() {
            queue.put_back(chain);
            continue;
        }
        let now;
        (now, data) = data.split_at(data.len().min(room(&chain)));
        header.len = now.len() as u32;
        queue.write(&chain, 0, &header.encode())?;
        queue.write(&chain, Header::SIZE as u64, now)?;
        queue.finish(chain, Header::SIZE as u32 + header.len)?;
    }
    Ok(())
}

impl Device for Vsock {
    fn id(&self) -> u32 {
        ID
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
        // Programs that came before the driver are let in on the event loop's thread.
        if let Some(queue) = driver.queue(RX) {
            queue.process_again();
        }
        Ok(())
    }

    /// Programs that have not said where to and what is still to be written stay.
    fn reset(&mut self) {
        self.connections.clear();
        self.ids.clear();
        self.line.clear();
        self.resets.clear();
        self.held = false;
        self.moved = None;
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
