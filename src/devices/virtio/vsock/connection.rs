//! One connection: bytes between a guest's port and a [`Stream`] of the host, as far as either
//! side has room (virtio 1.2, 5.10.6.3).
//!
//! ```text
//!  host's:  requested -- RESPONSE --> open -- SHUTDOWN, both halves, from the guest --> gone
//!  guest's: ------------------------> open -- RST, or a rule broken -----------------> gone
//! ```
//!
//! What the guest sent and the host has not yet taken waits in an [`Outlet`], which may outlive
//! the connection: a guest that closes has been heard to the end.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;

use super::packet::{DATA_MOST, Header, NO_MORE, NO_RECEIVE, NO_SEND, Op, STREAM};

/// Bytes from the guest that wait for the host at most: buf_alloc of all packets to the guest. Two
/// packets of the most that one may have, so that the guest makes one while the other is moved.
pub const BUFFER: usize = 2 * DATA_MOST;
/// Bytes that the host has taken before the guest is told without having asked.
const UPDATE_AFTER: u32 = BUFFER as u32 / 4;
/// Turns of the timer after which a guest that does not answer is given up.
const PATIENCE: u8 = 2;

/// The host's end of a connection. Never blocks: what cannot be done now is
/// [`ErrorKind::WouldBlock`], and [`super::Vsock::ready`] says when it can.
pub trait Stream: Send {
    /// Read at least one byte into `buffer`, which is not empty; 0 at the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock`, or the stream is broken.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Write some of `bytes`, which are not empty.
    ///
    /// # Errors
    /// `WouldBlock`, or nobody reads any more.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Close one half, or both.
    fn shutdown(&mut self, how: Shutdown);
}

/// The ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The host's.
    pub host: u32,
    /// The guest's.
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
    /// Nobody reads any more.
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
    /// Nobody reads any more.
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

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Stay,
    /// The guest has ended it in good order: it gets its RST, the host the rest of the bytes.
    Close,
    /// A rule is broken, or the host's end is: the guest gets an RST.
    Reset(&'static str),
    /// The guest has thrown it away.
    Drop,
}

/// A connection.
pub struct Connection {
    ports: Ports,
    outlet: Outlet,
    /// Both sides have said yes.
    open: bool,
    /// REQUEST or RESPONSE, until it is sent.
    opening: Option<Op>,
    /// A CREDIT_UPDATE is due.
    update: bool,
    /// Bytes that the host has taken, modulo 2^32, and how many of them the guest knows of.
    fwd_cnt: u32,
    told_fwd_cnt: u32,
    /// Bytes sent to the guest, modulo 2^32.
    tx_cnt: u32,
    /// The guest's last words on its buffer.
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// A CREDIT_REQUEST is out: one for each time that the guest is full, or the two sides would
    /// ask and answer each other without end.
    asked: bool,
    /// The stream may have something to read.
    readable: bool,
    /// SHUTDOWN flags of the host's end, and those that the guest knows of.
    ended: u32,
    told_ended: u32,
    /// SHUTDOWN flags of the guest.
    peer_ended: u32,
    /// Turns of the timer spent waiting for the guest.
    age: u8,
    /// It stands in the line of those that have something to say.
    pub in_line: bool,
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
            asked: false,
            readable: true,
            ended: 0,
            told_ended: 0,
            peer_ended: 0,
            age: 0,
            in_line: false,
        }
    }

    /// One that a program on the host asks the guest for.
    pub fn requested(ports: Ports, stream: Box<dyn Stream>) -> Self {
        Self::new(ports, stream, Op::Request)
    }

    /// One that the guest asked for by `request`, and gets.
    pub fn accepted(ports: Ports, stream: Box<dyn Stream>, request: &Header) -> Self {
        let mut connection = Self::new(ports, stream, Op::Response);
        connection.hear_credit(request);
        connection
    }

    /// Its ports.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Whether the guest has heard of it.
    pub fn is_known(&self) -> bool {
        self.opening != Some(Op::Request)
    }

    /// What the guest sent and the host has not taken.
    pub fn into_outlet(self) -> Outlet {
        self.outlet
    }

    /// Bytes that the guest may still be sent.
    fn credit(&self) -> usize {
        let in_flight = self.tx_cnt.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.saturating_sub(in_flight) as usize
    }

    fn hear_credit(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        self.asked &= self.credit() == 0;
    }

    /// The guest sent `op` with `data`.
    pub fn hear(&mut self, op: Op, header: &Header, data: &[u8]) -> Verdict {
        self.hear_credit(header);
        match op {
            Op::Rst => Verdict::Drop,
            Op::Response if !self.open && self.opening.is_none() => self.answered(),
            _ if !self.open => Verdict::Reset("was used before it was open"),
            Op::Request | Op::Response => Verdict::Reset("was opened twice"),
            Op::Rw => self.hear_data(data),
            Op::Shutdown => self.hear_shutdown(header.flags),
            Op::CreditUpdate => Verdict::Stay,
            Op::CreditRequest => {
                self.update = true;
                Verdict::Stay
            }
        }
    }

    /// The guest accepts: the host's program learns which port it has.
    fn answered(&mut self) -> Verdict {
        self.open = true;
        self.age = 0;
        let line = format!("OK {}\n", self.ports.host);
        match self.outlet.stream.write(line.as_bytes()) {
            Ok(written) if written == line.len() => Verdict::Stay,
            // Nothing was written before, so there was room, unless there is nobody.
            _ => Verdict::Reset(""),
        }
    }

    fn hear_data(&mut self, data: &[u8]) -> Verdict {
        if self.peer_ended & NO_SEND != 0 {
            return Verdict::Reset("was sent data after its end");
        }
        if data.len() > BUFFER.saturating_sub(self.outlet.waiting.len()) {
            return Verdict::Reset("was sent more than it has credit for");
        }
        if self.ended & NO_RECEIVE != 0 {
            // The guest has not heard yet that nobody reads.
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

    fn hear_shutdown(&mut self, flags: u32) -> Verdict {
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

    /// Tell the host of the end of what the guest sends, after the last byte of it.
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

    /// The stream can be read or written, or, `hung_up`, only what is in it can be read.
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

    /// Whether [`Connection::speak`] might have something.
    pub fn wants_to_speak(&self) -> bool {
        let open = self.update || self.ended != self.told_ended || self.wants_to_read();
        self.opening.is_some() || self.open && open
    }

    fn wants_to_read(&self) -> bool {
        let heard = self.ended & NO_SEND == 0 && self.peer_ended & NO_RECEIVE == 0;
        self.readable && heard && (self.credit() > 0 || !self.asked)
    }

    /// The next packet for the guest from `cid`'s host, with its data at the start of `buffer`.
    pub fn speak(&mut self, cid: u64, buffer: &mut [u8]) -> Option<Header> {
        let (op, flags, len) = self.next_words(buffer)?;
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

    /// Operation, flags, bytes of data.
    fn next_words(&mut self, buffer: &mut [u8]) -> Option<(Op, u32, usize)> {
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
                self.asked = true;
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

    /// A turn of the timer; says whether the guest has been waited for long enough.
    pub fn tick(&mut self) -> bool {
        self.age = match self.waits() {
            true => self.age.saturating_add(1),
            false => 0,
        };
        self.age >= PATIENCE
    }
}
