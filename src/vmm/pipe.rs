//! A stream of bytes to and from the guest: a UART, or a port of the virtio console.
//!
//! A pipe holds a bounded number of bytes from the guest; then the guest waits.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::outbox::{Outbox, Transmitter};
use crate::agent::WindowSize;
use crate::devices::legacy::serial::Serial;
use crate::devices::virtio::console::{Console, PortSink};
use crate::devices::virtio::transport::SharedCore;
use crate::sync::lock;

/// Bytes from a port at which the guest waits for the host.
const FULL: usize = 64 << 10;

/// A stream to and from the guest.
#[derive(Clone)]
pub enum Pipe {
    /// The lines of a UART.
    Uart(Uart),
    /// A port of the virtio console.
    Port(Port),
}

impl Pipe {
    /// Take at most `most` bytes of what the guest wrote, oldest first.
    pub fn take(&self, most: usize) -> Vec<u8> {
        match self {
            Self::Uart(uart) => uart.outbox.take(most),
            Self::Port(port) => port.take(most),
        }
    }

    /// As [`Pipe::take`], but the guest's queue stays as it is until the next call of that.
    pub fn drain(&self, most: usize) -> Vec<u8> {
        match self {
            Self::Uart(uart) => uart.outbox.take(most),
            Self::Port(port) => lock(&port.inbox).take(most),
        }
    }

    /// Give the guest `bytes`. Returns how many it had room for; the event loop is woken when it has
    /// room for more.
    pub fn put(&self, bytes: &[u8]) -> usize {
        match self {
            Self::Uart(uart) => lock(&uart.chip).enqueue(bytes),
            Self::Port(port) => port.put(bytes),
        }
    }

    /// Tell the guest the size of the terminal; a UART cannot.
    pub fn resize(&self, size: WindowSize) {
        if let Self::Port(port) = self {
            lock(&port.slot).with_device(|console: &mut Console, driver| {
                console.resize(driver, size.rows, size.cols)
            });
        }
    }

    /// What a UART transmits into; a port has no [`Outbox`].
    pub fn outbox(&self) -> Option<Arc<Outbox>> {
        match self {
            Self::Uart(uart) => Some(uart.outbox.clone()),
            Self::Port(_) => None,
        }
    }

    /// Whether all that the guest wrote was taken.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Uart(uart) => uart.outbox.is_empty(),
            Self::Port(port) => lock(&port.inbox).is_empty(),
        }
    }
}

/// A UART with its host end.
#[derive(Clone)]
pub struct Uart {
    /// The UART itself, for its input.
    pub chip: Arc<Mutex<Serial<Transmitter>>>,
    /// What the guest transmitted.
    pub outbox: Arc<Outbox>,
}

/// A port of a virtio console with its host end.
#[derive(Clone)]
pub struct Port {
    slot: SharedCore,
    number: usize,
    inbox: Arc<Mutex<Inbox>>,
}

/// What the guest wrote to a port. Lock order: the slot, then this.
#[derive(Default)]
pub struct Inbox {
    bytes: VecDeque<u8>,
    /// Whether the guest has more, for which there was no room.
    held: bool,
}

impl Inbox {
    fn take(&mut self, most: usize) -> Vec<u8> {
        let n = most.min(self.bytes.len());
        self.bytes.drain(..n).collect()
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty() && !self.held
    }
}

impl Port {
    /// Port `number` of the console in `slot`, whose sink writes to `inbox`.
    pub fn new(slot: SharedCore, number: usize, inbox: Arc<Mutex<Inbox>>) -> Self {
        Self {
            slot,
            number,
            inbox,
        }
    }

    fn take(&self, most: usize) -> Vec<u8> {
        let mut inbox = lock(&self.inbox);
        let taken = inbox.take(most);
        let go_on = inbox.held && inbox.bytes.len() < FULL;
        inbox.held &= !go_on;
        drop(inbox);
        if go_on {
            lock(&self.slot).process(Console::output_queue(self.number));
        }
        taken
    }

    fn put(&self, bytes: &[u8]) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        lock(&self.slot)
            .with_device(|console: &mut Console, driver| console.input(driver, self.number, bytes))
            .unwrap_or(0)
    }
}

/// Writes what the guest sends to a port into its [`Inbox`].
pub struct InboxSink(pub Arc<Mutex<Inbox>>);

impl PortSink for InboxSink {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut inbox = lock(&self.0);
        let room = FULL.saturating_sub(inbox.bytes.len()).min(bytes.len());
        inbox.bytes.extend(bytes.iter().take(room));
        inbox.held = room < bytes.len();
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inbox_takes_no_more_than_it_holds() {
        let inbox = Arc::<Mutex<Inbox>>::default();
        let mut sink = InboxSink(inbox.clone());
        assert_eq!(sink.write(&[1; FULL - 1]), FULL - 1);
        assert!(!lock(&inbox).held);
        assert_eq!(sink.write(&[2; 3]), 1);
        assert!(lock(&inbox).held);
        assert_eq!(lock(&inbox).bytes.len(), FULL);
    }
}
