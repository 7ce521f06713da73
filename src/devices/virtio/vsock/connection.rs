//! One connection: bytes between a guest's port and a [`Stream`] of the host, as far as either
//! side has room (virtio 1.2, 5.10.6.3).
//!
//! ```text
//!  host's:  requested -- RESPONSE --> open -- SHUTDOWN, both halves, from the guest --> closed
//!  guest's: ------------------------> open -- RST, or a rule broken -----------------> closed
//! ```
//!
//! Bytes from the guest that the host has not taken wait in an [`Outlet`], which may outlive the
//! connection: the host gets all bytes of a guest that closes.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;

use super::packet::{Header, MAX_DATA, NO_MORE, NO_RECEIVE, NO_SEND, Op, STREAM};

/// Bytes from the guest that may wait for the host: buf_alloc of all packets to the guest. Two
/// packets of the greatest size, so that the guest fills one while the other is moved.
pub const BUFFER: usize = 2 * MAX_DATA;
/// Bytes that the host takes before the guest gets a CREDIT_UPDATE for which it did not ask.
const UPDATE_AFTER: u32 = BUFFER as u32 / 4;
/// Ticks after which a connection is reset when the guest does not answer.
const TIMEOUT_TICKS: u8 = 2;

/// The host's end of a connection. Never blocks: what cannot be done now is
/// [`ErrorKind::WouldBlock`], and [`super::Vsock::ready`] is called when it can be.
pub trait Stream: Send {
    /// Read at least one byte into `buffer`, which is not empty; 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock`, or the stream is broken.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Write some of `bytes`, which are not empty.
    ///
    /// # Errors
    /// `WouldBlock`, or the other end has closed.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Close one half, or both.
    fn shutdown(&mut self, how: Shutdown);
}

/// The ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// Chosen by hull for a connection from the host, by the guest's program otherwise.
    pub host: u32,
    /// Chosen by the guest for a connection from it, by the host's program otherwise.
    pub guest: u32,
}

/// A stream with what waits to be written to it.
pub struct Outlet {
    stream: Box<dyn Stream>,
    waiting: VecDeque<u8>,
}

impl Outlet {
    /// Whether all is written.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Write what waits, then `bytes`, and keep what the stream does not take now. Returns how
    /// many bytes it took.
    ///
    /// # Errors
    /// The other end has closed.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = self.flush()?;
        let mut rest = bytes;
        if self.waiting.is_empty() {
            while !rest.is_empty() {
                let written = written(self.stream.write(rest))?;
                if written == 0 {
                    break;
                }
                taken += written;
                rest = rest.get(written..).unwrap_or_default();
            }
        }
        self.waiting.extend(rest);
        Ok(taken)
    }

    /// Write what waits, as far as the stream takes it; returns how many bytes it took.
    ///
    /// # Errors
    /// The other end has closed.
    pub fn flush(&mut self) -> io::Result<usize> {
        let mut taken = 0;
        while !self.waiting.is_empty() {
            let written = written(self.stream.write(self.waiting.as_slices().0))?;
            if written == 0 {
                return Ok(taken);
            }
            self.waiting.drain(..written.min(self.waiting.len()));
            taken += written;
        }
        // Memory for a burst is not kept for the life of an idle connection.
        self.waiting = VecDeque::new();
        Ok(taken)
    }
}

/// 0 for what would block.
fn written(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result,
    }
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays open, or is still being opened.
    Stay,
    /// The guest has closed it cleanly: it gets its RST, the host the rest of the bytes.
    Close,
    /// A rule was broken (the text says which, for a message), or the host's end was: the guest
    /// gets an RST.
    Reset(&'static str),
    /// The guest has reset it.
    Drop,
}

/// One end of a connection: the device's.
pub struct Connection {
    ports: Ports,
    outlet: Outlet,
    /// Both sides have agreed to it.
    open: bool,
    /// REQUEST or RESPONSE, until it is sent.
    opening: Option<Op>,
    /// A CREDIT_UPDATE is due.
    update: bool,
    /// Bytes that the host has taken, modulo 2^32, and how many of them the guest knows.
    fwd_cnt: u32,
    told_fwd_cnt: u32,
    /// Bytes sent to the guest, modulo 2^32.
    tx_cnt: u32,
    /// The guest's buffer, as its last packet had it.
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// A CREDIT_REQUEST was sent. One each time that the guest's buffer is full: otherwise the two
    /// sides would ask and answer without end.
    credit_requested: bool,
    /// The stream may have something to read.
    readable: bool,
    /// SHUTDOWN flags of the host's end, and those that the guest knows.
    ended: u32,
    told_ended: u32,
    /// SHUTDOWN flags of the guest.
    peer_ended: u32,
    /// Ticks spent waiting for the guest.
    age: u8,
    /// It is in the queue of connections with a packet for the guest.
    pub tx_queued: bool,
}

impl Connection {
    fn new(ports: Ports, stream: Box<dyn Stream>, opening: Op) -> Self {
        Self {
            ports,
            outlet: Outlet {
                stream,
                waiting: VecDeque::new(),
            },
            open: opening == Op::Response,
            opening: Some(opening),
            update: false,
            fwd_cnt: 0,
            told_fwd_cnt: 0,
            tx_cnt: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            credit_requested: false,
            readable: true,
            ended: 0,
            told_ended: 0,
            peer_ended: 0,
            age: 0,
            tx_queued: false,
        }
    }

    /// A connection that a program on the host requests of the guest.
    pub fn requested(ports: Ports, stream: Box<dyn Stream>) -> Self {
        Self::new(ports, stream, Op::Request)
    }

    /// A connection that the guest requested by `request`.
    pub fn accepted(ports: Ports, stream: Box<dyn Stream>, request: &Header) -> Self {
        let mut connection = Self::new(ports, stream, Op::Response);
        connection.update_credit(request);
        connection
    }

    /// The two ports, by which the guest's packets name it.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Whether the guest knows of it.
    pub fn is_known(&self) -> bool {
        self.opening != Some(Op::Request)
    }

    /// The stream, with the bytes that the host has not taken yet.
    pub fn into_outlet(self) -> Outlet {
        self.outlet
    }

    /// Bytes that the guest may still be sent.
    fn credit(&self) -> usize {
        let in_flight = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight) as usize
    }

    fn update_credit(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        self.credit_requested &= self.credit() == 0;
    }

    /// The guest sent `op` with `data`.
    pub fn handle(&mut self, op: Op, header: &Header, data: &[u8]) -> Verdict {
        self.update_credit(header);
        match op {
            Op::Rst => Verdict::Drop,
            Op::Response if !self.open && self.opening.is_none() => self.accepted_by_guest(),
            _ if !self.open => Verdict::Reset("was used before it was open"),
            Op::Request | Op::Response => Verdict::Reset("was opened twice"),
            Op::Rw => self.handle_data(data),
            Op::Shutdown => self.handle_shutdown(header.flags),
            Op::CreditUpdate => Verdict::Stay,
            Op::CreditRequest => {
                self.update = true;
                Verdict::Stay
            }
        }
    }

    /// The guest accepts: tell the host's program which port it has.
    fn accepted_by_guest(&mut self) -> Verdict {
        self.open = true;
        self.age = 0;
        let line = format!("OK {}\n", self.ports.host);
        match self.outlet.stream.write(line.as_bytes()) {
            Ok(written) if written == line.len() => Verdict::Stay,
            // Nothing was written before, so there was room, unless the other end has closed.
            _ => Verdict::Reset(""),
        }
    }

    fn handle_data(&mut self, data: &[u8]) -> Verdict {
        if self.peer_ended & NO_SEND != 0 {
            return Verdict::Reset("was sent data after its end");
        }
        if data.len() > BUFFER.saturating_sub(self.outlet.waiting.len()) {
            return Verdict::Reset("was sent more than it has credit for");
        }
        if self.ended & NO_RECEIVE != 0 {
            // The guest does not know yet that the host's end is closed.
            self.forwarded(data.len());
            return Verdict::Stay;
        }
        let before = self.outlet.waiting.len();
        match self.outlet.write(data) {
            Ok(taken) => self.forwarded(taken),
            Err(_) => {
                self.forwarded(before + data.len());
                self.reader_gone();
            }
        }
        Verdict::Stay
    }

    fn handle_shutdown(&mut self, flags: u32) -> Verdict {
        self.peer_ended |= flags & NO_MORE;
        if self.peer_ended & NO_RECEIVE != 0 {
            self.outlet.stream.shutdown(Shutdown::Read);
        }
        self.end_output();
        match self.peer_ended {
            NO_MORE => Verdict::Close,
            _ => Verdict::Stay,
        }
    }

    /// Close the host's stream for writing after the guest's last byte.
    fn end_output(&mut self) {
        if self.peer_ended & NO_SEND != 0 && self.outlet.is_empty() {
            self.outlet.stream.shutdown(Shutdown::Write);
        }
    }

    fn forwarded(&mut self, bytes: usize) {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(bytes as u32);
        self.update |= self.fwd_cnt.wrapping_sub(self.told_fwd_cnt) >= UPDATE_AFTER;
    }

    fn reader_gone(&mut self) {
        self.outlet.waiting = VecDeque::new();
        self.ended |= NO_RECEIVE;
    }

    /// The stream can be read or written; with `hung_up`, only what is in it can be read.
    pub fn ready(&mut self, hung_up: bool) {
        self.readable = true;
        let waiting = self.outlet.waiting.len();
        match self.outlet.flush() {
            Ok(taken) if !hung_up => self.forwarded(taken),
            _ => {
                self.forwarded(waiting);
                self.reader_gone();
            }
        }
        self.end_output();
    }

    /// Whether [`Connection::next_packet`] may return one.
    pub fn has_packet(&self) -> bool {
        let open = self.update || self.ended != self.told_ended || self.wants_to_read();
        self.opening.is_some() || self.open && open
    }

    fn wants_to_read(&self) -> bool {
        let wanted = self.ended & NO_SEND == 0 && self.peer_ended & NO_RECEIVE == 0;
        self.readable && wanted && (self.credit() > 0 || !self.credit_requested)
    }

    /// The next packet for the guest from `cid`'s host, with its data at the start of `buffer`.
    pub fn next_packet(&mut self, cid: u64, buffer: &mut [u8]) -> Option<Header> {
        let (op, flags, len) = self.next_operation(buffer)?;
        self.told_fwd_cnt = self.fwd_cnt;
        Some(Header {
            src_cid: super::packet::HOST_CID,
            dst_cid: cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len: len as u32,
            kind: STREAM,
            op: op as u16,
            flags,
            buf_alloc: BUFFER as u32,
            fwd_cnt: self.fwd_cnt,
        })
    }

    /// The operation of the next packet, its flags, and its bytes of data.
    fn next_operation(&mut self, buffer: &mut [u8]) -> Option<(Op, u32, usize)> {
        if let Some(op) = self.opening.take() {
            return Some((op, 0, 0));
        }
        if !self.open {
            return None;
        }
        if std::mem::take(&mut self.update) {
            return Some((Op::CreditUpdate, 0, 0));
        }
        if self.wants_to_read() {
            let most = self.credit().min(buffer.len());
            if most == 0 {
                self.credit_requested = true;
                return Some((Op::CreditRequest, 0, 0));
            }
            let space = buffer.get_mut(..most).unwrap_or_default();
            match self.outlet.stream.read(space) {
                Ok(0) => self.ended |= NO_SEND,
                Ok(len) => {
                    self.tx_cnt = self.tx_cnt.wrapping_add(len as u32);
                    return Some((Op::Rw, 0, len));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(_) => {
                    self.ended |= NO_SEND;
                    self.reader_gone();
                }
            }
        }
        if self.ended != self.told_ended {
            self.told_ended = self.ended;
            return Some((Op::Shutdown, self.ended, 0));
        }
        None
    }

    /// Whether the guest owes an answer: to a REQUEST, or the RST to a SHUTDOWN of both halves.
    pub fn waits(&self) -> bool {
        !self.open || self.told_ended == NO_MORE
    }

    /// Count a tick; true if the guest has not answered in time.
    pub fn tick(&mut self) -> bool {
        self.age = if self.waits() {
            self.age.saturating_add(1)
        } else {
            0
        };
        self.age >= TIMEOUT_TICKS
    }
}
