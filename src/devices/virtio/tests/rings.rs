//! Split rings (virtio 1.2, 2.7), whole and broken.

use proptest::prelude::*;

use super::super::testing::*;
use super::super::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use super::{Call, Probe, probe};
use crate::memory::GuestMemory;

const SIZE: u16 = 8;

fn live() -> (Guest, Probe) {
    let (mut guest, probe) = probe();
    guest.start(F_INDIRECT_DESC, SIZE);
    probe.take();
    (guest, probe)
}

#[test]
fn chains_arrive_whole_and_in_order() {
    let (mut guest, probe) = live();
    let chains: [&[Piece]; 4] = [
        &[(BUFFERS, 5, false), (BUFFERS + 0x100, 1, true)],
        &[(HIGH, 7, true)],
        &[(BUFFERS, LOW_END as u32 - BUFFERS as u32, false)],
        &[(HIGH_END - 3, 3, false), (1, 1, true), (2, 2, true)],
    ];
    for indirect in [false, true] {
        let heads: Vec<_> = chains
            .iter()
            .map(|pieces| u32::from(guest.offer(0, pieces, indirect)))
            .collect();
        guest.notify(0);
        assert_eq!(probe.chains(), chains);
        let written = [1, 7, 0, 3];
        let expected: Vec<_> = heads.into_iter().zip(written).collect();
        assert_eq!(guest.returned(0), expected);
    }
    assert_eq!(guest.events.take(), Vec::<String>::new());
    let [queue, _] = guest.core().counters().collect::<Vec<_>>()[..] else {
        panic!("two queues")
    };
    let bytes = 6 + 7 + (LOW_END - BUFFERS) + 6;
    assert_eq!((queue.requests, queue.bytes), (8, 2 * bytes));
    assert_eq!((queue.notifications, queue.interrupts), (2, 2));
}

#[test]
fn empty_descriptors_are_no_segments() {
    let (mut guest, probe) = live();
    guest.offer(0, &[(u64::MAX, 0, true), (BUFFERS, 4, false)], false);
    guest.offer(0, &[(0, 0, false)], false);
    guest.notify(0);
    assert_eq!(probe.chains(), [vec![(BUFFERS, 4, false)], vec![]]);
    assert_eq!(guest.returned(0).len(), 2);
}

#[test]
fn a_chain_may_end_in_an_indirect_table() {
    let (mut guest, probe) = live();
    let table = guest.buffer(32);
    for (index, write) in [(0, 0), (1, WRITE)] {
        Descriptor {
            addr: BUFFERS + 0x1000,
            len: 16,
            flags: if index == 0 { NEXT } else { 0 } | write,
            next: 1,
        }
        .write(&guest.memory, table, index);
    }
    guest.describe(0, 0, (BUFFERS, 8, NEXT, 5));
    // WRITE says nothing beside INDIRECT (virtio 1.2, 2.7.5.3.2).
    guest.describe(0, 5, (table, 32, INDIRECT | WRITE, 0));
    guest.make_available(0, 0);
    guest.notify(0);
    let pieces = vec![
        (BUFFERS, 8, false),
        (BUFFERS + 0x1000, 16, false),
        (BUFFERS + 0x1000, 16, true),
    ];
    assert_eq!(probe.chains(), [pieces]);
}

#[test]
fn rings_wrap_around_and_so_do_their_indices() {
    let (mut guest, probe) = probe();
    guest.start(0, 4);
    for turn in 0..30_000 {
        // More chains than an index of 16 bits counts.
        for _ in 0..turn % 4 + 2 {
            if guest.in_flight(0) < 4 {
                guest.offer(0, &[(BUFFERS + turn, 1, true)], false);
            }
        }
        let offered = usize::from(guest.in_flight(0));
        guest.notify(0);
        assert_eq!(guest.returned(0).len(), offered);
        assert_eq!(probe.chains(), vec![[(BUFFERS + turn, 1, true)]; offered]);
    }
    assert!(guest.peek(used(0) + 2) < 65_000, "the index wrapped");
    assert_eq!(guest.status(), LIVE);
}

/// How a driver breaks a queue of 8 entries.
type Break = fn(&mut Guest);

const BROKEN: &[(&str, Break)] = &[
    ("available index jumps", |guest| {
        guest.poke(avail(0) + 2, SIZE + 1);
    }),
    ("available index goes back", |guest| {
        guest.poke(avail(0) + 2, 0xffff);
    }),
    ("head out of the table", |guest| {
        guest.make_available(0, SIZE)
    }),
    ("head far out of the table", |guest| {
        guest.make_available(0, u16::MAX)
    }),
    ("next out of the table", |guest| {
        guest.describe(0, 0, (BUFFERS, 1, NEXT, SIZE));
        guest.make_available(0, 0);
    }),
    ("loop of one", |guest| {
        guest.describe(0, 0, (BUFFERS, 1, NEXT, 0));
        guest.make_available(0, 0);
    }),
    ("loop of empty ones", |guest| {
        guest.describe(0, 0, (0, 0, NEXT, 1));
        guest.describe(0, 1, (0, 0, NEXT, 0));
        guest.make_available(0, 0);
    }),
    ("address in the hole", |guest| {
        guest.offer(0, &[(LOW_END, 1, false)], false);
    }),
    ("runs into the hole", |guest| {
        guest.offer(0, &[(LOW_END - 1, 2, false)], false);
    }),
    ("spans the hole", |guest| {
        guest.offer(
            0,
            &[(LOW_END - 1, (HIGH - LOW_END) as u32 + 2, true)],
            false,
        );
    }),
    ("past the end", |guest| {
        guest.offer(0, &[(HIGH, u32::MAX, true)], false);
    }),
    ("wraps around", |guest| {
        guest.offer(0, &[(u64::MAX, 2, false)], false);
    }),
    ("ends at the last address", |guest| {
        guest.offer(0, &[(u64::MAX, 1, false)], false);
    }),
    ("adds up to more than 4 GiB", |guest| {
        guest.offer(0, &[(HIGH, 1, false), (HIGH, u32::MAX, false)], false);
    }),
    ("readable after writable", |guest| {
        guest.offer(0, &[(BUFFERS, 1, true), (BUFFERS, 1, false)], false);
    }),
    ("second descriptor bad", |guest| {
        guest.offer(0, &[(BUFFERS, 1, true), (LOW_END, 1, true)], false);
    }),
    ("empty table", |guest| {
        guest.describe(0, 0, (BUFFERS, 0, INDIRECT, 0));
        guest.make_available(0, 0);
    }),
    ("table of a descriptor and a half", |guest| {
        guest.describe(0, 0, (BUFFERS, 24, INDIRECT, 0));
        guest.make_available(0, 0);
    }),
    ("table in the hole", |guest| {
        guest.describe(0, 0, (LOW_END, 16, INDIRECT, 0));
        guest.make_available(0, 0);
    }),
    ("table wraps around", |guest| {
        guest.describe(0, 0, (u64::MAX - 7, 16, INDIRECT, 0));
        guest.make_available(0, 0);
    }),
    ("table of 65536", |guest| {
        guest.describe(0, 0, (0, 16 << 16, INDIRECT, 0));
        guest.make_available(0, 0);
    }),
    ("table in a table", |guest| {
        let head = guest.offer(0, &[(BUFFERS, 1, false)], true);
        let inner = Descriptor::read(&guest.memory, table(0), head.into()).unwrap();
        let outer = guest.buffer(16);
        inner.write(&guest.memory, outer, 0);
        guest.describe(0, head, (outer, 16, INDIRECT, 0));
    }),
    ("table in itself", |guest| {
        let at = guest.buffer(16);
        guest.describe(0, 0, (at, 16, INDIRECT, 0));
        let itself = Descriptor::read(&guest.memory, table(0), 0).unwrap();
        itself.write(&guest.memory, at, 0);
        guest.make_available(0, 0);
    }),
    ("longer in a table than the queue", |guest| {
        guest.offer(0, &[(BUFFERS, 1, false); SIZE as usize + 1], true);
    }),
    ("loop in a large table", |guest| {
        let at = guest.buffer(16);
        Descriptor {
            addr: BUFFERS,
            len: 1,
            flags: NEXT,
            next: 0,
        }
        .write(&guest.memory, at, 0);
        guest.describe(0, 0, (at, 16 * 1000, INDIRECT, 0));
        guest.make_available(0, 0);
    }),
];

#[test]
fn a_broken_ring_stops_the_device_until_reset() {
    for (name, break_it) in BROKEN {
        let (mut guest, probe) = live();
        // Chains before the broken one are handled.
        guest.lend(1, 3);
        guest.notify(1);
        assert_eq!(guest.received(1), [[0; 3]], "{name}");
        guest.write(reg::INTERRUPT_ACK, u32::MAX);
        guest.interrupt.take();
        probe.take();

        break_it(&mut guest);
        guest.notify(0);
        assert_eq!(guest.status(), LIVE | NEEDS_RESET, "{name}");
        assert_eq!(guest.read(reg::INTERRUPT_STATUS), 2, "{name}");
        assert_eq!(guest.interrupt.take(), 1, "{name}");
        assert_eq!(guest.returned(0), [], "{name}");
        assert_eq!(probe.take(), [Call::Process(0)], "{name}");
        let told = guest.events.take();
        assert_eq!(told.len(), 1, "{name}: {told:?}");
        assert!(told[0].contains("queue 0: "), "{name}: {told:?}");
        assert!(told[0].contains("until the driver resets"), "{name}");

        // It is not looked at again, not even at the other queue.
        guest.lend(1, 3);
        guest.notify(0);
        guest.notify(1);
        assert_eq!(probe.take(), [], "{name}");
        assert_eq!(guest.events.take(), Vec::<String>::new(), "{name}");

        guest.set_status(0);
        guest.start(0, SIZE);
        guest.lend(0, 3);
        guest.notify(0);
        assert_eq!(guest.returned(0).len(), 1, "{name}");
        assert_eq!(guest.status(), LIVE, "{name}");
    }
}

#[test]
fn chains_before_a_broken_one_are_given_back() {
    let (mut guest, probe) = live();
    guest.offer(0, &[(BUFFERS, 1, true)], false);
    guest.offer(0, &[(LOW_END, 1, true)], false);
    guest.offer(0, &[(BUFFERS, 1, true)], false);
    guest.notify(0);
    assert_eq!(probe.chains(), [[(BUFFERS, 1, true)]]);
    assert_eq!(guest.returned(0), [(0, 1)]);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 3);
    assert_eq!(guest.status(), LIVE | NEEDS_RESET);
}

#[test]
fn one_call_handles_no_more_chains_than_the_ring_has() {
    let (mut guest, probe) = live();
    // As another vCPU would while the device works: always one more.
    let memory = guest.memory.clone();
    let index = std::sync::atomic::AtomicU16::new(0);
    let feed = move || {
        use std::sync::atomic::Ordering;
        use vm_memory::{Bytes, GuestAddress};
        let next = index.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        memory.write_obj(next, GuestAddress(avail(0) + 2)).unwrap();
    };
    guest.describe(0, 0, (BUFFERS, 1, WRITE, 0));
    probe.0.lock().unwrap().before_pop = Some(Box::new(feed));
    guest.core().process(0);
    assert_eq!(probe.chains().len(), usize::from(SIZE));
    // It asks to be called again, since there is more.
    let asks: Vec<bool> = guest
        .core()
        .queue_events()
        .map(|event| event.lower())
        .collect();
    assert_eq!(asks, [true, false]);
    assert_eq!(guest.status(), LIVE);
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let (mut guest, _) = live();
    guest.poke(avail(0), 1);
    guest.lend(0, 1);
    guest.notify(0);
    assert_eq!(guest.returned(0).len(), 1);
    assert_eq!(guest.interrupt.take(), 0);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 0);
    guest.poke(avail(0), 0);
    guest.lend(0, 1);
    guest.notify(0);
    assert_eq!(guest.interrupt.take(), 1);
}

#[test]
fn a_driver_says_from_which_entry_on_it_wants_an_interrupt() {
    let (mut guest, _) = probe();
    guest.start(F_EVENT_IDX, SIZE);
    // NO_INTERRUPT means nothing now (virtio 1.2, 2.7.7.2).
    guest.poke(avail(0), 1);
    guest.set_used_event(0, 2);
    for (offers, interrupts) in [(1, 0), (1, 0), (1, 1), (1, 0), (4, 0)] {
        for _ in 0..offers {
            guest.lend(0, 1);
        }
        guest.notify(0);
        assert_eq!(guest.interrupt.take(), interrupts);
    }
    assert_eq!(guest.returned(0).len(), 8);
    // In the middle of a batch.
    guest.set_used_event(0, 10);
    for _ in 0..4 {
        guest.lend(0, 1);
    }
    guest.notify(0);
    assert_eq!(guest.interrupt.take(), 1);
}

#[test]
fn a_device_says_from_which_entry_on_it_wants_a_notification() {
    for event_idx in [false, true] {
        let (mut guest, _) = probe();
        guest.start(if event_idx { F_EVENT_IDX } else { 0 }, SIZE);
        for _ in 0..1000 {
            guest.lend(0, 1);
            // The device has seen all that there was, so it wants to hear of this.
            assert!(guest.kick(0, event_idx));
            guest.run();
            assert_eq!(guest.returned(0).len(), 1);
        }
    }
}

/// Follow a chain as virtio 1.2, 2.7.5 has it: its pieces, if it is whole.
fn follow(memory: &GuestMemory, head: u16) -> Option<Vec<Piece>> {
    let (mut at, mut entries, mut index) = (table(0), u64::from(SIZE), u64::from(head));
    let (mut pieces, mut count, mut total) = (Vec::new(), 0, 0u64);
    let mut direct = true;
    loop {
        let descriptor = (index < entries).then(|| Descriptor::read(memory, at, index))??;
        if descriptor.is(INDIRECT) {
            let len = u64::from(descriptor.len);
            if !direct || count == SIZE || len % 16 != 0 || len / 16 > 0xffff {
                return None;
            }
            (direct, at, entries, index) = (false, descriptor.addr, len / 16, 0);
            continue;
        }
        count += 1;
        total += u64::from(descriptor.len);
        let (start, len) = (descriptor.addr, u64::from(descriptor.len));
        let end = start.checked_add(len);
        let inside = |low, high| start >= low && end.is_some_and(|end| end <= high);
        let write = descriptor.is(WRITE);
        let late = !write && pieces.last().is_some_and(|piece: &Piece| piece.2);
        if count > SIZE || total > u32::MAX.into() {
            return None;
        }
        if len > 0 {
            if late || !(inside(0, LOW_END) || inside(HIGH, HIGH_END)) {
                return None;
            }
            pieces.push((start, descriptor.len, write));
        }
        if !descriptor.is(NEXT) {
            return Some(pieces);
        }
        index = descriptor.next.into();
    }
}

/// Tables that indirect descriptors can mean, so that some of them do.
const TABLES: u64 = BUFFERS + 0x4000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_chain_is_taken_if_it_is_whole_and_else_stops_the_device(
        descriptors in prop::collection::vec(descriptor(SIZE), SIZE as usize),
        tables in prop::collection::vec(descriptor(SIZE), 16),
        indirect in prop::collection::vec((0u16..SIZE, 0u64..16, 1u32..9), 0..4),
        heads in prop::collection::vec(prop_oneof![20 => 0u16..SIZE, 1 => any::<u16>()], 8),
        index in prop_oneof![10 => 0u16..SIZE + 1, 1 => any::<u16>()],
    ) {
        let (mut guest, probe) = live();
        for (at, descriptors) in [(table(0), &descriptors), (TABLES, &tables)] {
            for (i, descriptor) in (0..).zip(descriptors) {
                descriptor.write(&guest.memory, at, i);
            }
        }
        for &(i, first, entries) in &indirect {
            guest.describe(0, i, (TABLES + 16 * first, 16 * entries, INDIRECT, 0));
        }
        for (slot, &head) in (0..).zip(&heads) {
            guest.poke(avail(0) + 4 + 2 * slot, head);
        }
        guest.poke(avail(0) + 2, index);

        let offered = if index <= SIZE { index } else { 0 };
        let chains: Vec<Option<Vec<Piece>>> = heads
            .iter()
            .take(offered.into())
            .map(|&head| follow(&guest.memory, head))
            .collect();
        let whole: Vec<Vec<Piece>> = chains.iter().cloned().map_while(|chain| chain).collect();
        let broken = index > SIZE || whole.len() < chains.len();

        let before = guest.snapshot();
        for &head in &heads {
            let reclaimed = guest.core().with_device(|_: &mut Probe, driver| {
                let queue = driver.queue(0).expect("up");
                Ok(queue.reclaim(head).ok().map(|chain| (chain.head(), super::pieces(&chain))))
            });
            let expected = follow(&guest.memory, head).map(|pieces| (head, pieces));
            prop_assert_eq!(reclaimed.flatten(), expected);
        }
        guest.notify(0);
        prop_assert_eq!(guest.status() & NEEDS_RESET != 0, broken);
        prop_assert_eq!(guest.events.take().len(), usize::from(broken));
        let taken: Vec<u16> = guest.returned(0).iter().map(|entry| entry.0 as u16).collect();
        prop_assert_eq!(&taken[..], &heads[..whole.len()]);
        prop_assert_eq!(probe.chains(), whole);

        // The device wrote nothing but its ring.
        let ring = used(0) as usize..used(0) as usize + 4 + 8 * usize::from(SIZE) + 2;
        for ((start, before), (_, after)) in before.into_iter().zip(guest.snapshot()) {
            for (i, (before, after)) in before.into_iter().zip(after).enumerate() {
                prop_assert!(before == after || start == 0 && ring.contains(&i), "{:#x}", i);
            }
        }
    }

    #[test]
    fn all_chains_arrive_though_the_driver_notifies_only_when_told_to(
        batches in prop::collection::vec((1u16..=SIZE, any::<bool>()), 1..50),
        event_idx in any::<bool>(),
    ) {
        let (mut guest, probe) = probe();
        guest.start(if event_idx { F_EVENT_IDX } else { 0 } | F_VERSION_1, SIZE);
        probe.take();
        let mut offered = 0;
        for (count, rest) in batches {
            for _ in 0..count.min(SIZE - guest.in_flight(0)) {
                guest.lend(0, 1);
                offered += 1;
            }
            guest.kick(0, event_idx);
            if rest {
                guest.run();
                guest.returned(0);
            }
        }
        guest.run();
        prop_assert_eq!(probe.chains().len(), offered);
    }
}
