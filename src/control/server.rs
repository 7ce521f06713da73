//! The machine's end: a few connections at once, each with limits of bytes and time, so that one
//! that hangs, floods or leaves costs nobody but itself.
//!
//! ```text
//!   accepted --- line --> answering --- all sent --> closed
//!      |                     |                         ^
//!      '-- too long, too late, gone, not ours ---------'
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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

/// Serve those who connect to `listener`, which does not block, until `stop` is readable.
///
/// # Errors
/// Waiting fails.
pub fn serve(
    listener: &OwnedFd,
    stop: impl AsFd,
    mut answer: impl FnMut(Request) -> Answer,
) -> io::Result<()> {
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let room = connections.len() < CONNECTIONS_MOST;
        let (stopped, called, ready) = wait(listener, &stop, room, &connections)?;
        if stopped {
            return Ok(());
        }
        let now = Instant::now();
        let mut ready = ready.into_iter();
        connections.retain_mut(|connection| {
            let ready = ready.next().unwrap_or(false);
            let open = !ready || connection.go_on(&mut answer);
            open && connection.until > now
        });
        if called {
            connections.extend(accept(listener));
        }
    }
}

/// Wait for something to do: whether to stop, whether somebody connects, and for each connection
/// whether it can go on.
fn wait(
    listener: &OwnedFd,
    stop: &impl AsFd,
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
    ];
    for connection in connections {
        let wanted = match connection.output.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::OUT,
        };
        fds.push(PollFd::new(&connection.socket, wanted));
    }
    let until = connections.iter().map(|connection| connection.until).min();
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut fds, left.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
    let stopped = ready.next().unwrap_or(false);
    let called = ready.next().unwrap_or(false);
    Ok((stopped, called, ready.collect()))
}

/// Whoever has connected, if it is somebody to talk to.
fn accept(listener: &OwnedFd) -> Option<Connection> {
    let socket = match net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(socket) => socket,
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return None,
        Err(_) => {
            thread::sleep(PAUSE);
            return None;
        }
    };
    // The folder around is closed to others, but the socket may have been handed on.
    let peer = net::sockopt::socket_peercred(&socket).ok()?.uid;
    (peer == geteuid() || peer.is_root()).then(|| Connection {
        socket,
        input: Vec::new(),
        output: Vec::new(),
        until: Instant::now() + PATIENCE,
    })
}

struct Connection {
    socket: OwnedFd,
    /// What came of the request so far.
    input: Vec<u8>,
    /// What of the answer is still to be sent.
    output: Vec<u8>,
    /// When it is given up.
    until: Instant,
}

impl Connection {
    /// Do what can be done now; says whether there is more to come.
    fn go_on(&mut self, answer: &mut impl FnMut(Request) -> Answer) -> bool {
        if self.output.is_empty() {
            let mut bytes = [0; 1024];
            let read = match net::recv(&self.socket, &mut bytes, RecvFlags::empty()) {
                Ok((0, _)) => return false,
                Ok((read, _)) => read,
                Err(Errno::AGAIN | Errno::INTR) => return true,
                Err(_) => return false,
            };
            self.input.extend(bytes.iter().take(read));
            let end = self.input.iter().position(|byte| *byte == b'\n');
            let line = end.and_then(|end| self.input.get(..end));
            let reply = match line {
                Some(line) => reply(line, answer),
                None if self.input.len() > REQUEST_MOST => Answer::Refused(format!(
                    "a request has at most {REQUEST_MOST} bytes and a newline"
                )),
                None => return true,
            };
            self.output = serde_json::to_vec(&reply).unwrap_or_default();
            self.output.push(b'\n');
            self.until = Instant::now() + PATIENCE;
        }
        while !self.output.is_empty() {
            match net::send(&self.socket, &self.output, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        false
    }
}

fn reply(line: &[u8], answer: &mut impl FnMut(Request) -> Answer) -> Answer {
    match serde_json::from_slice::<Call>(line) {
        Ok(call) if call.version == VERSION => answer(call.request),
        Ok(call) => Answer::Refused(format!(
            "a request of version {}; this machine's hull speaks version {VERSION}",
            call.version
        )),
        Err(error) => Answer::Refused(format!("not a request that this hull knows ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;

    use rustix::event::{EventfdFlags, eventfd};

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
                serve(&listener.into(), &stop, |request| match request {
                    Request::Inspect {
                        topic: Topic::All, ..
                    } => Answer::Inspection(Box::default()),
                    Request::Inspect { .. } => Answer::Refused("x".repeat(1 << 20)),
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
    fn who_hangs_or_leaves_is_nobody_elses_trouble() {
        serving(|path| {
            let silent: Vec<_> = (1..CONNECTIONS_MOST)
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
