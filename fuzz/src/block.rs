//! The block device, whose requests complete in any order, or never.

use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use hull::devices::virtio::Driver;
use hull::devices::virtio::block::{Block as Device, Geometry, Request, SECTOR};
use hull::devices::virtio::queue::Segment;
use hull::devices::virtio::requests::Backend;
use hull::devices::virtio::testing::Guest;
use hull::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::{Sent, Subject};

/// Most requests that the device passes to its backend.
const MAX_IN_FLIGHT: usize = 256;
const SECTORS: u64 = 64;
const MAX_RANGES: usize = 16;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

#[derive(Default)]
struct State {
    requests: Vec<(u64, Request)>,
    sectors: u64,
    memory: Option<GuestMemory>,
    read_only: bool,
    name: String,
    /// It has another size than at first: requests in flight may lie past its end.
    resized: bool,
}

#[derive(Clone)]
struct Kept(Arc<Mutex<State>>);

impl Backend<Request> for Kept {
    fn submit(&mut self, id: u64, request: Request) {
        let mut state = self.0.lock().unwrap();
        state.judge(&request);
        assert!(
            state.requests.iter().all(|other| other.0 != id),
            "an id twice"
        );
        state.requests.push((id, request));
        assert!(state.requests.len() <= MAX_IN_FLIGHT);
    }

    fn cancel(&mut self) {
        self.0.lock().unwrap().requests.clear();
    }
}

impl State {
    /// Panic if a request leaves disk or memory.
    fn judge(&self, request: &Request) {
        let size = self.sectors.saturating_mul(SECTOR);
        let inside = |at: u64, len: u64| {
            assert!(len > 0 && at.checked_add(len).is_some_and(|end| end <= size));
        };
        match request {
            Request::Read { at, to: segments }
            | Request::Write {
                at, from: segments, ..
            } => {
                inside(*at, request.bytes());
                assert!(at.is_multiple_of(SECTOR) && request.bytes().is_multiple_of(SECTOR));
                let there = |segment: &Segment| {
                    let memory = self.memory.as_ref();
                    memory.is_some_and(|m| m.check_range(segment.addr, segment.len as usize))
                };
                assert!(segments.iter().all(there), "outside of memory");
            }
            Request::Flush => {}
            Request::Discard(ranges) | Request::WriteZeroes { ranges, .. } => {
                assert!(ranges.len() <= MAX_RANGES);
                ranges.iter().for_each(|range| inside(range.at, range.len));
            }
        }
        let writes = !matches!(request, Request::Read { .. } | Request::Flush);
        assert!(!(writes && self.read_only), "a read-only disk");
    }
}

/// The state of the host's side.
pub struct Block(Kept);

/// The configuration of the disk.
#[derive(Arbitrary, Debug)]
pub struct Setup {
    read_only: bool,
    name: String,
}

/// A request: header, data, ranges.
#[derive(Arbitrary, Debug)]
pub struct Message {
    kind: Kind,
    sector: Sector,
    /// Sectors of data, plus bytes that are no whole sector.
    sectors: u8,
    uneven: Option<i8>,
    ranges: Vec<(Sector, u8, Flags)>,
    /// Bytes of the header that are sent.
    header: Option<u8>,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    In,
    Out,
    Flush,
    Id,
    Discard,
    Zeroes,
    Any(u32),
}

#[derive(Arbitrary, Debug)]
enum Sector {
    Near(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Flags {
    None,
    Unmap,
    Any(u32),
}

impl Sector {
    fn value(&self) -> u64 {
        match self {
            Self::Near(sector) => (*sector % 70).into(),
            Self::Any(sector) => *sector,
        }
    }
}

/// An action of the host.
#[derive(Arbitrary, Debug)]
pub enum Call {
    /// One of the requests completes or fails.
    Complete(u8, bool),
    /// The backend reports a request that is not in flight, perhaps one from before a reset.
    Unknown(u8),
    Resize(Sectors),
}

/// Size of the disk in bytes.
#[derive(Arbitrary, Debug)]
pub enum Sectors {
    Few(u8),
    Any(u64),
}

impl Subject for Block {
    type Setup = Setup;
    type Message = Message;
    type Call = Call;
    type Device = Device;

    fn new(setup: Setup) -> (Guest, Self) {
        let mut block = Self(Kept(Arc::new(Mutex::new(State {
            sectors: SECTORS,
            read_only: setup.read_only,
            name: setup.name,
            ..State::default()
        }))));
        let guest = Guest::new(block.renew());
        block.0.0.lock().unwrap().memory = Some(guest.memory.clone());
        (guest, block)
    }

    fn renew(&mut self) -> Device {
        let mut state = self.0.0.lock().unwrap();
        state.requests.clear();
        let geometry = Geometry {
            sectors: state.sectors,
            read_only: state.read_only,
            name: state.name.clone(),
            discard_unit: Some(8),
        };
        Device::new(geometry, Box::new(self.0.clone()))
    }

    fn continues(&self) -> bool {
        !self.0.0.lock().unwrap().resized
    }

    fn kept(&self, _guest: &Guest, _queue: usize) -> Option<usize> {
        Some(self.0.0.lock().unwrap().requests.len())
    }

    fn encode(&self, message: &Message) -> Sent {
        let kind = match message.kind {
            Kind::In => T_IN,
            Kind::Out => T_OUT,
            Kind::Flush => T_FLUSH,
            Kind::Id => T_GET_ID,
            Kind::Discard => T_DISCARD,
            Kind::Zeroes => T_WRITE_ZEROES,
            Kind::Any(kind) => kind,
        };
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(message.sector.value().to_le_bytes());
        bytes.truncate(message.header.unwrap_or(16).into());
        let data = i32::from(message.sectors % 5) * 512 + i32::from(message.uneven.unwrap_or(0));
        let mut data = data.max(0) as u32;
        match kind {
            T_OUT => {
                bytes.resize(bytes.len() + data as usize, 0x55);
                data = 0;
            }
            T_DISCARD | T_WRITE_ZEROES => {
                for (sector, sectors, flags) in message.ranges.iter().take(18) {
                    bytes.extend(sector.value().to_le_bytes());
                    bytes.extend(u32::from(*sectors).to_le_bytes());
                    let flags = match flags {
                        Flags::None => 0,
                        Flags::Unmap => 1,
                        Flags::Any(flags) => *flags,
                    };
                    bytes.extend(flags.to_le_bytes());
                }
                data = 0;
            }
            _ => {}
        }
        Sent {
            queue: 0,
            bytes,
            room: data + 1,
            again: 0,
        }
    }

    fn call(&mut self, guest: &mut Guest, call: &Call) {
        match call {
            Call::Complete(which, good) => {
                let mut state = self.0.0.lock().unwrap();
                if state.requests.is_empty() {
                    return;
                }
                let which = usize::from(*which) % state.requests.len();
                let (id, request) = state.requests.swap_remove(which);
                drop(state);
                self.complete(guest, id, Some(&request).filter(|_| *good));
            }
            Call::Unknown(id) => {
                let known = self
                    .0
                    .0
                    .lock()
                    .unwrap()
                    .requests
                    .iter()
                    .any(|one| one.0 == u64::from(*id));
                if !known {
                    self.complete(guest, (*id).into(), None);
                }
            }
            Call::Resize(sectors) => {
                let sectors = match sectors {
                    Sectors::Few(sectors) => (*sectors).into(),
                    Sectors::Any(sectors) => *sectors,
                };
                self.resize(guest, sectors);
            }
        }
    }

    fn serve(&mut self, guest: &mut Guest) {
        self.resize(guest, SECTORS);
        let mut header = [0; 16];
        header[8] = 3; // the sector
        let sent = guest.buffer(16);
        guest
            .memory
            .write_slice(&header, GuestAddress(sent))
            .unwrap();
        let room = guest.buffer(513);
        guest.offer(0, &[(sent, 16, false), (room, 513, true)], true);
        guest.notify(0);
        let requests = std::mem::take(&mut self.0.0.lock().unwrap().requests);
        let [(id, request @ Request::Read { at: 1536, .. })] = &requests[..] else {
            panic!("{requests:?}");
        };
        self.complete(guest, *id, Some(request));
        let mut answer = vec![0xaa; 513];
        answer[512] = 0;
        assert_eq!(guest.received(0), [answer]);
    }
}

impl Block {
    /// Complete a request, or fail it.
    fn complete(&self, guest: &mut Guest, id: u64, served: Option<&Request>) {
        if let Some(Request::Read { to, .. }) = served {
            for segment in to {
                // The start of a long one is enough.
                let bytes = vec![0xaa; (segment.len as usize).min(1024)];
                guest.memory.write_slice(&bytes, segment.addr).unwrap();
            }
        }
        let served = served.map(|_| ()).ok_or_else(|| "no space".into());
        let complete = |block: &mut Device, driver: &mut Driver| block.complete(driver, id, served);
        guest.core().with_device(complete);
    }

    fn resize(&self, guest: &mut Guest, sectors: u64) {
        let mut state = self.0.0.lock().unwrap();
        state.resized |= state.sectors != sectors;
        state.sectors = sectors;
        drop(state);
        let resize = |block: &mut Device, driver: &mut Driver| {
            block.resize(driver, sectors);
            Ok(())
        };
        guest.core().with_device(resize);
    }
}
