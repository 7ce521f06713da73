//! The memory balloon.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arbitrary::Arbitrary;
use hull::devices::virtio::Driver;
use hull::devices::virtio::balloon::Balloon as Device;
use hull::devices::virtio::testing::{Guest, LIVE};
use vm_memory::GuestAddress;

use crate::{Sent, Subject};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;
const F_STATS_VQ: u64 = 1 << 1;
/// Most statistics that the device keeps.
const MAX_STATISTICS: usize = 64;

/// The host's side: the bytes that the guest returned, and the configuration.
pub struct Balloon(Arc<AtomicU64>, Setup);

/// The configuration of the device.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Setup {
    target: u64,
    period: Option<u32>,
}

/// A request that the guest sends.
#[derive(Arbitrary, Debug)]
pub enum Message {
    /// Page numbers for the first or the second queue.
    Pages {
        queue: u8,
        first: u32,
        count: u16,
        down: bool,
    },
    Scattered {
        queue: u8,
        pages: Vec<u32>,
    },
    Statistics {
        entries: Vec<(u8, u64)>,
        rest: u8,
    },
    /// Free memory of this many bytes, in the right queue or in another.
    Report {
        queue: u8,
        room: u16,
    },
}

/// An action of the host.
#[derive(Arbitrary, Debug)]
pub enum Call {
    /// The host reads the device's state.
    State,
}

impl Subject for Balloon {
    type Setup = Setup;
    type Message = Message;
    type Call = Call;
    type Device = Device;

    fn new(setup: Setup) -> (Guest, Self) {
        let mut host = Self(Arc::default(), setup);
        (Guest::new(host.renew()), host)
    }

    fn renew(&mut self) -> Device {
        let sum = self.0.clone();
        let release = move |_: GuestAddress, bytes: u64| {
            assert!(bytes > 0);
            sum.fetch_add(bytes, Ordering::Relaxed);
        };
        let period = self.1.period.map(|ms| Duration::from_millis(ms.into()));
        Device::new(self.1.target, period, Box::new(release))
    }

    /// The sum of a state that is damaged may be another.
    fn moved(&mut self, guest: &mut Guest) {
        let state = |balloon: &mut Device, _: &mut Driver| Ok(balloon.state().released_bytes);
        let released = guest.core().with_device(state);
        self.0.store(released.unwrap(), Ordering::Relaxed);
    }

    /// It keeps the buffer for statistics until it asks for new ones, and has no reason to keep others.
    fn kept(&self, guest: &Guest, queue: usize) -> Option<usize> {
        let has_statistics = guest.core().driver_features() & F_STATS_VQ != 0;
        match queue {
            INFLATE | DEFLATE => Some(0),
            STATISTICS if has_statistics => Some(1),
            _ => None,
        }
    }

    fn encode(&self, message: &Message) -> Sent {
        let words = |numbers: &mut dyn Iterator<Item = u32>| -> Vec<u8> {
            numbers.flat_map(u32::to_le_bytes).collect()
        };
        let (queue, bytes, room) = match message {
            Message::Pages {
                queue,
                first,
                count,
                down,
            } => {
                let page = |n: u32| match down {
                    true => first.wrapping_sub(n),
                    false => first.wrapping_add(n),
                };
                let count = u32::from(*count % 1100);
                (queue % 2, words(&mut (0..count).map(page)), 0)
            }
            Message::Scattered { queue, pages } => {
                (queue % 2, words(&mut pages.iter().copied()), 0)
            }
            Message::Statistics { entries, rest } => {
                let entry = |(tag, value): &(u8, u64)| {
                    [&u16::from(*tag).to_le_bytes()[..], &value.to_le_bytes()].concat()
                };
                let mut bytes: Vec<u8> = entries.iter().flat_map(entry).collect();
                bytes.resize(bytes.len() + usize::from(*rest), 1);
                (STATISTICS as u8, bytes, 0)
            }
            Message::Report {
                queue: 0..128,
                room,
            } => (REPORTING as u8, Vec::new(), *room),
            Message::Report { queue, room } => (*queue, Vec::new(), *room),
        };
        Sent {
            queue: queue.into(),
            bytes,
            room: room.into(),
            again: 0,
        }
    }

    fn call(&mut self, guest: &mut Guest, Call::State: &Call) {
        self.check(guest);
    }

    fn check(&mut self, guest: &mut Guest) {
        let released = self.0.load(Ordering::Relaxed);
        let look = |balloon: &mut Device, _: &mut Driver| {
            assert_eq!(balloon.state().released_bytes, released);
            assert!(balloon.state().statistics.len() <= MAX_STATISTICS);
            Ok(())
        };
        assert!(guest.core().with_device(look).is_some());
    }

    fn serve(&mut self, guest: &mut Guest) {
        let before = self.0.load(Ordering::Relaxed);
        guest.send(INFLATE, &7u32.to_le_bytes(), &[], false);
        guest.notify(INFLATE);
        assert_eq!(guest.returned(INFLATE), [(0, 0)]);
        assert_eq!(self.0.load(Ordering::Relaxed), before + 4096);
        guest.lend(REPORTING, 8192);
        guest.notify(REPORTING);
        assert_eq!(guest.returned(REPORTING), [(0, 0)]);
        assert_eq!(self.0.load(Ordering::Relaxed), before + 3 * 4096);
        guest.send(STATISTICS, &[4, 0, 1, 0, 0, 0, 0, 0, 0, 0], &[], false);
        guest.notify(STATISTICS);
        assert!(guest.returned(STATISTICS).is_empty());
        guest.core().alarm();
        assert_eq!(guest.returned(STATISTICS), [(0, 0)]);
        assert_eq!(guest.status(), LIVE);
    }
}
