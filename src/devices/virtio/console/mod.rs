//! The console device with several ports (virtio 1.2, 5.3): port 0 is the terminal hvc0, each
//! further one a named byte stream that the guest finds in /sys/class/virtio-ports.
//!
//! A `port` carries bytes between its two queues and a [`PortSink`]; `control` has the messages by
//! which the driver learns of ports. A reset forgets all about the driver; sizes, names and sinks
//! stay.

mod control;
mod port;
#[cfg(test)]
mod tests;

pub use port::PortSink;

use serde::{Deserialize, Serialize};

use super::{Device, DeviceError, Driver, Kind, read_config_bytes};
use crate::devices::state::{StateError, decode, encode};
use control::{Control, Event};
use port::{Port, PortState};

const KIND: Kind = Kind {
    id: 3,
    name: "console",
    features: &[(0, "SIZE"), (1, "MULTIPORT"), (2, "EMERG_WRITE")],
    fields: &[("cols", 0, 2), ("rows", 2, 2), ("max_nr_ports", 4, 4)],
};

/// Feature bits (virtio 1.2, 5.3.3).
const F_SIZE: u64 = 1 << 0;
const F_MULTIPORT: u64 = 1 << 1;

/// Entries of each queue: buffers that a driver posts, 4 KiB each under Linux.
const QUEUE_SIZE: u16 = 64;

const CONTROL_RX: usize = 2;
const CONTROL_TX: usize = 3;

/// A console with its ports.
pub struct Console {
    ports: Vec<Port>,
    queue_sizes: Vec<u16>,
    rows: u16,
    cols: u16,
}

impl Console {
    /// A console whose port 0 is a terminal with its output in `terminal`.
    pub fn new(terminal: Box<dyn PortSink>) -> Self {
        Self {
            ports: vec![Port::new(None, terminal)],
            queue_sizes: vec![QUEUE_SIZE; 4],
            rows: 0,
            cols: 0,
        }
    }

    /// Add a port called `name` (at most 64 bytes, which the control buffers of all drivers hold).
    pub fn with_port(mut self, name: &str, sink: Box<dyn PortSink>) -> Self {
        self.ports.push(Port::new(Some(name.into()), sink));
        self.queue_sizes.extend([QUEUE_SIZE; 2]);
        self
    }

    /// The queue that carries input to `port`: notified when the guest adds buffers.
    pub fn input_queue(port: usize) -> usize {
        match port {
            0 => 0,
            port => 2 * port + 2,
        }
    }

    /// The queue that carries output of `port`: to be processed when a sink that took less than all
    /// takes more.
    pub fn output_queue(port: usize) -> usize {
        Self::input_queue(port) + 1
    }

    /// Give `bytes` to the guest on `port`; returns how many of them its buffers took: none while
    /// the port is not open. After fewer than all, [`PortSink::input_room`] is called when there is
    /// room for the rest.
    ///
    /// # Errors
    /// The driver broke the rules.
    pub fn input(
        &mut self,
        driver: &mut Driver,
        port: usize,
        bytes: &[u8],
    ) -> Result<usize, DeviceError> {
        let queue = driver.queue(Self::input_queue(port));
        match self.ports.get_mut(port) {
            Some(port) => port.input(queue, bytes),
            None => Ok(0),
        }
    }

    /// Whether a program in the guest (for port 0: its terminal layer) has opened `port`.
    pub fn guest_open(&self, port: usize) -> bool {
        self.ports.get(port).is_some_and(Port::is_open)
    }

    /// The terminal has become `rows` by `cols` characters.
    ///
    /// # Errors
    /// The driver broke the rules.
    pub fn resize(&mut self, driver: &mut Driver, rows: u16, cols: u16) -> Result<(), DeviceError> {
        if (rows, cols) == (self.rows, self.cols) {
            return Ok(());
        }
        (self.rows, self.cols) = (rows, cols);
        driver.config_changed();
        if let Some(terminal) = self.ports.first_mut()
            && terminal.is_announced()
        {
            terminal.send_later(Event::Resize);
        }
        self.send_messages(driver)
    }

    /// Which port a queue belongs to.
    fn port_of(queue: usize) -> usize {
        match queue {
            0 | 1 => 0,
            queue => (queue / 2).saturating_sub(1),
        }
    }

    /// Handle messages of the driver on the control queue.
    fn receive_messages(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        loop {
            let Some(queue) = driver.queue(CONTROL_TX) else {
                return Ok(());
            };
            let Some(chain) = queue.pop()? else {
                return Ok(());
            };
            if !chain.writable().is_empty() {
                return Err(queue.refuse(&chain, "is to be written, in a queue to be read"));
            }
            let mut message = [0; Control::SIZE];
            let whole = queue.read(&chain, 0, &mut message)? == message.len();
            queue.finish(chain, 0)?;
            if !whole {
                driver.warn("a control message was too short; ignored");
            } else if let Err(what) = self.handle(&Control::decode(message)) {
                driver.warn(&what);
            }
        }
    }

    /// Handle one message (virtio 1.2, 5.3.6.2); the error says why it was ignored.
    fn handle(&mut self, message: &Control) -> Result<(), String> {
        let yes = message.value == 1;
        match Event::from_code(message.event) {
            // With 0 the driver reports a failure; there is nothing to do about it.
            Some(Event::DeviceReady) => {
                if yes {
                    self.ports
                        .iter_mut()
                        .for_each(|port| port.send_later(Event::DeviceAdd));
                }
            }
            Some(event @ (Event::PortReady | Event::PortOpen)) => {
                let port = usize::try_from(message.port)
                    .ok()
                    .and_then(|port| self.ports.get_mut(port));
                match port {
                    Some(port) if event == Event::PortOpen => {
                        port.set_open(yes);
                        port.input_buffers();
                    }
                    Some(port) if yes => port.announce(message.port == 0),
                    Some(port) => port.withdraw(),
                    // Linux reports so that it could not add a port.
                    None if !yes => {}
                    None => return Err(format!("there is no port {}; ignored", message.port)),
                }
            }
            _ => {
                return Err(format!(
                    "control event {} is not one that a driver sends; ignored",
                    message.event
                ));
            }
        }
        Ok(())
    }

    /// Send the messages that are due, as far as the driver has buffers.
    fn send_messages(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let Some(queue) = driver.queue(CONTROL_RX) else {
            return Ok(());
        };
        for (index, port) in (0..).zip(&mut self.ports) {
            while let Some(event) = port.next_due() {
                let Some(chain) = queue.pop()? else {
                    return Ok(());
                };
                let mut message = Control {
                    port: index,
                    event: event.code(),
                    value: 1,
                }
                .encode();
                match event {
                    // virtio 1.2, 5.3.6.2: cols, rows. Linux before 6.15 read them as rows, cols;
                    // its stable series were fixed, too.
                    Event::Resize => message.extend(size_bytes(self.cols, self.rows)),
                    Event::PortName => message.extend(port.name().bytes()),
                    _ => {}
                }
                if queue.write(&chain, 0, &message)? < message.len() {
                    return Err(queue.refuse(&chain, "is too short for a control message"));
                }
                queue.finish(chain, message.len() as u32)?;
                port.sent(event);
            }
        }
        Ok(())
    }
}

/// A console as it is saved.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    rows: u16,
    cols: u16,
    ports: Vec<PortState>,
}

/// Size as configuration space and RESIZE hold it.
fn size_bytes(cols: u16, rows: u16) -> [u8; 4] {
    (u32::from(cols) | u32::from(rows) << 16).to_le_bytes()
}

impl Device for Console {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        F_SIZE | F_MULTIPORT
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// struct virtio_console_config (virtio 1.2, 5.3.4): cols, rows, max_nr_ports.
    fn config(&self, offset: u64, data: &mut [u8]) {
        let ports = u32::try_from(self.ports.len()).unwrap_or(u32::MAX);
        let mut space = [0; 8];
        let (size, max_nr_ports) = space.split_at_mut(4);
        size.copy_from_slice(&size_bytes(self.cols, self.rows));
        max_nr_ports.copy_from_slice(&ports.to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    fn activate(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        if !driver.has(F_MULTIPORT)
            && let Some(terminal) = self.ports.first_mut()
        {
            // Without control messages the one port is open from the start. Input that waits is
            // passed on by the event loop's thread.
            terminal.set_open(true);
            if let Some(queue) = driver.queue(Self::input_queue(0)) {
                queue.process_again();
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.ports.iter_mut().for_each(Port::reset);
    }

    fn process(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        match queue {
            CONTROL_TX | CONTROL_RX if driver.has(F_MULTIPORT) => {
                self.receive_messages(driver)?;
                return self.send_messages(driver);
            }
            0 | 1 => {}
            // Without control messages there is only one port.
            _ if !driver.has(F_MULTIPORT) => return Ok(()),
            _ => {}
        }
        let Some(port) = self.ports.get_mut(Self::port_of(queue)) else {
            return Ok(());
        };
        if queue.is_multiple_of(2) {
            port.input_buffers();
            return Ok(());
        }
        match driver.queue(queue) {
            Some(queue) => port.output(queue),
            None => Ok(()),
        }
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        encode(&State {
            rows: self.rows,
            cols: self.cols,
            ports: self.ports.iter().map(Port::save).collect(),
        })
    }

    fn load(&mut self, state: &[u8], driver: &mut Driver) -> Result<(), StateError> {
        let State { rows, cols, ports } = decode(state)?;
        if ports.len() != self.ports.len() {
            return Err(StateError(format!(
                "has {} ports, and is given the state of {}",
                self.ports.len(),
                ports.len()
            )));
        }
        for (port, state) in self.ports.iter_mut().zip(ports) {
            port.load(state);
        }
        let now = (self.rows, self.cols);
        (self.rows, self.cols) = (rows, cols);
        if now != (0, 0) {
            // The size of the terminal of this run.
            self.resize(driver, now.0, now.1)?;
        }
        Ok(())
    }
}
