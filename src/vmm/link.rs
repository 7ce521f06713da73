//! The agent's session and the channel it runs over.

use std::collections::VecDeque;

use super::events::lock;
use super::machine::Uart;
use crate::agent::{AgentError, Event, Session};

/// Most bytes moved at once.
const BATCH: usize = 64 << 10;

/// A session and its channel.
pub struct Link {
    /// The protocol.
    pub session: Session,
    uart: Uart,
    greeted: bool,
}

impl Link {
    /// `session` over `uart`.
    pub fn new(session: Session, uart: Uart) -> Self {
        Self {
            session,
            uart,
            greeted: false,
        }
    }

    /// Whether the guest's init has said hello.
    pub fn greeted(&self) -> bool {
        self.greeted
    }

    /// Move what can be moved, both ways; the events it brought.
    ///
    /// # Errors
    /// The guest broke the protocol.
    pub fn pump(&mut self) -> Result<VecDeque<Event>, AgentError> {
        let mut events = VecDeque::new();
        let incoming = self
            .uart
            .outbox
            .take(self.session.receive_room().min(BATCH));
        let received = self.session.receive(&incoming);
        while let Some(event) = self.session.next_event() {
            self.greeted |= event == Event::Ready;
            events.push_back(event);
        }
        received?;
        let sent = lock(&self.uart.chip).enqueue(self.session.outgoing());
        self.session.sent(sent);
        Ok(events)
    }
}
