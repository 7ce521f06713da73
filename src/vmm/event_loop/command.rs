//! The command in the event loop: the link to the guest's init, and what it has reported.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::link::Link;
use crate::agent::{AgentError, Event};

/// How long the init of a booting guest may be silent before the user is told.
const INIT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the init of a restored template may be silent before another machine is booted. A tenth
/// of a second is usual where a software KVM emulates ring 0.
const RESTORED_INIT_TIMEOUT: Duration = Duration::from_secs(60);

/// The link to a guest's init that runs a command.
pub struct CommandLink {
    pub link: Link,
    /// Events that wait for room in an output.
    pub events: VecDeque<Event>,
    /// When init was told the command, and when that ended.
    pub times: (Option<Duration>, Option<Duration>),
    /// When the machine began to run; one of a pool was built long before.
    began: Duration,
    /// Whether the guest was restored.
    restored: bool,
    warned: bool,
}

/// What is due about an init that is silent.
pub enum Silence {
    /// Nothing before this time is over.
    Left(Duration),
    /// Tell the user, once.
    Warn,
    /// The restored guest does not answer.
    Unanswered,
}

impl CommandLink {
    pub fn new(link: Link, began: Duration, restored: bool) -> Self {
        Self {
            link,
            events: VecDeque::new(),
            times: (None, None),
            began,
            restored,
            warned: false,
        }
    }

    /// Receive new events, unless earlier ones still wait: they hold up the link, and so the guest.
    ///
    /// # Errors
    /// The guest broke the protocol.
    pub fn receive(&mut self) -> Result<(), AgentError> {
        if self.events.is_empty() {
            self.events = self.link.receive()?;
        }
        Ok(())
    }

    /// Receive what the pipes hold, although earlier events wait: the session that is saved has to know
    /// of every byte that is no longer in the guest.
    ///
    /// # Errors
    /// The guest broke the protocol.
    pub fn drain(&mut self) -> Result<(), AgentError> {
        self.events.append(&mut self.link.drain()?);
        Ok(())
    }

    /// Whether the command may run, as far as is known: a signal is its own.
    pub fn runs(&self) -> bool {
        self.link.greeted() && self.link.session.exit().is_none()
    }

    /// Whether events can be received at once.
    pub fn has_more(&self) -> bool {
        self.link.has_more() && self.events.is_empty()
    }

    /// What is due at `now` about an init that has not said hello.
    pub fn silence(&mut self, now: Duration) -> Option<Silence> {
        if self.link.greeted() {
            return None;
        }
        let timeout = if self.restored {
            RESTORED_INIT_TIMEOUT
        } else {
            INIT_TIMEOUT
        };
        let left = timeout.saturating_sub(now.saturating_sub(self.began));
        if !left.is_zero() {
            return Some(Silence::Left(left));
        }
        if self.restored {
            return Some(Silence::Unanswered);
        }
        let warned = std::mem::replace(&mut self.warned, true);
        (!warned).then_some(Silence::Warn)
    }
}
