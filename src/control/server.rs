//! The machine's side: a few connections at once, each with limits of bytes and time, so that a
//! client that hangs, floods or leaves affects no other.
//!
//! ```text
//!   accepted --- line --> waiting --- Reply --> answering --- all sent --> closed
//!      |                     |                     |                         ^
//!      '-- too long, too late, closed, another user, displaced ----------'
//! ```
//! An answer may be given at once, or later from any thread; meanwhile other connections are
//! served.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    self, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
};
use rustix::process::geteuid;

use super::action::{Action, Answer, MAX_FILES, MAX_REQUEST_BYTES, Request, VERSION};
use super::reply::Reply;
use crate::sandbox::peer_user;
use crate::sync::EventFd;

/// Connections at once; further ones wait until one of these ends.
const MAX_CONNECTIONS: usize = 8;
/// Time for a request to arrive, and for an answer to be read.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay before the next accept when no file descriptor is left.
const ACCEPT_RETRY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Serve connections to the nonblocking `listener` until `stop` is readable. Answers that exist by
/// then are still sent, as far as the sockets take them at once. `wake` is raised for each answer.
///
/// # Errors
/// Waiting fails, or there is no descriptor left.
pub fn serve(
    listener: &OwnedFd,
    wake: EventFd,
    stop: impl AsFd,
    mut act: impl FnMut(Action, Reply),
) -> io::Result<()> {
    let wake = Arc::new(wake);
    let (answers, given) = channel();
    let mut connections: Vec<Connection> = Vec::new();
    let mut next = 0;
    loop {
        let room = connections.len() < MAX_CONNECTIONS || connections.iter().any(Connection::idle);
        let (stopped, called, ready) = wait(listener, &stop, &wake, room, &connections)?;
        let now = Instant::now();
        let mut ready = ready.into_iter();
        connections.retain_mut(|connection| {
            let mut ask = |action, files, connection| {
                let (answers, wake) = (answers.clone(), wake.clone());
                let reply = Reply::new(move |answer| {
                    // Fails once the server has ended.
                    let _ = answers.send((connection, answer));
                    wake.raise();
                });
                act(action, reply.with(files));
            };
            let ready = ready.next().unwrap_or(false) && !stopped;
            let open = !ready || connection.advance(&mut ask);
            open && connection.until.is_none_or(|until| until > now)
        });
        hand_out(&given, &mut connections);
        if stopped {
            return Ok(());
        }
        if called && let Some(connection) = accept(listener, next) {
            next += 1;
            if connections.len() >= MAX_CONNECTIONS {
                // The oldest connection without a request makes room.
                let idle = connections.iter().position(Connection::idle);
                idle.map(|index| connections.remove(index));
            }
            connections.push(connection);
        }
    }
}

/// Send each answer to the connection that waits for it; `None` closes the connection.
fn hand_out(given: &Receiver<(u64, Option<Answer>)>, connections: &mut Vec<Connection>) {
    for (id, answer) in given.try_iter() {
        let waits = |connection: &Connection| connection.id == id && connection.waits();
        let Some(index) = connections.iter().position(waits) else {
            continue;
        };
        let open = answer.is_some_and(|answer| {
            let connection = connections.get_mut(index);
            connection.is_some_and(|connection| connection.answer(&answer))
        });
        if !open {
            connections.remove(index);
        }
    }
}

/// Wait for something to do. Returns whether to stop, whether a client connects, and for each
/// connection whether it can make progress.
fn wait(
    listener: &OwnedFd,
    stop: &impl AsFd,
    wake: &EventFd,
    room: bool,
    connections: &[Connection],
) -> io::Result<(bool, bool, Vec<bool>)> {
    let calls = if room {
        PollFlags::IN
    } else {
        PollFlags::empty()
    };
    let mut fds = vec![
        PollFd::new(stop, PollFlags::IN),
        PollFd::new(listener, calls),
        PollFd::new(wake, PollFlags::IN),
    ];
    for connection in connections {
        let wanted = match connection.stage {
            Stage::Reading(_) => PollFlags::IN,
            // Only POLLHUP, which is always reported.
            Stage::Waiting => PollFlags::empty(),
            Stage::Sending(_) => PollFlags::OUT,
        };
        fds.push(PollFd::new(&connection.socket, wanted));
    }
    let until = connections.iter().filter_map(|connection| connection.until);
    let left = until
        .min()
        .map(|until| until.saturating_duration_since(Instant::now()));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut fds, left.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
    let stopped = ready.next().unwrap_or(false);
    let called = ready.next().unwrap_or(false);
    if ready.next().unwrap_or(false) {
        // Nonblocking: an error says that nothing was there.
        wake.lower();
    }
    Ok((stopped, called, ready.collect()))
}

/// The next connection, if it is of this user or of root.
fn accept(listener: &OwnedFd, id: u64) -> Option<Connection> {
    let socket = match net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(socket) => socket,
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return None,
        Err(_) => {
            let _ = poll(&mut [], Some(&ACCEPT_RETRY));
            return None;
        }
    };
    is_ours(&socket).then(|| Connection {
        socket,
        id,
        stage: Stage::Reading(Vec::new()),
        files: Vec::new(),
        until: Some(Instant::now() + TRANSFER_TIMEOUT),
    })
}

/// Whether the peer is this user or root. Others cannot enter the socket's folder, but may have been
/// handed the socket.
pub fn is_ours(socket: impl AsFd) -> bool {
    let root = 0;
    peer_user(socket).is_ok_and(|peer| peer == geteuid().as_raw() || peer == root)
}

struct Connection {
    socket: OwnedFd,
    /// Unique among all connections of this server.
    id: u64,
    stage: Stage,
    /// Descriptors that came with the request.
    files: Vec<OwnedFd>,
    /// Deadline of the current stage.
    until: Option<Instant>,
}

enum Stage {
    /// The part of the request that has arrived.
    Reading(Vec<u8>),
    /// A [`Reply`] exists for the request.
    Waiting,
    /// The part of the answer that is not sent yet.
    Sending(Vec<u8>),
}

impl Connection {
    /// Whether its request is not complete yet.
    fn idle(&self) -> bool {
        matches!(self.stage, Stage::Reading(_))
    }

    fn waits(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }

    /// Make what progress is possible now; false when the connection is to be closed.
    fn advance(&mut self, ask: &mut impl FnMut(Action, Vec<OwnedFd>, u64)) -> bool {
        let input = match &mut self.stage {
            Stage::Reading(input) => input,
            Stage::Waiting => return false, // the client left
            Stage::Sending(_) => return self.send(),
        };
        let mut bytes = [0; 1024];
        let read = match receive(&self.socket, &mut bytes, &mut self.files) {
            Ok(0) => return false,
            Ok(read) => read,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Err(_) => return false,
        };
        self.files.truncate(MAX_FILES);
        input.extend(bytes.iter().take(read));
        let end = input.iter().position(|byte| *byte == b'\n');
        let line = end.and_then(|end| input.get(..end));
        let parsed = match line {
            Some(line) => parse(line),
            None if input.len() > MAX_REQUEST_BYTES => Err(format!(
                "a request has at most {MAX_REQUEST_BYTES} bytes and a newline"
            )),
            None => return true,
        };
        match parsed {
            Ok(action) => {
                self.stage = Stage::Waiting;
                self.until = None;
                ask(action, std::mem::take(&mut self.files), self.id);
                true
            }
            Err(reason) => self.answer(&Answer::Refused(reason)),
        }
    }

    /// Begin to send the answer; false when all of it is sent.
    fn answer(&mut self, answer: &Answer) -> bool {
        let mut output = serde_json::to_vec(answer).unwrap_or_default();
        output.push(b'\n');
        self.stage = Stage::Sending(output);
        self.until = Some(Instant::now() + TRANSFER_TIMEOUT);
        self.send()
    }

    fn send(&mut self) -> bool {
        let Stage::Sending(output) = &mut self.stage else {
            return true;
        };
        while !output.is_empty() {
            match net::send(&self.socket, output, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(output.drain(..sent)),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        false
    }
}

/// Read into `bytes`, and the descriptors that come with them into `files`.
fn receive(socket: &OwnedFd, bytes: &mut [u8], files: &mut Vec<OwnedFd>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(bytes)];
    let read = net::recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            files.extend(came);
        }
    }
    Ok(read)
}

fn parse(line: &[u8]) -> Result<Action, String> {
    match serde_json::from_slice::<Request>(line) {
        Ok(request) if request.version == VERSION => Ok(request.action),
        Ok(request) => Err(format!(
            "a request of version {}; this machine's hull speaks version {VERSION}",
            request.version
        )),
        Err(error) => Err(format!("not a request that this hull knows ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;

    use std::thread;

    use super::*;
    use crate::inspect::{Inspection, Topic};
    use crate::sync::eventfd;

    /// Serve while `talk` runs.
    fn serving(talk: impl FnOnce(&Path)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = eventfd().unwrap();
        thread::scope(|scope| {
            let serve = || {
                let mut later = Vec::new();
                serve(
                    &listener.into(),
                    eventfd().unwrap(),
                    &stop,
                    |action, reply| match action {
                        Action::Inspect {
                            topic: Topic::All, ..
                        } => reply.send(Answer::Inspection(Box::default())),
                        Action::Inspect { .. } => reply.send(Answer::Refused("x".repeat(1 << 20))),
                        Action::Pause => later.push(reply),
                        Action::Resume => later
                            .drain(..)
                            .chain([reply])
                            .for_each(|reply| reply.send(Answer::Done { changed: true })),
                        _ => drop(reply),
                    },
                )
            };
            let served = scope.spawn(serve);
            talk(&path);
            stop.raise();
            served.join().unwrap().unwrap();
        });
    }

    fn ask(path: &Path, line: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(line).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        answer
    }

    const GOOD: &[u8] = b"{\"version\":1,\"request\":{\"inspect\":{\"topic\":\"all\"}}}\n";

    #[test]
    fn a_line_is_answered_by_a_line() {
        serving(|path| {
            let answer: Answer = serde_json::from_str(&ask(path, GOOD)).unwrap();
            let Answer::Inspection(seen) = answer else {
                panic!("{answer:?}")
            };
            assert_eq!(*seen, Inspection::default());
            for (bad, reason) in [
                (&b"\n"[..], "not a request"),
                (b"{}\n", "not a request"),
                (b"\xff\n", "not a request"),
                (b"{\"version\":1,\"request\":\"fly\"}\n", "not a request"),
                (
                    b"{\"version\":2,\"request\":{\"inspect\":{\"topic\":\"all\"}}}\n",
                    "version 2",
                ),
                (&[b'x'; 5000], "at most 4096 bytes"),
            ] {
                let answer = ask(path, bad);
                assert!(answer.contains(reason), "{answer}");
            }
        });
    }

    #[test]
    fn an_answer_may_come_later_and_never() {
        serving(|path| {
            let mut slow = UnixStream::connect(path).unwrap();
            slow.write_all(b"{\"version\":1,\"request\":\"pause\"}\n")
                .unwrap();
            assert!(ask(path, GOOD).ends_with('\n'), "others are answered");
            let mut gone = UnixStream::connect(path).unwrap();
            gone.write_all(b"{\"version\":1,\"request\":\"pause\"}\n")
                .unwrap();
            drop(gone);
            let done = "{\"done\":{\"changed\":true}}\n";
            let resume = b"{\"version\":1,\"request\":\"resume\"}\n";
            assert_eq!(ask(path, resume), done);
            let mut answer = String::new();
            slow.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, done);
            assert_eq!(ask(path, b"{\"version\":1,\"request\":\"status\"}\n"), "");
        });
    }

    #[test]
    fn a_client_that_hangs_or_leaves_affects_no_other() {
        serving(|path| {
            let silent: Vec<_> = (0..2 * MAX_CONNECTIONS)
                .map(|_| UnixStream::connect(path).unwrap())
                .collect();
            assert!(ask(path, GOOD).ends_with('\n'));
            drop(silent);
            for _ in 0..100 {
                let mut gone = UnixStream::connect(path).unwrap();
                gone.write_all(b"{\"version\":1,").unwrap();
            }
            // A client that asks for a large answer and does not read it.
            let mut full = UnixStream::connect(path).unwrap();
            full.write_all(b"{\"version\":1,\"request\":{\"inspect\":{\"topic\":\"queues\"}}}\n")
                .unwrap();
            assert!(ask(path, GOOD).ends_with('\n'));
            let mut answer = String::new();
            full.read_to_string(&mut answer).unwrap();
            assert!(answer.len() > 1 << 20 && answer.ends_with('\n'));
        });
    }
}
