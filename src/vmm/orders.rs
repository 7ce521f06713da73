//! What the event loop is asked to do by other threads, and who hears what came of it.
//!
//! The loop takes all orders once a turn, so each is answered even if the guest hangs; those that
//! are left when it ends are dropped, which tells who waits that the machine ended.

use std::path::PathBuf;
use std::sync::Mutex;

use super::events::lock;
use crate::control::Answer;
use crate::control::server::Reply;

/// Orders that may wait at once; of connections there are fewer.
const MOST: usize = 64;

/// Something that only the event loop can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Have the guest end itself, and kill it if it has not in time.
    Stop {
        /// How long it has.
        seconds: u32,
    },
    /// Save the machine.
    Snapshot {
        /// Where.
        dir: PathBuf,
        /// Only what has changed since it was saved last.
        diff: bool,
        /// End the machine, which writes nothing any more.
        stop: bool,
    },
}

/// An order, and who waits for the answer to it.
#[derive(Debug)]
pub struct Pending {
    /// What to do.
    pub order: Order,
    /// Where the answer goes.
    pub reply: Reply,
}

/// Orders in their order.
#[derive(Debug, Default)]
pub struct Orders(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    closed: bool,
    waiting: Vec<Pending>,
}

impl Orders {
    /// Have the loop do it in its next turn; it must be woken.
    pub fn put(&self, order: Order, reply: Reply) {
        let mut queue = lock(&self.0);
        match (queue.closed, queue.waiting.len()) {
            (true, _) => drop(reply),
            (false, MOST..) => {
                let reason = "too many orders wait already; try again later";
                reply.send(Answer::Refused(reason.into()));
            }
            _ => queue.waiting.push(Pending { order, reply }),
        }
    }

    /// All that wait, the oldest first.
    pub fn take(&self) -> Vec<Pending> {
        std::mem::take(&mut lock(&self.0).waiting)
    }

    /// Nobody takes any more.
    pub fn close(&self) {
        let mut queue = lock(&self.0);
        queue.closed = true;
        queue.waiting.clear();
    }
}
