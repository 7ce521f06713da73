//! The machine's side: waits for a command, and reports how it ended.

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, accept_with, recvmsg,
};
use rustix::process::{Signal, getpid, kill_process};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use super::protocol::{Command, MAX_COMMAND, Reply, STEP_TIMEOUT};
use crate::control::server::is_ours;
use crate::control::{Action, Answer, MAX_REQUEST_BYTES, Request, Status, VERSION};
use crate::sandbox::{Role, spawn};

/// A command that a `hull run` has brought, and its connection.
pub struct Job {
    stream: UnixStream,
    /// What the guest is to run.
    pub command: Command,
    streams: [OwnedFd; 3],
}

/// Wait for a job at `listener`, and meanwhile answer requests for the `status`. `None` when one of
/// `leave` is readable, or when the machine was asked to stop.
///
/// # Errors
/// Waiting fails.
pub fn wait(
    listener: &OwnedFd,
    leave: [BorrowedFd<'_>; 2],
    status: impl Fn() -> Status,
) -> io::Result<Option<Job>> {
    loop {
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(leave.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds.iter().skip(1).any(|fd| !fd.revents().is_empty()) {
            return Ok(None);
        }
        // A client that hangs delays the next by the timeouts; all clients are of this user.
        let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC) else {
            continue;
        };
        if is_ours(&socket) {
            match serve(socket.into(), &status) {
                Ok(Served::Job(job)) => return Ok(Some(job)),
                Ok(Served::Stopped) => return Ok(None),
                Ok(Served::Other) | Err(_) => {}
            }
        }
    }
}

enum Served {
    Job(Job),
    Stopped,
    Other,
}

fn serve(mut stream: UnixStream, status: &impl Fn() -> Status) -> io::Result<Served> {
    stream.set_read_timeout(Some(STEP_TIMEOUT))?;
    stream.set_write_timeout(Some(STEP_TIMEOUT))?;
    let (request, body, streams) = receive(&stream)?;
    let mut answer = |answer: &Answer| {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        stream.write_all(&line)
    };
    match request.action {
        _ if request.version != VERSION => answer(&Answer::Refused(format!(
            "a request of version {}; this machine's hull speaks version {VERSION}",
            request.version
        )))?,
        Action::Status => answer(&Answer::Status(status()))?,
        Action::Stop { .. } => {
            answer(&Answer::Stopped { killed: false })?;
            return Ok(Served::Stopped);
        }
        Action::Take { bytes } if bytes <= MAX_COMMAND => {
            let streams: Result<[OwnedFd; 3], _> = streams.try_into();
            let Ok(streams) = streams else {
                answer(&Answer::Refused("a command has three streams".into()))?;
                return Ok(Served::Other);
            };
            let command = read_command(&mut stream, body, bytes)?;
            stream.write_all(&Reply::Taken.line())?;
            return Ok(Served::Job(Job {
                stream,
                command,
                streams,
            }));
        }
        _ => answer(&Answer::Refused(
            "it waits in a pool for a command and runs none".into(),
        ))?,
    }
    Ok(Served::Other)
}

/// The request, the bytes behind it that have arrived, and the file descriptors that came with it.
fn receive(stream: &UnixStream) -> io::Result<(Request, Vec<u8>, Vec<OwnedFd>)> {
    let mut input = Vec::new();
    let mut streams = Vec::new();
    loop {
        let mut bytes = [0; 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let read = recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                streams.extend(fds);
            }
        }
        input.extend(bytes.iter().take(read));
        if let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            let rest = input.split_off(end + 1);
            return Ok((serde_json::from_slice(&input)?, rest, streams));
        }
        if read == 0 || input.len() > MAX_REQUEST_BYTES || streams.len() > 3 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn read_command(stream: &mut UnixStream, begun: Vec<u8>, bytes: u32) -> io::Result<Command> {
    let mut body = begun;
    let left = u64::from(bytes).saturating_sub(body.len() as u64);
    stream.take(left).read_to_end(&mut body)?;
    if body.len() != bytes as usize {
        return Err(io::ErrorKind::InvalidData.into());
    }
    postcard::from_bytes(&body).map_err(|_| io::ErrorKind::InvalidData.into())
}

impl Job {
    /// Make the job's streams this process's own, and kill this process if the client leaves.
    ///
    /// # Errors
    /// No file descriptor or thread is left.
    pub fn serve(&self) -> io::Result<()> {
        let [stdin, stdout, stderr] = &self.streams;
        self.stream.set_read_timeout(None)?;
        let mut stream = self.stream.try_clone()?;
        // Whatever the guest is doing: its output has no reader any more.
        let watch = move || {
            let mut scratch = [0; 64];
            while matches!(stream.read(&mut scratch), Ok(read) if read > 0) {}
            let _ = kill_process(getpid(), Signal::KILL);
        };
        spawn(Role::Customer, watch)?;
        dup2_stdin(stdin)?;
        dup2_stdout(stdout)?;
        Ok(dup2_stderr(stderr)?)
    }

    /// Report the end of the command, which is the last message of this process.
    pub fn ended(self, status: u8) {
        self.report(Reply::Ended(status));
    }

    /// Report that the guest was never told of the command.
    pub fn unfit(self) {
        self.report(Reply::Unfit);
    }

    fn report(&self, reply: Reply) {
        // By write(2), which is on the main thread's list. It fails if the client has left.
        let _ = rustix::io::write(&self.stream, &reply.line());
    }
}
