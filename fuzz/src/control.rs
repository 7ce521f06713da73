//! The server of a machine's control socket, with clients that send lines in pieces and descriptors
//! with them, hang, read late and leave.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use arbitrary::Arbitrary;
use hull::control::{Action, Answer, MAX_REQUEST_BYTES, Reply, Request, VERSION, server};
use hull::inspect::Inspection;
use hull::sync::eventfd;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;

use crate::config;

/// Clients of one input. The server has as many connections at most, so that it displaces none.
const CLIENTS: usize = 8;
/// Most descriptors with one request (`control::MAX_FILES`).
const MAX_FILES: usize = 2;
/// More than a server takes that has work to do.
const TIMEOUT: Duration = Duration::from_secs(8);
const ACTIONS: &[&str] = &["status", "pause", "resume", "kill"];

/// What clients do, in this order.
#[derive(Arbitrary, Debug)]
pub struct Input(Vec<(u8, Step)>);

#[derive(Arbitrary, Debug)]
enum Step {
    Send(Line),
    /// A line of which this many bytes are kept back for later.
    Begin(Line, u8),
    /// Bytes that need not be a line.
    Bytes(Vec<u8>),
    /// As many bytes without an end of line.
    Flood(u16),
    /// As many as make up a request of the most bytes, or some more.
    Fill(u8),
    /// Descriptors, with a space.
    Files(u8),
    Read,
    /// The client says no more.
    Finish,
    Leave,
}

#[derive(Arbitrary, Debug)]
enum Line {
    Action(u8),
    Inspect(u8, Option<u8>),
    Snapshot(String, [u8; 16], bool, bool),
    Keep([u8; 16]),
    Stop(u32),
    Take(u32),
    Version(u32),
    Json(Vec<(u8, config::Value)>),
}

impl Line {
    fn bytes(&self) -> Vec<u8> {
        let action = |action: u8| ACTIONS[usize::from(action) % ACTIONS.len()];
        let topic =
            |topic: u8| ["all", "registers", "memory", "devices", "queues"][usize::from(topic % 5)];
        let request = match self {
            Self::Json(table) => {
                let table = Value::from(config::map(&["version", "request", "status"], table));
                return format!("{table}\n").into();
            }
            Self::Version(version) => {
                return format!("{{\"version\":{version},\"request\":\"status\"}}\n").into();
            }
            Self::Action(which) => serde_json::json!(action(*which)),
            Self::Inspect(which, vcpu) => {
                serde_json::json!({"inspect": {"topic": topic(*which), "vcpu": vcpu}})
            }
            Self::Snapshot(dir, id, diff, stop) => {
                serde_json::json!({"snapshot": {"dir": dir, "id": id, "diff": diff, "stop": stop}})
            }
            Self::Keep(id) => serde_json::json!({"keep": {"id": id}}),
            Self::Stop(seconds) => serde_json::json!({"stop": {"seconds": seconds}}),
            Self::Take(bytes) => serde_json::json!({"take": {"bytes": bytes}}),
        };
        format!(
            "{}\n",
            serde_json::json!({"version": VERSION, "request": request})
        )
        .into()
    }
}

/// What becomes of a client.
#[derive(Default)]
struct Client {
    stream: Option<UnixStream>,
    /// All that it sent.
    sent: Vec<u8>,
    /// Kept back from a line.
    rest: Vec<u8>,
    /// What it read.
    answer: Vec<u8>,
    /// Actions that it asked for, also over connections that it has left.
    asked: usize,
    /// It cannot say more: the server has answered, or closed the connection.
    over: bool,
}

/// The socket of all inputs.
fn listener() -> &'static (UnixListener, PathBuf) {
    static LISTENER: OnceLock<(UnixListener, PathBuf)> = OnceLock::new();
    LISTENER.get_or_init(|| {
        let path = crate::folder("control").join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        (listener, path)
    })
}

/// The answer to `action`, of different sizes.
fn answer(action: &Action) -> Answer {
    match action {
        Action::Inspect {
            vcpu: Some(vcpu), ..
        } => Answer::Refused("x".repeat(vcpu << 12)),
        Action::Inspect { .. } => Answer::Inspection(Box::<Inspection>::default()),
        Action::Stop { seconds } => Answer::Stopped {
            killed: seconds % 2 == 1,
        },
        _ => Answer::Done { changed: true },
    }
}

/// Serve the clients, and check that each was answered as its line says.
pub fn check(input: &Input) {
    let (connections, _) = listener();
    // What the last input has left in the queue.
    while connections.accept().is_ok() {}
    let listener = connections.try_clone().unwrap().into();
    let stop = eventfd().unwrap();
    let mut clients: [Client; CLIENTS] = Default::default();
    let mut done = 0;
    thread::scope(|scope| {
        let serve = || {
            let (mut later, mut done): (Vec<(Action, Reply)>, _) = (Vec::new(), 0);
            let act = |action: Action, mut reply: Reply| {
                assert!(reply.files().len() <= MAX_FILES);
                done += 1;
                match &action {
                    // It is answered with the next one.
                    Action::Pause => later.push((action, reply)),
                    // The machine ends without an answer.
                    Action::Kill => drop(reply),
                    _ => {
                        for (action, reply) in later.drain(..) {
                            reply.send(answer(&action));
                        }
                        reply.send(answer(&action));
                    }
                }
            };
            server::serve(&listener, eventfd().unwrap(), &stop, act).unwrap();
            done
        };
        let served = scope.spawn(serve);
        for (which, step) in input.0.iter().take(64) {
            clients[usize::from(*which) % CLIENTS].step(step);
        }
        clients.iter_mut().for_each(Client::settle);
        stop.raise();
        done = served.join().unwrap();
    });
    let asked: usize = clients.iter().map(|client| client.asked).sum();
    // One that has left may have been served or not.
    assert!(done <= asked, "an action that was not asked for");
}

impl Client {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Send(line) => {
                let rest = std::mem::take(&mut self.rest);
                self.send(&if rest.is_empty() { line.bytes() } else { rest });
            }
            Step::Begin(line, kept) => {
                let mut line = line.bytes();
                let kept = line.len().saturating_sub(usize::from(*kept).max(1));
                self.rest = line.split_off(kept);
                self.send(&line);
            }
            Step::Bytes(bytes) => self.send(bytes),
            Step::Fill(more) => {
                let left = MAX_REQUEST_BYTES.saturating_sub(self.sent.len());
                self.send(&vec![b' '; left + usize::from(more % 4)]);
            }
            Step::Flood(len) => self.send(&vec![b'x'; usize::from(*len % 0x3000)]),
            Step::Files(count) => self.send_files(*count),
            Step::Read => self.settle(),
            Step::Finish => {
                let stream = self.stream();
                let _ = stream.shutdown(Shutdown::Write);
            }
            Step::Leave => {
                *self = Self {
                    asked: self.asked,
                    ..Self::default()
                };
            }
        }
    }

    fn stream(&mut self) -> &UnixStream {
        self.stream.get_or_insert_with(|| {
            let stream = UnixStream::connect(&listener().1).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            stream.set_write_timeout(Some(TIMEOUT)).unwrap();
            stream
        })
    }

    fn send(&mut self, bytes: &[u8]) {
        // The server reads no further than to the end of a line.
        if !bytes.is_empty() && !self.is_said() && self.stream().write_all(bytes).is_ok() {
            self.sent.extend(bytes);
            self.asked += usize::from(self.action().is_some());
        }
    }

    fn send_files(&mut self, count: u8) {
        if self.is_said() {
            return;
        }
        let stream = self.stream().try_clone().unwrap();
        let files = vec![stream.as_fd(); usize::from(count % 4)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        let sent = sendmsg(
            &stream,
            &[IoSlice::new(b" ")],
            &mut control,
            SendFlags::NOSIGNAL,
        );
        if sent.is_ok() {
            self.sent.push(b' ');
        }
    }

    /// Whether the server answers what was sent so far, without more.
    fn is_said(&self) -> bool {
        self.over || self.sent.contains(&b'\n') || self.sent.len() > MAX_REQUEST_BYTES
    }

    /// The action of its line, if that is one.
    fn action(&self) -> Option<Action> {
        let end = self.sent.iter().position(|byte| *byte == b'\n')?;
        let request: Request = serde_json::from_slice(&self.sent[..end]).ok()?;
        (request.version == VERSION).then_some(request.action)
    }

    /// Read the answer to what was sent, if there is to be one.
    fn settle(&mut self) {
        let waits = matches!(self.action(), Some(Action::Pause));
        if !self.is_said() || self.over || waits {
            return;
        }
        let action = self.action();
        let read = self.stream.take().unwrap().read_to_end(&mut self.answer);
        self.over = true;
        // Bytes that the server has not read reset the connection.
        let ended = read.is_ok();
        if read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            panic!("no answer to {:?}", String::from_utf8_lossy(&self.sent));
        }
        let answered = String::from_utf8_lossy(&self.answer);
        match action {
            Some(Action::Kill) => assert_eq!(answered, ""),
            Some(action) => {
                let expected = serde_json::to_string(&answer(&action)).unwrap();
                assert_eq!(answered, format!("{expected}\n"));
            }
            // A flood may be reset before the refusal is read.
            None if answered.is_empty() => {
                assert!(self.sent.len() > MAX_REQUEST_BYTES && !ended, "no answer");
            }
            None => assert!(answered.starts_with("{\"refused\":"), "{answered}"),
        }
    }
}
