//! One port of a console: bytes out of the guest and into it, as far as either side takes them.

use serde::{Deserialize, Serialize};

use super::control::Event;
use crate::devices::virtio::DeviceError;
use crate::devices::virtio::queue::VirtQueue;

/// Bytes handed to a sink at once.
const PIECE: usize = 4096;
/// Bytes of output that one call handles, so that a guest that writes without end leaves the
/// event loop to others.
pub(super) const OUTPUT_PER_CALL: usize = 256 * 1024;

/// Where a port's output goes, and what is called for changes at the guest's end.
///
/// Called with the core locked: do not block, do not call the core. Only [`PortSink::guest_open`]
/// may be called on a vCPU's thread, the others on the event loop's.
pub trait PortSink: Send {
    /// The guest wrote `bytes` (never empty). Returns how many of them were taken; after fewer than
    /// all, the rest waits in the guest until [`super::Console::output_queue`] is processed again.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// [`super::Console::input`] took less than it was offered before, and may take more now.
    fn input_room(&mut self) {}
    /// The guest has opened the port, or closed it.
    fn guest_open(&mut self, _open: bool) {}
}

/// One port of a console.
pub struct Port {
    name: Option<String>,
    sink: Box<dyn PortSink>,
    /// Input was left over: the sink is called when there is room.
    starved: bool,
    driver: DriverState,
}

/// State of a port that a reset forgets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct DriverState {
    /// The driver has set the port up (PORT_READY).
    announced: bool,
    /// A program in the guest has it open.
    open: bool,
    /// Bytes of the chain at the head of the output queue that the sink has taken.
    taken: u64,
    /// Messages to be sent, a bit an [`Event`]: a driver that asks a thousand times before it adds
    /// buffers gets one answer.
    due: u16,
}

/// A port as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    starved: bool,
    driver: DriverState,
}

impl Port {
    /// The port as it is now.
    pub fn save(&self) -> PortState {
        PortState {
            starved: self.starved,
            driver: self.driver.clone(),
        }
    }

    /// Continue from `state`; the sink is called for a port that is open.
    pub fn load(&mut self, state: PortState) {
        let open = state.driver.open;
        self.starved = state.starved;
        self.driver = DriverState {
            open: self.driver.open,
            ..state.driver
        };
        self.set_open(open);
    }

    /// A port that no driver has set up yet.
    pub fn new(name: Option<String>, sink: Box<dyn PortSink>) -> Self {
        Self {
            name,
            sink,
            starved: false,
            driver: DriverState::default(),
        }
    }

    /// The port's name in the guest; empty without one.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// Whether the guest has opened the port.
    pub fn is_open(&self) -> bool {
        self.driver.open
    }

    /// Whether the driver has set the port up.
    pub fn is_announced(&self) -> bool {
        self.driver.announced
    }

    /// PORT_READY: send the driver all about the port.
    pub fn announce(&mut self, terminal: bool) {
        self.driver.announced = true;
        if terminal {
            self.send_later(Event::ConsolePort);
            self.send_later(Event::Resize);
        }
        if self.name.is_some() {
            self.send_later(Event::PortName);
        }
        self.send_later(Event::PortOpen);
    }

    /// PORT_READY with 0: the driver could not set the port up.
    pub fn withdraw(&mut self) {
        self.driver.announced = false;
        self.driver.due = 0;
        self.set_open(false);
    }

    /// The guest has opened or closed the port.
    pub fn set_open(&mut self, open: bool) {
        if std::mem::replace(&mut self.driver.open, open) != open {
            self.sink.guest_open(open);
        }
    }

    /// The driver has reset the device. Output that was not taken is lost; input that waits on the
    /// host goes to the next driver.
    pub fn reset(&mut self) {
        self.set_open(false);
        self.driver = DriverState::default();
    }

    /// Have `event` sent when the driver has a buffer.
    pub fn send_later(&mut self, event: Event) {
        self.driver.due |= 1 << event.code();
    }

    /// The next event to send.
    pub fn next_due(&self) -> Option<Event> {
        Event::SENT
            .into_iter()
            .find(|event| self.driver.due & 1 << event.code() != 0)
    }

    /// `event` is no longer due.
    pub fn sent(&mut self, event: Event) {
        self.driver.due &= !(1 << event.code());
    }

    /// The guest may have opened the port or added input buffers.
    pub fn input_buffers(&mut self) {
        if self.driver.open && std::mem::take(&mut self.starved) {
            self.sink.input_room();
        }
    }

    /// Put `bytes` into the guest's buffers; returns how many fitted.
    pub fn input(
        &mut self,
        queue: Option<&mut VirtQueue>,
        bytes: &[u8],
    ) -> Result<usize, DeviceError> {
        let mut rest = bytes;
        if let Some(queue) = queue.filter(|_| self.driver.open) {
            while !rest.is_empty() {
                let Some(chain) = queue.pop()? else { break };
                if !chain.readable().is_empty() {
                    return Err(queue.refuse(&chain, "is to be read, in a queue to be written"));
                }
                let written = queue.write(&chain, 0, rest)?;
                queue.finish(chain, written as u32)?;
                rest = rest.get(written..).unwrap_or_default();
            }
        }
        self.starved = !rest.is_empty();
        Ok(bytes.len() - rest.len())
    }

    /// Hand the guest's output to the sink, until either has no more.
    pub fn output(&mut self, queue: &mut VirtQueue) -> Result<(), DeviceError> {
        let mut left = OUTPUT_PER_CALL;
        let mut buffer = [0; PIECE];
        while let Some(chain) = queue.pop()? {
            if !chain.writable().is_empty() {
                return Err(queue.refuse(&chain, "is to be written, in a queue to be read"));
            }
            loop {
                let there = queue.read(&chain, self.driver.taken, &mut buffer)?;
                let bytes = buffer.get(..there.min(left)).unwrap_or_default();
                if bytes.is_empty() {
                    break;
                }
                let taken = self.sink.write(bytes).min(bytes.len());
                self.driver.taken += taken as u64;
                left -= taken;
                if taken < bytes.len() {
                    queue.put_back(chain);
                    return Ok(());
                }
            }
            if self.driver.taken < chain.readable_len() {
                queue.put_back(chain);
                queue.process_again();
                return Ok(());
            }
            self.driver.taken = 0;
            queue.finish(chain, 0)?;
        }
        Ok(())
    }
}
