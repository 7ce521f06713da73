//! The boot timer: a byte by which a guest reports that it has booted.
//!
//! Compatible with Firecracker's: init writes 123 to the first byte, through /dev/mem.

use std::sync::Arc;

use crate::devices::bus::BusDevice;
use crate::devices::{MachineEvents, MarkSource};

/// Bytes of MMIO that it takes from `memory::layout::BOOT_TIMER` on.
pub const SIZE: u64 = 0x1000;
/// The value that sets a mark.
pub const MAGIC: u8 = 123;

/// The boot timer's one register, write only.
pub struct BootTimer {
    events: Arc<dyn MachineEvents>,
}

impl BootTimer {
    /// A boot timer that marks with `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for BootTimer {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 && data == [MAGIC] {
            self.events.mark(MarkSource::BootTimer, MAGIC);
        }
    }

    fn register(&self, offset: u64, _write: bool) -> Option<&'static str> {
        (offset == 0).then_some("mark")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::Events;

    #[test]
    fn only_the_magic_byte_at_the_start_marks() {
        let events = Arc::new(Events::default());
        let mut timer = BootTimer::new(events.clone());
        timer.write(0, &[122]);
        timer.write(1, &[123]);
        timer.write(0, &[123, 0, 0, 0]);
        assert!(events.take().is_empty());
        timer.write(0, &[123]);
        assert_eq!(events.take(), ["mark BootTimer 0x7b"]);
    }
}
