//! Actions that wait for the event loop, each with the reply that its front end waits for.
//!
//! The loop takes all of them once a turn, so each is answered even if the guest hangs. Those that
//! are left when it ends are dropped, which tells their front ends that the machine ended.

use std::sync::Mutex;

use crate::control::{Action, Answer, Reply};
use crate::sync::lock;

/// Actions that may wait at once; there are fewer connections.
const MAX_WAITING: usize = 64;

/// An action and the way of its answer.
type Pending = (Action, Reply);

/// Actions in the order of their arrival.
#[derive(Default)]
pub struct ActionQueue(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    closed: bool,
    waiting: Vec<Pending>,
}

impl ActionQueue {
    /// Add an action for the loop's next turn; the caller must wake the loop.
    pub fn put(&self, action: Action, reply: Reply) {
        let mut queue = lock(&self.0);
        if queue.closed {
            drop(reply);
        } else if queue.waiting.len() < MAX_WAITING {
            queue.waiting.push((action, reply));
        } else {
            let reason = "too many actions wait already; try again later";
            reply.send(Answer::Refused(reason.into()));
        }
    }

    /// All that wait, the oldest first.
    pub fn take(&self) -> Vec<Pending> {
        std::mem::take(&mut lock(&self.0).waiting)
    }

    /// Drop what waits, and accept no more.
    pub fn close(&self) {
        let mut queue = lock(&self.0);
        queue.closed = true;
        queue.waiting.clear();
    }
}
