use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;
use crate::devices::virtio::testing::{BUFFERS, Guest, LIVE, NEEDS_RESET, Piece, descriptor, reg};

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

const QUEUE: usize = 1;
const MESSAGE: Piece = (BUFFERS, 48, false);
const ROOM: Piece = (BUFFERS + 0x1000, 0x1000, true);

fn fs() -> (Guest, Kept) {
    let kept = Kept::default();
    let mut guest = Guest::new(Fs::new("src", Box::new(kept.clone())));
    guest.start(0, 16);
    (guest, kept)
}

fn complete(guest: &mut Guest, id: u64, served: Result<u32, String>) {
    let served = served.map(|written| Answer {
        written,
        warning: None,
        mounted: false,
    });
    guest
        .core()
        .with_device(|fs: &mut Fs, driver| fs.complete(driver, id, served));
}

#[test]
fn the_guest_reads_the_tag_and_one_queue() {
    let (mut guest, _) = fs();
    let words: Vec<u32> = (0..11)
        .map(|word| guest.read(reg::CONFIG + 4 * word))
        .collect();
    assert_eq!(words[0].to_le_bytes(), *b"src\0");
    assert_eq!(words[1..9], [0; 8]);
    assert_eq!(words[9..], [1, 0]);
    let mut guest = Guest::new(Fs::new(&"x".repeat(99), Box::new(Kept::default())));
    assert_eq!(guest.read(reg::CONFIG + 36), 1, "the tag is cut");
}

#[test]
fn requests_of_both_queues_are_answered_when_they_were_served() {
    let (mut guest, kept) = fs();
    guest.offer(QUEUE, &[MESSAGE, ROOM], false);
    guest.offer(0, &[(BUFFERS, 40, false)], false);
    guest.notify(QUEUE);
    guest.notify(0);
    let [(first, request), (second, forget)] = &kept.take()[..] else {
        panic!("two requests");
    };
    let segment = |(addr, len, _): Piece| Segment {
        addr: GuestAddress(addr),
        len,
    };
    assert_eq!(request.readable, [segment(MESSAGE)]);
    assert_eq!(request.writable, [segment(ROOM)]);
    assert!(forget.writable.is_empty());
    complete(&mut guest, *second, Ok(0));
    assert!(guest.returned(QUEUE).is_empty());
    assert_eq!(guest.returned(0), [(0, 0)]);
    // No more than there is room for is ever claimed.
    complete(&mut guest, *first, Ok(u32::MAX));
    assert_eq!(guest.returned(QUEUE), [(0, 0x1000)]);
    complete(&mut guest, *first, Ok(16));
    assert!(guest.returned(QUEUE).is_empty(), "once");
    assert_eq!(guest.status(), LIVE);
}

#[test]
fn a_report_after_a_reset_changes_nothing() {
    let (mut guest, kept) = fs();
    guest.offer(QUEUE, &[MESSAGE, ROOM], false);
    guest.notify(QUEUE);
    let [(id, _)] = kept.take()[..] else {
        panic!("no request");
    };
    guest.write(reg::STATUS, 0);
    guest.start(0, 16);
    let before = guest.snapshot();
    complete(&mut guest, id, Ok(16));
    assert!(guest.snapshot() == before);
}

#[test]
fn a_failed_server_stops_the_device_with_a_message() {
    let (mut guest, kept) = fs();
    guest.offer(QUEUE, &[MESSAGE, ROOM], false);
    guest.notify(QUEUE);
    let [(id, _)] = kept.take()[..] else {
        panic!("no request");
    };
    complete(&mut guest, id, Err("it failed".into()));
    assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
    assert!(guest.events.take()[0].contains("it failed"));
}

#[test]
fn an_invalid_chain_stops_the_device() {
    let long: Vec<Piece> = [(BUFFERS, 0xe000, false); 20].to_vec();
    let roomy = [&[MESSAGE][..], &[(BUFFERS, 0xe000, true); 20]].concat();
    for pieces in [
        &[(BUFFERS, 39, false), ROOM][..],
        &[ROOM],
        &[MESSAGE, (BUFFERS, 15, true)],
        &long,
        &roomy,
    ] {
        let (mut guest, kept) = fs();
        let indirect = pieces.len() > 16;
        if indirect {
            guest.write(reg::STATUS, 0);
            guest.start(crate::devices::virtio::F_INDIRECT_DESC, 32);
        }
        guest.offer(QUEUE, pieces, false);
        guest.notify(QUEUE);
        assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
        assert!(kept.take().is_empty());
    }
}

/// Have one request served, after which the file system is mounted, or not.
fn serve_one(guest: &mut Guest, kept: &Kept, mounted: bool) {
    guest.offer(QUEUE, &[MESSAGE, ROOM], false);
    guest.notify(QUEUE);
    let (id, _) = kept.take()[0];
    let answer = Answer {
        written: 16,
        warning: None,
        mounted,
    };
    guest
        .core()
        .with_device(|fs: &mut Fs, driver| fs.complete(driver, id, Ok(answer)));
    assert_eq!(guest.returned(QUEUE).len(), 1);
}

#[test]
fn a_mounted_file_system_is_not_saved() {
    let (mut guest, kept) = fs();
    serve_one(&mut guest, &kept, true);
    let new = |tag| Fs::new(tag, Box::new(Kept::default()));
    let refused = guest.move_to(new("src")).unwrap_err().to_string();
    assert!(refused.contains("mounted") && refused.contains("src"));
    serve_one(&mut guest, &kept, false);
    let refused = guest.move_to(new("other")).unwrap_err().to_string();
    assert!(refused.contains("other") && refused.contains("src"));

    guest.offer(QUEUE, &[MESSAGE, ROOM], false);
    guest.notify(QUEUE);
    let (id, _) = kept.take()[0];
    assert!(guest.move_to(new("src")).is_err(), "it is being served");
    complete(&mut guest, id, Ok(16));
    let kept = Kept::default();
    guest
        .move_to(Fs::new("src", Box::new(kept.clone())))
        .unwrap();
    guest.returned(QUEUE);
    serve_one(&mut guest, &kept, true);
    // A driver that goes leaves nothing behind.
    guest.write(reg::STATUS, 0);
    guest.start(0, 16);
    guest.move_to(new("src")).unwrap();
}

proptest! {
    /// Whatever stands in the table: what is handed on has a header, is bounded and lies in
    /// memory, and no more is handed on than was offered.
    #[test]
    fn only_whole_messages_are_handed_on(
        table in prop::collection::vec(descriptor(16), 16),
        heads in prop::collection::vec(0u16..18, 1..16),
        queue in 0usize..2,
    ) {
        let (mut guest, kept) = fs();
        for (index, descriptor) in (0..).zip(&table) {
            let memory = guest.memory.clone();
            descriptor.write(&memory, crate::devices::virtio::testing::table(queue), index);
        }
        for &head in &heads {
            guest.make_available(queue, head);
        }
        guest.notify(queue);
        let requests = kept.take();
        prop_assert!(requests.len() <= heads.len());
        for (id, request) in requests {
            let len = |segments: &[Segment]| -> u64 {
                segments.iter().map(|segment| u64::from(segment.len)).sum()
            };
            let (message, room) = (len(&request.readable), len(&request.writable));
            prop_assert!((IN_HEADER..=MAX_MESSAGE).contains(&message));
            prop_assert!(room == 0 || (OUT_HEADER..=MAX_MESSAGE).contains(&room));
            for segment in request.readable.iter().chain(&request.writable) {
                use vm_memory::GuestMemoryBackend;
                prop_assert!(guest.memory.check_range(segment.addr, segment.len as usize));
            }
            complete(&mut guest, id, Ok(16));
        }
    }
}
