//! The network device, with a wire whose frames, room and errors the host controls.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbitrary::Arbitrary;
use hull::devices::rate::{Limit, Limits};
use hull::devices::virtio::Driver;
use hull::devices::virtio::net::{
    Clock, HEADER, MAX_FRAME, Net as Device, Offloads, Properties, RX, TX, Wire,
};
use hull::devices::virtio::testing::{Guest, HIGH};
use hull::memory::transfer::Pieces;

use crate::{Sent, Subject};

/// Bytes of the shortest frame: two addresses and a type.
const MIN_ETHERNET: usize = 14;

#[derive(Default)]
struct World {
    /// Lengths of frames for the guest.
    incoming: VecDeque<usize>,
    /// Frames that the wire still accepts.
    room: usize,
    gone: bool,
    /// Other failures of the wire.
    fails: bool,
    answered: bool,
    now: Duration,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<World>>);

impl Shared {
    fn with<R>(&self, look: impl FnOnce(&mut World) -> R) -> R {
        look(&mut self.0.lock().unwrap())
    }

    fn next(&self) -> io::Result<usize> {
        self.with(|world| match world.incoming.pop_front() {
            _ if world.gone => Err(ErrorKind::BrokenPipe.into()),
            Some(len) => Ok(len),
            None => Err(ErrorKind::WouldBlock.into()),
        })
    }
}

impl Wire for Shared {
    fn send(&mut self, frame: &Pieces) -> io::Result<()> {
        assert!((HEADER + MIN_ETHERNET..=MAX_FRAME).contains(&frame.len()));
        let mut bytes = Vec::new();
        frame.append_to(0, &mut bytes);
        assert_eq!(bytes.len(), frame.len());
        self.with(|world| {
            if world.gone {
                return Err(ErrorKind::BrokenPipe.into());
            }
            if world.fails {
                return Err(ErrorKind::InvalidInput.into());
            }
            let left = world.room.checked_sub(1).ok_or(ErrorKind::WouldBlock)?;
            world.room = left;
            Ok(())
        })
    }

    fn flush(&mut self) -> io::Result<bool> {
        self.with(|world| match world.gone {
            true => Err(ErrorKind::BrokenPipe.into()),
            false => Ok(std::mem::take(&mut world.answered)),
        })
    }

    fn receive(&mut self, room: &Pieces) -> io::Result<usize> {
        assert!(room.len() >= MAX_FRAME, "a frame would be cut off");
        let len = self.next()?;
        let mut start = Vec::new();
        room.append_to(0, &mut start);
        let mut frame = vec![0xaa; len];
        // num_buffers is left alone.
        for (to, from) in frame.iter_mut().zip(start).take(HEADER).skip(10) {
            *to = from;
        }
        assert_eq!(room.fill(&frame), len);
        Ok(len)
    }

    fn receive_buffered(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert_eq!(buffer.len(), MAX_FRAME);
        let len = self.next()?;
        buffer[..len].fill(0xaa);
        Ok(len)
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        self.with(|world| match world.fails {
            true => Err(ErrorKind::Unsupported.into()),
            false => Ok(()),
        })
    }
}

impl Clock for Shared {
    fn now(&self) -> Duration {
        self.with(|world| world.now)
    }

    fn wake_in(&mut self, _wait: Duration) {}
}

/// The state of the host's side, and the configuration.
pub struct Net(Shared, Setup);

/// The configuration of the network.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Setup {
    offloads: bool,
    /// Limits in frames and bytes a second.
    limits: [Option<u16>; 2],
}

/// A request that the guest sends.
#[derive(Arbitrary, Debug)]
pub enum Message {
    /// A frame of this many bytes with its header, in one or more buffers.
    Frame(u16),
    /// One of about the most bytes.
    Long(u8),
    /// The same, with offloads in the header.
    Short { header: [u8; 12], len: u8 },
    /// A buffer for frames.
    Lend(u16),
}

/// An action of the host.
#[derive(Arbitrary, Debug)]
pub enum Call {
    /// Frames of these sizes arrive, without their header.
    Incoming(Vec<u16>),
    /// A frame that is too short arrives.
    Stump(u8),
    Room(u8),
    Answer,
    Ready,
    Pass(u16),
    Fail(bool),
    Gone,
}

impl Subject for Net {
    type Setup = Setup;
    type Message = Message;
    type Call = Call;
    type Device = Device;

    fn new(setup: Setup) -> (Guest, Self) {
        let mut net = Self(Shared::default(), setup);
        (Guest::new(net.renew()), net)
    }

    fn renew(&mut self) -> Device {
        let Self(shared, setup) = self;
        let properties = Properties {
            mac: [2, 0, 0, 0, 0, 7],
            mtu: 1500,
            offloads: setup.offloads,
        };
        let limit = |per_second: Option<u16>| {
            per_second.map(|per_second| Limit {
                per_second: u64::from(per_second) + 1,
                burst: u64::from(per_second) + 1,
            })
        };
        let limits = Limits {
            operations: limit(setup.limits[0]),
            bytes: limit(setup.limits[1]),
        };
        let (wire, clock) = (Box::new(shared.clone()), Box::new(shared.clone()));
        Device::new(properties, &limits, wire, clock)
    }

    /// The link of a wire that has closed is up until that shows.
    fn continues(&self) -> bool {
        !self.0.with(|world| world.gone)
    }

    /// Frames wait for the wire's room, or for the rate.
    fn kept(&self, _guest: &Guest, queue: usize) -> Option<usize> {
        let waits = self.1.limits != [None; 2] || self.0.with(|world| world.room == 0);
        (queue == TX && !waits).then_some(0)
    }

    fn encode(&self, message: &Message) -> Sent {
        let (queue, bytes, room) = match message {
            Message::Frame(len) => (TX, vec![0; (*len).into()], 0),
            Message::Long(more) => {
                // In equal pieces, of which one lies in memory.
                let all = MAX_FRAME - 3 + usize::from(more % 8);
                let pieces = (2..64).find(|pieces| all.is_multiple_of(*pieces));
                let pieces = pieces.unwrap_or(1);
                return Sent {
                    queue: TX,
                    bytes: vec![0; all / pieces],
                    room: 0,
                    again: pieces as u16 - 1,
                };
            }
            Message::Short { header, len } => {
                let mut bytes = header.to_vec();
                bytes.resize((*len).into(), 0x55);
                (TX, bytes, 0)
            }
            Message::Lend(room) => (RX, Vec::new(), (*room).into()),
        };
        Sent {
            queue,
            bytes,
            room,
            again: 0,
        }
    }

    fn call(&mut self, guest: &mut Guest, call: &Call) {
        let most = MAX_FRAME - HEADER;
        self.0.with(|world| match call {
            Call::Incoming(frames) => {
                let frames = frames
                    .iter()
                    .take(100)
                    .map(|len| usize::from(*len).min(most));
                world.incoming.extend(frames.map(|len| HEADER + len));
            }
            Call::Stump(len) => world.incoming.push_back((*len).into()),
            Call::Room(room) => world.room = (*room).into(),
            Call::Answer => world.answered = true,
            Call::Pass(time) => world.now += Duration::from_millis((*time).into()),
            Call::Fail(fails) => world.fails = *fails,
            Call::Gone => world.gone = true,
            Call::Ready => {}
        });
        ready(guest);
    }

    fn mend(&mut self) {
        self.0.with(|world| {
            world.fails = false;
            world.room = usize::MAX;
            world.incoming.clear();
        });
    }

    fn serve(&mut self, guest: &mut Guest) {
        // All frames held back by limits pass now; one that was read before comes first.
        let served = |guest: &mut Guest| {
            self.0
                .with(|world| world.now += Duration::from_secs(1 << 20));
            ready(guest);
            guest.run();
        };
        for _ in 0..4 {
            guest.offer(RX, &[(HIGH, MAX_FRAME as u32, true)], false);
        }
        served(guest);
        let early = guest.returned(RX).len();
        assert!(early <= 1, "frames that were not sent");
        guest.send(TX, &[0; HEADER + 60], &[HEADER], true);
        guest.notify(TX);
        served(guest);
        assert_eq!(guest.returned(TX).len(), 1);
        self.0.with(|world| world.incoming.push_back(HEADER + 60));
        ready(guest);
        served(guest);
        let received = guest.returned(RX);
        match self.0.with(|world| world.gone) {
            true => assert!(received.is_empty()),
            false => assert_eq!(received, [(early as u32, (HEADER + 60) as u32)]),
        }
    }
}

fn ready(guest: &mut Guest) {
    let ready = |net: &mut Device, driver: &mut Driver| net.ready(driver);
    guest.core().with_device(ready);
}
