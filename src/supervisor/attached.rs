//! Those that are attached to a machine in the background: all see its output, and all may type.
//!
//! The machine waits for a slow one as for any reader, but not for ever: one that takes nothing for
//! [`PATIENCE`] is let go.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with, send};

use crate::agent::{Attached, Output, Request};

/// Most that are attached at once.
pub const MAX_ATTACHED: usize = 32;
/// How long the machine waits for one that takes nothing.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Output is read from the machine only if each takes so many bytes.
const MIN_ROOM: usize = 4096;
/// Bytes of input that wait for the machine before no more is taken.
const MAX_TYPED: usize = 64 << 10;
/// Bytes read at once.
const BATCH: usize = 64 << 10;
/// hull's own key on a terminal (Ctrl-A); typed twice it is the guest's.
const KEY: u8 = 1;

/// Those that are attached, and the machine's standard input.
pub struct Clients {
    listener: OwnedFd,
    clients: Vec<Client>,
    /// `None` if it has none, or reads no more.
    input: Option<OwnedFd>,
    /// Whether the input is a terminal.
    terminal: bool,
    /// What was typed, for the input.
    typed: VecDeque<u8>,
}

struct Client {
    socket: OwnedFd,
    model: Attached,
    /// When it last did something.
    since: Instant,
    open: bool,
}

/// A descriptor to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// One more wants to be attached.
    Listener,
    /// The one at this place.
    Client(usize),
    /// The machine's input has room.
    Input,
}

impl Clients {
    /// None yet: they come by `listener`, and type for `input`, which does not block.
    pub fn new(listener: OwnedFd, input: Option<OwnedFd>, terminal: bool) -> Self {
        Self {
            listener,
            clients: Vec::new(),
            input,
            terminal,
            typed: VecDeque::new(),
        }
    }

    /// Bytes of output that all of them take; `None` while one takes too few.
    pub fn room(&self) -> Option<usize> {
        let rooms = self.clients.iter().map(|client| client.model.room());
        let room = rooms.min().unwrap_or(BATCH);
        (room >= MIN_ROOM).then_some(room)
    }

    /// How much longer one is waited for that takes nothing.
    pub fn patience(&self) -> Option<Duration> {
        let held = self.clients.iter().filter(|client| client.holds_up());
        held.map(|client| PATIENCE.saturating_sub(client.since.elapsed()))
            .min()
    }

    /// What to wait for.
    pub fn watched(&self) -> Vec<(Source, BorrowedFd<'_>, PollFlags)> {
        let mut watched = vec![(Source::Listener, self.listener.as_fd(), PollFlags::IN)];
        let full = self.typed.len() >= MAX_TYPED;
        for (place, client) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !full);
            flags.set(PollFlags::OUT, !client.model.outgoing().is_empty());
            watched.push((Source::Client(place), client.socket.as_fd(), flags));
        }
        if let Some(input) = self.input.as_ref().filter(|_| !self.typed.is_empty()) {
            watched.push((Source::Input, input.as_fd(), PollFlags::OUT));
        }
        watched
    }

    /// Do what can be done for `source`; what the one attached wants.
    pub fn handle(&mut self, source: Source) -> Vec<Request> {
        match source {
            Source::Listener => self.accept(),
            Source::Input => self.write_input(),
            Source::Client(place) => {
                let requests = self.clients.get_mut(place).map(Client::turn);
                self.take_typed(place);
                return requests.unwrap_or_default();
            }
        }
        Vec::new()
    }

    /// Forget those that have left, and those that take nothing.
    pub fn sweep(&mut self) {
        self.clients
            .retain(|it| it.open && (!it.holds_up() || it.since.elapsed() < PATIENCE));
    }

    /// Output of the machine, at most [`Clients::room`] bytes.
    pub fn push(&mut self, output: Output, bytes: &[u8]) {
        for client in &mut self.clients {
            client.model.push(output, bytes);
            client.send();
        }
    }

    /// The machine has ended: tell them.
    pub fn finish(mut self, status: u8) {
        for client in &mut self.clients {
            client.model.end(status);
            client.since = Instant::now();
            client.send();
        }
        loop {
            self.clients.retain(|client| {
                let waits = !client.model.outgoing().is_empty();
                client.open && waits && client.since.elapsed() < PATIENCE
            });
            if self.clients.is_empty() {
                return;
            }
            let sockets = self.clients.iter().map(|client| &client.socket);
            let mut fds: Vec<_> = sockets
                .map(|socket| PollFd::new(socket, PollFlags::OUT))
                .collect();
            let _ = poll(&mut fds, Timespec::try_from(PATIENCE).ok().as_ref());
            self.clients.iter_mut().for_each(Client::send);
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        if let Ok(socket) = accept_with(&self.listener, flags)
            && self.clients.len() < MAX_ATTACHED
        {
            self.clients.push(Client {
                socket,
                model: Attached::default(),
                since: Instant::now(),
                open: true,
            });
        }
    }

    /// Take what the one at `place` has typed.
    fn take_typed(&mut self, place: usize) {
        let Some(client) = self.clients.get_mut(place) else {
            return;
        };
        if self.input.is_none() {
            client.model.drop_typed();
            return;
        }
        while let bytes @ [_, ..] = client.model.typed() {
            let len = bytes.len();
            for &byte in bytes {
                let twice = self.terminal && byte == KEY;
                self.typed
                    .extend(std::iter::repeat_n(byte, 1 + usize::from(twice)));
            }
            client.model.given(len);
        }
        client.send();
        self.write_input();
    }

    fn write_input(&mut self) {
        while let (Some(input), (front @ [_, ..], _)) = (&self.input, self.typed.as_slices()) {
            match rustix::io::write(input, front) {
                Ok(written) => drop(self.typed.drain(..written)),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.input = None;
                    self.typed.clear();
                }
            }
        }
    }
}

impl Client {
    /// Whether the machine waits for it.
    fn holds_up(&self) -> bool {
        self.model.room() < MIN_ROOM
    }

    /// Receive and send what is possible.
    fn turn(&mut self) -> Vec<Request> {
        let mut bytes = Vec::with_capacity(BATCH);
        let read = rustix::io::read(&self.socket, rustix::buffer::spare_capacity(&mut bytes));
        let mut requests = Vec::new();
        match read {
            Ok(1..) => {
                self.since = Instant::now();
                match self.model.receive(&bytes) {
                    Ok(wanted) => requests = wanted,
                    Err(_) => self.open = false,
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => self.open = false,
        }
        self.send();
        requests
    }

    fn send(&mut self) {
        while self.open && !self.model.outgoing().is_empty() {
            match send(&self.socket, self.model.outgoing(), SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    self.model.sent(sent);
                    if !self.holds_up() {
                        self.since = Instant::now();
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => self.open = false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketType, socketpair};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::agent::{Event, Session};

    fn client(clients: &mut Clients) -> OwnedFd {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (theirs, socket) = pair.expect("sockets");
        clients.clients.push(Client {
            socket,
            model: Attached::default(),
            since: Instant::now(),
            open: true,
        });
        theirs
    }

    fn clients(input: Option<OwnedFd>, terminal: bool) -> Clients {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (listener, _) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("sockets");
        Clients::new(listener, input, terminal)
    }

    fn events(session: &mut Session, socket: &OwnedFd) -> Vec<Event> {
        let mut bytes = vec![0; 1 << 20];
        while let Ok(len @ 1..) = rustix::io::read(socket, &mut bytes) {
            session.receive(&bytes[..len]).expect("the protocol");
        }
        std::iter::from_fn(|| session.next_event()).collect()
    }

    #[test]
    fn one_that_takes_nothing_is_waited_for_and_then_let_go() {
        let mut clients = clients(None, false);
        let (slow, quick) = (client(&mut clients), client(&mut clients));
        let mut session = Session::attached();
        let mut came = 0;
        while let Some(room) = clients.room() {
            clients.push(Output::Stdout, &vec![b'x'; room]);
            for event in events(&mut session, &quick) {
                let Event::Stdout(bytes) = event else {
                    panic!("{event:?}");
                };
                came += bytes.len();
            }
            let _ = rustix::io::write(&quick, session.outgoing());
            session.sent(session.outgoing().len());
            clients.handle(Source::Client(1));
            assert!(came < 1 << 20, "it is not for ever");
        }
        assert!(clients.patience().is_some_and(|left| left <= PATIENCE));
        clients.sweep();
        assert_eq!(clients.clients.len(), 2);
        clients.clients[0].since = Instant::now().checked_sub(PATIENCE).expect("a time");
        clients.sweep();
        assert_eq!(clients.clients.len(), 1);
        assert!(clients.room().is_some() && clients.patience().is_none());
        drop(slow);
        clients.finish(3);
        assert_eq!(events(&mut session, &quick).last(), Some(&Event::Exited(3)));
    }

    #[test]
    fn what_is_typed_reaches_the_input_with_hulls_key_twice_on_a_terminal() {
        let (read, input) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
        let mut clients = clients(Some(input), true);
        let socket = client(&mut clients);
        let mut session = Session::attached();
        session.send_stdin(b"a\x01b");
        rustix::io::write(&socket, session.outgoing()).expect("sent");
        session.sent(session.outgoing().len());
        assert_eq!(clients.handle(Source::Client(0)), []);
        let mut bytes = [0; 16];
        let len = rustix::io::read(&read, &mut bytes).expect("typed");
        assert_eq!(&bytes[..len], b"a\x01\x01b");
        let before = session.stdin_room();
        assert!(events(&mut session, &socket).is_empty());
        assert_eq!(session.stdin_room(), before + 3, "it is acknowledged");
        rustix::io::write(&socket, b"nonsense that is no frame").expect("sent");
        clients.handle(Source::Client(0));
        clients.sweep();
        assert!(clients.clients.is_empty());
    }
}
