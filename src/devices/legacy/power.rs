//! ACPI power management: the PM1a control register, whose S5 powers the machine off, and the
//! reset register (ACPI 6.5, 4.8.3.2 and 4.8.3.6).

use std::sync::Arc;

use super::super::MachineEvents;
use super::super::bus::BusDevice;
use crate::memory::layout::{ACPI_RESET_VALUE, S5_SLP_TYP};

/// SCI_EN: the firmware has handed the events over to the guest, as always here.
const SCI_EN: u16 = 1;
/// SLP_EN: enter the sleep state of SLP_TYP (bits 10 to 12) now.
const SLP_EN: u16 = 1 << 13;

/// PM1a control, two bytes.
pub struct Pm1Control {
    events: Arc<dyn MachineEvents>,
    value: u16,
}

impl Pm1Control {
    /// The register of the machine behind `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self {
            events,
            value: SCI_EN,
        }
    }
}

impl BusDevice for Pm1Control {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let bytes = self.value.to_le_bytes();
        for (to, from) in data.iter_mut().zip(bytes.iter().skip(offset as usize)) {
            *to = *from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = self.value.to_le_bytes();
        for (to, from) in bytes.iter_mut().skip(offset as usize).zip(data) {
            *to = *from;
        }
        let value = u16::from_le_bytes(bytes);
        self.value = value & !SLP_EN | SCI_EN;
        if value & SLP_EN != 0 && value >> 10 & 7 == u16::from(S5_SLP_TYP) {
            self.events.power_off();
        }
    }
}

/// The reset register, one byte.
pub struct ResetRegister {
    events: Arc<dyn MachineEvents>,
}

impl ResetRegister {
    /// The register of the machine behind `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for ResetRegister {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&ACPI_RESET_VALUE) {
            self.events.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Events;
    use super::*;

    #[test]
    fn s5_powers_off_in_one_write_or_two() {
        let events = Arc::new(Events::default());
        let mut register = Pm1Control::new(events.clone());
        register.write(0, &0x3400u16.to_le_bytes());
        assert_eq!(events.take(), ["power_off"]);
        register.write(1, &[0x34]);
        assert_eq!(events.take(), ["power_off"]);
    }

    #[test]
    fn other_sleep_states_do_nothing_and_slp_en_reads_as_zero() {
        let events = Arc::new(Events::default());
        let mut register = Pm1Control::new(events.clone());
        for state in (0..8).filter(|state| *state != u16::from(S5_SLP_TYP)) {
            register.write(0, &(SLP_EN | state << 10).to_le_bytes());
        }
        register.write(0, &(u16::from(S5_SLP_TYP) << 10).to_le_bytes());
        assert!(events.take().is_empty());
        let mut value = [0; 2];
        register.read(0, &mut value);
        assert_eq!(
            u16::from_le_bytes(value),
            u16::from(S5_SLP_TYP) << 10 | SCI_EN
        );
    }

    #[test]
    fn accesses_past_the_register_are_harmless() {
        let mut register = Pm1Control::new(Arc::new(Events::default()));
        let mut data = [7; 8];
        register.read(1, &mut data);
        assert_eq!(data[1..], [7; 7]);
        register.write(1, &[0; 8]);
    }

    #[test]
    fn the_reset_register_takes_its_value_only() {
        let events = Arc::new(Events::default());
        let mut register = ResetRegister::new(events.clone());
        register.write(0, &[0x02]);
        assert!(events.take().is_empty());
        register.write(0, &[0x06]);
        assert_eq!(events.take(), ["reset"]);
    }
}
