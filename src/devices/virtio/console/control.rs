//! Control messages between console and driver (virtio 1.2, 5.3.6.2).

/// struct virtio_console_control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Port number.
    pub port: u32,
    /// An [`Event`]'s code, or anything.
    pub event: u16,
    /// 0 or 1, mostly: no or yes.
    pub value: u16,
}

impl Control {
    /// Bytes of a message without what may follow it.
    pub const SIZE: usize = 8;

    /// A message from its bytes.
    pub fn decode([a, b, c, d, e, f, g, h]: [u8; Self::SIZE]) -> Self {
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// A message's bytes, to which more can be added.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::SIZE);
        bytes.extend(self.port.to_le_bytes());
        bytes.extend(self.event.to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        bytes
    }
}

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Event {
    /// Driver: I am up (1) or could not get up (0).
    DeviceReady = 0,
    /// Device: there is this port.
    DeviceAdd = 1,
    /// Driver: the port is set up (1) or could not be (0).
    PortReady = 3,
    /// Device: the port is a terminal.
    ConsolePort = 4,
    /// Device: the terminal has another size (cols, rows follow).
    Resize = 5,
    /// Either: somebody has opened the port on my side (1), or closed it (0).
    PortOpen = 6,
    /// Device: the port's name follows.
    PortName = 7,
}

impl Event {
    /// What a device sends, in the order in which a driver wants to hear it: Linux makes the
    /// terminal on CONSOLE_PORT and looks for it on RESIZE.
    pub const SENT: [Self; 5] = [
        Self::DeviceAdd,
        Self::ConsolePort,
        Self::PortName,
        Self::Resize,
        Self::PortOpen,
    ];

    /// The event that a driver means by `code`; `None` for one that only a device sends.
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
