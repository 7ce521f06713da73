//! The front end of the file system device, whose requests complete in any order, or never.

use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use hull::devices::virtio::Driver;
use hull::devices::virtio::fs::{
    Answer, Fs as Device, IN_HEADER, MAX_MESSAGE, OUT_HEADER, Request,
};
use hull::devices::virtio::queue::Segment;
use hull::devices::virtio::requests::Backend;
use hull::devices::virtio::testing::Guest;
use hull::memory::GuestMemory;
use vm_memory::{Bytes, GuestMemoryBackend};

use crate::{Sent, Subject};

const QUEUE: usize = 1;
/// Most requests that the device passes to its backend.
const MAX_IN_FLIGHT: usize = 64 + 512;

#[derive(Default)]
struct State {
    requests: Vec<(u64, Request)>,
    memory: Option<GuestMemory>,
    mounted: bool,
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<State>>);

impl Backend<Request> for Kept {
    fn submit(&mut self, id: u64, request: Request) {
        let mut state = self.0.lock().unwrap();
        let memory = state.memory.as_ref().unwrap();
        let len = |segments: &[Segment]| -> u64 {
            let there = |s: &Segment| memory.check_range(s.addr, s.len as usize);
            assert!(segments.iter().all(there), "outside of memory");
            segments.iter().map(|s| u64::from(s.len)).sum()
        };
        assert!((IN_HEADER..=MAX_MESSAGE).contains(&len(&request.readable)));
        let room = len(&request.writable);
        assert!(room == 0 || (OUT_HEADER..=MAX_MESSAGE).contains(&room));
        let others = state.requests.iter();
        assert!(others.clone().all(|other| other.0 != id), "an id twice");
        state.requests.push((id, request));
        assert!(state.requests.len() <= MAX_IN_FLIGHT);
    }

    fn cancel(&mut self) {
        let mut state = self.0.lock().unwrap();
        state.requests.clear();
        state.mounted = false;
    }
}

/// The state of the host's side, and the tag.
pub struct Fs(Kept, String);

/// A message, and the size of the buffer for its answer.
#[derive(Arbitrary, Debug)]
pub struct Message {
    first: bool,
    len: Length,
    room: Length,
}

#[derive(Arbitrary, Debug)]
enum Length {
    None,
    Header(u8),
    Any(u16),
}

impl Length {
    fn value(&self, header: u64) -> u32 {
        match self {
            Self::None => 0,
            Self::Header(more) => header as u32 - 2 + u32::from(more % 64),
            Self::Any(len) => (*len).into(),
        }
    }
}

/// An action of the host.
#[derive(Arbitrary, Debug)]
pub enum Call {
    /// One of the requests completes, with an answer of this many bytes, and perhaps a word; the file
    /// system is mounted now, or not.
    Complete(u8, u32, bool, bool),
    /// The backend reports a request that is not in flight, perhaps one from before a reset.
    Unknown(u8),
    /// The server fails for good.
    Fail(u8),
}

impl Subject for Fs {
    type Setup = String;
    type Message = Message;
    type Call = Call;
    type Device = Device;

    fn new(tag: String) -> (Guest, Self) {
        let mut fs = Self(Kept::default(), tag);
        let guest = Guest::new(fs.renew());
        fs.0.0.lock().unwrap().memory = Some(guest.memory.clone());
        (guest, fs)
    }

    fn renew(&mut self) -> Device {
        let mut kept = self.0.clone();
        kept.cancel();
        Device::new(&self.1, Box::new(kept))
    }

    fn stays(&self) -> bool {
        let state = self.0.0.lock().unwrap();
        state.mounted || !state.requests.is_empty()
    }

    fn kept(&self, _guest: &Guest, _queue: usize) -> Option<usize> {
        Some(self.0.0.lock().unwrap().requests.len())
    }

    fn encode(&self, message: &Message) -> Sent {
        Sent {
            queue: usize::from(!message.first),
            bytes: vec![0x55; message.len.value(IN_HEADER) as usize],
            room: message.room.value(OUT_HEADER),
            again: 0,
        }
    }

    fn call(&mut self, guest: &mut Guest, call: &Call) {
        let mut state = self.0.0.lock().unwrap();
        let count = state.requests.len().max(1);
        let mut take = |which: u8| {
            let which = usize::from(which) % count;
            (which < state.requests.len()).then(|| state.requests.swap_remove(which))
        };
        let (id, served) = match call {
            Call::Complete(which, written, word, mounted) => {
                let Some((id, request)) = take(*which) else {
                    return;
                };
                for segment in &request.writable {
                    // The start of a long one is enough.
                    let bytes = vec![0xaa; (segment.len as usize).min(1024)];
                    guest.memory.write_slice(&bytes, segment.addr).unwrap();
                }
                let answer = Answer {
                    written: *written,
                    warning: word.then(|| "a word".into()),
                    mounted: *mounted,
                };
                state.mounted = *mounted;
                (id, Ok(answer))
            }
            Call::Fail(which) => match take(*which) {
                Some((id, _)) => (id, Err("it failed".into())),
                None => return,
            },
            Call::Unknown(id) if state.requests.iter().all(|one| one.0 != u64::from(*id)) => {
                ((*id).into(), Ok(Answer::default()))
            }
            Call::Unknown(_) => return,
        };
        drop(state);
        complete(guest, id, served);
    }

    fn serve(&mut self, guest: &mut Guest) {
        let message = guest.buffer(48);
        let room = guest.buffer(64);
        guest.offer(QUEUE, &[(message, 48, false), (room, 64, true)], true);
        guest.notify(QUEUE);
        let requests = std::mem::take(&mut self.0.0.lock().unwrap().requests);
        let [(id, _)] = &requests[..] else {
            panic!("{requests:?}");
        };
        let answer = Answer {
            written: 20,
            warning: None,
            mounted: false,
        };
        complete(guest, *id, Ok(answer));
        assert_eq!(guest.returned(QUEUE), [(0, 20)]);
    }
}

fn complete(guest: &mut Guest, id: u64, served: Result<Answer, String>) {
    let complete = |fs: &mut Device, driver: &mut Driver| fs.complete(driver, id, served);
    guest.core().with_device(complete);
}
