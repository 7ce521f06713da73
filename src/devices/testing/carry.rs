//! A device that is saved in the middle of its work, and another that continues in its place.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::devices::bus::BusDevice;

/// An access: offset, bytes, and whether they are written.
pub type Access = (u64, Vec<u8>, bool);

/// Bits of a saved state to turn over.
pub type Flips = Vec<(Index, u8)>;

/// Accesses to a device of `len` bytes.
pub fn accesses(len: u64) -> impl Strategy<Value = Vec<Access>> {
    let bytes = prop_oneof![4 => vec(any::<u8>(), 1), 1 => vec(any::<u8>(), 0..9)];
    vec((0..len, bytes, any::<bool>()), 0..60)
}

/// What may have happened to a file.
pub fn flips() -> impl Strategy<Value = Flips> {
    vec((any::<Index>(), 0u8..8), 1..4)
}

/// `state` with bits turned over.
pub fn flip(mut state: Vec<u8>, flips: &Flips) -> Vec<u8> {
    for (index, bit) in flips {
        if !state.is_empty() {
            let at = index.index(state.len());
            state[at] ^= 1 << bit;
        }
    }
    state
}

/// After `before`, a new device that is given the state of `first` answers to `after` as `first`
/// does; one that is given a broken state refuses it, or takes any access.
pub fn goes_on<D: BusDevice>(
    mut first: D,
    new: impl Fn() -> D,
    before: &[Access],
    after: &[Access],
    flips: &Flips,
) {
    let access = |device: &mut D, (offset, data, write): &Access| {
        let mut data = data.clone();
        if *write {
            device.write(*offset, &data);
        } else {
            device.read(*offset, &mut data);
        }
        data
    };
    for one in before {
        access(&mut first, one);
    }
    let state = first.save().unwrap();
    let mut second = new();
    second.load(&state).unwrap();
    assert_eq!(second.save().unwrap(), state);
    for end in 0..state.len() {
        assert!(new().load(&state[..end]).is_err(), "cut off at {end}");
    }
    for one in after {
        assert_eq!(access(&mut first, one), access(&mut second, one), "{one:?}");
    }
    let mut third = new();
    if third.load(&flip(state, flips)).is_ok() {
        for one in after {
            access(&mut third, one);
        }
    }
}
