//! The machine's end, as the thread of gdb learns of it.

use std::sync::OnceLock;

use crate::sync::EventFd;

/// The end of the machine.
pub struct Over {
    /// Raised at the end.
    pub signal: EventFd,
    /// The guest's status, if it ended in good order.
    pub status: OnceLock<Option<u8>>,
}
