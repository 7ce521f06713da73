//! A minimal i8042 keyboard controller: present, healthy, with nothing plugged in.
//!
//! Its use is the reset line, by which Linux reboots a PC. The rest answers what Linux's and a
//! BIOS's probing ask, at once, because an unanswered command costs Linux half a second.
//! IBM PC/AT Technical Reference, "Keyboard controller"; Linux drivers/input/serio/i8042.c.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::devices::MachineEvents;
use crate::devices::bus::{BusDevice, Interrupt};
use crate::devices::register::{Register, flags};
use crate::devices::state::{StateError, decode, encode};

/// I/O port of the data register; status and command follow 4 ports on.
pub const PORT: u16 = 0x60;
/// I/O ports from [`PORT`] on; the ones between data and command belong to others.
pub const PORTS: u64 = 5;

const DATA: u64 = 0;
const STATUS_COMMAND: u64 = 4;

const STATUS_OUTPUT_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_COMMAND_LAST: u8 = 0x08;
const STATUS_UNLOCKED: u8 = 0x10;
const STATUS_TIMEOUT: u8 = 0x40;

const CONTROL_KEYBOARD_INTERRUPT: u8 = 0x01;
const CONTROL_SYSTEM: u8 = 0x04;
const CONTROL_KEYBOARD_DISABLED: u8 = 0x10;
const CONTROL_AUX_DISABLED: u8 = 0x20;

const READ_CONTROL: u8 = 0x20;
const WRITE_CONTROL: u8 = 0x60;
const DISABLE_AUX: u8 = 0xa7;
const ENABLE_AUX: u8 = 0xa8;
const TEST_AUX: u8 = 0xa9;
const SELF_TEST: u8 = 0xaa;
const TEST_KEYBOARD: u8 = 0xab;
const DISABLE_KEYBOARD: u8 = 0xad;
const ENABLE_KEYBOARD: u8 = 0xae;
const READ_INPUT_PORT: u8 = 0xc0;
const READ_OUTPUT_PORT: u8 = 0xd0;
const WRITE_OUTPUT_PORT: u8 = 0xd1;
const LOOP_KEYBOARD: u8 = 0xd2;
const LOOP_AUX: u8 = 0xd3;
const WRITE_AUX: u8 = 0xd4;

/// Bit 0 of the output port is the CPU's reset line, active low; bit 1 is A20.
const OUTPUT_NOT_RESET: u8 = 0x01;
const OUTPUT_A20: u8 = 0x02;

/// Bits of the status register and of the command byte.
const STATUS_NAMES: [(u32, &str); 5] = [
    (0, "output full"),
    (2, "system"),
    (3, "command last"),
    (4, "unlocked"),
    (6, "timeout"),
];
const CONTROL_NAMES: [(u32, &str); 6] = [
    (0, "keyboard interrupt"),
    (1, "auxiliary interrupt"),
    (2, "system"),
    (4, "keyboard disabled"),
    (5, "auxiliary disabled"),
    (6, "translate"),
];

/// The controller's registers: all of its state, plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    /// The command byte (`CTR` in Linux's driver).
    pub control: u8,
    /// A byte for the guest to read.
    pub output: Option<u8>,
    /// The byte in `output` reports that a device did not answer.
    pub timeout: bool,
    /// A command that waits for its parameter.
    pub command: Option<u8>,
    /// The last write was a command.
    pub command_last: bool,
}

impl Default for I8042State {
    fn default() -> Self {
        Self {
            control: CONTROL_SYSTEM | CONTROL_AUX_DISABLED,
            output: None,
            timeout: false,
            command: None,
            command_last: false,
        }
    }
}

/// The controller with its keyboard interrupt line (GSI 1).
pub struct I8042 {
    state: I8042State,
    interrupt: Arc<dyn Interrupt>,
    events: Arc<dyn MachineEvents>,
}

impl I8042 {
    /// A controller as after power-on.
    pub fn new(interrupt: Arc<dyn Interrupt>, events: Arc<dyn MachineEvents>) -> Self {
        Self {
            state: I8042State::default(),
            interrupt,
            events,
        }
    }

    /// All of the state.
    pub fn state(&self) -> &I8042State {
        &self.state
    }

    fn status(&self) -> u8 {
        let mut status = STATUS_UNLOCKED | (self.state.control & CONTROL_SYSTEM & STATUS_SYSTEM);
        if self.state.output.is_some() {
            status |= STATUS_OUTPUT_FULL;
            if self.state.timeout {
                status |= STATUS_TIMEOUT;
            }
        }
        if self.state.command_last {
            status |= STATUS_COMMAND_LAST;
        }
        status
    }

    fn answer(&mut self, byte: u8) {
        self.state.output = Some(byte);
        self.state.timeout = false;
        self.raise();
    }

    /// No device is plugged in to take the byte. The controller answers so itself (0xfe, "resend",
    /// with the timeout bit), which spares drivers their own, much longer, timeouts.
    fn no_device(&mut self) {
        self.state.output = Some(0xfe);
        self.state.timeout = true;
        self.raise();
    }

    fn raise(&self) {
        if self.state.control & CONTROL_KEYBOARD_INTERRUPT != 0 {
            let _ = self.interrupt.trigger();
        }
    }

    fn command(&mut self, command: u8) {
        self.state.command = None;
        match command {
            READ_CONTROL => self.answer(self.state.control),
            WRITE_CONTROL | WRITE_OUTPUT_PORT | LOOP_KEYBOARD | LOOP_AUX | WRITE_AUX => {
                self.state.command = Some(command);
            }
            DISABLE_AUX => self.state.control |= CONTROL_AUX_DISABLED,
            ENABLE_AUX => self.state.control &= !CONTROL_AUX_DISABLED,
            // "Clock line stuck low": there is no auxiliary port.
            TEST_AUX => self.answer(0x01),
            SELF_TEST => {
                self.state.control |= CONTROL_SYSTEM;
                self.answer(0x55);
            }
            TEST_KEYBOARD => self.answer(0x00),
            DISABLE_KEYBOARD => self.state.control |= CONTROL_KEYBOARD_DISABLED,
            ENABLE_KEYBOARD => self.state.control &= !CONTROL_KEYBOARD_DISABLED,
            READ_INPUT_PORT => self.answer(0x80),
            READ_OUTPUT_PORT => self.answer(OUTPUT_NOT_RESET | OUTPUT_A20),
            // 0xf0 to 0xff pulse the output lines whose bit is clear. 0xfe is the usual one.
            0xf0..=0xff if command & OUTPUT_NOT_RESET == 0 => self.events.reset(),
            _ => {}
        }
    }

    fn data(&mut self, byte: u8) {
        match self.state.command.take() {
            Some(WRITE_CONTROL) => self.state.control = byte,
            Some(WRITE_OUTPUT_PORT) if byte & OUTPUT_NOT_RESET == 0 => self.events.reset(),
            Some(WRITE_OUTPUT_PORT) => {}
            // Answered as from the keyboard, never as from an auxiliary device: Linux reads
            // that as "no mouse port".
            Some(LOOP_KEYBOARD | LOOP_AUX) => self.answer(byte),
            _ => self.no_device(),
        }
    }
}

/// Accesses of more than a byte are ignored.
impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let [byte] = data else { return };
        match offset {
            DATA => *byte = self.state.output.take().unwrap_or(0),
            STATUS_COMMAND => *byte = self.status(),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let &[byte] = data else { return };
        match offset {
            DATA => {
                self.state.command_last = false;
                self.data(byte);
            }
            STATUS_COMMAND => {
                self.state.command_last = true;
                self.command(byte);
            }
            _ => {}
        }
    }

    fn state(&self) -> Vec<Register> {
        let state = &self.state;
        let status = self.status();
        let output = state.output.unwrap_or(0);
        let byte = |offset, name, value: u8| Register::at(offset, name, 8, value.into());
        vec![
            byte(DATA, "data", output).meaning(match state.output {
                Some(_) => "waits to be read",
                None => "empty",
            }),
            byte(STATUS_COMMAND, "status", status).meaning(flags(status.into(), &STATUS_NAMES)),
            Register::new("command byte", 8, state.control.into())
                .meaning(flags(state.control.into(), &CONTROL_NAMES)),
        ]
    }

    fn register(&self, offset: u64, write: bool) -> Option<&'static str> {
        match (offset, write) {
            (DATA, _) => Some("data"),
            (STATUS_COMMAND, false) => Some("status"),
            (STATUS_COMMAND, true) => Some("command"),
            _ => None,
        }
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        encode(&self.state)
    }

    fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.state = decode(state)?;
        if self.state.output.is_some() {
            self.raise();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::devices::testing::{CountedInterrupt, Events, accesses, flips, goes_on};

    fn controller() -> (I8042, Arc<CountedInterrupt>, Arc<Events>) {
        let interrupt = Arc::new(CountedInterrupt::default());
        let events = Arc::new(Events::default());
        (
            I8042::new(interrupt.clone(), events.clone()),
            interrupt,
            events,
        )
    }

    fn inb(device: &mut I8042, offset: u64) -> u8 {
        let mut data = [0xff];
        device.read(offset, &mut data);
        data[0]
    }

    /// As Linux's i8042_command: command, parameter, and the answer with its status.
    fn command(device: &mut I8042, command: u8, parameter: Option<u8>) -> Option<(u8, u8)> {
        device.write(4, &[command]);
        assert_eq!(inb(device, 4) & 0x02, 0, "the input buffer is always free");
        if let Some(parameter) = parameter {
            device.write(0, &[parameter]);
        }
        let status = inb(device, 4);
        (status & 1 != 0).then(|| (inb(device, 0), status))
    }

    #[test]
    fn pulsing_the_reset_line_resets() {
        let (mut device, _, events) = controller();
        device.write(4, &[0xff]);
        assert!(events.take().is_empty());
        device.write(4, &[0xfe]);
        assert_eq!(events.take(), ["reset"]);
        device.write(4, &[0xd1]);
        device.write(0, &[0xdf]);
        assert!(events.take().is_empty(), "A20 on, as boot loaders do");
        device.write(4, &[0xd1]);
        device.write(0, &[0xfe]);
        assert_eq!(events.take(), ["reset"]);
    }

    #[test]
    fn linux_probing_gets_its_answers_at_once() {
        let (mut device, _, _) = controller();
        assert_eq!(inb(&mut device, 4) & 1, 0, "nothing to flush");
        let (control, _) = command(&mut device, 0x20, None).unwrap();
        assert_eq!(command(&mut device, 0x60, Some(control | 0x10)), None);
        assert_eq!(command(&mut device, 0x20, None).unwrap().0, control | 0x10);
        assert_eq!(command(&mut device, 0xaa, None).unwrap().0, 0x55);
        let (echo, status) = command(&mut device, 0xd3, Some(0x5a)).unwrap();
        assert_eq!(
            (echo, status & 0x20),
            (0x5a, 0),
            "not from an auxiliary port"
        );
        assert_eq!(command(&mut device, 0xa9, None).unwrap().0, 0x01);
        assert_eq!(command(&mut device, 0xab, None).unwrap().0, 0x00);
    }

    #[test]
    fn a_byte_for_the_missing_keyboard_times_out_at_once() {
        let (mut device, interrupt, _) = controller();
        command(&mut device, 0x60, Some(0x05));
        device.write(0, &[0xf2]);
        assert_eq!(interrupt.take(), 1);
        assert_eq!(inb(&mut device, 4) & 0x41, 0x41);
        assert_eq!(inb(&mut device, 0), 0xfe);
        assert_eq!(inb(&mut device, 4) & 0x41, 0);
    }

    proptest! {
        #[test]
        fn a_restored_device_answers_as_the_first(
            before in accesses(8), after in accesses(8), flips in flips(),
        ) {
            goes_on(controller().0, || controller().0, &before, &after, &flips);
        }

        #[test]
        fn any_accesses_are_harmless(
            accesses in prop::collection::vec(
                (0u64..8, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..200)
        ) {
            let (mut device, _, _) = controller();
            for (offset, mut data, write) in accesses {
                if write {
                    device.write(offset, &data);
                } else {
                    device.read(offset, &mut data);
                }
            }
        }
    }
}
