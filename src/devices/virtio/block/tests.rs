use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use smallvec::smallvec;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::testing::{Guest, LIVE, NEEDS_RESET, reg};
use crate::memory::transfer::Segment;

const SECTORS: u64 = 64;

/// Keeps requests until the test takes them.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<(u64, Request)>>>);

impl Kept {
    fn take(&self) -> Vec<(u64, Request)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Backend<Request> for Kept {
    fn submit(&mut self, id: u64, request: Request) {
        self.0.lock().unwrap().push((id, request));
    }

    fn cancel(&mut self) {
        self.take();
    }
}

fn disk(read_only: bool) -> (Guest, Kept) {
    let kept = Kept::default();
    let geometry = Geometry {
        sectors: SECTORS,
        read_only,
        discard_unit: Some(8),
        name: "a-name-of-more-than-20-bytes".into(),
    };
    let mut guest = Guest::new(Block::new(geometry, Box::new(kept.clone())));
    guest.start(F_FLUSH, 16);
    (guest, kept)
}

/// Send a request with `data` behind its header and room for `room` bytes and a status; the
/// status's GPA.
fn send(guest: &mut Guest, kind: u32, sector: u64, data: &[u8], room: u32) -> u64 {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes.extend(data);
    let sent = guest.buffer(bytes.len() as u32);
    guest
        .memory
        .write_slice(&bytes, GuestAddress(sent))
        .unwrap();
    let back = guest.buffer(room + 1);
    let status = back + u64::from(room);
    guest
        .memory
        .write_obj(0xffu8, GuestAddress(status))
        .unwrap();
    let pieces = [(sent, bytes.len() as u32, false), (back, room + 1, true)];
    guest.offer(0, &pieces, false);
    guest.notify(0);
    status
}

fn status(guest: &Guest, at: u64) -> u8 {
    guest.memory.read_obj(GuestAddress(at)).unwrap()
}

fn complete(guest: &mut Guest, id: u64, served: Result<(), String>) {
    guest
        .core()
        .with_device(|block: &mut Block, driver| block.complete(driver, id, served));
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn a_read_is_answered_when_it_was_served() {
    let (mut guest, kept) = disk(false);
    let at = send(&mut guest, T_IN, 3, &[], 1024);
    let [(id, Request::Read { at: byte, to })] = &kept.take()[..] else {
        panic!("no read");
    };
    assert_eq!(*byte, 3 * SECTOR);
    assert_eq!(to.iter().map(|s| s.len).sum::<u32>(), 1024);
    assert_eq!(status(&guest, at), 0xff);
    assert!(guest.returned(0).is_empty());
    complete(&mut guest, *id, Ok(()));
    assert_eq!(status(&guest, at), S_OK);
    assert_eq!(guest.returned(0), [(0, 1025)]);
}

#[test]
fn a_failed_request_is_an_i_o_error_and_is_reported() {
    let (mut guest, kept) = disk(false);
    let at = send(&mut guest, T_OUT, 0, &[1; 512], 0);
    let [(id, Request::Write { stable: false, .. })] = kept.take()[..] else {
        panic!("no write");
    };
    complete(&mut guest, id, Err("no space".into()));
    assert_eq!(status(&guest, at), S_IOERR);
    assert_eq!(guest.status(), LIVE);
    // The second report of the same request finds nothing.
    guest.returned(0);
    complete(&mut guest, id, Ok(()));
    assert!(guest.returned(0).is_empty());
}

#[test]
fn invalid_requests_are_refused_one_by_one() {
    let cases: [(u32, u64, Vec<u8>, u32, u8); 15] = [
        (T_IN, SECTORS, vec![], 512, S_IOERR),
        (T_IN, SECTORS - 1, vec![], 1024, S_IOERR),
        (T_IN, u64::MAX, vec![], 512, S_IOERR),
        (T_IN, 0, vec![], 511, S_IOERR),
        (T_IN, 0, vec![], 0, S_IOERR),
        (T_OUT, 0, vec![], 0, S_IOERR),
        (T_OUT, SECTORS, vec![0; 512], 0, S_IOERR),
        (T_DISCARD, 0, vec![0; 15], 0, S_IOERR),
        (T_DISCARD, 0, range(0, 8, UNMAP), 0, S_UNSUPP),
        (T_DISCARD, 0, range(0, SECTORS as u32 + 1, 0), 0, S_IOERR),
        (T_WRITE_ZEROES, 0, range(0, 0, 0), 0, S_IOERR),
        (T_WRITE_ZEROES, 0, range(0, 8, 2), 0, S_UNSUPP),
        (T_WRITE_ZEROES, 0, range(u64::MAX, u32::MAX, 0), 0, S_IOERR),
        (T_WRITE_ZEROES, 0, range(0, 1, 0).repeat(17), 0, S_IOERR),
        (99, 0, vec![], 0, S_UNSUPP),
    ];
    let (mut guest, kept) = disk(false);
    for (kind, sector, data, room, expected) in cases {
        let at = send(&mut guest, kind, sector, &data, room);
        assert_eq!(status(&guest, at), expected, "{kind} {sector} {room}");
        assert!(kept.take().is_empty());
        guest.returned(0);
    }
    assert_eq!(guest.status(), LIVE);
}

#[test]
fn a_disk_that_is_read_only_takes_nothing() {
    let (mut guest, kept) = disk(true);
    let writes = [
        (T_OUT, vec![0; 512]),
        (T_DISCARD, range(0, 8, 0)),
        (T_WRITE_ZEROES, range(0, 8, 0)),
    ];
    for (kind, data) in writes {
        let at = send(&mut guest, kind, 0, &data, 0);
        assert_eq!(status(&guest, at), S_IOERR);
    }
    send(&mut guest, T_FLUSH, 0, &[], 0);
    assert!(matches!(kept.take()[..], [(_, Request::Flush)]));
}

#[test]
fn ranges_are_handed_on_as_bytes() {
    let (mut guest, kept) = disk(false);
    let one = range(8, 8, UNMAP);
    send(&mut guest, T_WRITE_ZEROES, 0, &one, 0);
    let [(_, Request::WriteZeroes { ranges, .. })] = &kept.take()[..] else {
        panic!("no zeroes");
    };
    let as_parts = |ranges: &[Range]| -> Vec<_> {
        let part = |range: &Range| (range.at, range.len, range.unmap);
        ranges.iter().map(part).collect()
    };
    assert_eq!(as_parts(ranges), [(4096, 4096, true)]);
    let two = [range(8, 8, 0), range(0, 1, 0)].concat();
    send(&mut guest, T_DISCARD, 0, &two, 0);
    let kept_discard = kept.take();
    let [(_, discard @ Request::Discard(ranges))] = &kept_discard[..] else {
        panic!("no discard");
    };
    // So that a rate limit counts it.
    assert_eq!(discard.bytes(), 4096 + 512);
    assert_eq!(as_parts(ranges), [(4096, 4096, false), (0, 512, false)]);
    // More than a driver is told that it may zero at once.
    let at = send(&mut guest, T_WRITE_ZEROES, 0, &two, 0);
    assert_eq!(status(&guest, at), S_IOERR);
    assert!(kept.take().is_empty());
}

#[test]
fn the_name_is_cut_at_20_bytes() {
    let (mut guest, _) = disk(false);
    send(&mut guest, T_GET_ID, 0, &[], 20);
    let [answer] = &guest.received(0)[..] else {
        panic!("no answer");
    };
    assert_eq!(answer, b"a-name-of-more-than-\0");
}

#[test]
fn a_driver_without_flushes_writes_through() {
    let (mut guest, kept) = disk(false);
    guest.write(reg::STATUS, 0);
    guest.start(0, 16);
    send(&mut guest, T_OUT, 0, &[0; 512], 0);
    assert!(matches!(
        kept.take()[..],
        [(_, Request::Write { stable: true, .. })]
    ));
}

#[test]
fn a_report_after_a_reset_changes_nothing() {
    let (mut guest, kept) = disk(false);
    send(&mut guest, T_IN, 0, &[], 512);
    let [(id, _)] = kept.take()[..] else {
        panic!("no read");
    };
    guest.write(reg::STATUS, 0);
    guest.start(F_FLUSH, 16);
    let before = guest.snapshot();
    complete(&mut guest, id, Ok(()));
    assert!(guest.snapshot() == before);
}

#[test]
fn a_chain_without_header_or_status_stops_the_device() {
    for pieces in [
        &[(0x7000, 15, false), (0x7100, 1, true)][..],
        &[(0x7000, 16, false)],
    ] {
        let (mut guest, kept) = disk(false);
        guest.offer(0, pieces, false);
        guest.notify(0);
        assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
        assert!(kept.take().is_empty());
    }
}

fn another(sectors: u64, read_only: bool) -> (Block, Kept) {
    let kept = Kept::default();
    let geometry = Geometry {
        sectors,
        read_only,
        discard_unit: Some(8),
        name: "another".into(),
    };
    (Block::new(geometry, Box::new(kept.clone())), kept)
}

#[test]
fn requests_that_were_not_reported_are_saved_and_served_again() {
    let (mut guest, kept) = disk(false);
    send(&mut guest, T_IN, 3, &[], 512);
    let (_, request) = kept.take().remove(0);
    let (other, others) = another(SECTORS, false);
    guest.move_to(other).unwrap();
    let [(id, again)] = &others.take()[..] else {
        panic!("not again");
    };
    assert_eq!(*again, request);
    complete(&mut guest, *id, Ok(()));
    // Also a request that came while the worker was paused.
    let at = send(&mut guest, T_OUT, 3, &[1; 512], 0);
    let [(id, Request::Write { stable: false, .. })] = others.take()[..] else {
        panic!("no write");
    };
    complete(&mut guest, id, Ok(()));
    assert_eq!(status(&guest, at), S_OK);
    assert_eq!(guest.returned(0).len(), 2);
    assert!(kept.take().is_empty());
}

#[test]
fn the_pieces_of_a_request_are_the_request() {
    let segment = |addr, len| Segment {
        addr: GuestAddress(addr),
        len,
    };
    let (at, to) = (2560, smallvec![segment(0, 1024), segment(8192, 4608)]);
    let mut rest = Request::Read { at, to };
    let pieces: Vec<_> = std::iter::from_fn(|| rest.split(4096)).collect();
    let to = smallvec![segment(0, 1024), segment(8192, 512)];
    assert_eq!(pieces, [Request::Read { at, to }]);
    let (at, to) = (4096, smallvec![segment(8704, 4096)]);
    assert_eq!(rest, Request::Read { at, to });
    let range = |at, len| Range {
        at,
        len,
        unmap: true,
    };
    let mut rest = Request::WriteZeroes {
        ranges: vec![range(0, 512), range(8192, 4608)],
        stable: true,
    };
    let zeroes = |range, stable| Request::WriteZeroes {
        ranges: vec![range],
        stable,
    };
    let pieces: Vec<_> = std::iter::from_fn(|| rest.split(4096)).collect();
    let expected = [(0, 512), (8192, 4096)].map(|(at, len)| zeroes(range(at, len), false));
    assert_eq!(pieces, expected);
    assert_eq!(rest, zeroes(range(12288, 512), true));
    assert_eq!(Request::Flush.split(4096), None);
}

#[test]
fn a_disk_of_another_size_or_kind_is_refused_with_both() {
    let (mut guest, _) = disk(false);
    let size = guest.move_to(another(SECTORS + 1, false).0).unwrap_err();
    for bytes in [SECTORS * 512, (SECTORS + 1) * 512] {
        assert!(size.to_string().contains(&bytes.to_string()), "{size}");
    }
    let (mut guest, _) = disk(true);
    let kind = guest.move_to(another(SECTORS, false).0).unwrap_err();
    assert!(kind.to_string().contains("read-only"), "{kind}");
    assert_eq!(guest.status(), LIVE, "it goes on as it was");
}

proptest! {
    /// Whatever a driver sends: what is handed on lies in the disk, and is answered.
    #[test]
    fn nothing_outside_of_the_disk_is_handed_on(
        requests in prop::collection::vec((
            prop_oneof![Just(T_IN), Just(T_OUT), Just(T_FLUSH), Just(T_GET_ID), Just(T_DISCARD),
                Just(T_WRITE_ZEROES), any::<u32>()],
            prop_oneof![0..SECTORS + 2, any::<u64>()],
            prop::collection::vec(any::<u8>(), 0..1100),
            0u32..1100,
        ), 1..30),
    ) {
        let (mut guest, kept) = disk(false);
        let size = SECTORS * SECTOR;
        for (kind, sector, data, room) in requests {
            let at = send(&mut guest, kind, sector, &data, room);
            for (id, request) in kept.take() {
                let len = |segments: &[Segment]| segments.iter().map(|s| u64::from(s.len)).sum();
                let ranges: Vec<(u64, u64)> = match request {
                    Request::Read { at, to } => vec![(at, len(&to))],
                    Request::Write { at, from, .. } => vec![(at, len(&from))],
                    Request::Flush => vec![],
                    Request::Discard(ranges) | Request::WriteZeroes { ranges, .. } => {
                        ranges.iter().map(|range| (range.at, range.len)).collect()
                    }
                };
                for (at, len) in ranges {
                    prop_assert!(len > 0 && at.checked_add(len).is_some_and(|end| end <= size));
                }
                complete(&mut guest, id, Ok(()));
            }
            prop_assert_ne!(status(&guest, at), 0xff);
            prop_assert_eq!(guest.returned(0).len(), 1);
        }
        prop_assert_eq!(guest.status(), LIVE);
    }

    /// Whatever is given as a state.
    #[test]
    fn no_state_panics(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let (mut guest, _) = disk(false);
        let loaded = guest.core().with_device(|block: &mut Block, driver| {
            Ok(block.load(&bytes, driver).is_ok())
        });
        prop_assert!(loaded.is_some());
        prop_assert_eq!(guest.status(), LIVE);
    }
}
