//! The transport, with a device that does everything a device may do.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbitrary::Arbitrary;
use hull::devices::state::{StateError, decode, encode};
use hull::devices::virtio::queue::Chain;
use hull::devices::virtio::testing::Guest;
use hull::devices::virtio::{Device, DeviceError, Driver, F_VERSION_1, Kind, read_config_bytes};
use vm_memory::GuestMemoryBackend;

use crate::{Sent, Subject};

/// A device type that virtio 1.2 does not have.
const KIND: Kind = Kind {
    id: 42,
    name: "",
    features: &[],
    fields: &[],
};

const QUEUES: [u16; 3] = [8, 64, 32];
const FEATURES: u64 = 1 << 3 | 1 << 23;
/// Most chains that the device holds.
const MAX_HELD: usize = 64;

/// How the device handles a chain.
#[derive(Arbitrary, Clone, Copy, Debug, Default)]
pub enum Mood {
    #[default]
    Finish,
    /// It processes a part, as if there were no more room.
    PutBack,
    /// It keeps the chain for later.
    Hold,
    Again,
    Wake(u16),
    ConfigChanged,
    Fail,
}

#[derive(Default)]
struct State {
    /// The moods in turn; the last one stays.
    moods: VecDeque<Mood>,
    held: Vec<(usize, Chain)>,
    active: bool,
    refuse: bool,
    /// It put chains back since the last start.
    put_back: bool,
}

/// The device: it does what the host's side says.
#[derive(Clone, Default)]
pub struct Probe(Arc<Mutex<State>>);

/// The host's side of the probe.
pub struct Transport(Probe);

/// Numbers of bytes to read and to write.
#[derive(Arbitrary, Debug)]
pub struct Message {
    queue: u8,
    bytes: u8,
    room: u8,
}

/// An action of the host.
#[derive(Arbitrary, Debug)]
pub enum Call {
    /// Sets how the device handles the next chains.
    Mood(Mood),
    /// The device finishes the chains that it holds.
    Release(u8),
    /// The next start fails.
    Refuse(bool),
    ConfigChanged,
    Wake(u64),
}

impl State {
    fn mood(&mut self) -> Mood {
        match self.moods.len() {
            0 => Mood::Finish,
            1 => self.moods[0],
            _ => self.moods.pop_front().unwrap_or_default(),
        }
    }
}

impl Probe {
    fn finish(driver: &mut Driver, queue: usize, chain: Chain) -> Result<(), DeviceError> {
        let Some(queue) = driver.queue(queue) else {
            return Ok(());
        };
        let len = chain.writable_len().min(5000);
        let written = queue.write(&chain, 0, &vec![0xaa; len as usize])?;
        assert_eq!(written as u64, len);
        queue.finish(chain, written as u32)
    }
}

impl Device for Probe {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&[1, 2, 3, 4, 5], offset, data);
    }

    fn activate(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let mut state = self.0.lock().unwrap();
        state.put_back = false;
        assert!(!state.active, "activated twice");
        assert!(driver.has(F_VERSION_1));
        state.active = true;
        match state.refuse {
            true => Err(DeviceError::Protocol("not so".into())),
            false => Ok(()),
        }
    }

    fn reset(&mut self) {
        let mut state = self.0.lock().unwrap();
        state.active = false;
        state.held.clear();
    }

    fn process(&mut self, index: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        let mut state = self.0.lock().unwrap();
        assert!(state.active, "processed before it was activated");
        assert!(driver.has(F_VERSION_1), "processed without a driver");
        for count in 0.. {
            let Some(queue) = driver.queue(index) else {
                return Ok(());
            };
            let Some(chain) = queue.pop()? else {
                return Ok(());
            };
            assert!(count < usize::from(QUEUES[index]), "an endless call");
            let segments = chain.readable().iter().chain(chain.writable());
            for segment in segments {
                let memory = queue.memory();
                assert!(segment.len > 0 && memory.check_range(segment.addr, segment.len as usize));
            }
            let mut bytes = vec![0; chain.readable_len().min(5000) as usize];
            assert_eq!(queue.read(&chain, 0, &mut bytes)?, bytes.len());
            let mood = state.mood();
            state.put_back |= matches!(mood, Mood::PutBack | Mood::Wake(_));
            match mood {
                Mood::Finish => Self::finish(driver, index, chain)?,
                Mood::PutBack => {
                    queue.put_back(chain);
                    return Ok(());
                }
                Mood::Hold if state.held.len() < MAX_HELD => state.held.push((index, chain)),
                Mood::Hold => Self::finish(driver, index, chain)?,
                Mood::Again => {
                    queue.process_again();
                    Self::finish(driver, index, chain)?;
                    return Ok(());
                }
                Mood::Wake(time) => {
                    queue.put_back(chain);
                    driver.wake_in(Duration::from_nanos(time.into()));
                    return Ok(());
                }
                Mood::ConfigChanged => {
                    driver.config_changed();
                    Self::finish(driver, index, chain)?;
                }
                Mood::Fail => return Err(queue.refuse(&chain, "is refused")),
            }
        }
        Ok(())
    }

    fn alarm(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        match driver.has(F_VERSION_1) {
            true => self.process(0, driver),
            false => Ok(()),
        }
    }

    /// Queue and head of each chain that it holds.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        let state = self.0.lock().unwrap();
        let held = state.held.iter();
        encode(
            &held
                .map(|(queue, chain)| (*queue as u8, chain.head()))
                .collect::<Vec<_>>(),
        )
    }

    fn load(&mut self, state: &[u8], driver: &mut Driver) -> Result<(), StateError> {
        let held: Vec<(u8, u16)> = decode(state)?;
        let mut state = self.0.lock().unwrap();
        state.active = true;
        for (index, head) in held.into_iter().take(MAX_HELD) {
            let index = index.into();
            let Some(queue) = driver.queue(index) else {
                return Err(StateError("has a chain of no queue".into()));
            };
            state.held.push((index, queue.reclaim(head)?));
        }
        Ok(())
    }
}

impl Subject for Transport {
    type Setup = Vec<Mood>;
    type Message = Message;
    type Call = Call;
    type Device = Probe;

    fn new(moods: Vec<Mood>) -> (Guest, Self) {
        let probe = Probe::default();
        probe.0.lock().unwrap().moods = moods.into();
        (Guest::new(probe.clone()), Self(probe))
    }

    fn renew(&mut self) -> Probe {
        let mut state = self.0.0.lock().unwrap();
        state.active = false;
        state.held.clear();
        self.0.clone()
    }

    /// It keeps what it holds, and the chains for which it is not in the mood.
    fn kept(&self, _guest: &Guest, queue: usize) -> Option<usize> {
        let state = self.0.0.lock().unwrap();
        let held = state.held.iter().filter(|held| held.0 == queue).count();
        (!state.put_back).then_some(held)
    }

    fn encode(&self, message: &Message) -> Sent {
        Sent {
            queue: message.queue.into(),
            bytes: vec![0x55; message.bytes.into()],
            room: message.room.into(),
            again: 0,
        }
    }

    fn call(&mut self, guest: &mut Guest, call: &Call) {
        let with = |probe: &mut Probe, driver: &mut Driver| {
            match call {
                Call::Mood(mood) => probe.0.lock().unwrap().moods.push_back(*mood),
                Call::Refuse(refuse) => probe.0.lock().unwrap().refuse = *refuse,
                Call::ConfigChanged => driver.config_changed(),
                Call::Wake(time) => driver.wake_in(Duration::from_nanos(*time)),
                Call::Release(which) => {
                    let mut state = probe.0.lock().unwrap();
                    if !state.held.is_empty() {
                        let which = usize::from(*which) % state.held.len();
                        let (queue, chain) = state.held.swap_remove(which);
                        Probe::finish(driver, queue, chain)?;
                    }
                }
            }
            Ok(())
        };
        guest.core().with_device(with);
    }

    fn mend(&mut self) {
        let mut state = self.0.0.lock().unwrap();
        assert!(!state.active && state.held.is_empty(), "not reset");
        state.moods.clear();
        state.refuse = false;
    }

    fn serve(&mut self, guest: &mut Guest) {
        let queue = 2;
        guest.send(queue, b"ping", &[], false);
        guest.lend(queue, 16);
        guest.notify(queue);
        assert_eq!(guest.returned(queue), [(0, 0), (1, 16)]);
    }
}
