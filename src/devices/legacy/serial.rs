//! A 16550A UART: COM1 and COM2.
//!
//! The register model of National Semiconductor's PC16550D data sheet as far as drivers can see
//! it from inside: bytes leave at once, so the transmitter is always empty, and the receive
//! trigger level counts as one byte. The baud rate is stored and ignored.
//! Output goes to a [`Sink`]; input comes by [`Serial::enqueue`].

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::devices::bus::{BusDevice, Interrupt};
use crate::devices::register::{Register, flags};
use crate::devices::state::{StateError, decode, encode};

/// I/O ports that one UART takes.
pub const PORTS: u64 = 8;
/// Bytes of input that wait for the guest: four times the chip's, so that a pasted line costs
/// fewer trips around the event loop. A driver never counts them.
pub const FIFO_BYTES: usize = 64;

/// Where a UART's output goes, and what is called when it takes input again.
///
/// Called on a vCPU thread with the UART locked: do not block, do not call the UART.
pub trait Sink: Send {
    /// The guest transmitted `bytes`.
    fn write(&mut self, bytes: &[u8]);
    /// [`Serial::enqueue`] took less than it was offered before, and the guest has read all that
    /// was there: offer the rest.
    fn input_room(&mut self) {}
}

/// Registers, by offset (data sheet, table 2).
mod register {
    pub const DATA: u64 = 0;
    pub const IER: u64 = 1;
    pub const IIR_FCR: u64 = 2;
    pub const LCR: u64 = 3;
    pub const MCR: u64 = 4;
    pub const LSR: u64 = 5;
    pub const MSR: u64 = 6;
    pub const SCR: u64 = 7;
}

const IER_RECEIVED: u8 = 0x01;
const IER_TRANSMITTER_EMPTY: u8 = 0x02;
const IER_MASK: u8 = 0x0f;
const IIR_NONE: u8 = 0x01;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_FIFO_ENABLED: u8 = 0xc0;
const FCR_ENABLE: u8 = 0x01;
const FCR_CLEAR_RECEIVER: u8 = 0x02;
const LCR_DLAB: u8 = 0x80;
const MCR_MASK: u8 = 0x1f;
const MCR_DTR: u8 = 0x01;
const MCR_RTS: u8 = 0x02;
const MCR_OUT1: u8 = 0x04;
const MCR_OUT2: u8 = 0x08;
const MCR_LOOP: u8 = 0x10;
const LSR_DATA_READY: u8 = 0x01;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;
const MSR_CTS: u8 = 0x10;
const MSR_DSR: u8 = 0x20;
const MSR_RI: u8 = 0x40;
const MSR_DCD: u8 = 0x80;

/// Bits by the names of the data sheet, tables 2 and 8.
const IER_NAMES: [(u32, &str); 4] = [(0, "ERBFI"), (1, "ETBEI"), (2, "ELSI"), (3, "EDSSI")];
const MCR_NAMES: [(u32, &str); 5] = [
    (0, "DTR"),
    (1, "RTS"),
    (2, "OUT1"),
    (3, "OUT2"),
    (4, "LOOP"),
];
const LSR_NAMES: [(u32, &str); 3] = [(0, "DR"), (5, "THRE"), (6, "TEMT")];
const MSR_NAMES: [(u32, &str); 4] = [(4, "CTS"), (5, "DSR"), (6, "RI"), (7, "DCD")];

/// A UART's registers: all of its state, plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Divisor latch (DLL, DLM).
    pub divisor: u16,
    /// Interrupt enable register (data sheet, 8.6).
    pub ier: u8,
    /// FIFO control register, the enable bit only.
    pub fcr: u8,
    /// Line control register (data sheet, 8.1).
    pub lcr: u8,
    /// Modem control register (data sheet, 8.7).
    pub mcr: u8,
    /// Scratch register, without a function (data sheet, 8.9).
    pub scr: u8,
    /// The "transmitter holding register empty" interrupt waits to be identified.
    pub transmitter_empty_pending: bool,
    /// Input that waits, at most [`FIFO_BYTES`].
    pub input: VecDeque<u8>,
    /// An `enqueue` was cut short: the sink is called when there is room.
    pub starved: bool,
}

impl Default for SerialState {
    fn default() -> Self {
        Self {
            divisor: 12, // 9600 baud
            ier: 0,
            fcr: 0,
            lcr: 0x03, // 8 data bits, no parity, 1 stop bit
            mcr: MCR_OUT2,
            scr: 0,
            transmitter_empty_pending: false,
            input: VecDeque::new(),
            starved: false,
        }
    }
}

impl SerialState {
    /// Registers from a saved state, limited to values that a chip can have.
    fn judged(self) -> Self {
        let mut input = self.input;
        input.truncate(FIFO_BYTES);
        let ier = self.ier & IER_MASK;
        Self {
            ier,
            fcr: self.fcr & FCR_ENABLE,
            mcr: self.mcr & MCR_MASK,
            transmitter_empty_pending: self.transmitter_empty_pending
                && ier & IER_TRANSMITTER_EMPTY != 0,
            input,
            ..self
        }
    }
}

/// A 16550A with its output and its interrupt line.
pub struct Serial<S: Sink> {
    state: SerialState,
    sink: S,
    interrupt: Arc<dyn Interrupt>,
}

impl<S: Sink> Serial<S> {
    /// A UART as after power-on.
    pub fn new(sink: S, interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            state: SerialState::default(),
            sink,
            interrupt,
        }
    }

    /// All registers, read without side effects.
    pub fn state(&self) -> &SerialState {
        &self.state
    }

    /// Give the guest input; returns how many bytes fitted. After fewer than all,
    /// [`Sink::input_room`] is called when there is room for the rest.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        let room = if self.looped_back() { 0 } else { self.room() };
        let taken = room.min(bytes.len());
        self.state.input.extend(bytes.iter().take(taken));
        self.state.starved = taken < bytes.len();
        if taken > 0 && self.enabled(IER_RECEIVED) {
            // Raised with every batch, even if the last one's was not served: an edge that was
            // lost (a masked IOAPIC pin) must not silence the line for good.
            self.raise();
        }
        taken
    }

    fn room(&self) -> usize {
        FIFO_BYTES.saturating_sub(self.state.input.len())
    }

    fn looped_back(&self) -> bool {
        self.state.mcr & MCR_LOOP != 0
    }

    fn enabled(&self, interrupt: u8) -> bool {
        self.state.ier & interrupt != 0
    }

    fn dlab(&self) -> bool {
        self.state.lcr & LCR_DLAB != 0
    }

    fn raise(&self) {
        // A full eventfd counter cannot happen (KVM drains it); the guest loses an edge at worst.
        let _ = self.interrupt.trigger();
    }

    fn transmitter_empty(&mut self) {
        if self.enabled(IER_TRANSMITTER_EMPTY) && !self.state.transmitter_empty_pending {
            self.state.transmitter_empty_pending = true;
            self.raise();
        }
    }

    fn tell_room(&mut self) {
        if self.state.starved && self.state.input.is_empty() && !self.looped_back() {
            self.state.starved = false;
            self.sink.input_room();
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let [divisor_low, divisor_high] = self.state.divisor.to_le_bytes();
        match offset {
            register::DATA if self.dlab() => divisor_low,
            register::IER if self.dlab() => divisor_high,
            register::DATA => {
                let byte = self.state.input.pop_front().unwrap_or(0);
                self.tell_room();
                byte
            }
            register::IER => self.state.ier,
            register::IIR_FCR => self.identify(),
            register::LCR => self.state.lcr,
            register::MCR => self.state.mcr,
            register::LSR => self.line_status(),
            register::MSR => self.modem_status(),
            register::SCR => self.state.scr,
            _ => 0xff,
        }
    }

    /// The interrupt with the highest priority (data sheet, table 3). Received data stays
    /// pending until it is read; reading the identification clears the transmitter's.
    fn identify(&mut self) -> u8 {
        let cause = self.cause();
        if cause & !IIR_FIFO_ENABLED == IIR_TRANSMITTER_EMPTY {
            self.state.transmitter_empty_pending = false;
        }
        cause
    }

    /// As above, without side effects.
    fn cause(&self) -> u8 {
        let fifo = if self.state.fcr & FCR_ENABLE != 0 {
            IIR_FIFO_ENABLED
        } else {
            0
        };
        let cause = if self.enabled(IER_RECEIVED) && !self.state.input.is_empty() {
            IIR_RECEIVED
        } else if self.state.transmitter_empty_pending {
            IIR_TRANSMITTER_EMPTY
        } else {
            IIR_NONE
        };
        fifo | cause
    }

    fn line_status(&self) -> u8 {
        if self.state.input.is_empty() {
            LSR_TRANSMITTER_EMPTY
        } else {
            LSR_TRANSMITTER_EMPTY | LSR_DATA_READY
        }
    }

    /// A peer that is always connected and ready; in loopback, the UART's own outputs.
    fn modem_status(&self) -> u8 {
        if !self.looped_back() {
            return MSR_DCD | MSR_DSR | MSR_CTS;
        }
        [
            (MCR_DTR, MSR_DSR),
            (MCR_RTS, MSR_CTS),
            (MCR_OUT1, MSR_RI),
            (MCR_OUT2, MSR_DCD),
        ]
        .iter()
        .filter(|(output, _)| self.state.mcr & output != 0)
        .fold(0, |status, (_, input)| status | input)
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let [divisor_low, divisor_high] = self.state.divisor.to_le_bytes();
        match offset {
            register::DATA if self.dlab() => {
                self.state.divisor = u16::from_le_bytes([value, divisor_high]);
            }
            register::IER if self.dlab() => {
                self.state.divisor = u16::from_le_bytes([divisor_low, value]);
            }
            register::DATA => self.transmit(value),
            register::IER => self.enable_interrupts(value & IER_MASK),
            register::IIR_FCR => {
                // The chip clears its FIFOs when they are turned on or off, too; drivers probe
                // that way, and a user's early input should survive the probing.
                if value & FCR_CLEAR_RECEIVER != 0 && self.looped_back() {
                    self.state.input.clear();
                }
                self.state.fcr = value & FCR_ENABLE;
            }
            register::LCR => self.state.lcr = value,
            register::MCR => {
                self.state.mcr = value & MCR_MASK;
                self.tell_room();
            }
            register::SCR => self.state.scr = value,
            _ => {}
        }
    }

    fn transmit(&mut self, byte: u8) {
        if self.looped_back() {
            if self.room() > 0 {
                self.state.input.push_back(byte);
                if self.enabled(IER_RECEIVED) {
                    self.raise();
                }
            }
        } else {
            self.sink.write(&[byte]);
        }
        self.transmitter_empty();
    }

    /// Enabling an interrupt whose cause is there raises it: Linux's driver tests that the empty
    /// transmitter's does, and starts to send by it.
    fn enable_interrupts(&mut self, ier: u8) {
        let newly = ier & !self.state.ier;
        self.state.ier = ier;
        if ier & IER_TRANSMITTER_EMPTY == 0 {
            self.state.transmitter_empty_pending = false;
        } else if newly & IER_TRANSMITTER_EMPTY != 0 {
            self.transmitter_empty();
        }
        if newly & IER_RECEIVED != 0 && !self.state.input.is_empty() {
            self.raise();
        }
    }
}

/// A wider access touches the registers that follow, as on a bus of eight bits.
impl<S: Sink> BusDevice for Serial<S> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..PORTS).zip(data) {
            *byte = self.read_register(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (register, &byte) in (offset..PORTS).zip(data) {
            self.write_register(register, byte);
        }
    }

    fn state(&self) -> Vec<Register> {
        let state = &self.state;
        let [divisor_low, divisor_high] = state.divisor.to_le_bytes();
        let waiting = state.input.len();
        let byte = |offset, name, value: u8| Register::at(offset, name, 8, value.into());
        let named = |offset, name, value: u8, names: &[(u32, &str)]| {
            byte(offset, name, value).meaning(flags(value.into(), names))
        };
        let first = state.input.front().copied().unwrap_or(0);
        let baud = 115_200u32.checked_div(state.divisor.into()).unwrap_or(0);
        vec![
            byte(register::DATA, "RBR", first).meaning(format!("{waiting} bytes of input wait")),
            named(register::IER, "IER", state.ier, &IER_NAMES),
            byte(register::IIR_FCR, "IIR", self.cause()).meaning(match self.cause() & 0x0f {
                IIR_RECEIVED => "received data available",
                IIR_TRANSMITTER_EMPTY => "transmitter holding register empty",
                _ => "no interrupt pending",
            }),
            byte(register::IIR_FCR, "FCR", state.fcr).meaning(match state.fcr {
                0 => "",
                _ => "FIFOs enabled",
            }),
            byte(register::LCR, "LCR", state.lcr).meaning(format!(
                "{} data bits, {} parity, {}{}",
                5 + (state.lcr & 3),
                if state.lcr & 8 == 0 { "no" } else { "with" },
                if state.lcr & 4 == 0 {
                    "1 stop bit"
                } else {
                    "2 stop bits"
                },
                if self.dlab() { ", DLAB" } else { "" },
            )),
            named(register::MCR, "MCR", state.mcr, &MCR_NAMES),
            named(register::LSR, "LSR", self.line_status(), &LSR_NAMES),
            named(register::MSR, "MSR", self.modem_status(), &MSR_NAMES),
            byte(register::SCR, "SCR", state.scr),
            byte(register::DATA, "DLL", divisor_low),
            byte(register::IER, "DLM", divisor_high).meaning(format!("{baud} baud")),
        ]
    }

    fn register(&self, offset: u64, write: bool) -> Option<&'static str> {
        Some(match (offset, write) {
            (register::DATA, _) if self.dlab() => "DLL",
            (register::IER, _) if self.dlab() => "DLM",
            (register::DATA, false) => "RBR",
            (register::DATA, true) => "THR",
            (register::IER, _) => "IER",
            (register::IIR_FCR, false) => "IIR",
            (register::IIR_FCR, true) => "FCR",
            (register::LCR, _) => "LCR",
            (register::MCR, _) => "MCR",
            (register::LSR, _) => "LSR",
            (register::MSR, _) => "MSR",
            (register::SCR, _) => "SCR",
            _ => return None,
        })
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        encode(&self.state)
    }

    fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.state = decode::<SerialState>(state)?.judged();
        // The edge may have been on its way; without one the guest would wait for ever.
        if self.cause() & !IIR_FIFO_ENABLED != IIR_NONE {
            self.raise();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::devices::testing::{CountedInterrupt, accesses, flips, goes_on};

    #[derive(Clone, Default)]
    struct Line {
        output: Arc<Mutex<Vec<u8>>>,
        rooms: Arc<AtomicUsize>,
    }

    impl Sink for Line {
        fn write(&mut self, bytes: &[u8]) {
            self.output.lock().unwrap().extend(bytes);
        }
        fn input_room(&mut self) {
            self.rooms.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn uart() -> (Serial<Line>, Line, Arc<CountedInterrupt>) {
        let line = Line::default();
        let interrupt = Arc::new(CountedInterrupt::default());
        (
            Serial::new(line.clone(), interrupt.clone()),
            line,
            interrupt,
        )
    }

    fn inb(uart: &mut Serial<Line>, offset: u64) -> u8 {
        let mut data = [0xff];
        uart.read(offset, &mut data);
        data[0]
    }

    fn outb(uart: &mut Serial<Line>, offset: u64, value: u8) {
        uart.write(offset, &[value]);
    }

    #[test]
    fn what_the_guest_transmits_comes_out() {
        let (mut uart, line, interrupt) = uart();
        for byte in *b"hello" {
            assert_eq!(inb(&mut uart, 5) & 0x60, 0x60);
            outb(&mut uart, 0, byte);
        }
        assert_eq!(*line.output.lock().unwrap(), b"hello");
        assert_eq!(interrupt.take(), 0);
    }

    #[test]
    fn input_raises_an_interrupt_that_stays_identified_until_all_is_read() {
        let (mut uart, _, interrupt) = uart();
        outb(&mut uart, 1, 0x01);
        assert_eq!(uart.enqueue(b"ab"), 2);
        assert_eq!(interrupt.take(), 1);
        // A driver that loops until nothing is pending, reading one byte each time.
        let mut got = Vec::new();
        while inb(&mut uart, 2) & 0x01 == 0 {
            assert_eq!(inb(&mut uart, 2) & 0x0f, 0x04);
            got.push(inb(&mut uart, 0));
        }
        assert_eq!(got, b"ab");
        assert_eq!(inb(&mut uart, 5) & 1, 0);
    }

    #[test]
    fn the_line_never_sticks_however_much_comes_in() {
        let (mut uart, line, interrupt) = uart();
        // Before the driver is there, the FIFO fills.
        let input: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        let mut offered = uart.enqueue(&input);
        assert_eq!((offered, uart.enqueue(&input[offered..])), (FIFO_BYTES, 0));
        outb(&mut uart, 2, 0x07);
        outb(&mut uart, 1, 0x01);
        let mut got = Vec::new();
        while got.len() < input.len() {
            assert!(interrupt.take() > 0, "stuck after {}", got.len());
            while inb(&mut uart, 5) & 1 != 0 {
                got.push(inb(&mut uart, 0));
            }
            if line.rooms.swap(0, Ordering::SeqCst) > 0 {
                offered += uart.enqueue(&input[offered..]);
            }
        }
        assert_eq!(got, input);
    }

    #[test]
    fn enabling_the_transmitter_interrupt_raises_it_each_time() {
        let (mut uart, _, interrupt) = uart();
        for _ in 0..2 {
            outb(&mut uart, 1, 0x02);
            assert_eq!(interrupt.take(), 1);
            assert_eq!(inb(&mut uart, 2) & 0x0f, 0x02);
            assert_eq!(inb(&mut uart, 2) & 0x0f, 0x01);
            outb(&mut uart, 1, 0x00);
        }
        outb(&mut uart, 1, 0x02);
        inb(&mut uart, 2);
        interrupt.take();
        outb(&mut uart, 0, b'x');
        assert_eq!(interrupt.take(), 1);
        assert_eq!(inb(&mut uart, 2) & 0x0f, 0x02);
    }

    #[test]
    fn received_data_is_identified_before_the_transmitter_and_neither_is_lost() {
        let (mut uart, _, _) = uart();
        outb(&mut uart, 1, 0x03);
        uart.enqueue(b"a");
        assert_eq!(inb(&mut uart, 2) & 0x0f, 0x04);
        inb(&mut uart, 0);
        assert_eq!(inb(&mut uart, 2) & 0x0f, 0x02);
        assert_eq!(inb(&mut uart, 2) & 0x0f, 0x01);
    }

    #[test]
    fn loopback_keeps_bytes_and_modem_lines_inside() {
        let (mut uart, line, _) = uart();
        // The test of Linux's 8250 driver: LOOP, OUT2 and RTS read back as DCD and CTS.
        outb(&mut uart, 4, 0x1a);
        assert_eq!(inb(&mut uart, 6) & 0xf0, 0x90);
        outb(&mut uart, 0, b'x');
        assert_eq!(uart.enqueue(b"host"), 0);
        assert_eq!((inb(&mut uart, 5) & 1, inb(&mut uart, 0)), (1, b'x'));
        assert!(line.output.lock().unwrap().is_empty());
        outb(&mut uart, 4, 0x08);
        assert_eq!(line.rooms.load(Ordering::SeqCst), 1);
        assert_eq!(uart.enqueue(b"host"), 4);
    }

    #[test]
    fn it_identifies_as_a_16550a() {
        let (mut uart, _, _) = uart();
        outb(&mut uart, 2, 0x01);
        assert_eq!(inb(&mut uart, 2), 0xc1);
        outb(&mut uart, 3, 0x83);
        outb(&mut uart, 0, 0x01);
        outb(&mut uart, 1, 0x02);
        assert_eq!((inb(&mut uart, 0), inb(&mut uart, 1)), (1, 2));
        outb(&mut uart, 3, 0x03);
        assert_eq!((inb(&mut uart, 1), uart.state().divisor), (0, 0x201));
        outb(&mut uart, 7, 0xa5);
        assert_eq!(inb(&mut uart, 7), 0xa5);
    }

    #[test]
    fn a_restored_uart_continues() {
        let (mut uart, line, interrupt) = uart();
        outb(&mut uart, 1, 0x03);
        uart.enqueue(b"later");
        let mut copy = Serial::new(line, interrupt.clone());
        interrupt.take();
        copy.load(&uart.save().unwrap()).unwrap();
        assert_eq!(copy.state(), uart.state());
        assert_eq!(interrupt.take(), 1, "input waits");
        assert_eq!(inb(&mut copy, 0), b'l');
    }

    proptest! {
        #[test]
        fn any_accesses_are_harmless(
            accesses in prop::collection::vec(
                (0u64..12, prop::collection::vec(any::<u8>(), 0..9), any::<bool>(), any::<bool>()),
                0..200,
            )
        ) {
            let (mut uart, _, _) = uart();
            for (offset, mut data, write, input) in accesses {
                if write {
                    uart.write(offset, &data);
                } else {
                    uart.read(offset, &mut data);
                }
                if input {
                    uart.enqueue(&data);
                }
                prop_assert!(uart.state().input.len() <= FIFO_BYTES);
            }
        }

        #[test]
        fn a_restored_device_answers_as_the_first(
            before in accesses(12),
            input in prop::collection::vec(any::<u8>(), 0..100),
            after in accesses(12),
            flips in flips(),
        ) {
            let new = || {
                let (mut uart, line, interrupt) = uart();
                uart.enqueue(&[]);
                (uart, line, interrupt)
            };
            let (mut first, line, _) = new();
            first.enqueue(&input);
            goes_on(first, || new().0, &before, &after, &flips);
            drop(line);
        }
    }
}
