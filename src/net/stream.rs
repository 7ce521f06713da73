//! Frames on a stream socket in the format of QEMU's `-netdev stream`: a length of four bytes, big
//! endian, then the frame without a virtio header (QEMU, net/stream.c).

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::echo;
use super::policy::{Filter, Incoming, Outgoing};
use crate::devices::virtio::net::{HEADER, MAX_FRAME, Offloads, Wire};
use crate::memory::transfer::Pieces;

const LENGTH: usize = 4;
/// Bytes not yet sent at which no further frame is taken.
const MAX_OUT: usize = 256 << 10;
/// Answers to pings, and to what is refused, that wait for the guest; further ones are lost.
const MAX_ECHOES: usize = 64;
/// Bytes that are read ahead: several of the longest frames.
const MAX_IN: usize = 256 << 10;

/// A connected, non-blocking socket with frames on it.
pub struct Stream {
    socket: Arc<OwnedFd>,
    out: VecDeque<u8>,
    /// Bytes read from the socket: those from `start` to `end` are still to be received.
    input: Box<[u8]>,
    start: usize,
    end: usize,
    scratch: Vec<u8>,
    /// Address whose pings are answered here.
    gateway: Ipv4Addr,
    /// Whether the guest may reach the host's loopback.
    host_loopback: bool,
    /// Answers that wait for the guest.
    echoes: VecDeque<Vec<u8>>,
    /// What holds the guest's frames to its rules, and since when.
    filter: Option<(Box<Filter>, Instant)>,
}

impl Stream {
    /// Frames over `socket`. Pings of `gateway` are answered here and not sent; packets to addresses of
    /// the host's loopback are dropped, unless `host_loopback`.
    pub fn new(socket: Arc<OwnedFd>, gateway: Ipv4Addr, host_loopback: bool) -> Self {
        Self {
            socket,
            out: VecDeque::new(),
            input: vec![0; MAX_IN].into(),
            start: 0,
            end: 0,
            scratch: Vec::new(),
            gateway,
            host_loopback,
            echoes: VecDeque::new(),
            filter: None,
        }
    }

    /// Hold frames to rules.
    pub fn set_filter(&mut self, filter: Filter) {
        self.filter = Some((Box::new(filter), Instant::now()));
    }

    /// Queue a frame to be sent, however many are queued.
    pub fn push(&mut self, frame: &[u8]) {
        self.out.extend((frame.len() as u32).to_be_bytes());
        self.out.extend(frame);
    }

    /// Queue a frame, which is lost if `most` bytes or more are queued.
    pub fn queue(&mut self, frame: &[u8], most: usize) {
        if self.out.len() < most {
            self.push(frame);
        }
    }

    /// Whether frames are queued.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether [`Stream::next`] needs no more bytes for the next frame.
    pub fn has_whole(&self) -> bool {
        !matches!(self.whole(), Ok(None))
    }

    /// Send queued frames, as far as the socket takes them.
    ///
    /// # Errors
    /// `BrokenPipe` when the other end is closed.
    pub fn push_out(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            let (bytes, _) = self.out.as_slices();
            match retry_on_intr(|| send(&self.socket, bytes, SendFlags::NOSIGNAL)) {
                Ok(sent) => drop(self.out.drain(..sent)),
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(ErrorKind::BrokenPipe.into()),
            }
        }
        Ok(())
    }

    /// Receive the next whole frame.
    ///
    /// # Errors
    /// `WouldBlock`; or the other end is closed, or sends something else.
    pub fn next(&mut self) -> io::Result<&[u8]> {
        let len = loop {
            if let Some(len) = self.whole()? {
                break len;
            }
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let space = self.input.get_mut(self.end..).unwrap_or_default();
            match retry_on_intr(|| recv(&self.socket, &mut *space, RecvFlags::empty()))? {
                (0, _) => return Err(ErrorKind::UnexpectedEof.into()),
                (got, _) => self.end += got,
            }
        };
        let start = self.start + LENGTH;
        self.start = start + len;
        Ok(self.input.get(start..start + len).unwrap_or_default())
    }

    /// Queue an answer for the guest.
    fn answer(&mut self, frame: Vec<u8>) {
        if self.echoes.len() < MAX_ECHOES {
            self.echoes.push_back(frame);
        }
    }

    /// Queue a frame of the guest, as far as its rules let it out.
    fn let_out(&mut self, frame: &[u8]) {
        let outgoing = match &mut self.filter {
            Some((filter, since)) => filter.outgoing(since.elapsed(), frame),
            None => Outgoing::Pass,
        };
        match outgoing {
            // passt makes a connection to whatever address a packet names.
            Outgoing::Pass if !self.host_loopback && is_to_loopback(frame) => {}
            Outgoing::Pass => self.push(frame),
            Outgoing::Instead(other) => self.push(&other),
            Outgoing::Answer(answer) => self.answer(answer),
            Outgoing::Lost => {}
        }
    }

    /// Have `take` take the next frame for the guest, with its header.
    fn receive_by(&mut self, take: impl FnOnce(&[u8]) -> usize) -> io::Result<usize> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.resize(HEADER, 0);
        let read = match self.echoes.pop_front() {
            Some(echo) => {
                scratch.extend(echo);
                Ok(())
            }
            None => self.next_let_in(&mut scratch),
        };
        let taken = read.map(|()| take(&scratch));
        self.scratch = scratch;
        taken
    }

    /// Receive the next frame that the guest's rules let in, behind what is in `into`.
    fn next_let_in(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        let Some((mut filter, since)) = self.filter.take() else {
            return self.next().map(|frame| into.extend(frame));
        };
        let received = loop {
            let frame = match self.next() {
                Ok(frame) => frame,
                Err(error) => break Err(error),
            };
            match filter.incoming(since.elapsed(), frame) {
                Incoming::Pass => into.extend(frame),
                Incoming::Instead(other) => into.extend(other),
                Incoming::Lost => continue,
            }
            break Ok(());
        };
        self.filter = Some((filter, since));
        received
    }

    /// The length of the frame at `start`, if all of it has been read.
    fn whole(&self) -> io::Result<Option<usize>> {
        let rest = self.input.get(self.start..self.end).unwrap_or_default();
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*length) as usize;
        match len {
            _ if len > MAX_FRAME - HEADER => Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("a frame of {len} bytes was announced"),
            )),
            _ if len > rest.len() => Ok(None),
            _ => Ok(Some(len)),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Wire for Stream {
    fn send(&mut self, frame: &Pieces) -> io::Result<()> {
        if self.out.len() >= MAX_OUT {
            self.push_out()?;
        }
        if self.out.len() >= MAX_OUT {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.scratch.clear();
        frame.append_to(HEADER, &mut self.scratch);
        let frame = std::mem::take(&mut self.scratch);
        match echo::answer(&frame, self.gateway) {
            Some(answer) => self.answer(answer),
            None => self.let_out(&frame),
        }
        self.scratch = frame;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<bool> {
        self.push_out()?;
        Ok(!self.echoes.is_empty())
    }

    fn receive(&mut self, room: &Pieces) -> io::Result<usize> {
        self.receive_by(|frame| room.fill(frame))
    }

    fn receive_buffered(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive_by(|frame| {
            for (to, from) in buffer.iter_mut().zip(frame) {
                *to = *from;
            }
            frame.len()
        })
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
}

/// Whether a host takes the target of the packet in `frame` for itself: 127.0.0.0/8 and ::1, 0.0.0.0/8 and
/// ::, for which connect(2) takes the loopback, and such an IPv4 address in an IPv6 one.
pub(super) fn is_to_loopback(frame: &[u8]) -> bool {
    let is_local = |to: Ipv4Addr| to.is_loopback() || to.octets().starts_with(&[0]);
    let octets = |from: usize, len: usize| frame.get(from..from + len);
    match octets(12, 2) {
        Some([0x08, 0x00]) => octets(30, 4)
            .and_then(|to| <[u8; 4]>::try_from(to).ok())
            .is_some_and(|to| is_local(to.into())),
        Some([0x86, 0xdd]) => octets(38, 16)
            .and_then(|to| <[u8; 16]>::try_from(to).ok())
            .is_some_and(|to| {
                let to = Ipv6Addr::from(to);
                // ::1 and :: are among the addresses that hold an IPv4 one, 0.0.0.1 and 0.0.0.0.
                to.to_ipv4().is_some_and(is_local)
            }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (Stream, Arc<OwnedFd>) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("two sockets");
        (
            Stream::new(Arc::new(one), Ipv4Addr::LOCALHOST, false),
            Arc::new(other),
        )
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_however_the_bytes_are_cut(
            frames in prop::collection::vec((0..3000usize, any::<u8>()), 1..20),
            cuts in prop::collection::vec(1..5000usize, 1..20),
        ) {
            let (mut stream, far) = pair();
            let mut wire = Vec::new();
            for (len, byte) in &frames {
                wire.extend((*len as u32).to_be_bytes());
                wire.extend(vec![*byte; *len]);
            }
            let (mut rest, mut got) = (&wire[..], Vec::new());
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at(rest.len().min(*cut));
                send(&far, now, SendFlags::NOSIGNAL).expect("room");
                rest = later;
                while let Ok(frame) = stream.next() {
                    got.push((frame.len(), frame.first().copied()));
                }
                if rest.is_empty() {
                    break;
                }
            }
            let sent = frames.iter().map(|(len, byte)| (*len, (*len > 0).then_some(*byte)));
            prop_assert_eq!(got, sent.collect::<Vec<_>>());
            prop_assert_eq!(stream.next().map_err(|e| e.kind()), Err(ErrorKind::WouldBlock));
        }
    }

    #[test]
    fn no_packet_reaches_the_loopback_by_its_address() {
        let v4 = |to: [u8; 4]| [&[0; 12][..], &[8, 0], &[0; 16], &to].concat();
        let v6 = |to: &str| {
            let to: Ipv6Addr = to.parse().expect("an address");
            [&[0; 12][..], &[0x86, 0xdd], &[0; 24], &to.octets()].concat()
        };
        for to in [[127, 0, 0, 1], [127, 9, 9, 9], [0, 0, 0, 0]] {
            assert!(is_to_loopback(&v4(to)), "{to:?}");
        }
        for to in [
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:0.0.0.0",
        ] {
            assert!(is_to_loopback(&v6(to)), "{to}");
        }
        for other in [
            v4([10, 0, 2, 2]),
            v6("fe80::1"),
            v6("::ffff:10.0.2.2"),
            vec![0; 60],
            v4([127, 0, 0, 1])[..33].to_vec(),
        ] {
            assert!(!is_to_loopback(&other), "{other:?}");
        }
    }

    #[test]
    fn wrong_lengths_and_ends_are_errors() {
        let (mut stream, far) = pair();
        send(&far, &u32::MAX.to_be_bytes(), SendFlags::NOSIGNAL).expect("room");
        let kind = stream.next().map(drop).map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::InvalidData));
        let (mut stream, far) = pair();
        drop(far);
        let kind = stream.next().map(drop).map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::UnexpectedEof));
        stream.push(b"frame");
        let kind = stream.push_out().map_err(|error| error.kind());
        assert_eq!(kind, Err(ErrorKind::BrokenPipe));
    }
}
