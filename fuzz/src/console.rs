//! The console with ports, whose sinks accept any number of bytes.

use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use hull::devices::virtio::Driver;
use hull::devices::virtio::console::{Console as Device, PortSink};
use hull::devices::virtio::testing::Guest;

use crate::{Sent, Subject};

/// Names of the ports besides the terminal.
const NAMES: [&str; 2] = ["agent", "log"];
const PORTS: usize = 1 + NAMES.len();
const F_MULTIPORT: u64 = 1 << 1;
const CONTROL_RX: usize = 2;
const CONTROL_TX: usize = 3;
/// Bytes of output that one call passes on at most.
const MAX_IN_TURN: usize = 256 << 10;

/// The host's end of one port.
#[derive(Default)]
struct Far {
    room: usize,
    bytes: Vec<u8>,
    open: bool,
    /// Bytes since the device was called.
    in_turn: usize,
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Far>>);

impl PortSink for Sink {
    fn write(&mut self, bytes: &[u8]) -> usize {
        assert!(!bytes.is_empty());
        let mut far = self.0.lock().unwrap();
        let taken = bytes.len().min(far.room);
        far.room -= taken;
        far.in_turn += taken;
        assert!(far.in_turn <= MAX_IN_TURN, "it keeps others waiting");
        far.bytes.extend(&bytes[..taken.min(64)]);
        taken
    }

    fn guest_open(&mut self, open: bool) {
        let mut far = self.0.lock().unwrap();
        assert_ne!(far.open, open, "told what it knows");
        far.open = open;
    }
}

/// The state of the host's side, and how many ports have a name.
pub struct Console([Sink; PORTS], usize);

/// A request that the guest sends.
#[derive(Arbitrary, Debug)]
pub enum Message {
    /// A control message, truncated to this many bytes.
    Control {
        port: Port,
        event: Event,
        value: u8,
        len: Option<u8>,
    },
    Output {
        port: u8,
        len: u16,
        again: u8,
    },
    /// Buffers for input, or for control messages.
    Lend {
        port: u8,
        room: u16,
    },
    LendControl {
        room: u8,
    },
}

#[derive(Arbitrary, Debug)]
pub enum Port {
    Known(u8),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
pub enum Event {
    DeviceReady,
    PortReady,
    PortOpen,
    Any(u16),
}

/// An action of the host.
#[derive(Arbitrary, Debug)]
pub enum Call {
    Input { port: u8, len: u16 },
    Room { port: u8, room: u32 },
    Resize(u16, u16),
}

impl Subject for Console {
    type Setup = u8;
    type Message = Message;
    type Call = Call;
    type Device = Device;

    fn new(ports: u8) -> (Guest, Self) {
        let mut host = Self(Default::default(), usize::from(ports) % PORTS);
        (Guest::new(host.renew()), host)
    }

    fn renew(&mut self) -> Device {
        let Self(sinks, ports) = self;
        for sink in &*sinks {
            sink.0.lock().unwrap().open = false;
        }
        let mut console = Device::new(Box::new(sinks[0].clone()));
        for (name, sink) in NAMES.iter().zip(&sinks[1..]).take(*ports) {
            console = console.with_port(name, Box::new(sink.clone()));
        }
        console
    }

    fn turn(&mut self) {
        for sink in &self.0 {
            sink.0.lock().unwrap().in_turn = 0;
        }
    }

    /// Output waits for room alone, and control messages for nothing.
    fn kept(&self, guest: &Guest, queue: usize) -> Option<usize> {
        if guest.core().driver_features() & F_MULTIPORT == 0 {
            return None;
        }
        let output = |port: &usize| queue == Device::output_queue(*port);
        match (0..PORTS).find(output) {
            Some(port) if self.0[port].0.lock().unwrap().room > 0 => Some(0),
            _ if queue == CONTROL_TX => Some(0),
            _ => None,
        }
    }

    fn encode(&self, message: &Message) -> Sent {
        let port = |port: u8| usize::from(port) % PORTS;
        match message {
            Message::Control {
                port,
                event,
                value,
                len,
            } => {
                let port = match port {
                    Port::Known(port) => u32::from(port % 4),
                    Port::Any(port) => *port,
                };
                let event = match event {
                    Event::DeviceReady => 0,
                    Event::PortReady => 3,
                    Event::PortOpen => 6,
                    Event::Any(event) => *event,
                };
                let len = len.map_or(8, usize::from);
                Sent {
                    queue: CONTROL_TX,
                    bytes: control(port, event, u16::from(value % 3), len),
                    ..Sent::default()
                }
            }
            Message::Output {
                port: at,
                len,
                again,
            } => Sent {
                queue: Device::output_queue(port(*at)),
                bytes: vec![0x55; (*len).into()],
                room: 0,
                again: (again % 60).into(),
            },
            Message::Lend { port: at, room } => Sent {
                queue: Device::input_queue(port(*at)),
                bytes: Vec::new(),
                room: (*room).into(),
                again: 0,
            },
            Message::LendControl { room } => Sent {
                queue: CONTROL_RX,
                bytes: Vec::new(),
                room: (*room).into(),
                again: 0,
            },
        }
    }

    fn call(&mut self, guest: &mut Guest, call: &Call) {
        match call {
            Call::Input { port, len } => {
                let port = usize::from(*port) % (PORTS + 1);
                input(guest, port, &vec![0xaa; (*len).into()]);
            }
            Call::Room { port, room } => {
                let port = usize::from(*port) % PORTS;
                self.0[port].0.lock().unwrap().room = *room as usize;
                guest.core().process(Device::output_queue(port));
            }
            Call::Resize(rows, cols) => {
                let resize = |console: &mut Device, driver: &mut Driver| {
                    console.resize(driver, *rows, *cols)
                };
                guest.core().with_device(resize);
            }
        }
    }

    fn check(&mut self, guest: &mut Guest) {
        let sinks = &self.0;
        let look = |console: &mut Device, _: &mut Driver| {
            for (port, sink) in sinks.iter().enumerate() {
                let mut far = sink.0.lock().unwrap();
                assert_eq!(console.guest_open(port), far.open);
                far.bytes.clear();
            }
            Ok(())
        };
        guest.core().with_device(look);
    }

    fn mend(&mut self) {
        for sink in &self.0 {
            let mut far = sink.0.lock().unwrap();
            assert!(!far.open, "a reset closes ports");
            far.room = usize::MAX;
            far.in_turn = 0;
        }
    }

    fn serve(&mut self, guest: &mut Guest) {
        for _ in 0..16 {
            guest.lend(CONTROL_RX, 128);
        }
        for event in [0, 3, 6] {
            guest.send(CONTROL_TX, &control(0, event, 1, 8), &[], false);
            guest.notify(CONTROL_TX);
        }
        assert!(
            guest.returned(CONTROL_RX).len() >= 4,
            "too few were told of the port"
        );
        guest.send(Device::output_queue(0), b"UUUU", &[1], false);
        guest.notify(Device::output_queue(0));
        assert_eq!(self.0[0].0.lock().unwrap().bytes, b"UUUU");
        guest.send(Device::output_queue(0), b"VV", &[], false);
        guest.notify(Device::output_queue(0));
        assert_eq!(self.0[0].0.lock().unwrap().bytes, b"UUUUVV");
        guest.lend(Device::input_queue(0), 3);
        assert_eq!(input(guest, 0, b"hello"), Some(3));
        assert_eq!(guest.received(Device::input_queue(0)), [b"hel"]);
    }
}

fn control(port: u32, event: u16, value: u16, len: usize) -> Vec<u8> {
    let mut bytes = port.to_le_bytes().to_vec();
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes.resize(len, 0);
    bytes
}

fn input(guest: &mut Guest, port: usize, bytes: &[u8]) -> Option<usize> {
    let input = |console: &mut Device, driver: &mut Driver| console.input(driver, port, bytes);
    guest.core().with_device(input)
}
