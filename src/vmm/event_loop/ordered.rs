//! What the event loop does when another thread orders it to.

use std::time::{Duration, Instant};

use signal_hook::consts::SIGTERM;

use super::super::events::{GuestEnd, lock};
use super::super::orders::{Order, Pending};
use super::{Ending, EventLoop, GRACE};
use crate::control::Answer;
use crate::control::server::Reply;

/// Orders to stop that are answered.
const STOPS_MOST: usize = 64;

/// The orders to stop.
#[derive(Default)]
pub struct Stops {
    replies: Vec<Reply>,
    kill_at: Option<Instant>,
    killed: bool,
}

impl Stops {
    /// When the guest is to be killed, if it is.
    pub fn kill_at(&self) -> Option<Instant> {
        self.kill_at
    }
}

impl EventLoop<'_> {
    /// Do what other threads ask for.
    pub(super) fn take_orders(&mut self) {
        for Pending { order, reply } in self.events.orders().take() {
            match order {
                Order::Stop { seconds } => self.stop_in(seconds, reply),
                Order::Snapshot { dir, diff, stop } => {
                    reply.send(match self.save(&dir, diff, stop) {
                        Ok(saved) => Answer::Saved(saved),
                        Err(error) => Answer::Refused(error.to_string()),
                    })
                }
            }
        }
        if self.stops.kill_at.is_some_and(|at| at <= Instant::now()) {
            self.kill();
        }
    }

    /// Answer those who wait for the end, and take no more orders.
    pub(super) fn end_orders(&mut self) {
        for reply in self.stops.replies.drain(..) {
            let killed = self.stops.killed;
            reply.send(Answer::Stopped { killed });
        }
        self.events.orders().close();
    }

    /// Ask the guest to end, once; of several times that it is given, the shortest counts.
    fn stop_in(&mut self, seconds: u32, reply: Reply) {
        if self.stops.replies.len() >= STOPS_MOST {
            reply.send(Answer::Refused("too many wait for it to stop".into()));
            return;
        }
        self.stops.replies.push(reply);
        let at = Instant::now() + Duration::from_secs(seconds.into());
        let before = self.stops.kill_at;
        self.stops.kill_at = Some(before.map_or(at, |before| before.min(at)));
        // It was asked already, or has ended and is only not written out.
        if before.is_some() || self.ending.is_some() {
            return;
        }
        self.standstill.resume();
        match &mut self.link {
            Some(link) if link.greeted() => link.session.signal(SIGTERM as u8),
            // Nobody is there who could be asked.
            Some(_) => self.end_by(SIGTERM),
            None => lock(&self.power).press_power_button(),
        }
    }

    /// The guest has had its time. What is not written by then may never be.
    fn kill(&mut self) {
        self.stops.killed |= self.ending.is_none() && self.events.end().is_none();
        self.stops.kill_at = None;
        self.ending.get_or_insert(Ending::Guest(GuestEnd::Killed));
        self.leave_at.get_or_insert_with(|| Instant::now() + GRACE);
    }
}
