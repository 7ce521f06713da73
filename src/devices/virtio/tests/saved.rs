//! Windows that are saved and restored, and windows without a device.

use super::super::mmio::Absent;
use super::super::testing::*;
use super::super::{F_INDIRECT_DESC, F_VERSION_1};
use super::{F_SOME, Probe, probe};
use crate::devices::bus::BusDevice;
use crate::devices::state::StateError;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::transport::Transport;

/// A live device with one chain given back and one that waits, the notification of which is lost.
fn saved() -> (Guest, Vec<u8>) {
    let (mut guest, _) = probe();
    guest.start(F_SOME | F_INDIRECT_DESC, 8);
    guest.lend(0, 3);
    guest.notify(0);
    guest.lend(0, 5);
    let state = guest.transport.save().unwrap();
    (guest, state)
}

#[test]
fn a_restored_window_loses_nothing() {
    let (first, state) = saved();
    let other = Probe::default();
    other.0.lock().unwrap().active = true;
    let mut guest = first.carried_over(other.clone(), &state).unwrap();
    assert_eq!(guest.interrupt.take(), 1, "not yet acknowledged");
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 1);
    assert_eq!(guest.status(), LIVE);
    guest.run();
    assert_eq!(other.chains(), [[(BUFFERS + 3, 5, true)]]);
    assert_eq!(guest.returned(0), [(0, 3), (1, 5)]);
    assert_eq!(
        guest.transport.save().map(|state| state.is_empty()),
        Ok(false)
    );
}

#[test]
fn a_restored_window_without_a_driver_is_as_it_was() {
    let (mut guest, _) = probe();
    guest.negotiate(F_SOME);
    guest.write(reg::QUEUE_SEL, 1);
    guest.write(reg::QUEUE_NUM, 16);
    let state = guest.transport.save().unwrap();
    let (_, probe) = probe();
    let mut guest = guest.carried_over(probe.clone(), &state).unwrap();
    assert!(guest.set_up(0, 8) && guest.set_up(1, 16));
    assert_eq!(guest.set_status(LIVE), LIVE);
    assert!(probe.is_active());
    assert_eq!(guest.interrupt.take(), 0);
}

#[test]
fn the_state_of_another_device_is_refused_with_a_reason() {
    let (guest, state) = saved();
    let why = |loaded: Result<Guest, StateError>| loaded.err().expect("refused").to_string();
    let rng = || Rng::new(Box::new(|_| true), Box::new(|| std::time::Duration::ZERO));
    let told = why(guest.carried_over(rng(), &state));
    assert!(
        told.contains("type 4") && told.contains("type 42"),
        "{told}"
    );

    let (mut guest, _) = probe();
    guest.start(0, 8);
    let state = guest.transport.save().unwrap();
    // VIRTIO_F_VERSION_1 | VIRTIO_F_ANY_LAYOUT, say, as a postcard varint.
    let accepted = postcard::to_allocvec(&F_VERSION_1).unwrap();
    let at = state
        .windows(accepted.len())
        .position(|bytes| bytes == accepted);
    let mut other = state.clone();
    let at = at.expect("features");
    other[at] |= 1 << 5;
    let told = why(guest.carried_over(Probe::default(), &other));
    assert!(
        told.contains("does not offer features that the guest uses (0x20"),
        "{told}"
    );
}

#[test]
fn a_hidden_window_is_an_empty_one_until_it_is_revealed() {
    let (mut guest, probe) = probe();
    guest.transport.hide();
    for offset in 0..0x200 {
        for len in [1, 2, 4, 8] {
            let (mut hidden, mut empty) = (vec![0xff; len], vec![0xff; len]);
            guest.transport.read(offset, &mut hidden);
            Absent.read(offset, &mut empty);
            assert_eq!(hidden, empty, "{offset:#x}");
            guest.transport.write(offset, &hidden);
            Absent.write(offset, &empty);
        }
    }
    assert_eq!(guest.read(reg::MAGIC), u32::from_le_bytes(*b"virt"));
    assert_eq!(
        (guest.read(reg::VERSION), guest.read(reg::DEVICE_ID)),
        (2, 0)
    );
    guest.write(reg::STATUS, ACKNOWLEDGE);
    assert_eq!(guest.status(), 0);
    assert!(probe.take().is_empty());
    assert!(guest.events.take().is_empty());

    assert_eq!(guest.transport.save(), Ok(vec![]));
    assert_eq!(guest.transport.load(&[]), Ok(()));
    let (_, state) = saved();
    assert!(guest.transport.load(&state).is_err());

    guest.read_all();
    guest.transport.reveal();
    assert_eq!(guest.read(reg::DEVICE_ID), 42);
    guest.start(0, 8);
    assert!(guest.transport.load(&[]).is_err());
}
