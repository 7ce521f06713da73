//! Points in time that a guest marks, by the debug port or the boot timer.

use std::borrow::Cow;
use std::time::Duration;

use crate::devices::MarkSource;

/// Codes that hull's kernel and init write to the debug port (guest/kernel/patches, guest/init).
pub const START_KERNEL: u8 = 0x40;
pub const INITCALLS: u8 = 0x41;
pub const EXEC_INIT: u8 = 0x42;
pub const INIT: u8 = 0x60;

/// A point in time that the guest has marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The port or slot.
    pub source: MarkSource,
    /// The byte that the guest wrote.
    pub code: u8,
    /// Time since the machine's clock started.
    pub at: Duration,
}

/// The name of a mark in a trace.
pub fn name(source: MarkSource, code: u8) -> Cow<'static, str> {
    match (source, code) {
        (MarkSource::BootTimer, _) => "boot timer".into(),
        (_, START_KERNEL) => "start_kernel".into(),
        (_, INITCALLS) => "init calls".into(),
        (_, EXEC_INIT) => "exec of init".into(),
        (_, INIT) => "init".into(),
        _ => format!("code {code:#x}").into(),
    }
}
