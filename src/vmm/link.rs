//! The session with the guest's init, and the pipe that it uses.

use super::config::{Config, Start};
use super::error::VmmError;
use super::machine::Machine;
use super::pipe::Pipe;
use super::snapshot::restore;
use super::snapshot::shape::SavedLink;
use crate::agent::{AgentError, Event, Exec, Session};

/// Bytes moved at once.
const BATCH: usize = 64 << 10;

/// A session with a guest's init, and its pipe.
pub struct Link {
    /// The state of the protocol.
    pub session: Session,
    /// The pipes that the guest's init may use.
    pipes: Vec<Pipe>,
    /// The pipe on which it sent the first byte.
    chosen: Option<usize>,
    greeted: bool,
}

impl Link {
    /// `session` over the one of `pipes` on which the guest's init sends the first byte.
    pub fn new(session: Session, pipes: Vec<Pipe>) -> Self {
        Self {
            session,
            pipes,
            chosen: None,
            greeted: false,
        }
    }

    /// The session of a restored guest, over the pipe that it used before.
    pub fn restored(session: Session, pipes: Vec<Pipe>, pipe: usize, greeted: bool) -> Self {
        Self {
            chosen: Some(pipe).filter(|pipe| *pipe < pipes.len()),
            greeted,
            ..Self::new(session, pipes)
        }
    }

    /// The state for a snapshot; without the session if that has not begun.
    pub fn save(&self) -> Option<SavedLink> {
        let session = (!self.session.is_held()).then(|| self.session.save());
        Some(SavedLink {
            session,
            pipe: self.chosen?,
        })
    }

    /// Whether the guest's init has reported that it is ready.
    pub fn greeted(&self) -> bool {
        self.greeted
    }

    /// Whether [`Link::receive`] would receive something.
    pub fn has_more(&self) -> bool {
        self.session.receive_room() > 0 && self.pipes.iter().any(|pipe| !pipe.is_empty())
    }

    /// Receive what the guest sent.
    ///
    /// # Errors
    /// The guest broke the protocol.
    pub fn receive(&mut self) -> Result<(), AgentError> {
        let incoming = self.incoming(BATCH, Pipe::take);
        self.session.receive(&incoming)
    }

    /// The oldest event in what was received.
    pub fn next_event(&mut self) -> Option<Event> {
        let event = self.session.next_event();
        self.greeted |= event == Some(Event::Ready);
        event
    }

    /// As [`Link::receive`], for all that the pipes hold; they take nothing more from the guest before
    /// the next call of that.
    ///
    /// # Errors
    /// As there.
    pub fn drain(&mut self) -> Result<(), AgentError> {
        let incoming = self.incoming(usize::MAX, Pipe::drain);
        self.session.receive(&incoming)
    }

    /// Send the session's bytes for the guest, as far as there is room.
    pub fn send(&mut self) {
        self.session.pass_on();
        if let Some(pipe) = self.chosen.and_then(|index| self.pipes.get(index)) {
            let sent = pipe.put(self.session.outgoing());
            self.session.sent(sent);
        }
    }

    /// At most `most` bytes that `take` takes from the chosen pipe. Bytes on another are dropped, so that
    /// they do not hold up the guest.
    fn incoming(&mut self, most: usize, take: impl Fn(&Pipe, usize) -> Vec<u8>) -> Vec<u8> {
        let mut incoming = Vec::new();
        for (index, pipe) in self.pipes.iter().enumerate() {
            let room = self.session.receive_room().min(most);
            match self.chosen {
                None => incoming = take(pipe, room),
                Some(chosen) if chosen == index => incoming = take(pipe, room),
                Some(_) => drop(take(pipe, usize::MAX)),
            }
            if self.chosen.is_none() && !incoming.is_empty() {
                self.chosen = Some(index);
            }
        }
        incoming
    }
}

/// The link to the init of `machine`, which runs `exec` unless it was restored with a command.
///
/// # Errors
/// The command cannot be sent, or the saved session is damaged.
pub fn connect(config: &Config, exec: Exec, machine: &Machine) -> Result<Link, VmmError> {
    let pipes = machine.agent.clone();
    let exec = Exec {
        report_start: config.attachments.started.is_some(),
        ..exec
    };
    let Some(saved) = config.start.saved() else {
        let session = match config.start {
            Start::Template(_) => Session::waiting(exec)?,
            _ => Session::new(exec)?,
        };
        return Ok(Link::new(session, pipes));
    };
    let slots = if saved.shape.revealed {
        0..0
    } else {
        machine.devices.slots.reveal()
    };
    let resumed = restore::resumed(slots);
    Ok(match &saved.link {
        None => Link::new(Session::new(exec)?, pipes),
        Some(SavedLink {
            session: None,
            pipe,
        }) => {
            let session = Session::restored(exec, resumed)?;
            Link::restored(session, pipes, *pipe, false)
        }
        Some(SavedLink {
            session: Some(session),
            pipe,
        }) => {
            let mut session = Session::load(session.clone())?;
            session.resumed(resumed);
            session.set_networks(&exec.networks);
            let greeted = session.is_ready();
            Link::restored(session, pipes, *pipe, greeted)
        }
    })
}
