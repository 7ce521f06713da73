//! The machine's end: a few connections at once, each with limits of bytes and time, so that one
//! that hangs, floods or leaves costs nobody but itself.
//!
//! ```text
//!   accepted --- line --> waiting --- Reply --> answering --- all sent --> closed
//!      |                     |                     |                         ^
//!      '-- too long, too late, gone, not ours, made room for another --------'
//! ```
//! An answer may be given at once or later and from any thread: a machine that does something for
//! one goes on answering others.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags, SocketFlags};
use rustix::process::geteuid;

use super::{Answer, Call, REQUEST_MOST, Request, VERSION};

/// Connections at once; others wait until one of these ends.
const CONNECTIONS_MOST: usize = 8;
/// How long a request may take to come, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// Before another try, when the host has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// Who waits for the answer to a request. Dropped without one, it says that the machine ended: the
/// connection closes.
#[derive(Debug)]
pub struct Reply {
    connection: u64,
    answers: Sender<(u64, Option<Answer>)>,
    wake: Arc<OwnedFd>,
}

impl Reply {
    /// Answer.
    pub fn send(self, answer: Answer) {
        self.put(Some(answer));
    }

    fn put(&self, answer: Option<Answer>) {
        // Both fail when nobody serves any more; the second also when it is signalled already.
        let _ = self.answers.send((self.connection, answer));
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // After an answer that is one too many, which its connection does not wait for.
        self.put(None);
    }
}

/// Serve those who connect to `listener`, which does not block, until `stop` is readable. Answers
/// that were given by then are still sent, as far as they are taken at once.
///
/// # Errors
/// Waiting fails, or there is no descriptor left.
pub fn serve(
    listener: &OwnedFd,
    stop: impl AsFd,
    mut answer: impl FnMut(Request, Reply),
) -> io::Result<()> {
    let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
    let (answers, given) = channel();
    let mut connections: Vec<Connection> = Vec::new();
    let mut next = 0;
    loop {
        let room = connections.len() < CONNECTIONS_MOST || connections.iter().any(Connection::idle);
        let (stopped, called, ready) = wait(listener, &stop, &wake, room, &connections)?;
        let now = Instant::now();
        let mut ready = ready.into_iter();
        connections.retain_mut(|connection| {
            let mut ask = |request, connection| {
                let (answers, wake) = (answers.clone(), wake.clone());
                let reply = Reply {
                    connection,
                    answers,
                    wake,
                };
                answer(request, reply);
            };
            let ready = ready.next().unwrap_or(false) && !stopped;
            let open = !ready || connection.go_on(&mut ask);
            open && connection.until.is_none_or(|until| until > now)
        });
        hand_out(&given, &mut connections);
        if stopped {
            return Ok(());
        }
        if called && let Some(connection) = accept(listener, next) {
            next += 1;
            if connections.len() >= CONNECTIONS_MOST {
                // One that says nothing holds up nobody: it came first, it goes first.
                let idle = connections.iter().position(Connection::idle);
                idle.map(|index| connections.remove(index));
            }
            connections.push(connection);
        }
    }
}

/// Send the answers that were given to those who wait for them.
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

/// Wait for something to do: whether to stop, whether somebody connects, and for each connection
/// whether it can go on.
fn wait(
    listener: &OwnedFd,
    stop: &impl AsFd,
    wake: &OwnedFd,
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
            // Only whether it leaves.
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
        let _ = rustix::io::read(wake, &mut [0; 8]);
    }
    Ok((stopped, called, ready.collect()))
}

/// Whoever has connected, if it is somebody to talk to.
fn accept(listener: &OwnedFd, id: u64) -> Option<Connection> {
    let socket = match net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(socket) => socket,
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return None,
        Err(_) => {
            thread::sleep(PAUSE);
            return None;
        }
    };
    is_ours(&socket).then(|| Connection {
        socket,
        id,
        stage: Stage::Reading(Vec::new()),
        until: Some(Instant::now() + PATIENCE),
    })
}

/// Whether it is this user who has connected, or root. The folder around is closed to others, but the
/// socket may have been handed on.
pub fn is_ours(socket: &OwnedFd) -> bool {
    let peer = net::sockopt::socket_peercred(socket).map(|peer| peer.uid);
    peer.is_ok_and(|peer| peer == geteuid() || peer.is_root())
}

struct Connection {
    socket: OwnedFd,
    /// No other's.
    id: u64,
    stage: Stage,
    /// When it is given up.
    until: Option<Instant>,
}

enum Stage {
    /// What came of the request so far.
    Reading(Vec<u8>),
    /// There is a [`Reply`] for it.
    Waiting,
    /// What of the answer is still to be sent.
    Sending(Vec<u8>),
}

impl Connection {
    /// Whether it has not asked yet.
    fn idle(&self) -> bool {
        matches!(self.stage, Stage::Reading(_))
    }

    fn waits(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }

    /// Do what can be done now; says whether there is more to come.
    fn go_on(&mut self, ask: &mut impl FnMut(Request, u64)) -> bool {
        let input = match &mut self.stage {
            Stage::Reading(input) => input,
            Stage::Waiting => return false, // it left
            Stage::Sending(_) => return self.send(),
        };
        let mut bytes = [0; 1024];
        let read = match net::recv(&self.socket, &mut bytes, RecvFlags::empty()) {
            Ok((0, _)) => return false,
            Ok((read, _)) => read,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Err(_) => return false,
        };
        input.extend(bytes.iter().take(read));
        let end = input.iter().position(|byte| *byte == b'\n');
        let line = end.and_then(|end| input.get(..end));
        let understood = match line {
            Some(line) => understand(line),
            None if input.len() > REQUEST_MOST => Err(format!(
                "a request has at most {REQUEST_MOST} bytes and a newline"
            )),
            None => return true,
        };
        match understood {
            Ok(request) => {
                self.stage = Stage::Waiting;
                self.until = None;
                ask(request, self.id);
                true
            }
            Err(reason) => self.answer(&Answer::Refused(reason)),
        }
    }

    /// Begin to send the answer; says whether there is more of it to come.
    fn answer(&mut self, answer: &Answer) -> bool {
        let mut output = serde_json::to_vec(answer).unwrap_or_default();
        output.push(b'\n');
        self.stage = Stage::Sending(output);
        self.until = Some(Instant::now() + PATIENCE);
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

fn understand(line: &[u8]) -> Result<Request, String> {
    match serde_json::from_slice::<Call>(line) {
        Ok(call) if call.version == VERSION => Ok(call.request),
        Ok(call) => Err(format!(
            "a request of version {}; this machine's hull speaks version {VERSION}",
            call.version
        )),
        Err(error) => Err(format!("not a request that this hull knows ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;

    use super::*;
    use crate::inspect::{Inspection, Topic};

    /// Serve while `talk` goes on.
    fn serving(talk: impl FnOnce(&Path)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        thread::scope(|scope| {
            let serve = || {
                let mut later = Vec::new();
                serve(&listener.into(), &stop, |request, reply| match request {
                    Request::Inspect {
                        topic: Topic::All, ..
                    } => reply.send(Answer::Inspection(Box::default())),
                    Request::Inspect { .. } => reply.send(Answer::Refused("x".repeat(1 << 20))),
                    Request::Pause => later.push(reply),
                    Request::Resume => later
                        .drain(..)
                        .chain([reply])
                        .for_each(|reply| reply.send(Answer::Done { changed: true })),
                    _ => drop(reply),
                })
            };
            let served = scope.spawn(serve);
            talk(&path);
            rustix::io::write(&stop, &1u64.to_ne_bytes()).unwrap();
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
    fn who_hangs_or_leaves_is_nobody_elses_trouble() {
        serving(|path| {
            let silent: Vec<_> = (0..2 * CONNECTIONS_MOST)
                .map(|_| UnixStream::connect(path).unwrap())
                .collect();
            assert!(ask(path, GOOD).ends_with('\n'));
            drop(silent);
            for _ in 0..100 {
                let mut gone = UnixStream::connect(path).unwrap();
                gone.write_all(b"{\"version\":1,").unwrap();
            }
            // One that asks for much and takes nothing.
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
