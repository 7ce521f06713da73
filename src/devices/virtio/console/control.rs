//! Control messages between console and driver (virtio 1.2, 5.3.6.2).

/// struct virtio_console_control, without the bytes that may follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Number of the port, from 0.
    pub port: u32,
    /// An [`Event`]'s code; from a driver, any number.
    pub event: u16,
    /// 0 or 1, mostly: no or yes.
    pub value: u16,
}

impl Control {
    /// Bytes of an encoded message.
    pub const SIZE: usize = 8;

    /// The message in these bytes.
    pub fn decode([a, b, c, d, e, f, g, h]: [u8; Self::SIZE]) -> Self {
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// The message's bytes, to which more can be added.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::SIZE);
        bytes.extend(self.port.to_le_bytes());
        bytes.extend(self.event.to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        bytes
    }
}

/// Kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Event {
    /// Driver: it is ready (1) or has failed (0).
    DeviceReady = 0,
    /// Device: the port exists.
    DeviceAdd = 1,
    /// Driver: the port is set up (1) or could not be (0).
    PortReady = 3,
    /// Device: the port is a terminal.
    ConsolePort = 4,
    /// Device: the terminal has another size (cols, rows follow).
    Resize = 5,
    /// Either: the port is open on the sender's side (1), or closed (0).
    PortOpen = 6,
    /// Device: the port's name follows.
    PortName = 7,
}

impl Event {
    /// The events that a device sends, in order: Linux creates the terminal on CONSOLE_PORT and
    /// looks for it on RESIZE.
    pub const SENT: [Self; 5] = [
        Self::DeviceAdd,
        Self::ConsolePort,
        Self::PortName,
        Self::Resize,
        Self::PortOpen,
    ];

    /// The event with this code, if a driver may send it.
    pub fn from_code(code: u16) -> Option<Self> {
        [Self::DeviceReady, Self::PortReady, Self::PortOpen]
            .into_iter()
            .find(|event| event.code() == code)
    }

    /// The event's number in messages.
    pub fn code(self) -> u16 {
        self as u16
    }
}
