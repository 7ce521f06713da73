//! How an answer gets back to the front end that sent the action.

use std::fmt;
use std::os::fd::OwnedFd;

use super::action::Answer;

/// Takes the answer, or `None` if the machine ended without one.
type Receiver = Box<dyn FnOnce(Option<Answer>) + Send>;

/// Carries one answer back. Dropped without one, it reports that the machine ended.
pub struct Reply {
    receiver: Option<Receiver>,
    /// What the front end has sent with the action.
    files: Vec<OwnedFd>,
}

impl Reply {
    /// A reply that calls `receiver` once, on the thread that answers.
    pub fn new(receiver: impl FnOnce(Option<Answer>) + Send + 'static) -> Self {
        Self {
            receiver: Some(Box::new(receiver)),
            files: Vec::new(),
        }
    }

    /// The same for an action that these `files` came with.
    pub fn with(mut self, files: Vec<OwnedFd>) -> Self {
        self.files = files;
        self
    }

    /// Take the files that came with the action.
    pub fn files(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.files)
    }

    /// Deliver `answer` to the front end.
    pub fn send(mut self, answer: Answer) {
        if let Some(receiver) = self.receiver.take() {
            receiver(Some(answer));
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(receiver) = self.receiver.take() {
            receiver(None);
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}
