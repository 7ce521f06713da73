//! The transport and the queues as a driver meets them, a decent one and a hostile one.

mod rings;
mod saved;
mod transport;

use std::sync::{Arc, Mutex};

use super::queue::{Chain, Segment};
use super::testing::{Guest, Piece};
use super::{Device, DeviceError, Driver, F_VERSION_1, Kind, read_config_bytes};

/// A device type that virtio 1.2 does not have.
const KIND: Kind = Kind {
    id: 42,
    name: "",
    features: &[],
    fields: &[],
};
/// A feature bit of [`Probe`]'s device type.
const F_SOME: u64 = 1 << 3;
const CONFIG: [u8; 6] = [10, 11, 12, 13, 14, 15];
const QUEUES: [u16; 2] = [8, 64];

/// What a [`Probe`] has seen, apart from its reads of configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Activate {
        features: u64,
    },
    Reset,
    Process(usize),
    WriteConfig(u64, Vec<u8>),
    /// A chain of this queue.
    Chain(usize, Vec<Piece>),
}

/// What a [`Probe`] has seen and how it is to behave.
#[derive(Default)]
struct Script {
    calls: Vec<Call>,
    /// `activate` fails.
    refuse: bool,
    /// As `activate` and `reset` say.
    active: bool,
    /// Called before each `pop`.
    before_pop: Option<Box<dyn FnMut() + Send>>,
}

/// A device that writes down its calls and gives all chains back. It panics when it is called
/// out of the order that [`Device`] promises.
#[derive(Clone, Default)]
struct Probe(Arc<Mutex<Script>>);

impl Probe {
    fn take(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }

    fn is_active(&self) -> bool {
        self.0.lock().unwrap().active
    }

    /// The chains it got since the last call.
    fn chains(&self) -> Vec<Vec<Piece>> {
        let chain = |call| match call {
            Call::Chain(_, pieces) => Some(pieces),
            _ => None,
        };
        self.take().into_iter().filter_map(chain).collect()
    }
}

impl Device for Probe {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        F_SOME
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&CONFIG, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let call = Call::WriteConfig(offset, data.to_vec());
        self.0.lock().unwrap().calls.push(call);
    }

    fn activate(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let mut script = self.0.lock().unwrap();
        assert!(!script.active, "activated twice");
        assert!(driver.has(F_VERSION_1));
        script.active = true;
        let features = driver.features;
        script.calls.push(Call::Activate { features });
        if script.refuse {
            return Err(DeviceError::Protocol("cannot work so".into()));
        }
        Ok(())
    }

    fn reset(&mut self) {
        let mut script = self.0.lock().unwrap();
        script.active = false;
        script.calls.push(Call::Reset);
    }

    fn process(&mut self, index: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        let mut script = self.0.lock().unwrap();
        assert!(script.active && driver.live, "processed without a driver");
        script.calls.push(Call::Process(index));
        let Some(queue) = driver.queue(index) else {
            return Ok(());
        };
        loop {
            if let Some(call) = &mut script.before_pop {
                call();
            }
            let Some(chain) = queue.pop()? else {
                return Ok(());
            };
            let pieces = pieces(&chain);
            let written = chain.writable_len() as u32;
            assert_eq!(
                chain.readable_len() + chain.writable_len(),
                pieces.iter().map(|piece| u64::from(piece.1)).sum::<u64>()
            );
            script.calls.push(Call::Chain(index, pieces));
            queue.finish(chain, written)?;
        }
    }
}

fn pieces(chain: &Chain) -> Vec<Piece> {
    let part = |segments: &[Segment], write| -> Vec<Piece> {
        let piece = |segment: &Segment| (segment.addr.0, segment.len, write);
        segments.iter().map(piece).collect()
    };
    [part(chain.readable(), false), part(chain.writable(), true)].concat()
}

fn probe() -> (Guest, Probe) {
    let probe = Probe::default();
    (Guest::new(probe.clone()), probe)
}
