//! Why and when the event loop ends.

use std::time::{Duration, Instant};

use super::super::error::VmmError;
use super::super::events::GuestEnd;

/// How long output may still take after a signal or kill that ends the machine: a reader that has
/// stopped reading would keep hull forever.
const GRACE: Duration = Duration::from_secs(1);

/// Why the loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest ended by itself, or was killed.
    Guest(GuestEnd),
    /// The command ended with this status.
    Exited(u8),
    /// A signal to hull ended the machine.
    Signalled(i32),
    /// The user left by Ctrl-A x, or a snapshot was to end the machine.
    Quit,
    /// The init of a restored template has not answered in time.
    Unanswered,
}

/// An end that begins: it is complete when all output is written, or at the deadline.
#[derive(Default)]
pub struct Leaving {
    ending: Option<Ending>,
    deadline: Option<Instant>,
    fault: Option<VmmError>,
}

impl Leaving {
    /// Whether the end has begun.
    pub fn begun(&self) -> bool {
        self.ending.is_some()
    }

    /// When the loop stops waiting for readers of the output, if ever.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// End as soon as all output is written, in place of an earlier ending.
    pub fn end(&mut self, ending: Ending) {
        self.ending = Some(ending);
    }

    /// As [`Leaving::end`], unless the end has begun.
    pub fn end_unless_begun(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
    }

    /// Wait for output no longer than [`GRACE`] from now.
    pub fn hurry(&mut self) {
        self.deadline.get_or_insert_with(|| Instant::now() + GRACE);
    }

    /// End with an error.
    pub fn fail(&mut self, fault: VmmError) {
        self.fault = Some(fault);
        self.ending = Some(Ending::Quit);
    }

    /// The result of the loop, once the end is complete.
    pub fn result(&mut self, all_written: bool) -> Option<Result<Ending, VmmError>> {
        let ending = self.ending.clone()?;
        let late = self.deadline.is_some_and(|at| at <= Instant::now());
        if !all_written && !late {
            return None;
        }
        Some(self.fault.take().map_or(Ok(ending), Err))
    }
}
