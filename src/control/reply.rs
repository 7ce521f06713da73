//! How an answer gets back to the front end that sent the action.

use std::fmt;

use super::action::Answer;

/// Takes the answer, or `None` if the machine ended without one.
type Receiver = Box<dyn FnOnce(Option<Answer>) + Send>;

/// Carries one answer back. Dropped without one, it reports that the machine ended.
pub struct Reply(Option<Receiver>);

impl Reply {
    /// A reply that calls `receiver` once, on the thread that answers.
    pub fn new(receiver: impl FnOnce(Option<Answer>) + Send + 'static) -> Self {
        Self(Some(Box::new(receiver)))
    }

    /// Deliver `answer` to the front end.
    pub fn send(mut self, answer: Answer) {
        if let Some(receiver) = self.0.take() {
            receiver(Some(answer));
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(receiver) = self.0.take() {
            receiver(None);
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}
