//! A guest whose device is saved in the middle of its work, and another device that continues in its
//! place, over a copy of guest memory.

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{DRIVER_OK, FAILED, Guest, NEEDS_RESET, reg};
use crate::devices::bus::BusDevice;
use crate::devices::state::StateError;
use crate::devices::testing::{Flips, flip};
use crate::devices::virtio::Device;

/// Entries of each queue, if the device has as many.
const SIZE: u16 = 16;
/// Most descriptors of a chain.
const PIECES: u16 = 2;

/// What a guest does.
#[derive(Clone, Debug)]
pub enum Act {
    /// Read so many bytes at this offset.
    Read(u64, usize),
    /// Write at this offset.
    Write(u64, Vec<u8>),
    /// Offer a chain of bytes and so much room on a queue, and notify.
    Offer {
        queue: usize,
        bytes: Vec<u8>,
        room: u32,
        indirect: bool,
    },
    /// The device's timer is over.
    Alarm,
}

/// What a guest may do with a device of so many queues, to which it mostly sends `payload`.
pub fn acts(
    queues: usize,
    payload: impl Strategy<Value = Vec<u8>> + Clone + 'static,
) -> impl Strategy<Value = Vec<Act>> {
    let offset = prop_oneof![
        0u64..0x120,
        Just(reg::STATUS),
        reg::CONFIG..reg::CONFIG + 16
    ];
    let read = (offset.clone(), 1usize..9).prop_map(|(at, len)| Act::Read(at, len));
    let write = (offset, vec(any::<u8>(), 4)).prop_map(|(at, data)| Act::Write(at, data));
    let bytes = prop_oneof![4 => payload, 1 => vec(any::<u8>(), 0..40)];
    let room = prop_oneof![Just(0), 0u32..600];
    let offer =
        (0..queues, bytes, room, any::<bool>()).prop_map(|(queue, bytes, room, indirect)| {
            Act::Offer {
                queue,
                bytes,
                room,
                indirect,
            }
        });
    let act = prop_oneof![8 => offer, 2 => read, 1 => write, 1 => Just(Act::Alarm)];
    vec(act, 0..25)
}

impl Guest {
    /// Do it, and have the device do its part.
    pub fn act(&mut self, act: &Act) -> Vec<u8> {
        let mut answer = Vec::new();
        match act {
            Act::Read(at, len) => {
                answer.resize(*len, 0xff);
                self.transport.read(*at, &mut answer);
            }
            Act::Write(at, data) => self.transport.write(*at, data),
            Act::Offer {
                queue,
                bytes,
                room,
                indirect,
            } => self.offer_if_free(*queue, bytes, *room, *indirect),
            Act::Alarm => self.core().alarm(),
        }
        self.run();
        answer
    }

    fn offer_if_free(&mut self, queue: usize, bytes: &[u8], room: u32, indirect: bool) {
        let (size, _) = self.place(queue);
        if (self.in_flight(queue) + 1) * PIECES > size {
            return;
        }
        let mut pieces = Vec::new();
        if !bytes.is_empty() {
            let addr = self.buffer(bytes.len() as u32);
            self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
            pieces.push((addr, bytes.len() as u32, false));
        }
        if room > 0 {
            pieces.push((self.buffer(room), room, true));
        }
        if !pieces.is_empty() {
            self.offer(queue, &pieces, indirect);
            self.write(reg::QUEUE_NOTIFY, queue as u32);
        }
    }

    /// What a guest sees of the device without a register that it reads by effect.
    fn sees(&mut self) -> (u32, u32, Vec<Vec<(u32, u32)>>) {
        let returned = (0..self.rings.len()).map(|queue| self.returned(queue));
        let returned = returned.collect();
        (self.status(), self.read(reg::INTERRUPT_STATUS), returned)
    }

    /// Notify every queue, as a device that was loaded is.
    fn notify_all(&mut self) {
        for queue in 0..self.rings.len() {
            self.core().process(queue);
        }
        self.run();
    }

    /// A guest that is as this one, and its device, a new one of the kind, given `state`.
    pub fn carried_over(&self, device: impl Device, state: &[u8]) -> Result<Self, StateError> {
        let mut other = Self::new(device);
        for (start, bytes) in self.snapshot() {
            let written = other.memory.write_slice(&bytes, GuestAddress(start));
            written.unwrap();
        }
        other.rings = self.rings.clone();
        other.next_buffer = self.next_buffer;
        other.transport.load(state).map(|()| other)
    }
}

/// After `before`, a new device that is given the state of the first does `after` as the first
/// does; one that is given a broken state refuses it, or continues in some way.
pub fn goes_on<D: Device>(
    new: impl Fn() -> D,
    features: u64,
    before: &[Act],
    after: &[Act],
    flips: &Flips,
) {
    let device = new();
    let size = device.queue_max_sizes().iter().copied().min();
    let mut first = Guest::new(device);
    first.start(features, size.unwrap_or(SIZE).min(SIZE));
    for act in before {
        first.act(act);
        first.sees();
    }
    let state = first.transport.save().unwrap();
    if let Ok(mut broken) = first.carried_over(new(), &flip(state.clone(), flips)) {
        broken.feeds_itself = true;
        broken.notify_all();
        for act in after {
            broken.act(act);
        }
    }
    for end in [0, state.len() / 2, state.len() - 1] {
        assert!(
            first.carried_over(new(), &state[..end]).is_err(),
            "cut off at {end}"
        );
    }
    let mut second = first.carried_over(new(), &state).unwrap();
    first.notify_all();
    second.notify_all();
    assert_eq!(first.sees(), second.sees());
    if first.status() & (DRIVER_OK | NEEDS_RESET | FAILED) != DRIVER_OK {
        return;
    }
    for act in after {
        assert_eq!(first.act(act), second.act(act), "{act:?}");
        assert_eq!(first.sees(), second.sees(), "{act:?}");
    }
    assert!(
        first.snapshot() == second.snapshot(),
        "guest memory differs"
    );
}
