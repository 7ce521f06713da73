//! What front ends can do to a machine: the control socket, gdb and pools act through [`Actions`].

use std::sync::Arc;

use super::events::{Events, GuestEnd};
use super::inspect::Inspector;
use super::life::{Life, NotAllowed, State, Transition};
use super::machine::Machine;
use super::own::Own;
use crate::control::{Action, Answer, Reply, Status};

/// Everything that actions need of a machine.
pub struct Actions {
    /// Reads the state for [`Action::Inspect`].
    pub inspector: Inspector,
    /// For [`Action::Pause`] and [`Action::Resume`].
    pub life: Arc<Life>,
    /// Where actions of the event loop wait.
    pub events: Arc<Events>,
    /// For [`Action::Status`].
    pub own: Arc<Own>,
}

impl Actions {
    /// Those of `machine`, whose state `inspector` reads.
    pub fn new(machine: &Machine, inspector: Inspector, life: Arc<Life>) -> Self {
        Self {
            inspector,
            life,
            events: machine.shared.events.clone(),
            own: machine.own.clone(),
        }
    }

    /// Carry out `action`: the one place that says which thread does.
    pub fn act(&self, action: Action, reply: Reply) {
        let answer = match action {
            // At once, on the caller's thread: these work while the guest hangs and while the event
            // loop writes a snapshot.
            Action::Inspect { topic, vcpu } => match self.inspector.inspect(&topic, vcpu) {
                Ok(seen) => Answer::Inspection(Box::new(seen)),
                Err(reason) => Answer::Refused(reason),
            },
            Action::Status => Answer::Status(status(self.life.state(), &self.events, &self.own)),
            Action::Pause => done(self.life.make(Transition::Pause)),
            Action::Resume => done(self.life.make(Transition::Resume)),
            Action::Kill => {
                let changed = self.events.end().is_none();
                self.events.finish(GuestEnd::Killed);
                Answer::Done { changed }
            }
            // In the event loop's next turn: these need the consoles, the session with the guest's
            // init, and the output streams.
            Action::Snapshot { .. }
            | Action::Keep { .. }
            | Action::Stop { .. }
            | Action::Signal { .. }
            | Action::Exec => {
                return self.events.act(action, reply);
            }
            // Only a machine that waits in a pool can do it (crate::pool).
            Action::Take { .. } => Answer::Refused("it has its command already".into()),
        };
        reply.send(answer);
    }
}

fn done(made: Result<bool, NotAllowed>) -> Answer {
    match made {
        Ok(changed) => Answer::Done { changed },
        Err(error) => Answer::Refused(error.to_string()),
    }
}

/// The status of this process, whose machine is in `state`.
pub fn status(state: State, events: &Events, own: &Own) -> Status {
    Status {
        state: state.name().into(),
        resident_bytes: own.resident().ok(),
        uptime_seconds: events.now().as_secs(),
    }
}
