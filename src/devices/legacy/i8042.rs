//! The keyboard controller (Intel 8042), as far as a reset needs it.
//!
//! Linux's `reboot=k` and triple-fault-free resets write 0xFE to the command port. The status
//! register reads "nothing to read, ready to write", so that a driver gives up at once.

use std::sync::Arc;

use super::super::MachineEvents;
use super::super::bus::BusDevice;

/// First port: data at 0x60, status and command at 0x64.
pub const PORT: u64 = 0x60;
/// Ports spanned.
pub const PORTS: u64 = 5;
const COMMAND: u64 = 4;
/// "Pulse output line 0", which is the CPU's reset line.
const PULSE_RESET: u8 = 0xfe;

/// The controller.
pub struct I8042 {
    events: Arc<dyn MachineEvents>,
}

impl I8042 {
    /// A controller that resets the machine behind `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == COMMAND && data.first() == Some(&PULSE_RESET) {
            self.events.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Events;
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        let events = Arc::new(Events::default());
        let mut device = I8042::new(events.clone());
        for command in 0..=0xfd {
            device.write(COMMAND, &[command]);
        }
        device.write(0, &[PULSE_RESET]);
        assert!(events.take().is_empty());
        device.write(COMMAND, &[PULSE_RESET]);
        assert_eq!(events.take(), ["reset"]);
    }

    #[test]
    fn the_status_register_is_ready_and_empty() {
        let mut status = [0xff];
        I8042::new(Arc::new(Events::default())).read(COMMAND, &mut status);
        assert_eq!(status, [0]);
    }
}
