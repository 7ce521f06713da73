//! The devices of a PC at its ports: UART, keyboard controller, clock, power.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arbitrary::Arbitrary;
use hull::devices::bus::BusDevice;
use hull::devices::legacy::serial::{FIFO_BYTES, Serial, SerialState, Sink};
use hull::devices::legacy::{boot_timer, debug_port, i8042, power, rtc, serial};
use hull::devices::state::decode;
use hull::devices::testing::{CountedInterrupt, Events};

use crate::patch::Patches;

/// A device, accesses before and after it is saved, and damage to what was saved.
#[derive(Arbitrary, Debug)]
pub struct Input {
    device: u8,
    before: Vec<Step>,
    after: Vec<Step>,
    damage: Patches,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Read(u8, u8),
    Write(u8, u8),
    /// The same access many times.
    Fill(u8, u8, u8),
    WriteMore(u8, [u8; 8], u8),
    Inspect(u8, bool),
}

struct Output;

impl Sink for Output {
    fn write(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= FIFO_BYTES);
    }
}

/// A new device, and the number of its ports.
fn device(which: u8, now: &Arc<AtomicU64>) -> (Box<dyn BusDevice>, u64) {
    let interrupt = || Arc::new(CountedInterrupt::default());
    let events = || Arc::new(Events::default());
    let now = now.clone();
    match which % 7 {
        0 => (Box::new(Serial::new(Output, interrupt())), serial::PORTS),
        1 => {
            let device = i8042::I8042::new(interrupt(), events());
            (Box::new(device), i8042::PORTS)
        }
        2 => {
            let clock = rtc::Rtc::new(move || now.load(Ordering::Relaxed));
            (Box::new(clock), rtc::PORTS)
        }
        3 => {
            let uptime = move || Duration::from_millis(now.load(Ordering::Relaxed));
            let power = power::Power::new(uptime, interrupt(), events());
            (Box::new(power), power::PORTS)
        }
        4 => {
            let reset = power::ResetRegister::new(events());
            (Box::new(reset), power::ResetRegister::PORTS)
        }
        5 => (
            Box::new(boot_timer::BootTimer::new(events())),
            boot_timer::SIZE,
        ),
        _ => (
            Box::new(debug_port::DebugPort::new(events())),
            debug_port::PORTS,
        ),
    }
}

/// What a read finds.
fn access(device: &mut dyn BusDevice, ports: u64, step: &Step) -> Option<Vec<u8>> {
    let width = |size: &u8| 1usize << (size % 4);
    match step {
        Step::Read(at, size) => {
            let mut data = vec![0xff; width(size)];
            device.read(u64::from(*at) % ports, &mut data);
            return Some(data);
        }
        Step::Write(at, byte) => device.write(u64::from(*at) % ports, &[*byte]),
        Step::Fill(at, byte, times) => {
            (0..*times).for_each(|_| device.write(u64::from(*at) % ports, &[*byte]));
        }
        Step::WriteMore(at, data, size) => {
            device.write(u64::from(*at) % ports, &data[..width(size)]);
        }
        Step::Inspect(at, write) => {
            device.register(u64::from(*at) % ports, *write);
            assert!(device.state().len() < 200);
        }
    }
    None
}

/// Use it, save it, and use another that continues.
pub fn check(input: &Input) {
    let now = Arc::new(AtomicU64::new(1_700_000_000));
    let (mut first, ports) = device(input.device, &now);
    for step in &input.before {
        access(&mut *first, ports, step);
        // Looking changes nothing.
        let state = first.save().unwrap();
        access(&mut *first, ports, &Step::Inspect(0, true));
        assert_eq!(first.save().unwrap(), state);
    }
    let state = first.save().unwrap();
    assert!(state.len() < 4096);
    if input.device.is_multiple_of(7) {
        let uart: SerialState = decode(&state).unwrap();
        assert!(uart.input.len() <= FIFO_BYTES, "its queue grows");
    }
    let (mut second, _) = device(input.device, &now);
    second.load(&state).unwrap();
    assert_eq!(second.save().unwrap(), state);
    for step in &input.after {
        let found = access(&mut *first, ports, step);
        let continued = access(&mut *second, ports, step);
        // The last code of the debug port is not part of a snapshot.
        if !state.is_empty() {
            assert_eq!(continued, found, "{step:?}");
        }
    }
    let mut damaged = state;
    input.damage.apply(&mut damaged);
    let (mut third, _) = device(input.device, &now);
    if third.load(&damaged).is_ok() {
        for step in &input.after {
            access(&mut *third, ports, step);
        }
        third.save().unwrap();
    }
}
