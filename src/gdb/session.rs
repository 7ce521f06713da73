//! The thread that waits for gdb, and for the machine while gdb does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use gdbstub::common::Signal as GdbSignal;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::guest::Guest;
use super::listener::{Listener, MAX_PACKET, Wire};
use super::over::Over;
use super::target::{Session, tid};
use crate::kvm::debug::{Cause, PointKind, Powers, Stop, Trap};
use crate::kvm::{probe, vm};
use crate::sync::EventFd;
use crate::vmm::debugger::Debugged;
use crate::vmm::vcpus::{Pause, Stopped};

type Machine = GdbStubStateMachine<'static, Session, Wire>;

/// What the thread works with.
pub struct Worker {
    pub machine: Debugged,
    /// Holds the machine until a first gdb continues it.
    pub waiting: Option<Pause>,
    pub stops: Receiver<Stopped>,
    /// Raised for each stop.
    pub woken: Arc<EventFd>,
    pub over: Arc<Over>,
    /// What this KVM can do.
    pub powers: Powers,
    /// Whether the user was told what it cannot do.
    pub told_powers: bool,
}

/// Why a session ended.
enum End {
    /// gdb has disconnected, or the peer is not a gdb.
    Left,
    /// gdb ended the machine.
    Kill,
    /// The machine ended meanwhile.
    Over,
}

/// What became ready while waiting.
#[derive(Default)]
struct Ready {
    bytes: bool,
    stop: bool,
    over: bool,
}

impl Worker {
    /// Serve one gdb after another until the machine ends.
    pub fn serve(mut self, listener: &Listener) {
        loop {
            let ready = match self.wait(listener.as_fd()) {
                Ok(ready) => ready,
                Err(_) => return,
            };
            if ready.over {
                return;
            }
            // Stops that an earlier gdb did not see.
            while self.stops.try_recv().is_ok() {}
            if ready.bytes
                && let Ok(wire) = listener.accept()
                && let End::Over = self.session(wire)
            {
                return;
            }
        }
    }

    /// Wait for `fd`, for a stop, or for the machine's end.
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

    /// Serve one gdb from its connection to its disconnection.
    fn session(&mut self, wire: Wire) -> End {
        self.tell_powers();
        let guest = Guest::stop(self.machine.clone(), self.powers);
        let mut session = Session::new(guest);
        let end = self.converse(&mut session, wire);
        if session.resumed || matches!(end, End::Left) && !self.is_waiting() {
            self.waiting = None;
        }
        if let End::Kill = end {
            // While it is stopped: the guest must not end by itself first.
            self.machine.kill();
        }
        if let Err(error) = session.guest.release() {
            self.machine
                .warn(&format!("the guest may not continue: {error}"));
        }
        // Stops of breakpoints that were removed.
        while self.stops.try_recv().is_ok() {}
        end
    }

    fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Tell the user, once, what this KVM cannot do.
    fn tell_powers(&mut self) {
        if std::mem::replace(&mut self.told_powers, true) {
            return;
        }
        let powers = self.powers;
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
    }

    fn converse(&mut self, session: &mut Session, wire: Wire) -> End {
        let stub = GdbStub::builder(wire)
            .packet_buffer_size(MAX_PACKET)
            .build();
        let Ok(Ok(mut machine)) = stub.map(|stub| stub.run_state_machine(session)) else {
            return End::Left;
        };
        loop {
            let next = match machine {
                GdbStubStateMachine::Disconnected(gdb) => {
                    return match gdb.get_reason() {
                        DisconnectReason::Kill => End::Kill,
                        DisconnectReason::Disconnect => {
                            // Detaching continues the machine.
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

    /// While the machine runs: the next event of gdb or of the machine.
    fn running(&mut self, session: &mut Session, machine: Machine) -> Result<Option<Machine>, End> {
        let GdbStubStateMachine::Running(mut gdb) = machine else {
            return Ok(Some(machine));
        };
        self.waiting = None;
        if let Some((index, stop)) = session.guest.unreported() {
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

    /// The stop to report to gdb, if any of those that came is; the machine is stopped then.
    fn stopped(&self, session: &mut Session) -> Option<(usize, Stop)> {
        let mut told = None;
        while let Ok(stopped) = self.stops.try_recv() {
            let handled = match told {
                None => session.guest.stopped(stopped).map(|found| told = found),
                Some(_) => session.guest.also_stopped(&stopped),
            };
            if let Err(error) = handled {
                self.machine
                    .warn(&format!("the guest may not continue: {error}"));
            }
        }
        told
    }

    fn next_byte(&self, wire: &mut Wire) -> Next {
        if let Some(byte) = wire.take() {
            return Next::Byte(byte);
        }
        match self.wait(wire.as_fd()) {
            Ok(ready) if ready.over => Next::Over,
            Ok(ready) if ready.stop => Next::Stop,
            Ok(ready) if ready.bytes => match wire.fill() {
                Ok(0) | Err(_) => Next::Gone,
                Ok(_) => wire.take().map_or(Next::Gone, Next::Byte),
            },
            Ok(_) => Next::Stop,
            Err(_) => Next::Gone,
        }
    }
}

/// What this KVM can do, by a trial: before the system calls of this process are restricted.
pub fn powers() -> Powers {
    let measured = vm::open().map_err(Into::into).and_then(probe::debugging);
    measured.unwrap_or(Powers {
        trap: Trap::Exit,
        execute: true,
        watch: true,
        blocks_interrupts: false,
    })
}

/// The next event of gdb or of the machine.
enum Next {
    Byte(u8),
    Stop,
    Over,
    /// gdb has closed the connection.
    Gone,
}

/// Handle a Ctrl-C of the user.
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
