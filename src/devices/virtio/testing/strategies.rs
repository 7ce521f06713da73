//! What a property test has a guest write.

use proptest::prelude::*;

use super::*;

/// A descriptor of which something might be made, in a table of `entries`.
pub fn descriptor(entries: u16) -> impl Strategy<Value = Descriptor> {
    let edges = vec![LOW_END - 8, HIGH - 8, HIGH_END - 8, u64::MAX - 7];
    let addr = prop_oneof![
        12 => BUFFERS..LOW_END - 0x2000,
        2 => table(1)..table(2),
        2 => HIGH..HIGH_END,
        1 => prop::sample::select(edges),
        1 => any::<u64>(),
    ];
    let len = prop_oneof![
        12 => 0u32..0x2000,
        4 => (0u32..10).prop_map(|entries| 16 * entries),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![
        4 => Just(0),
        4 => Just(NEXT),
        2 => Just(WRITE),
        2 => Just(NEXT | WRITE),
        1 => Just(INDIRECT),
        1 => any::<u16>(),
    ];
    (addr, len, flags, 0..entries + 1).prop_map(|(addr, len, flags, next)| Descriptor {
        addr,
        len,
        flags,
        next,
    })
}
