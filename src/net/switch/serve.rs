//! The switch's process: it accepts connections and moves frames between them, as [`Segment`] says.
//!
//! One thread waits for all descriptors. It waits for no single machine: what a slow one does not take in time is lost,
//! as on any Ethernet, and of a machine that sends much, others are served between its frames.

use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, accept_with,
    recvmsg, send,
};

use super::members::{
    Joined, MAX_DESCRIPTORS, MAX_REQUEST, Member, Reply, Request, Way, framed, request,
};
use super::segment::{MAX_STATIONS, Route, Segment};
use crate::net::address::Subnet;
use crate::net::config::Publish;
use crate::net::policy::{Filter, Incoming, Journal, Outgoing, Setting};
use crate::net::stream::Stream;
use crate::sandbox::{Role, Seccomp, allow_folders, lock_down, peer_user, restrict, set_seccomp};

/// How long a switch without machines stays: for the first one to join, or for one that is started again.
const IDLE: Duration = Duration::from_secs(10);
/// Connections beside those of machines.
const MAX_REQUESTS: usize = 16;
/// Frames of one machine that are moved before others get their turn.
const TURN: usize = 64;
/// Bytes that wait for one machine, or for its way to other networks: further frames are lost.
const MAX_QUEUE: usize = 1 << 20;

/// Serve the network `subnet`, whose machines connect to `listener`, which does not block, until it has had no
/// machine for ten seconds. This process gives up all rights first, and has one thread.
///
/// # Errors
/// The host refuses the lock-down, or a wait fails.
pub fn serve(listener: OwnedFd, subnet: Subnet, internal: bool) -> io::Result<()> {
    let owner = rustix::process::geteuid().as_raw();
    set_seccomp(Seccomp::On)?;
    allow_folders(&[]).map_err(io::Error::other)?;
    lock_down()?;
    restrict(Role::Switch);
    let switch = Switch {
        segment: Segment::new(subnet, internal),
        listener,
        owner,
        requests: Vec::new(),
        ports: Vec::new(),
        empty_since: Some(Instant::now()),
        ends: false,
        started: Instant::now(),
    };
    switch.run()
}

/// A connection of which it is not known yet what it is for.
struct Asking {
    socket: OwnedFd,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

/// A machine's connection, and its way to other networks.
struct Port {
    frames: Stream,
    up: Option<Stream>,
    /// What holds to its rules what goes there.
    filter: Option<Filter>,
}

struct Switch {
    segment: Segment,
    listener: OwnedFd,
    owner: u32,
    requests: Vec<Asking>,
    /// By the ports of the segment.
    ports: Vec<Option<Port>>,
    /// Since when there is no machine.
    empty_since: Option<Instant>,
    ends: bool,
    /// The moment since which filters count.
    started: Instant,
}

/// What the switch waits for.
#[derive(Clone, Copy, Debug)]
enum Source {
    Listener,
    Asking(usize),
    Machine(usize),
    Up(usize),
}

impl Switch {
    fn run(mut self) -> io::Result<()> {
        let mut scratch = Vec::new();
        while !self.ends && self.patience() != Some(Duration::ZERO) {
            let mut ready = self.wait()?;
            // Requests from the last on: one that is done is taken out.
            ready.reverse();
            for source in ready {
                match source {
                    Source::Listener => self.accept(),
                    Source::Asking(index) => self.hear(index),
                    Source::Machine(port) => self.take(port, &mut scratch),
                    Source::Up(port) => self.take_from_above(port, &mut scratch),
                }
            }
            self.send();
        }
        Ok(())
    }

    /// How long the switch stays without a machine.
    fn patience(&self) -> Option<Duration> {
        let since = self.empty_since?;
        Some(IDLE.saturating_sub(since.elapsed()))
    }

    /// What is ready.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut watched = vec![(Source::Listener, self.listener.as_fd(), PollFlags::IN)];
        for (index, asking) in self.requests.iter().enumerate() {
            watched.push((Source::Asking(index), asking.socket.as_fd(), PollFlags::IN));
        }
        let mut at_once = false;
        for (index, port) in self.ports.iter().enumerate() {
            let Some(Port { frames, up, .. }) = port else {
                continue;
            };
            let up = up.iter().map(|up| (Source::Up(index), up));
            for (source, stream) in up.chain([(Source::Machine(index), frames)]) {
                at_once |= stream.has_whole();
                watched.push((source, stream.as_fd(), wanted(stream)));
            }
        }
        let patience = match at_once {
            true => Some(Duration::ZERO),
            false => self.patience(),
        };
        let patience = patience.and_then(|time| Timespec::try_from(time).ok());
        let fds = watched.iter();
        let fds = fds.map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags));
        let mut fds: Vec<_> = fds.collect();
        match poll(&mut fds, patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |source: &Source, fd: &PollFd<'_>| {
            let buffered = match source {
                Source::Machine(port) => self.port(*port).map(|it| &it.frames),
                Source::Up(port) => self.port(*port).and_then(|it| it.up.as_ref()),
                _ => None,
            };
            !(fd.revents() - PollFlags::OUT).is_empty() || buffered.is_some_and(Stream::has_whole)
        };
        let ready = watched.iter().zip(&fds);
        let ready = ready.filter(|((source, ..), fd)| is_ready(source, fd));
        Ok(ready.map(|((source, ..), _)| *source).collect())
    }

    fn port(&self, port: usize) -> Option<&Port> {
        self.ports.get(port)?.as_ref()
    }

    fn port_mut(&mut self, port: usize) -> Option<&mut Port> {
        self.ports.get_mut(port)?.as_mut()
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = accept_with(&self.listener, flags) else {
            return; // it has gone again
        };
        if peer_user(&socket).is_ok_and(|user| user == self.owner) {
            // Those that do not say what they are for keep no machine from joining.
            if self.requests.len() >= MAX_REQUESTS {
                self.requests.remove(0);
            }
            self.requests.push(Asking {
                socket,
                bytes: Vec::new(),
                descriptors: Vec::new(),
            });
        }
    }

    /// Read what a connection is for, and do it once it is known.
    fn hear(&mut self, index: usize) {
        let Some(asking) = self.requests.get_mut(index) else {
            return;
        };
        match asking.read() {
            Ok(None) => {}
            Ok(Some(request)) => {
                let asking = self.requests.swap_remove(index);
                self.fulfil(request, asking);
            }
            Err(_) => drop(self.requests.swap_remove(index)),
        }
    }

    fn fulfil(&mut self, request: Request, asking: Asking) {
        let Asking {
            socket,
            descriptors,
            ..
        } = asking;
        let mut joined = None;
        let reply = match request {
            Request::Join(wish) => {
                let port = self.segment.join(wish.names, wish.mac, wish.asks_others);
                let station = port.as_ref().ok().and_then(|it| self.segment.station(*it));
                match (&port, station) {
                    (Ok(port), Some(station)) => {
                        joined = Some(*port);
                        Reply::Joined(Joined {
                            mac: station.mac,
                            address: station.address,
                        })
                    }
                    (Err(reason), _) => Reply::Refused(reason.clone()),
                    (Ok(_), None) => Reply::Refused("it has left".into()),
                }
            }
            Request::Uplink(way) => match self.connect(way, descriptors) {
                Some(()) => Reply::Done,
                None => Reply::Refused("no machine has this MAC address".into()),
            },
            Request::List => Reply::Members(self.members()),
            Request::End => match self.empty_since {
                None => Reply::Refused("machines are in the network".into()),
                Some(_) => {
                    self.ends = true;
                    Reply::Done
                }
            },
        };
        let _ = send(&socket, &framed(&reply), SendFlags::NOSIGNAL);
        if let Some(port) = joined {
            self.add(port, socket);
        }
    }

    /// Connect a machine to other networks.
    fn connect(&mut self, way: Way, descriptors: Vec<OwnedFd>) -> Option<()> {
        let index = self.segment.port_of(way.mac)?;
        let mut descriptors = descriptors.into_iter();
        let up = stream(descriptors.next()?);
        let router = self.segment.address();
        let station = self.segment.station(index)?;
        let setting = Setting {
            mac: way.mac,
            guest: station.address,
            gateway: router,
            dns: router,
            host: way.host,
            publish: way.publish.iter().map(Publish::reaches).collect(),
            asks_others: station.asks_others,
        };
        let journal = descriptors.next().map(|it| Journal::new(it.into()));
        let is_open = way.policy.is_open();
        let port = self.port_mut(index)?;
        port.filter = (!is_open).then(|| Filter::new(way.policy, setting, journal));
        port.up = Some(up);
        Some(())
    }

    fn members(&self) -> Vec<Member> {
        let member = |(_, station): (usize, &super::segment::Station)| Member {
            names: station.names.clone(),
            address: station.address,
            mac: station.mac,
        };
        self.segment.stations().map(member).collect()
    }

    fn add(&mut self, index: usize, socket: OwnedFd) {
        while self.ports.len() <= index.min(MAX_STATIONS) {
            self.ports.push(None);
        }
        if let Some(port) = self.ports.get_mut(index) {
            *port = Some(Port {
                frames: stream(socket),
                up: None,
                filter: None,
            });
            self.empty_since = None;
        }
    }

    fn remove(&mut self, index: usize) {
        if let Some(port) = self.ports.get_mut(index) {
            *port = None;
        }
        self.segment.leave(index);
        if self.ports.iter().all(Option::is_none) {
            self.empty_since = Some(Instant::now());
        }
    }

    /// Move frames of the machine at `index`.
    fn take(&mut self, index: usize, frame: &mut Vec<u8>) {
        for _ in 0..TURN {
            let Some(port) = self.port_mut(index) else {
                return;
            };
            match read(&mut port.frames, frame) {
                Ok(true) => {}
                Ok(false) => return,
                Err(_) => return self.remove(index),
            }
            match self.segment.route(index, frame) {
                Route::Lost => {}
                Route::To(other) => self.pass(other, frame),
                Route::All => {
                    let all = 0..self.ports.len();
                    all.filter(|other| *other != index)
                        .for_each(|other| self.pass(other, frame));
                }
                Route::Back(reply) => self.pass(index, &reply),
                Route::Up => self.let_out(index, frame),
            }
        }
    }

    /// Pass a frame on to other networks, as far as the machine's rules let it out.
    fn let_out(&mut self, index: usize, frame: &[u8]) {
        let now = self.started.elapsed();
        let Some(Port { frames, up, filter }) = self.port_mut(index) else {
            return;
        };
        let Some(up) = up else {
            return;
        };
        let outgoing = match filter {
            Some(filter) => filter.outgoing(now, frame),
            None => Outgoing::Pass,
        };
        match outgoing {
            Outgoing::Pass => up.queue(frame, MAX_QUEUE),
            Outgoing::Instead(other) => up.queue(&other, MAX_QUEUE),
            Outgoing::Answer(answer) => frames.queue(&answer, MAX_QUEUE),
            Outgoing::Lost => {}
        }
    }

    /// Pass a frame of other networks to the machine at `index`, as far as its rules let it in.
    fn let_in(&mut self, index: usize, frame: &[u8]) {
        let now = self.started.elapsed();
        if !self.segment.is_from_above(index, frame) {
            return;
        }
        let Some(Port { frames, filter, .. }) = self.port_mut(index) else {
            return;
        };
        let incoming = match filter {
            Some(filter) => filter.incoming(now, frame),
            None => Incoming::Pass,
        };
        match incoming {
            Incoming::Pass => frames.queue(frame, MAX_QUEUE),
            Incoming::Instead(other) => frames.queue(&other, MAX_QUEUE),
            Incoming::Lost => {}
        }
    }

    /// Move frames of other networks to the machine at `index`.
    fn take_from_above(&mut self, index: usize, frame: &mut Vec<u8>) {
        for _ in 0..TURN {
            let Some(port) = self.port_mut(index) else {
                return;
            };
            match port.up.as_mut().map(|up| read(up, frame)) {
                Some(Ok(true)) => {}
                Some(Ok(false)) | None => return,
                // The machine stays, with the network alone.
                Some(Err(_)) => return port.up = None,
            }
            self.let_in(index, frame);
        }
    }

    fn pass(&mut self, port: usize, frame: &[u8]) {
        if let Some(port) = self.port_mut(port) {
            port.frames.queue(frame, MAX_QUEUE);
        }
    }

    /// Send what waits, as far as it is taken.
    fn send(&mut self) {
        for index in 0..self.ports.len() {
            let Some(port) = self.port_mut(index) else {
                continue;
            };
            if port.up.as_mut().is_some_and(|up| up.push_out().is_err()) {
                port.up = None;
            }
            if port.frames.push_out().is_err() {
                self.remove(index);
            }
        }
    }
}

impl Asking {
    fn read(&mut self) -> io::Result<Option<Request>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; MAX_REQUEST];
        let mut into = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(
            &self.socket,
            &mut into,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let len = match received {
            Ok(received) => received.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
                self.descriptors.truncate(MAX_DESCRIPTORS);
            }
        }
        if len == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.bytes.extend(bytes.get(..len).unwrap_or_default());
        request(&self.bytes)
    }
}

/// Frames over a socket that does not block. What the switch answers itself, and what is lost, the segment says.
fn stream(socket: OwnedFd) -> Stream {
    Stream::new(Arc::new(socket), Ipv4Addr::UNSPECIFIED, true)
}

fn wanted(stream: &Stream) -> PollFlags {
    match stream.has_output() {
        true => PollFlags::IN | PollFlags::OUT,
        false => PollFlags::IN,
    }
}

/// The next frame into `frame`; false if there is none yet.
fn read(from: &mut Stream, frame: &mut Vec<u8>) -> io::Result<bool> {
    match from.next() {
        Ok(next) => {
            frame.clear();
            frame.extend(next);
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::thread;

    use super::*;
    use crate::net::switch::{Wish, end, join, list, mac_of};

    fn joined(path: &std::path::Path, name: &str) -> (UnixStream, Joined) {
        let wish = Wish {
            names: vec![name.into()],
            mac: None,
            asks_others: false,
        };
        let stream = UnixStream::connect(path).expect("connected");
        let (socket, joined) = join(stream, wish).expect("joined");
        (socket.into(), joined)
    }

    /// A frame of 1000 bytes from one machine to another.
    fn frame(from: Joined, to: Joined, first: u8) -> Vec<u8> {
        let mut frame = 1000_u32.to_be_bytes().to_vec();
        frame.extend([to.mac, from.mac].concat());
        frame.extend([0x08, 0x00, 0x45]);
        frame.resize(4 + 26, 0);
        frame.extend(from.address.octets());
        frame.extend(to.address.octets());
        frame.resize(4 + 1000, first);
        frame
    }

    #[test]
    fn a_slow_machine_and_one_that_sends_nonsense_hold_nobody_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("bound");
        listener.set_nonblocking(true).expect("set");
        let address = Ipv4Addr::new(10, 9, 0, 1);
        let switch = Switch {
            segment: Segment::new(
                Subnet {
                    address,
                    prefix: 24,
                },
                true,
            ),
            listener: listener.into(),
            owner: rustix::process::geteuid().as_raw(),
            requests: Vec::new(),
            ports: Vec::new(),
            empty_since: Some(Instant::now()),
            ends: false,
            started: Instant::now(),
        };
        let running = thread::spawn(move || switch.run());
        let ((mut a, at_a), (b, at_b), (slow, at_slow)) = (
            joined(&path, "a"),
            joined(&path, "b"),
            joined(&path, "slow"),
        );
        assert_eq!(at_a.mac, mac_of(Ipv4Addr::new(10, 9, 0, 2)));
        a.set_nonblocking(false).expect("set");
        // More than its queue and its socket hold: the switch reads on, and what is too much is lost.
        for _ in 0..4 * MAX_QUEUE / 1000 {
            a.write_all(&frame(at_a, at_slow, 1)).expect("taken");
        }
        a.write_all(&frame(at_a, at_b, 2)).expect("taken");
        let mut received = stream(b.into());
        let mut got = Vec::new();
        while !read(&mut received, &mut got).expect("it stays") {
            let mut fds = [PollFd::new(&received, PollFlags::IN)];
            poll(&mut fds, None).expect("waited");
        }
        assert_eq!((got.len(), got.last()), (1000, Some(&2)));
        // A length that no frame has ends its connection alone.
        a.write_all(&u32::MAX.to_be_bytes()).expect("taken");
        let there = || list(UnixStream::connect(&path).expect("connected")).expect("listed");
        while there().len() > 2 {
            thread::yield_now();
        }
        let used = end(UnixStream::connect(&path).expect("connected"));
        assert!(used.is_err(), "machines are in it");
        drop((received, slow));
        while !there().is_empty() {
            thread::yield_now();
        }
        end(UnixStream::connect(&path).expect("connected")).expect("it ends");
        running.join().expect("no panic").expect("no error");
    }
}
