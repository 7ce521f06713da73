//! Requests to stop: the actions that wait for the guest's end, and signals to hull.

use std::time::Instant;

use crate::control::{Answer, Reply};

/// Actions to stop that wait at once.
const MAX_STOPS: usize = 64;

/// The requests so far.
#[derive(Default)]
pub struct Stops {
    replies: Vec<Reply>,
    kill_at: Option<Instant>,
    term_at: Option<Instant>,
    killed: bool,
    signals: u32,
}

impl Stops {
    /// Count a SIGINT or SIGTERM; how many there were.
    pub fn count_signal(&mut self) -> u32 {
        self.signals += 1;
        self.signals
    }

    /// A SIGTERM came, after which the machine ends at `at` at the latest; the first counts.
    pub fn end_at(&mut self, at: Instant) {
        self.term_at.get_or_insert(at);
    }

    /// When the machine ends after a SIGTERM.
    pub fn term_at(&self) -> Option<Instant> {
        self.term_at
    }

    /// When the guest is to be killed, if it is.
    pub fn kill_at(&self) -> Option<Instant> {
        self.kill_at
    }

    /// Add a request that kills the guest at `at`; of several times the earliest counts. Returns
    /// whether it is the first, or `None` if too many wait.
    pub fn add(&mut self, at: Instant, reply: Reply) -> Option<bool> {
        if self.replies.len() >= MAX_STOPS {
            reply.send(Answer::Refused("too many wait for it to stop".into()));
            return None;
        }
        self.replies.push(reply);
        let before = self.kill_at;
        self.kill_at = Some(before.map_or(at, |before| before.min(at)));
        Some(before.is_none())
    }

    /// The guest's time is over; `killed` says whether that ends it.
    pub fn kill(&mut self, killed: bool) {
        self.kill_at = None;
        self.killed |= killed;
    }

    /// Answer all requests: the guest has ended.
    pub fn answer(&mut self) {
        for reply in self.replies.drain(..) {
            let killed = self.killed;
            reply.send(Answer::Stopped { killed });
        }
    }
}
