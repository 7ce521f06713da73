use proptest::prelude::*;
use vm_memory::Bytes;

use super::super::backing;
use super::super::layout::{MMIO_HOLE, MMIO_HOLE_END};
use super::*;

/// Pages of the model.
const COUNT: u64 = 200;

fn pages(set: &[bool]) -> Pages {
    let indexes = (0u64..).zip(set).filter(|(_, there)| **there);
    Pages::from_ranges(indexes.map(|(n, _)| n * PAGE + 1..(n + 1) * PAGE - 1))
}

fn set(pages: &Pages) -> Vec<bool> {
    let has = |n: u64| {
        pages
            .ranges()
            .iter()
            .any(|range| range.contains(&(n * PAGE)))
    };
    (0..COUNT).map(has).collect()
}

fn is_canonical(pages: &Pages) -> bool {
    let ranges = pages.ranges();
    let whole =
        |range: &Range<u64>| range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE);
    ranges
        .iter()
        .all(|range| range.start < range.end && whole(range))
        && ranges.windows(2).all(|two| two[0].end < two[1].start)
}

proptest! {
    #[test]
    fn union_and_difference_of_pages_are_those_of_sets(
        a in prop::collection::vec(any::<bool>(), COUNT as usize),
        b in prop::collection::vec(any::<bool>(), COUNT as usize),
    ) {
        let (one, other) = (pages(&a), pages(&b));
        prop_assert_eq!(set(&one), a.clone());
        let both = one.union(&other);
        let less = one.minus(&other);
        prop_assert!([&one, &both, &less].into_iter().all(is_canonical));
        let expected: Vec<bool> = a.iter().zip(&b).map(|(a, b)| a | b).collect();
        prop_assert_eq!(set(&both), expected);
        let expected: Vec<bool> = a.iter().zip(&b).map(|(a, b)| a & !b).collect();
        prop_assert_eq!(set(&less), expected);
        let count = a.iter().filter(|there| **there).count() as u64;
        prop_assert_eq!(one.bytes(), count * PAGE);
    }
}

#[test]
fn written_pages_are_touched_in_both_regions() {
    let memory = backing::allocate(MMIO_HOLE + 0x40_0000).expect("memory");
    let pagemap = File::open("/proc/self/pagemap").ok();
    assert!(Pages::touched(&memory, pagemap.as_ref()).is_empty());
    let high = GuestAddress(MMIO_HOLE_END + 0x10_0000);
    for gpa in [GuestAddress(0x5008), GuestAddress(0x4fff), high] {
        memory.write_obj(1u8, gpa).expect("written");
    }
    let touched = Pages::touched(&memory, pagemap.as_ref());
    let high = MMIO_HOLE + 0x10_0000;
    // A host that gives out huge pages makes more of it.
    for page in [0x4000..0x6000, high..high + 0x1000] {
        let wanted = Pages::from_ranges([page]);
        assert!(wanted.minus(&touched).is_empty(), "{touched:x?}");
    }
    assert!(touched.bytes() <= 4 << 20, "{touched:x?}");
    let all = Pages::touched(&memory, None);
    assert_eq!(all, Pages::all(&memory));
    assert_eq!(all.bytes(), MMIO_HOLE + 0x40_0000);
    let across = MMIO_HOLE - 0x1000..MMIO_HOLE + 0x2000;
    let parts: Vec<_> = at_offsets(&memory, &across).collect();
    let low = GuestAddress(MMIO_HOLE - 0x1000);
    assert_eq!(
        parts,
        [(low, 0x1000), (GuestAddress(MMIO_HOLE_END), 0x2000)]
    );
}

#[test]
fn bitmaps_name_pages_of_their_regions() {
    let memory = backing::allocate(MMIO_HOLE + 0x40_0000).expect("memory");
    let mut low = vec![0; 2];
    low[0] = 0b110 | 1 << 63;
    low[1] = 1;
    let pages = Pages::from_bitmaps(&memory, &[low, vec![1]]);
    let high = MMIO_HOLE..MMIO_HOLE + 0x1000;
    assert_eq!(pages.ranges(), [0x1000..0x3000, 0x3_f000..0x4_1000, high]);
}
