//! The thread that waits for gdb, and for the machine while gdb does.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use gdbstub::common::Signal as GdbSignal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::guest::Guest;
use super::target::{Session, tid};
use super::{Listener, Over};
use crate::kvm::debug::{Cause, PointKind, Powers, Stop, Trap};
use crate::kvm::{probe, vm};
use crate::sync::EventFd;
use crate::vmm::debugger::Debugged;
use crate::vmm::vcpus::{Pause, Stopped};

/// How long gdb may take to read an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a packet: all registers fit, and memory comes in pieces.
const PACKET: usize = 4096;

type Machine = GdbStubStateMachine<'static, Session, Wire>;

/// The thread's own.
pub struct Worker {
    pub machine: Debugged,
    /// Holds the machine until a first gdb lets it run.
    pub waiting: Option<Pause>,
    pub stops: Receiver<Stopped>,
    /// Raised when there is a stop.
    pub woken: Arc<EventFd>,
    pub over: Arc<Over>,
    /// What KVM can do, once somebody has asked.
    pub powers: Option<Powers>,
}

/// Why a session ended.
enum End {
    /// gdb has left, or what came was no gdb.
    Left,
    /// It ended the machine.
    Kill,
    /// The machine ended.
    Over,
}

/// What there is to do.
#[derive(Default)]
struct Ready {
    bytes: bool,
    stop: bool,
    over: bool,
}

impl Worker {
    /// Serve one gdb after the other until the machine ends.
    pub fn serve(mut self, listener: &Listener) {
        loop {
            let ready = match self.wait(listener.as_fd()) {
                Ok(ready) => ready,
                Err(_) => return,
            };
            if ready.over {
                return;
            }
            // A stop that a gdb which has left did not see.
            while self.stops.try_recv().is_ok() {}
            if ready.bytes
                && let Ok(wire) = listener.accept()
                && let End::Over = self.session(wire)
            {
                return;
            }
        }
    }

    /// Wait for `fd`, for a stop or for the machine's end.
    fn wait(&self, fd: BorrowedFd<'_>) -> io::Result<Ready> {
        let mut fds = [
            PollFd::from_borrowed_fd(fd, PollFlags::IN),
            PollFd::from_borrowed_fd(self.woken.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.over.signal.as_fd(), PollFlags::IN),
        ];
        loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => break,
            }
        }
        let [bytes, stop, over] = fds.map(|fd| !fd.revents().is_empty());
        if stop {
            self.woken.lower();
        }
        Ok(Ready { bytes, stop, over })
    }

    /// From a gdb's coming to its leaving.
    fn session(&mut self, wire: Wire) -> End {
        let powers = self.powers();
        let guest = Guest::stop(self.machine.clone(), powers);
        let mut session = Session::new(guest);
        let end = self.converse(&mut session, wire);
        if session.resumed || matches!(end, End::Left) && !self.is_waiting() {
            self.waiting = None;
        }
        if let End::Kill = end {
            // While it stands still: it must not come to an end of its own.
            self.machine.kill();
        }
        if let Err(error) = session.guest.release() {
            self.machine
                .warn(&format!("the guest may not go on: {error}"));
        }
        // Those stops were of breakpoints that are no more.
        while self.stops.try_recv().is_ok() {}
        end
    }

    fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// What KVM can do, measured when the first gdb comes.
    fn powers(&mut self) -> Powers {
        if let Some(powers) = self.powers {
            return powers;
        }
        let measured = vm::open().map_err(Into::into).and_then(probe::debugging);
        let powers = measured.unwrap_or(Powers {
            trap: Trap::Exit,
            execute: true,
            watch: true,
            blocks_interrupts: false,
        });
        let lacks = [
            (
                powers.trap != Trap::Exit,
                "software breakpoints in programs",
            ),
            (!powers.execute, "hardware breakpoints"),
            (!powers.watch, "hardware watchpoints"),
        ];
        let lacks = lacks.iter().filter(|(lacks, _)| *lacks);
        let lacks: Vec<&str> = lacks.map(|(_, what)| *what).collect();
        if !lacks.is_empty() {
            let lacks = lacks.join(", ");
            self.machine
                .warn(&format!("this host's KVM has no {lacks}"));
        }
        self.powers = Some(powers);
        powers
    }

    fn converse(&mut self, session: &mut Session, wire: Wire) -> End {
        let stub = GdbStub::builder(wire).packet_buffer_size(PACKET).build();
        let Ok(Ok(mut machine)) = stub.map(|stub| stub.run_state_machine(session)) else {
            return End::Left;
        };
        loop {
            let next = match machine {
                GdbStubStateMachine::Disconnected(gdb) => {
                    return match gdb.get_reason() {
                        DisconnectReason::Kill => End::Kill,
                        DisconnectReason::Disconnect => {
                            // Who detaches wants it to run.
                            session.resumed = true;
                            End::Left
                        }
                        _ => End::Over,
                    };
                }
                GdbStubStateMachine::CtrlCInterrupt(gdb) => {
                    let reason = interrupted(session);
                    gdb.interrupt_handled(session, reason).ok()
                }
                GdbStubStateMachine::Idle(mut gdb) => match self.next_byte(gdb.borrow_conn()) {
                    Next::Byte(byte) => gdb.incoming_data(session, byte).ok(),
                    Next::Stop => Some(gdb.into()),
                    Next::Over => return End::Over,
                    Next::Gone => None,
                },
                GdbStubStateMachine::Running(gdb) => match self.running(session, gdb.into()) {
                    Ok(next) => next,
                    Err(end) => return end,
                },
            };
            match next {
                Some(next) => machine = next,
                None => return End::Left,
            }
        }
    }

    /// While the machine runs: what comes first, of gdb and of the machine.
    fn running(&mut self, session: &mut Session, machine: Machine) -> Result<Option<Machine>, End> {
        let GdbStubStateMachine::Running(mut gdb) = machine else {
            return Ok(Some(machine));
        };
        self.waiting = None;
        if let Some((index, stop)) = session.guest.untold() {
            session.guest.halt();
            let reason = reason(session, index, &stop);
            return Ok(gdb.report_stop(session, reason).ok());
        }
        match self.next_byte(gdb.borrow_conn()) {
            Next::Byte(byte) => Ok(gdb.incoming_data(session, byte).ok()),
            Next::Gone => Ok(None),
            Next::Over => {
                let status = self.over.status.get().copied().flatten();
                let reason = match status {
                    Some(status) => MultiThreadStopReason::Exited(status),
                    None => MultiThreadStopReason::Terminated(GdbSignal::SIGABRT),
                };
                let _ = gdb.report_stop(session, reason);
                Err(End::Over)
            }
            Next::Stop => match self.stopped(session) {
                Some((index, stop)) => {
                    let reason = reason(session, index, &stop);
                    Ok(gdb.report_stop(session, reason).ok())
                }
                None => Ok(Some(gdb.into())),
            },
        }
    }

    /// The stop to tell gdb of, among those that came. Then the machine stands still.
    fn stopped(&self, session: &mut Session) -> Option<(usize, Stop)> {
        let mut told = None;
        while let Ok(stopped) = self.stops.try_recv() {
            let handled = match told {
                None => session.guest.stopped(stopped).map(|found| told = found),
                Some(_) => session.guest.also_stopped(&stopped),
            };
            if let Err(error) = handled {
                self.machine
                    .warn(&format!("the guest may not go on: {error}"));
            }
        }
        told
    }

    fn next_byte(&self, wire: &mut Wire) -> Next {
        if let Some(byte) = wire.read.pop_front() {
            return Next::Byte(byte);
        }
        match self.wait(wire.as_fd()) {
            Ok(ready) if ready.over => Next::Over,
            Ok(ready) if ready.stop => Next::Stop,
            Ok(ready) if ready.bytes => match wire.fill() {
                Ok(0) | Err(_) => Next::Gone,
                Ok(_) => wire.read.pop_front().map_or(Next::Gone, Next::Byte),
            },
            Ok(_) => Next::Stop,
            Err(_) => Next::Gone,
        }
    }
}

/// What comes next.
enum Next {
    Byte(u8),
    Stop,
    Over,
    /// gdb's end is closed.
    Gone,
}

/// Ctrl-C.
fn interrupted(session: &mut Session) -> Option<MultiThreadStopReason<u64>> {
    session.guest.halt();
    Some(MultiThreadStopReason::SignalWithThread {
        tid: tid(session.guest.focus),
        signal: GdbSignal::SIGINT,
    })
}

fn reason(session: &Session, index: usize, stop: &Stop) -> MultiThreadStopReason<u64> {
    let tid = tid(index);
    match (stop.cause, session.guest.watched(stop)) {
        (Cause::Trap, _) => MultiThreadStopReason::SwBreak(tid),
        (_, Some(point)) => MultiThreadStopReason::Watch {
            tid,
            kind: match point.kind {
                PointKind::Access => WatchKind::ReadWrite,
                _ => WatchKind::Write,
            },
            addr: point.address,
        },
        (Cause::Point(_), None) => MultiThreadStopReason::HwBreak(tid),
        (Cause::Step | Cause::Debug { .. }, None) => MultiThreadStopReason::SignalWithThread {
            tid,
            signal: GdbSignal::SIGTRAP,
        },
    }
}

impl Listener {
    fn accept(&self) -> io::Result<Wire> {
        Ok(Wire::new(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Stream::Tcp(stream)
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Stream::Unix(stream)
            }
        }))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

/// The connection to gdb: what was read and not taken, and what is not written yet.
struct Wire {
    stream: Stream,
    read: VecDeque<u8>,
    written: Vec<u8>,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Wire {
    fn new(stream: Stream) -> Self {
        Self {
            stream,
            read: VecDeque::new(),
            written: Vec::new(),
        }
    }

    /// Read what is there.
    fn fill(&mut self) -> io::Result<usize> {
        let mut bytes = [0; PACKET];
        let read = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(&mut bytes),
            Stream::Unix(stream) => stream.read(&mut bytes),
        }?;
        self.read.extend(bytes.iter().take(read));
        Ok(read)
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.written.push(byte);
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written.extend(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.written);
        match &mut self.stream {
            Stream::Tcp(stream) => Write::write_all(stream, &bytes),
            Stream::Unix(stream) => Write::write_all(stream, &bytes),
        }
    }
}
