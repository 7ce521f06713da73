//! Port 0x80, where firmware shows its POST codes: each byte written is a mark.
//!
//! Linux also writes there for a short delay on old buses, so marks must be cheap.

use std::sync::Arc;

use crate::devices::bus::BusDevice;
use crate::devices::register::Register;
use crate::devices::state::StateError;
use crate::devices::{MachineEvents, MarkSource};

/// I/O ports that it takes from `memory::layout::DEBUG_PORT` on.
pub const PORTS: u64 = 1;

/// The port; it reads as the last code written.
pub struct DebugPort {
    last: u8,
    events: Arc<dyn MachineEvents>,
}

impl DebugPort {
    /// A debug port that marks with `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { last: 0, events }
    }
}

impl BusDevice for DebugPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let Some(byte) = data.first_mut() {
            *byte = self.last;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let Some(&code) = data.first() {
            self.last = code;
            self.events.mark(MarkSource::DebugPort, code);
        }
    }

    /// Nothing for the code of a new port, as snapshots of hull up to 0.2 have it.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok((self.last != 0).then_some(self.last).into_iter().collect())
    }

    fn load(&mut self, state: &[u8]) -> Result<(), StateError> {
        self.last = match state {
            [] => 0,
            [last] => *last,
            _ => {
                let bytes = state.len();
                return Err(StateError(format!(
                    "has one code, and is given {bytes} bytes"
                )));
            }
        };
        Ok(())
    }

    fn state(&self) -> Vec<Register> {
        vec![Register::at(0, "code", 8, self.last.into()).meaning("the last one written")]
    }

    fn register(&self, _offset: u64, _write: bool) -> Option<&'static str> {
        Some("code")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::Events;

    #[test]
    fn each_code_is_a_mark() {
        let events = Arc::new(Events::default());
        let mut port = DebugPort::new(events.clone());
        port.write(0, &[0x41]);
        port.write(0, &[0x42]);
        assert_eq!(
            events.take(),
            ["mark DebugPort 0x41", "mark DebugPort 0x42"]
        );
        let mut data = [0xff];
        port.read(0, &mut data);
        assert_eq!(data, [0x42]);

        let mut copy = DebugPort::new(events);
        for (state, code) in [(port.save().expect("saved"), 0x42), (Vec::new(), 0)] {
            copy.load(&state).expect("loaded");
            copy.read(0, &mut data);
            assert_eq!(data, [code]);
            assert_eq!(copy.save().as_ref(), Ok(&state));
        }
        assert!(copy.load(&[1, 2]).is_err());
    }
}
