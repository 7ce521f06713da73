use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::Bytes;

use super::*;
use crate::devices::bus::BusDevice;
use crate::devices::testing::flips;
use crate::devices::virtio::testing::carry::{acts, goes_on};
use crate::devices::virtio::testing::{Guest, HIGH_END, LIVE, NEEDS_RESET, reg};

type Released = Arc<Mutex<Vec<(u64, u64)>>>;

fn up(target: u64) -> (Guest, Released) {
    let released = Released::default();
    let seen = released.clone();
    let release = move |start: GuestAddress, bytes| seen.lock().unwrap().push((start.0, bytes));
    let balloon = Balloon::new(target, Some(Duration::from_secs(1)), Box::new(release));
    let mut guest = Guest::new(balloon);
    guest.start(F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_REPORTING, 16);
    (guest, released)
}

/// Offer `bytes` on `queue`.
fn send(guest: &mut Guest, queue: usize, bytes: &[u8]) {
    let at = guest.buffer(bytes.len() as u32);
    guest.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    guest.offer(queue, &[(at, bytes.len() as u32, false)], false);
    guest.notify(queue);
}

fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

fn state(guest: &mut Guest) -> State {
    let state = guest
        .core()
        .with_device(|balloon: &mut Balloon, _| Ok(balloon.state().clone()));
    state.unwrap()
}

#[test]
fn neighbours_are_given_back_together() {
    let (mut guest, released) = up(0);
    send(&mut guest, INFLATE, &numbers(&[5, 6, 7, 20, 19, 18, 3, 5]));
    let expected = [(5, 3), (18, 3), (3, 1), (5, 1)].map(|(page, n)| (page * PAGE, n * PAGE));
    assert_eq!(*released.lock().unwrap(), expected);
    assert_eq!(guest.returned(INFLATE), [(0, 0)]);
    send(&mut guest, DEFLATE, &numbers(&[5, 6]));
    assert_eq!(guest.returned(DEFLATE).len(), 1);
    assert_eq!(released.lock().unwrap().len(), expected.len());
    assert_eq!(state(&mut guest).released_bytes, 8 * PAGE);
}

#[test]
fn the_target_can_be_read_and_what_was_reached_is_written() {
    let (mut guest, _) = up(64 << 20);
    let mut word = [0; 4];
    guest.transport.read(reg::CONFIG, &mut word);
    assert_eq!(u32::from_le_bytes(word), 16384);
    guest
        .transport
        .write(reg::CONFIG + ACTUAL, &1000u32.to_le_bytes());
    // Not what may be written.
    guest.transport.write(reg::CONFIG, &1u32.to_le_bytes());
    guest.transport.write(reg::CONFIG + ACTUAL, &[1]);
    guest.transport.write(reg::CONFIG + 8, &[1; 8]);
    let state = state(&mut guest);
    assert_eq!(
        (state.target_bytes, state.actual_bytes),
        (64 << 20, 1000 * PAGE)
    );
}

#[test]
fn statistics_are_kept_by_name_and_asked_for_again() {
    let (mut guest, _) = up(0);
    let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    let told = [entry(4, 1 << 40), entry(99, 7), entry(3, 5), entry(4, 1)];
    let bytes = [told.concat(), vec![1; 9]].concat();
    send(&mut guest, STATISTICS, &bytes);
    let expected = [("free_bytes", 1 << 40), ("minor_faults", 5)];
    assert_eq!(state(&mut guest).statistics, expected);
    assert!(guest.returned(STATISTICS).is_empty());
    guest.core().alarm();
    assert_eq!(guest.returned(STATISTICS), [(0, 0)]);
    guest.core().alarm();
    assert!(guest.returned(STATISTICS).is_empty());
    send(&mut guest, STATISTICS, &entry(0, 1));
    assert_eq!(state(&mut guest).statistics, [("swap_in_bytes", 1)]);
    assert_eq!(guest.status(), LIVE);
    send(&mut guest, STATISTICS, &entry(0, 1));
    assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn free_pages_are_given_back_where_they_lie() {
    let (mut guest, released) = up(0);
    let at = guest.buffer(8192);
    guest.offer(3, &[(at, 8192, true)], false);
    guest.notify(3);
    assert_eq!(*released.lock().unwrap(), [(at, 8192)]);
    assert_eq!(guest.returned(3), [(0, 0)]);
}

#[test]
fn a_guest_that_sends_too_much_is_stopped() {
    let (mut guest, released) = up(0);
    send(&mut guest, INFLATE, &vec![0; 4 * MAX_PAGES as usize + 4]);
    assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
    assert!(released.lock().unwrap().is_empty());
}

#[test]
fn a_restored_balloon_uses_the_buffer_that_it_holds() {
    let (mut guest, _) = up(1 << 20);
    send(&mut guest, STATISTICS, &[3, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    guest
        .transport
        .write(reg::CONFIG + ACTUAL, &7u32.to_le_bytes());
    let saved = guest.transport.save().unwrap();
    let period = Some(Duration::from_secs(1));
    let other = Balloon::new(2 << 20, period, Box::new(|_, _| {}));
    guest.interrupt.take();
    let mut guest = guest.carried_over(other, &saved).unwrap();
    // What this run asks for is something else.
    assert_ne!(guest.interrupt.take(), 0);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS) & 2, 2);
    assert_eq!(guest.read(reg::CONFIG), 512);
    assert_eq!(state(&mut guest).statistics, [("minor_faults", 5)]);
    assert_eq!(state(&mut guest).actual_bytes, 7 * PAGE);
    guest.run();
    guest.core().alarm();
    assert_eq!(guest.returned(STATISTICS), [(0, 0)]);
    send(&mut guest, STATISTICS, &[3, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(state(&mut guest).statistics, [("minor_faults", 6)]);
    assert_eq!(guest.status(), LIVE);
}

proptest! {
    #[test]
    fn a_restored_device_behaves_as_the_first(
        before in acts(4, prop::collection::vec(any::<u8>(), 10)),
        after in acts(4, prop::collection::vec(any::<u8>(), 10)),
        flips in flips(),
    ) {
        let new = || Balloon::new(1 << 20, None, Box::new(|_, _| {}));
        let features = F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_REPORTING;
        goes_on(new, features, &before, &after, &flips);
    }

    #[test]
    fn only_memory_that_the_guest_names_is_released(
        queue in 0usize..4,
        chains in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 1..600), any::<bool>()), 1..6),
    ) {
        let (mut guest, released) = up(0);
        let mut room = 0;
        for (bytes, writable) in chains {
            let at = guest.buffer(bytes.len() as u32);
            guest.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
            guest.offer(queue, &[(at, bytes.len() as u32, writable)], false);
            guest.notify(queue);
            room += bytes.len() as u64;
        }
        guest.core().alarm();
        let released = released.lock().unwrap();
        let total: u64 = released.iter().map(|(_, bytes)| bytes).sum();
        match queue {
            INFLATE => prop_assert!(total <= room / 4 * PAGE),
            3 => prop_assert!(released.iter().all(|(at, bytes)| at + bytes <= HIGH_END)),
            _ => prop_assert_eq!(total, 0),
        }
    }
}
