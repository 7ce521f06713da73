//! The thread that writes a trace while the machine runs.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::config::Attachments;
use super::error::VmmError;
use crate::sandbox::{Role, spawn};
use crate::trace::Trace;

/// It has ended once this is dropped.
pub struct TraceThread {
    trace: Arc<Trace>,
    thread: Option<JoinHandle<()>>,
}

impl TraceThread {
    /// Start it, if a trace is attached; after the lock-down, which it inherits.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(attached: &Attachments) -> Result<Option<Self>, VmmError> {
        let (Some(trace), Some(writer)) = (&attached.trace, attached.trace_writer.clone()) else {
            return Ok(None);
        };
        let thread = spawn(Role::TraceWriter, move || (writer.0)());
        Ok(Some(Self {
            trace: trace.clone(),
            thread: Some(thread.map_err(VmmError::Thread)?),
        }))
    }
}

impl Drop for TraceThread {
    fn drop(&mut self) {
        self.trace.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // the panic hook has printed a panic
        }
    }
}
