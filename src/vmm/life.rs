//! The life of a machine: its states and the transitions between them.
//!
//! ```text
//!            Start              Pause            Start { paused: true }
//!    Ready --------> Running --------> Paused <------------------------ Ready
//!                       |    <--------    |
//!                       |     Resume      |
//!                       +-----------------+
//!                       |          ^
//!                       | Save     | Saved: to the state before
//!                       +------> Saving
//!                       |
//!                       | Stop                 End, from every state
//!                       +------> Stopping  . . . . . . . . . . . . . > Ended
//! ```
//! [`State::after`] is the table behind the picture. [`Life`] holds the state of one machine and the
//! [`Pause`] that belongs to it; pauses for other reasons, such as a debugger's, are not states.

use std::sync::{Arc, Mutex};

use thiserror::Error;

use super::vcpus::{Pause, Vcpus};
use crate::sync::lock;

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Built, before the first instruction.
    Ready,
    /// The vCPUs may run.
    Running,
    /// The user has paused the vCPUs.
    Paused,
    /// A snapshot or template is being written.
    Saving {
        /// Whether the machine is paused afterwards.
        paused: bool,
    },
    /// The guest has been asked to end.
    Stopping,
    /// No vCPU enters the guest again.
    Ended,
}

/// What moves a machine from one [`State`] to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The vCPU threads start.
    Start {
        /// Whether the vCPUs wait for [`Transition::Resume`].
        paused: bool,
    },
    /// The user pauses the vCPUs.
    Pause,
    /// The user resumes the vCPUs.
    Resume,
    /// A snapshot or template begins.
    Save,
    /// The snapshot or template is written, or has failed.
    Saved,
    /// The guest is asked to end.
    Stop,
    /// The machine ends, for whatever reason.
    End,
}

/// A transition that the state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not possible while the machine is {}", .0.name())]
pub struct NotAllowed(pub State);

impl State {
    /// The state's name, as `hull ps` shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Saving { .. } => "saving",
            Self::Stopping => "stopping",
            Self::Ended => "ended",
        }
    }

    /// The state after `transition`; `None` where the transition is not allowed.
    pub fn after(self, transition: Transition) -> Option<Self> {
        use State::{Ended, Paused, Ready, Running, Saving, Stopping};
        Some(match (self, transition) {
            (_, Transition::End) => Ended,
            (Ready, Transition::Start { paused: false }) => Running,
            (Ready, Transition::Start { paused: true }) => Paused,
            (Running | Paused, Transition::Pause) => Paused,
            (Running | Paused, Transition::Resume) => Running,
            (Running, Transition::Save) => Saving { paused: false },
            (Paused, Transition::Save) => Saving { paused: true },
            (Saving { .. }, Transition::Pause) => Saving { paused: true },
            (Saving { .. }, Transition::Resume) => Saving { paused: false },
            (Saving { paused: false }, Transition::Saved) => Running,
            (Saving { paused: true }, Transition::Saved) => Paused,
            (Running | Paused | Stopping, Transition::Stop) => Stopping,
            (Stopping, Transition::Resume) => Stopping,
            _ => return None,
        })
    }

    /// Whether the vCPUs stand still by request.
    pub fn is_paused(self) -> bool {
        matches!(self, Self::Paused | Self::Saving { paused: true })
    }
}

/// The state of one machine.
pub struct Life {
    vcpus: Arc<Vcpus>,
    now: Mutex<(State, Option<Pause>)>,
}

impl Life {
    /// A machine that is [`State::Ready`].
    pub fn new(vcpus: Arc<Vcpus>) -> Self {
        Self {
            vcpus,
            now: Mutex::new((State::Ready, None)),
        }
    }

    /// The state at this moment.
    pub fn state(&self) -> State {
        lock(&self.now).0
    }

    /// Make `transition`. Into a paused state, wait until all vCPUs have parked; so this must not be
    /// called on a vCPU's thread. Returns whether the state is another than before.
    ///
    /// # Errors
    /// The state does not allow it.
    pub fn make(&self, transition: Transition) -> Result<bool, NotAllowed> {
        let (state, pause) = &mut *lock(&self.now);
        let before = *state;
        *state = before.after(transition).ok_or(NotAllowed(before))?;
        if !state.is_paused() {
            if let Some(held) = pause.take()
                && *state != State::Ended
            {
                held.tell_guest();
                log::info!("resumed");
            }
        } else if pause.is_none() {
            let held = self.vcpus.pause();
            held.wait();
            *pause = Some(held);
            log::info!("paused");
        }
        Ok(*state != before)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRANSITIONS: [Transition; 8] = [
        Transition::Start { paused: false },
        Transition::Start { paused: true },
        Transition::Pause,
        Transition::Resume,
        Transition::Save,
        Transition::Saved,
        Transition::Stop,
        Transition::End,
    ];

    #[test]
    fn a_snapshot_leaves_a_machine_as_it_was() {
        for state in [State::Running, State::Paused] {
            let saving = state.after(Transition::Save).expect("allowed");
            assert_eq!(saving.name(), "saving");
            assert_eq!(saving.after(Transition::Saved), Some(state));
        }
        let paused_meanwhile = State::Saving { paused: false }.after(Transition::Pause);
        let after = paused_meanwhile.and_then(|state| state.after(Transition::Saved));
        assert_eq!(after, Some(State::Paused));
    }

    #[test]
    fn a_machine_that_is_being_stopped_is_neither_paused_nor_saved() {
        let stopping = State::Paused.after(Transition::Stop);
        assert_eq!(stopping, Some(State::Stopping));
        assert_eq!(State::Stopping.after(Transition::Pause), None);
        assert_eq!(State::Stopping.after(Transition::Save), None);
        assert_eq!(
            NotAllowed(State::Stopping).to_string(),
            "not possible while the machine is stopping"
        );
    }

    proptest! {
        #[test]
        fn every_life_starts_once_and_ends_for_good(steps in prop::collection::vec(0usize..8, 0..40)) {
            let (mut state, mut starts) = (State::Ready, 0);
            for transition in steps.into_iter().map(|index| TRANSITIONS[index]) {
                let Some(next) = state.after(transition) else { continue };
                starts += u32::from(state == State::Ready && next != State::Ended);
                prop_assert!(next != State::Ready);
                prop_assert!(state != State::Ended || next == State::Ended);
                prop_assert!(state != State::Stopping || matches!(next, State::Stopping | State::Ended));
                prop_assert!(next.after(Transition::End) == Some(State::Ended));
                state = next;
            }
            prop_assert!(starts <= 1);
        }
    }
}
