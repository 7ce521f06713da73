//! ACPI fixed hardware: power button, soft-off, PM timer, reset register.
//!
//! One [`Power`] answers the PM1a event and control blocks and the PM timer, which lie side by
//! side (ACPI 6.5, 4.8.3); [`ResetRegister`] is a separate port (4.8.3.6).

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::devices::bus::{BusDevice, Interrupt};
use crate::devices::register::{Register, flags};
use crate::devices::state::{StateError, decode, encode};
use crate::devices::{MachineEvents, Reporter};
use crate::memory::layout::{
    ACPI_RESET_VALUE, PM_TIMER_PORT, PM1A_CONTROL_PORT, PM1A_EVENT_PORT, S5_SLP_TYP,
};

/// First I/O port of [`Power`].
pub const PORT: u16 = PM1A_EVENT_PORT;
/// I/O ports of [`Power`].
pub const PORTS: u64 = TIMER + 4;
/// Ticks a second of the PM timer (ACPI 6.5, 4.8.3.3).
pub const TIMER_HZ: u128 = 3_579_545;

const CONTROL: u64 = PM1A_CONTROL_PORT as u64 - PM1A_EVENT_PORT as u64;
const TIMER: u64 = PM_TIMER_PORT as u64 - PM1A_EVENT_PORT as u64;
const _: () = assert!(CONTROL == 4 && TIMER == 8);

/// PM1 status and enable: the power button (ACPI 6.5, tables 4.12 and 4.13).
const POWER_BUTTON: u16 = 1 << 8;
/// The bits of PM1 enable that can be set: timer, global, power button, sleep button, RTC.
const ENABLE_MASK: u16 = 0x0721;
/// PM1 control: the machine is in ACPI mode, always (there is no SMI command to leave it).
const SCI_ENABLED: u16 = 1;
/// PM1 control: what sleep state [`SLEEP_ENABLE`] enters.
const SLEEP_TYPE_SHIFT: u16 = 10;
const SLEEP_TYPE_MASK: u16 = 7 << SLEEP_TYPE_SHIFT;
/// PM1 control, write only: enter the sleep state.
const SLEEP_ENABLE: u16 = 1 << 13;

/// The registers: all of the state but the clock, plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    /// PM1 status (ACPI 6.5, table 4.12).
    pub status: u16,
    /// PM1 enable (ACPI 6.5, table 4.13).
    pub enable: u16,
    /// PM1 control without its fixed and write-only bits.
    pub control: u16,
}

/// PM1a event block, PM1a control block and PM timer.
pub struct Power {
    state: PowerState,
    uptime: Box<dyn Fn() -> Duration + Send>,
    /// What the timer stood at when it was loaded, and `uptime` then.
    loaded: (Duration, Duration),
    sci: Arc<dyn Interrupt>,
    events: Arc<dyn MachineEvents>,
    reporter: Reporter,
}

impl Power {
    /// Fixed hardware as after power-on. `uptime` is a monotonic clock, for the PM timer.
    pub fn new(
        uptime: impl Fn() -> Duration + Send + 'static,
        sci: Arc<dyn Interrupt>,
        events: Arc<dyn MachineEvents>,
    ) -> Self {
        let reporter = Reporter::new(events.clone(), "ACPI power");
        Self {
            state: PowerState::default(),
            uptime: Box::new(uptime),
            loaded: (Duration::ZERO, Duration::ZERO),
            sci,
            events,
            reporter,
        }
    }

    /// All registers, read without side effects.
    pub fn state(&self) -> PowerState {
        self.state
    }

    /// Press the power button: a guest that handles it shuts down.
    pub fn press_power_button(&mut self) {
        self.state.status |= POWER_BUTTON;
        self.raise_if_due();
    }

    fn raise_if_due(&self) {
        if self.state.status & self.state.enable != 0 {
            let _ = self.sci.trigger();
        }
    }

    /// The time that the guest's timer has counted.
    fn counted(&self) -> Duration {
        let (stood_at, loaded_at) = self.loaded;
        stood_at.saturating_add((self.uptime)().saturating_sub(loaded_at))
    }

    fn timer(&self) -> u32 {
        let ticks = self.counted().as_nanos() * TIMER_HZ / 1_000_000_000;
        // 32 bits, of which a driver that was promised 24 ignores the top.
        ticks as u32
    }

    /// All registers as bytes, by offset.
    fn image(&self) -> [u8; PORTS as usize] {
        let timer = u128::from(self.timer());
        let control = u128::from(self.state.control | SCI_ENABLED);
        let events = u128::from(self.state.status) | u128::from(self.state.enable) << 16;
        let image = (events | control << (8 * CONTROL) | timer << (8 * TIMER)).to_le_bytes();
        let mut registers = [0; PORTS as usize];
        registers.copy_from_slice(image.split_at(PORTS as usize).0);
        registers
    }

    /// Write the bytes of one access that fall into the 16-bit register at `register`: what is
    /// written, and the mask of the bits that are.
    fn field(register: u64, offset: u64, data: &[u8]) -> (u16, u16) {
        let mut value = [0; 2];
        let mut mask = [0; 2];
        for (at, byte) in (register..).zip(value.iter_mut().zip(&mut mask)) {
            let written = at
                .checked_sub(offset)
                .and_then(|index| data.get(index as usize));
            if let Some(&written) = written {
                *byte.0 = written;
                *byte.1 = 0xff;
            }
        }
        (u16::from_le_bytes(value), u16::from_le_bytes(mask))
    }

    fn write_control(&mut self, value: u16, mask: u16) {
        let kept = self.state.control & !mask;
        self.state.control = (kept | value) & SLEEP_TYPE_MASK;
        if value & SLEEP_ENABLE == 0 {
            return;
        }
        let sleep_type = self.state.control >> SLEEP_TYPE_SHIFT;
        if sleep_type == u16::from(S5_SLP_TYP) {
            self.events.power_off();
        } else {
            self.reporter.warn(&format!(
                "the guest asked for sleep type {sleep_type}, which this machine does not have"
            ));
        }
    }
}

impl BusDevice for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        for (byte, register) in data.iter_mut().zip(image.iter().skip(offset as usize)) {
            *byte = *register;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // Status bits are cleared by writing ones.
        self.state.status &= !Self::field(0, offset, data).0;
        let (enable, mask) = Self::field(2, offset, data);
        if mask != 0 {
            self.state.enable = ((self.state.enable & !mask) | enable) & ENABLE_MASK;
            self.raise_if_due();
        }
        let (control, mask) = Self::field(CONTROL, offset, data);
        if mask != 0 {
            self.write_control(control, mask);
        }
    }

    fn state(&self) -> Vec<Register> {
        let PowerState {
            status,
            enable,
            control,
        } = self.state;
        let control = control | SCI_ENABLED;
        let timer = self.timer();
        let names = [
            (0, "TMR"),
            (5, "GBL"),
            (8, "PWRBTN"),
            (9, "SLPBTN"),
            (10, "RTC"),
        ];
        let word = |offset, name, value: u16| Register::at(offset, name, 16, value.into());
        vec![
            word(0, "PM1_STS", status).meaning(flags(status.into(), &names)),
            word(2, "PM1_EN", enable).meaning(flags(enable.into(), &names)),
            word(CONTROL, "PM1_CNT", control).meaning(format!(
                "SCI_EN, SLP_TYP {}",
                (control & SLEEP_TYPE_MASK) >> SLEEP_TYPE_SHIFT
            )),
            Register::at(TIMER, "PM_TMR", 32, timer.into()).meaning("3.58 MHz"),
        ]
    }

    fn register(&self, offset: u64, _write: bool) -> Option<&'static str> {
        match offset {
            0 | 1 => Some("PM1_STS"),
            2 | 3 => Some("PM1_EN"),
            CONTROL | 5 => Some("PM1_CNT"),
            TIMER.. => Some("PM_TMR"),
            _ => None,
        }
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        encode(&(self.state, self.counted()))
    }

    fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        let (state, counted): (PowerState, Duration) = decode(state)?;
        self.state = PowerState {
            status: state.status & POWER_BUTTON,
            enable: state.enable & ENABLE_MASK,
            control: state.control & SLEEP_TYPE_MASK,
        };
        self.loaded = (counted, (self.uptime)());
        self.raise_if_due();
        Ok(())
    }
}

/// The reset register, one I/O port: the value that the FADT names resets the machine.
pub struct ResetRegister {
    events: Arc<dyn MachineEvents>,
}

impl ResetRegister {
    /// I/O ports that it takes.
    pub const PORTS: u64 = 1;

    /// A reset register that reports to `events`.
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

    fn register(&self, _offset: u64, _write: bool) -> Option<&'static str> {
        Some("RESET_REG")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::devices::testing::{CountedInterrupt, Events, accesses, flips, goes_on};

    fn power() -> (Power, Arc<AtomicU64>, Arc<CountedInterrupt>, Arc<Events>) {
        let nanos = Arc::new(AtomicU64::new(0));
        let sci = Arc::new(CountedInterrupt::default());
        let events = Arc::new(Events::default());
        let clock = nanos.clone();
        let uptime = move || Duration::from_nanos(clock.load(Ordering::SeqCst));
        (
            Power::new(uptime, sci.clone(), events.clone()),
            nanos,
            sci,
            events,
        )
    }

    fn inw(power: &mut Power, offset: u64) -> u16 {
        let mut data = [0xff; 2];
        power.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn outw(power: &mut Power, offset: u64, value: u16) {
        power.write(offset, &value.to_le_bytes());
    }

    #[test]
    fn entering_s5_powers_off() {
        let (mut power, _, _, events) = power();
        assert_eq!(inw(&mut power, 4), 1, "ACPI mode");
        // As ACPICA does it: first the type, then type and enable.
        outw(&mut power, 4, 0x1401);
        assert!(events.take().is_empty());
        outw(&mut power, 4, 0x3401);
        assert_eq!(events.take(), ["power_off"]);
        assert_eq!(inw(&mut power, 4), 0x1401, "the enable bit reads as zero");
    }

    #[test]
    fn a_byte_is_enough_to_power_off() {
        let (mut power, _, _, events) = power();
        power.write(5, &[0x34]);
        assert_eq!(events.take(), ["power_off"]);
    }

    #[test]
    fn other_sleep_states_are_refused_with_a_warning() {
        let (mut power, _, _, events) = power();
        outw(&mut power, 4, 0x2401);
        let lines = events.take();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("sleep type 1"), "{lines:?}");
    }

    #[test]
    fn the_power_button_raises_the_sci_of_a_guest_that_listens() {
        let (mut power, _, sci, _) = power();
        power.press_power_button();
        assert_eq!((sci.take(), inw(&mut power, 0)), (0, 0x100));
        outw(&mut power, 2, 0x100);
        assert_eq!(sci.take(), 1, "pressed before the guest listened");
        outw(&mut power, 0, 0x100);
        assert_eq!(inw(&mut power, 0), 0);
        power.press_power_button();
        assert_eq!(sci.take(), 1);
    }

    #[test]
    fn the_timer_ticks_at_its_rate_and_wraps() {
        let (mut power, nanos, _, _) = power();
        let mut timer = |seconds: u64| {
            nanos.store(seconds * 1_000_000_000, Ordering::SeqCst);
            let mut data = [0; 4];
            power.read(8, &mut data);
            u64::from(u32::from_le_bytes(data))
        };
        assert_eq!(timer(0), 0);
        assert_eq!(timer(1), 3_579_545);
        assert_eq!(timer(3600), (3600 * 3_579_545) % (1 << 32));
    }

    #[test]
    fn the_reset_register_resets_by_its_value_only() {
        let events = Arc::new(Events::default());
        let mut reset = ResetRegister::new(events.clone());
        reset.write(0, &[0x02]);
        assert!(events.take().is_empty());
        reset.write(0, &[0x06]);
        assert_eq!(events.take(), ["reset"]);
    }

    #[test]
    fn the_restored_timer_continues() {
        let (mut first, nanos, _, _) = power();
        nanos.store(5_000_000_000, Ordering::SeqCst);
        let state = first.save().unwrap();
        for born in [0, 1_000_000_000, 60_000_000_000] {
            let (mut second, nanos, _, _) = power();
            nanos.store(born, Ordering::SeqCst);
            second.load(&state).unwrap();
            let read = |power: &mut Power| {
                let mut data = [0; 4];
                power.read(8, &mut data);
                u32::from_le_bytes(data)
            };
            assert_eq!(read(&mut second), read(&mut first));
            nanos.fetch_add(1_000_000_000, Ordering::SeqCst);
            assert_eq!(read(&mut second), 6 * 3_579_545);
        }
    }

    #[test]
    fn a_pressed_button_is_reported_after_a_restore() {
        let (mut first, _, _, _) = power();
        outw(&mut first, 2, 0x100);
        first.press_power_button();
        let (mut second, _, sci, _) = power();
        second.load(&first.save().unwrap()).unwrap();
        assert_eq!(sci.take(), 1);
        assert_eq!(inw(&mut second, 0), 0x100);
    }

    proptest! {
        #[test]
        fn a_restored_device_answers_as_the_first(
            before in accesses(16), after in accesses(16), flips in flips(),
        ) {
            goes_on(power().0, || power().0, &before, &after, &flips);
        }

        #[test]
        fn any_accesses_are_harmless(
            accesses in prop::collection::vec(
                (0u64..16, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..200)
        ) {
            let (mut power, _, _, events) = power();
            for (offset, mut data, write) in accesses {
                if write {
                    power.write(offset, &data);
                } else {
                    power.read(offset, &mut data);
                }
                prop_assert_eq!(power.state().status, 0);
            }
            prop_assert!(events.take().iter().filter(|line| *line != "power_off").count() <= 16);
        }
    }
}
