//! A 16550 serial port on vm-superio's model: eight byte-wide registers.

use std::io::{self, Write};
use std::sync::Arc;

use vm_superio::serial::NoEvents;
use vm_superio::{Serial as Model, Trigger};

use super::super::bus::{BusDevice, Interrupt};

/// Registers of the port.
pub const PORTS: u64 = 8;

/// The line, in the shape that the model wants it.
struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// A serial port that writes what the guest sends to `W`.
pub struct Serial<W: Write + Send> {
    model: Model<Line, NoEvents, W>,
}

impl<W: Write + Send> Serial<W> {
    /// A port with its interrupt line and where its output goes.
    pub fn new(interrupt: Arc<dyn Interrupt>, output: W) -> Self {
        Self {
            model: Model::new(Line(interrupt), output),
        }
    }

    /// Hand input to the guest; returns how many bytes found room in the receive FIFO.
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        let input = input.get(..self.model.fifo_capacity()).unwrap_or(input);
        self.model.enqueue_raw_bytes(input).unwrap_or(0)
    }
}

impl<W: Write + Send> BusDevice for Serial<W> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let Ok(register) = u8::try_from(offset) else {
            return;
        };
        if let Some(byte) = data.first_mut() {
            *byte = self.model.read(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(register) = u8::try_from(offset) else {
            return;
        };
        if let Some(byte) = data.first() {
            // The model fails only where the output or the irqfd does: the guest's byte is
            // lost then, as on a line that nobody listens to.
            let _ = self.model.write(register, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::CountedInterrupt;
    use super::*;

    fn serial() -> (Arc<CountedInterrupt>, Serial<Vec<u8>>) {
        let interrupt = Arc::new(CountedInterrupt::default());
        (interrupt.clone(), Serial::new(interrupt, Vec::new()))
    }

    #[test]
    fn what_the_guest_sends_comes_out_and_the_line_is_ready() {
        let (_, mut serial) = serial();
        for byte in b"hello" {
            serial.write(0, &[*byte]);
        }
        let mut status = [0];
        serial.read(5, &mut status);
        assert_eq!(status[0] & 0x60, 0x60, "transmitter empty");
        assert_eq!(serial.model.writer(), b"hello");
    }

    #[test]
    fn input_is_bounded_by_the_fifo_and_raises_an_interrupt() {
        let (interrupt, mut serial) = serial();
        serial.write(1, &[1]);
        let taken = serial.enqueue(&[b'x'; 1000]);
        assert!(taken > 0 && taken < 1000);
        assert!(interrupt.take() > 0);
        let mut byte = [0];
        serial.read(0, &mut byte);
        assert_eq!(byte, [b'x']);
        assert_eq!(serial.enqueue(b"yy"), 1, "one byte was read, one has room");
    }

    #[test]
    fn odd_accesses_are_harmless() {
        let (_, mut serial) = serial();
        for offset in [0, 7, 8, 255, 256, u64::MAX] {
            serial.write(offset, &[0xff; 8]);
            serial.read(offset, &mut [0; 8]);
            serial.write(offset, &[]);
            serial.read(offset, &mut []);
        }
    }
}
