//! The network device as Linux's driver meets it, and as one that means ill.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::super::wire::MIN_ETHERNET;
use super::super::{HEADER, MAX_FRAME};
use super::*;
use crate::devices::bus::BusDevice;
use crate::devices::rate::Limit;
use crate::devices::testing::flips;
use crate::devices::virtio::testing::carry::{acts, goes_on};
use crate::devices::virtio::testing::*;
use crate::devices::virtio::{F_EVENT_IDX, F_INDIRECT_DESC};
use crate::memory::transfer::Pieces;

/// Entries of a queue.
const ENTRIES: u16 = 64;
/// What Linux accepts.
const LINUX: u64 = F_EVENT_IDX | F_INDIRECT_DESC | F_MAC | F_STATUS | F_MRG_RXBUF | OFFLOADS;
const MAC: Mac = [2, 0, 0, 0, 0, 7];

#[derive(Default)]
struct World {
    /// Frames for the guest, headers and all.
    incoming: VecDeque<Vec<u8>>,
    sent: Vec<Vec<u8>>,
    /// Frames that are still taken.
    room: usize,
    flushes: usize,
    offloads: Vec<Offloads>,
    gone: bool,
    /// The next frame is an answer that the descriptor does not tell of.
    answered: bool,
    /// Times a frame was asked for.
    asked: usize,
    now: Duration,
    wake: Option<Duration>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<World>>);

impl Fake {
    fn with<R>(&self, look: impl FnOnce(&mut World) -> R) -> R {
        look(&mut self.0.lock().unwrap())
    }

    fn sent(&self) -> Vec<Vec<u8>> {
        self.with(|world| std::mem::take(&mut world.sent))
    }

    fn next(&self) -> io::Result<Vec<u8>> {
        self.with(|world| {
            world.asked += 1;
            match world.incoming.pop_front() {
                _ if world.gone => Err(io::ErrorKind::UnexpectedEof.into()),
                Some(frame) => Ok(frame),
                None => Err(io::ErrorKind::WouldBlock.into()),
            }
        })
    }
}

impl Wire for Fake {
    fn send(&mut self, frame: &Pieces) -> io::Result<()> {
        self.with(|world| {
            if world.gone {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            world.room = match world.room.checked_sub(1) {
                Some(room) => room,
                None => return Err(io::ErrorKind::WouldBlock.into()),
            };
            let mut bytes = Vec::new();
            frame.append_to(0, &mut bytes);
            world.sent.push(bytes);
            Ok(())
        })
    }

    fn flush(&mut self) -> io::Result<bool> {
        self.with(|world| {
            world.flushes += 1;
            Ok(std::mem::take(&mut world.answered))
        })
    }

    fn receive(&mut self, room: &Pieces) -> io::Result<usize> {
        assert!(room.len() >= MAX_FRAME, "a frame would be cut off");
        let frame = self.next()?;
        // As a tap does, leaving num_buffers alone.
        let mut start = Vec::new();
        room.append_to(0, &mut start);
        let mut whole = frame.clone();
        whole[10..12].copy_from_slice(&start[10..12]);
        Ok(room.fill(&whole))
    }

    fn receive_buffered(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert_eq!(buffer.len(), MAX_FRAME);
        let frame = self.next()?;
        buffer[..frame.len()].copy_from_slice(&frame);
        Ok(frame.len())
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.with(|world| world.offloads.push(offloads));
        Ok(())
    }
}

impl Clock for Fake {
    fn now(&self) -> Duration {
        self.with(|world| world.now)
    }

    fn wake_in(&mut self, wait: Duration) {
        self.with(|world| world.wake = Some(world.now + wait));
    }
}

fn new_with(offloads: bool, limits: &Limits) -> (Guest, Fake) {
    let fake = Fake::default();
    fake.with(|world| world.room = usize::MAX);
    let properties = Properties {
        mac: MAC,
        mtu: 1500,
        offloads,
    };
    let wire = Box::new(fake.clone());
    let net = Net::new(properties, limits, wire, Box::new(fake.clone()));
    (Guest::new(net), fake)
}

fn up(features: u64) -> (Guest, Fake) {
    let (mut guest, fake) = new_with(true, &Limits::default());
    guest.start(features, ENTRIES);
    (guest, fake)
}

/// The host has something.
fn ready(guest: &mut Guest) {
    guest
        .core()
        .with_device(|net: &mut Net, driver| net.ready(driver));
    guest.run();
}

/// A frame of so many bytes, header and all; num_buffers is 0.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len)
        .map(|n| (n as u8).wrapping_mul(31) ^ seed)
        .collect();
    frame[10..12].fill(0);
    frame
}

/// `frame` as the guest gets it in so many buffers.
fn in_buffers(mut frame: Vec<u8>, count: u16) -> Vec<u8> {
    frame[10..12].copy_from_slice(&count.to_le_bytes());
    frame
}

#[test]
fn the_driver_is_told_address_link_and_size() {
    let (mut guest, _) = up(LINUX);
    let mut config = [0xff; 16];
    for (n, byte) in config.iter_mut().enumerate() {
        let mut one = [0];
        crate::devices::bus::BusDevice::read(
            &mut guest.transport,
            reg::CONFIG + n as u64,
            &mut one,
        );
        *byte = one[0];
    }
    assert_eq!(config[..6], MAC);
    assert_eq!(config[6..], [1, 0, 1, 0, 0xdc, 5, 0, 0, 0, 0]);
}

#[test]
fn the_wire_does_what_the_driver_cannot() {
    let (mut guest, fake) = up(LINUX);
    let all = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };
    assert_eq!(fake.with(|world| world.offloads.clone()), [all]);
    guest.set_status(0);
    assert_eq!(fake.with(|world| world.offloads[1]), Offloads::default());
    // Segments without checksums cannot be.
    guest.start(F_GUEST_TSO4 | F_GUEST_ECN, ENTRIES);
    assert_eq!(fake.with(|world| world.offloads[2]), Offloads::default());

    let (mut guest, fake) = new_with(false, &Limits::default());
    guest.start(F_MRG_RXBUF, ENTRIES);
    assert!(fake.with(|world| world.offloads.is_empty()));
    guest.write(reg::DEVICE_FEATURES_SEL, 0);
    let features = u64::from(guest.read(reg::DEVICE_FEATURES));
    assert_eq!(features & OFFLOADS, 0);
}

#[test]
fn what_the_guest_sends_arrives_whole() {
    let (mut guest, fake) = up(LINUX);
    let frames = [frame(60, 1), frame(1526, 2), frame(MAX_FRAME, 3)];
    guest.send(TX, &frames[0], &[], false);
    guest.send(TX, &frames[1], &[12, 14, 500], true);
    guest.send(TX, &frames[2], &[5, 4096, 4096], false);
    guest.notify(TX);
    assert_eq!(fake.sent(), frames);
    assert_eq!(guest.returned(TX).len(), 3);
    assert_eq!(guest.status(), LIVE);
    assert!(fake.with(|world| world.flushes) > 0);
}

#[test]
fn an_invalid_frame_is_dropped_and_reported() {
    let (mut guest, fake) = up(LINUX);
    guest.send(TX, &[0; HEADER + MIN_ETHERNET - 1], &[], false);
    guest.send(TX, &vec![0; MAX_FRAME + 1], &[], false);
    guest.send(TX, &frame(60, 1), &[], false);
    guest.notify(TX);
    assert_eq!(fake.sent(), [frame(60, 1)]);
    assert_eq!(guest.returned(TX).len(), 3);
    assert_eq!(guest.events.take().len(), 2);
    assert_eq!(guest.status(), LIVE);
}

#[test]
fn a_full_wire_holds_frames_up_and_loses_none() {
    let (mut guest, fake) = up(LINUX);
    fake.with(|world| world.room = 2);
    let frames: Vec<_> = (0..5).map(|seed| frame(100, seed)).collect();
    for frame in &frames {
        guest.send(TX, frame, &[], false);
    }
    guest.notify(TX);
    assert_eq!(guest.returned(TX).len(), 2);
    fake.with(|world| world.room = 9);
    ready(&mut guest);
    assert_eq!(guest.returned(TX).len(), 3);
    assert_eq!(fake.sent(), frames);
}

#[test]
fn frames_take_as_many_buffers_as_they_fill() {
    let (mut guest, fake) = up(LINUX);
    let frames = [frame(60, 1), frame(5000, 2), frame(4096, 3)];
    fake.with(|world| world.incoming.extend(frames.clone()));
    for _ in 0..ENTRIES {
        guest.lend(RX, 2048);
    }
    guest.notify(RX);
    let received = guest.received(RX);
    let lens: Vec<usize> = received.iter().map(Vec::len).collect();
    assert_eq!(lens, [60, 2048, 2048, 904, 2048, 2048]);
    assert_eq!(received[0], in_buffers(frames[0].clone(), 1));
    assert_eq!(received[1..4].concat(), in_buffers(frames[1].clone(), 3));
    assert_eq!(received[4..].concat(), in_buffers(frames[2].clone(), 2));
}

#[test]
fn a_frame_waits_for_buffers_and_is_not_read_before() {
    let (mut guest, fake) = up(LINUX);
    let sent = frame(3000, 9);
    fake.with(|world| world.incoming.push_back(sent.clone()));
    ready(&mut guest);
    assert_eq!(fake.with(|world| world.asked), 0, "there is no buffer");
    guest.lend(RX, 1526);
    guest.notify(RX);
    assert_eq!(guest.received(RX), Vec::<Vec<u8>>::new());
    guest.lend(RX, 1526);
    guest.notify(RX);
    assert_eq!(guest.received(RX).concat(), in_buffers(sent, 2));
    // And so without merging, where each buffer has room for all.
    let (mut guest, fake) = up(0);
    fake.with(|world| {
        world
            .incoming
            .extend([frame(1500, 1), frame(1600, 2), frame(70, 3)])
    });
    ready(&mut guest);
    for _ in 0..3 {
        guest.lend(RX, 1526);
        guest.notify(RX);
    }
    // The one in the middle has no place, ever.
    let expected = [frame(1500, 1), frame(70, 3)].map(|frame| in_buffers(frame, 1));
    assert_eq!(guest.received(RX), expected);
}

#[test]
fn a_frame_that_all_buffers_together_cannot_hold_is_dropped() {
    let (mut guest, fake) = up(LINUX);
    let sent = [frame(64 * 100 + 1, 1), frame(80, 2)];
    fake.with(|world| world.incoming.extend(sent.clone()));
    for _ in 0..ENTRIES {
        guest.lend(RX, 100);
    }
    guest.notify(RX);
    assert_eq!(guest.received(RX), [in_buffers(sent[1].clone(), 1)]);
}

#[test]
fn many_frames_take_several_turns() {
    let (mut guest, fake) = up(LINUX);
    let mut got = 0;
    fake.with(|world| {
        let frames = (0..300).map(|n| frame(100, n as u8));
        world.incoming.extend(frames);
    });
    ready(&mut guest);
    for _ in 0..20 {
        for _ in guest.in_flight(RX)..ENTRIES {
            guest.lend(RX, 2048);
        }
        guest.notify(RX);
        got += guest.received(RX).len();
    }
    assert_eq!(got, 300);
}

#[test]
fn an_answer_of_the_wire_comes_without_its_descriptor() {
    let (mut guest, fake) = up(LINUX);
    for _ in 0..ENTRIES {
        guest.lend(RX, 2048);
    }
    guest.notify(RX);
    fake.with(|world| {
        world.incoming.push_back(frame(90, 4));
        world.answered = true;
    });
    guest.send(TX, &frame(90, 1), &[], false);
    guest.notify(TX);
    assert_eq!(guest.received(RX), [in_buffers(frame(90, 4), 1)]);
}

#[test]
fn a_wire_that_is_gone_takes_the_link_down() {
    let (mut guest, fake) = up(LINUX);
    fake.with(|world| world.gone = true);
    guest.send(TX, &frame(90, 1), &[], false);
    guest.notify(TX);
    let mut status = [0xff; 2];
    crate::devices::bus::BusDevice::read(&mut guest.transport, reg::CONFIG + 6, &mut status);
    assert_eq!(status, [0, 0]);
    assert_eq!(
        guest.read(reg::INTERRUPT_STATUS) & 2,
        2,
        "the driver is told"
    );
    assert_eq!(guest.events.take().len(), 1);
    for _ in 0..10 {
        guest.send(TX, &frame(90, 1), &[], false);
        guest.lend(RX, 2048);
    }
    guest.notify(TX);
    ready(&mut guest);
    assert_eq!(guest.returned(TX).len(), 11, "frames go nowhere");
    assert_eq!(guest.status(), LIVE);
    assert!(guest.events.take().is_empty(), "told once");
}

#[test]
fn a_rate_holds_both_directions_up() {
    let limit = Limit {
        per_second: 10,
        burst: 2,
    };
    let limits = Limits {
        bytes: None,
        operations: Some(limit),
    };
    let (mut guest, fake) = new_with(true, &limits);
    guest.start(LINUX, ENTRIES);
    fake.with(|world| {
        let frames = (0..5).map(|n| frame(100, n));
        world.incoming.extend(frames);
    });
    for n in 0..5 {
        guest.send(TX, &frame(100, n), &[], false);
    }
    for _ in 0..ENTRIES - 1 {
        guest.lend(RX, 2048);
    }
    guest.notify(TX);
    guest.notify(RX);
    assert_eq!((fake.sent().len(), guest.received(RX).len()), (2, 2));
    let mut got = (0, 0);
    for _ in 0..3 {
        let wake = fake
            .with(|world| world.wake.take())
            .expect("a frame is waited for");
        fake.with(|world| world.now = wake);
        ready(&mut guest);
        got.0 += fake.sent().len();
        got.1 += guest.received(RX).len();
    }
    assert_eq!(got, (3, 3));
    assert_eq!(
        fake.with(|world| (world.now, world.wake)),
        (Duration::from_millis(300), None)
    );
}

#[test]
fn a_reset_gives_buffers_back_and_a_new_driver_continues() {
    let (mut guest, fake) = up(LINUX);
    for _ in 0..10 {
        guest.lend(RX, 1526);
    }
    guest.notify(RX);
    guest.set_status(0);
    fake.with(|world| world.incoming.push_back(frame(100, 1)));
    guest.start(LINUX, ENTRIES);
    ready(&mut guest);
    assert!(guest.returned(RX).is_empty(), "a buffer of the old driver");
    guest.lend(RX, 1526);
    guest.notify(RX);
    assert_eq!(guest.received(RX), [in_buffers(frame(100, 1), 1)]);
}

#[test]
fn buffers_of_the_wrong_kind_stop_the_device() {
    for queue in [RX, TX] {
        let (mut guest, fake) = up(LINUX);
        fake.with(|world| world.incoming.push_back(frame(100, 1)));
        match queue {
            RX => guest.send(RX, &[0; 100], &[], false),
            _ => guest.lend(TX, 100),
        };
        guest.notify(queue);
        assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
        assert_eq!(guest.events.take().len(), 1);
    }
    let (mut guest, fake) = up(LINUX);
    fake.with(|world| world.incoming.push_back(frame(100, 1)));
    guest.lend(RX, HEADER as u32 - 1);
    guest.notify(RX);
    assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
}

/// A device like that of [`new_with`], which is not in a window.
fn spare(properties: Properties) -> (Net, Fake) {
    let fake = Fake::default();
    fake.with(|world| world.room = usize::MAX);
    let (wire, clock) = (Box::new(fake.clone()), Box::new(fake.clone()));
    (Net::new(properties, &Limits::default(), wire, clock), fake)
}

const PROPERTIES: Properties = Properties {
    mac: MAC,
    mtu: 1500,
    offloads: true,
};

#[test]
fn a_restored_network_has_its_buffers() {
    let (mut guest, old) = up(LINUX);
    // Some are taken for the first frame, some are still in the ring.
    for _ in 0..ENTRIES {
        guest.lend(RX, 2048);
    }
    old.with(|world| world.incoming.push_back(frame(60, 1)));
    guest.notify(RX);
    assert_eq!(guest.received(RX).len(), 1);
    old.with(|world| world.room = 0);
    guest.send(TX, &frame(90, 2), &[], false);
    guest.notify(TX);
    assert!(guest.returned(TX).is_empty());

    let (net, new) = spare(PROPERTIES);
    guest.interrupt.take();
    guest.move_to(net).unwrap();
    assert_eq!(new.sent(), [frame(90, 2)], "it waited");
    assert_eq!(guest.returned(TX).len(), 1);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS) & 2, 0, "nothing to tell");
    let all = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };
    assert_eq!(new.with(|world| world.offloads.clone()), [all]);
    let frames = (0..63).map(|n| frame(100 + n, n as u8));
    new.with(|world| world.incoming.extend(frames.clone()));
    ready(&mut guest);
    let expected: Vec<_> = frames.map(|frame| in_buffers(frame, 1)).collect();
    assert_eq!(guest.received(RX), expected);
    assert_eq!(guest.status(), LIVE);
}

#[test]
fn another_address_or_link_is_signalled_and_a_smaller_size_refused() {
    let (mut guest, old) = up(LINUX);
    old.with(|world| world.gone = true);
    ready(&mut guest);
    guest.lend(RX, 2048);
    guest.notify(RX);
    guest.write(reg::INTERRUPT_ACK, 3);
    let small = Properties {
        mtu: 1499,
        ..PROPERTIES
    };
    let refused = guest.move_to(spare(small).0).unwrap_err().to_string();
    assert!(refused.contains("1499") && refused.contains("1500"));
    // The link is up again.
    guest.move_to(spare(PROPERTIES).0).unwrap();
    assert_eq!(guest.read(reg::INTERRUPT_STATUS) & 2, 2);
    guest.write(reg::INTERRUPT_ACK, 3);
    let mac = [2, 0, 0, 0, 0, 8];
    guest
        .move_to(spare(Properties { mac, ..PROPERTIES }).0)
        .unwrap();
    assert_eq!(guest.read(reg::INTERRUPT_STATUS) & 2, 2);
    assert_eq!(guest.read(reg::CONFIG), u32::from_le_bytes([2, 0, 0, 0]));
    assert_eq!(guest.read(reg::CONFIG + 4) & 0xffff, 0x800);
    guest.write(reg::INTERRUPT_ACK, 3);
    guest
        .move_to(spare(Properties { mac, ..PROPERTIES }).0)
        .unwrap();
    assert_eq!(guest.read(reg::INTERRUPT_STATUS) & 2, 0);
    // A wire that cannot do what the driver was promised.
    let plain = Properties {
        offloads: false,
        ..PROPERTIES
    };
    guest.move_to(spare(plain).0).unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever buffers the driver offers and whenever: frames arrive in order, whole, each in as
    /// few buffers as hold it, and only those are lost that can never be placed.
    #[test]
    fn frames_arrive_in_order_however_buffers_come(
        lens in prop::collection::vec(26..9000usize, 1..12),
        buffers in prop::collection::vec(12..5000u32, 1..40),
        batch in 1..20usize,
    ) {
        let (mut guest, fake) = up(LINUX);
        let frames: Vec<_> = (0..).zip(&lens).map(|(n, len)| frame(*len, n)).collect();
        fake.with(|world| world.incoming.extend(frames.clone()));
        ready(&mut guest);
        let mut received = Vec::new();
        for buffers in buffers.chunks(batch) {
            for len in buffers {
                if guest.in_flight(RX) < ENTRIES {
                    guest.lend(RX, *len);
                }
            }
            guest.notify(RX);
            received.extend(guest.received(RX));
        }
        prop_assert_eq!(guest.status(), LIVE);
        let mut rest = received.as_slice();
        for sent in &frames {
            let Some(first) = rest.first() else { break };
            let count = u16::from_le_bytes([first[10], first[11]]);
            let (these, later) = rest.split_at(usize::from(count));
            prop_assert_eq!(these.concat(), in_buffers(sent.clone(), count));
            rest = later;
        }
        prop_assert!(rest.is_empty());
    }

    /// Any descriptors at all: nothing panics, nothing endless, nothing is written outside of
    /// buffers that may be.
    #[test]
    fn a_hostile_driver_harms_only_itself(
        table_rx in prop::collection::vec(descriptor(16), 16),
        table_tx in prop::collection::vec(descriptor(16), 16),
        heads in prop::collection::vec((0..2usize, 0..18u16), 0..40),
        mergeable: bool,
        frames in prop::collection::vec(26..3000usize, 0..10),
    ) {
        let (mut guest, fake) = up(if mergeable { LINUX } else { F_EVENT_IDX });
        for (queue, descriptors) in [(RX, &table_rx), (TX, &table_tx)] {
            for (index, descriptor) in (0..).zip(descriptors) {
                descriptor.write(&guest.memory, table(queue), index);
            }
        }
        fake.with(|world| world.incoming.extend(frames.iter().map(|len| frame(*len, 1))));
        for (queue, head) in heads {
            guest.make_available(queue, head);
            guest.notify(queue);
            ready(&mut guest);
        }
        let sent = fake.sent();
        prop_assert!(sent.iter().all(|frame| (26..=MAX_FRAME).contains(&frame.len())));
        let status = guest.status();
        prop_assert!(status & !NEEDS_RESET == LIVE);
        guest.set_status(0);
        guest.start(LINUX, ENTRIES);
        guest.send(TX, &frame(60, 1), &[], false);
        guest.notify(TX);
        prop_assert_eq!(fake.sent(), [frame(60, 1)]);
    }

    /// Whatever buffers are there when it is saved, and how often: each frame that comes when
    /// none is on its way arrives whole, and in order.
    #[test]
    fn frames_arrive_however_often_the_device_is_moved(
        steps in prop::collection::vec((26..9000usize, 0..12usize, 12..5000u32, any::<bool>()), 1..20),
        mergeable: bool,
    ) {
        let (mut guest, mut fake) = up(if mergeable { LINUX } else { 0 });
        for (seed, (len, count, room, moves)) in (0..).zip(steps) {
            for _ in 0..count {
                if guest.in_flight(RX) < ENTRIES {
                    guest.lend(RX, room);
                }
            }
            guest.notify(RX);
            if moves {
                let (net, new) = spare(PROPERTIES);
                prop_assert!(guest.move_to(net).is_ok());
                fake = new;
            }
            let sent = frame(len, seed);
            fake.with(|world| world.incoming.push_back(sent.clone()));
            ready(&mut guest);
            let received = guest.received(RX);
            if let Some(first) = received.first() {
                let count = u16::from_le_bytes([first[10], first[11]]);
                prop_assert_eq!(received.concat(), in_buffers(sent, count));
                continue;
            }
            // It waits for buffers, or is lost. Nothing is to be on its way.
            let (net, new) = spare(PROPERTIES);
            prop_assert!(guest.move_to(net).is_ok());
            fake = new;
        }
        prop_assert_eq!(guest.status(), LIVE);
    }

    #[test]
    fn a_restored_device_behaves_as_the_first(
        before in acts(2, Just(frame(60, 1))), after in acts(2, Just(frame(60, 2))),
        flips in flips(),
    ) {
        goes_on(|| spare(PROPERTIES).0, LINUX, &before, &after, &flips);
    }

    /// A state with some bytes changed: the device is refused or goes on, whatever comes then.
    #[test]
    fn a_broken_state_harms_nobody(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        buffers in prop::collection::vec(12..3000u32, 0..30),
    ) {
        let (mut guest, _) = up(LINUX);
        for len in buffers {
            guest.lend(RX, len);
        }
        guest.notify(RX);
        let mut state = guest.transport.save().unwrap();
        for (at, flip) in flips {
            let at = at.index(state.len());
            state[at] ^= flip;
        }
        let (net, fake) = spare(PROPERTIES);
        let mut window = guest.window(net);
        if window.load(&state).is_ok() {
            guest.transport = window;
            fake.with(|world| world.incoming.extend((0..9).map(|n| frame(500, n))));
            for queue in [RX, TX] {
                guest.core().process(queue);
            }
            let ready = |net: &mut Net, driver: &mut Driver| net.ready(driver);
            guest.core().with_device(ready);
        }
    }
}
