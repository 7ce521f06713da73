//! The console as Linux's driver meets it, and as one that means ill.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::super::testing::carry::{acts, goes_on};
use super::super::testing::*;
use super::super::{Driver, F_EVENT_IDX, F_INDIRECT_DESC};
use super::control::{Control, Event};
use super::port::OUTPUT_PER_CALL;
use super::{Console, F_MULTIPORT, F_SIZE, PortSink};
use crate::devices::bus::BusDevice;
use crate::devices::testing::flips;

const RX: usize = 2;
const TX: usize = 3;
/// Entries of a queue.
const ENTRIES: u16 = 64;
/// Ring features that Linux accepts.
const RING: u64 = F_EVENT_IDX | F_INDIRECT_DESC;

/// The host's end of a port.
struct Far {
    bytes: Vec<u8>,
    /// Bytes it takes before it has had enough.
    room: usize,
    /// Times that it was told of room for input.
    input_room: usize,
    open: bool,
    /// All changes of `open`.
    changes: Vec<bool>,
}

#[derive(Clone)]
struct Sink(Arc<Mutex<Far>>);

impl Sink {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Far {
            bytes: Vec::new(),
            room: usize::MAX,
            input_room: 0,
            open: false,
            changes: Vec::new(),
        })))
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap().bytes)
    }

    fn set_room(&self, room: usize) {
        self.0.lock().unwrap().room = room;
    }

    /// Times that it was told of room for input since the last call.
    fn input_room(&self) -> usize {
        std::mem::take(&mut self.0.lock().unwrap().input_room)
    }

    fn changes(&self) -> Vec<bool> {
        std::mem::take(&mut self.0.lock().unwrap().changes)
    }
}

impl PortSink for Sink {
    fn write(&mut self, bytes: &[u8]) -> usize {
        assert!(!bytes.is_empty());
        let mut far = self.0.lock().unwrap();
        let taken = bytes.len().min(far.room);
        far.room -= taken;
        far.bytes.extend(&bytes[..taken]);
        taken
    }

    fn input_room(&mut self) {
        self.0.lock().unwrap().input_room += 1;
    }

    fn guest_open(&mut self, open: bool) {
        let mut far = self.0.lock().unwrap();
        assert_ne!(far.open, open, "told what it knows");
        far.open = open;
        far.changes.push(open);
    }
}

/// A guest with a console of two ports, the second called "agent".
fn guest() -> (Guest, [Sink; 2]) {
    let sinks = [Sink::new(), Sink::new()];
    let console =
        Console::new(Box::new(sinks[0].clone())).with_port("agent", Box::new(sinks[1].clone()));
    (Guest::new(console), sinks)
}

fn tell(guest: &mut Guest, port: u32, event: u16, value: u16) {
    let message = Control { port, event, value }.encode();
    guest.send(TX, &message, &[], false);
    guest.notify(TX);
    assert_eq!(guest.returned(TX).len(), 1);
}

/// Port, event, value, what follows.
type Message = (u32, u16, u16, Vec<u8>);
const SILENCE: [Message; 0] = [];

/// Messages of the device since the last call, for whose buffers it gets others.
fn told(guest: &mut Guest) -> Vec<Message> {
    let messages = guest.received(RX);
    for _ in &messages {
        guest.lend(RX, 4096);
    }
    let message = |bytes: Vec<u8>| {
        let head = Control::decode(bytes[..Control::SIZE].try_into().unwrap());
        let rest = bytes[Control::SIZE..].to_vec();
        (head.port, head.event, head.value, rest)
    };
    messages.into_iter().map(message).collect()
}

/// All of the handshake, port 1 opened.
fn up(features: u64) -> (Guest, [Sink; 2]) {
    let (mut guest, sinks) = guest();
    guest.start(features | F_SIZE | F_MULTIPORT, ENTRIES);
    for _ in 0..8 {
        guest.lend(RX, 4096);
    }
    tell(&mut guest, u32::MAX, Event::DeviceReady.code(), 1);
    for port in 0..2 {
        tell(&mut guest, port, Event::PortReady.code(), 1);
        tell(&mut guest, port, Event::PortOpen.code(), 1);
    }
    assert_eq!(told(&mut guest).len(), 2 + 3 + 2);
    sinks
        .iter()
        .for_each(|sink| assert_eq!(sink.changes(), [true]));
    (guest, sinks)
}

fn input(guest: &mut Guest, port: usize, bytes: &[u8]) -> usize {
    let give = |console: &mut Console, driver: &mut Driver| console.input(driver, port, bytes);
    guest.core().with_device(give).unwrap()
}

fn resize(guest: &mut Guest, rows: u16, cols: u16) {
    let resize = |console: &mut Console, driver: &mut Driver| console.resize(driver, rows, cols);
    guest.core().with_device(resize).unwrap();
}

/// Queues of port 0 and port 1.
const INPUT: [usize; 2] = [0, 4];
const OUTPUT: [usize; 2] = [1, 5];

#[test]
fn queues_are_numbered_as_in_the_standard() {
    // virtio 1.2, 5.3.2.
    for (port, input) in [(0, 0), (1, 4), (2, 6), (3, 8)] {
        assert_eq!(Console::input_queue(port), input);
        assert_eq!(Console::output_queue(port), input + 1);
        assert_eq!(Console::port_of(input), port);
        assert_eq!(Console::port_of(input + 1), port);
    }
    let (mut guest, _) = guest();
    for (queue, size) in [(0, 64), (5, 64), (6, 0)] {
        guest.write(reg::QUEUE_SEL, queue);
        assert_eq!(guest.read(reg::QUEUE_NUM_MAX), size);
    }
    assert_eq!(guest.read(reg::DEVICE_ID), 3);
}

#[test]
fn a_driver_learns_of_the_ports_when_it_asks() {
    let (mut guest, sinks) = guest();
    resize(&mut guest, 25, 80);
    guest.start(RING | F_SIZE | F_MULTIPORT, ENTRIES);
    for _ in 0..4 {
        guest.lend(RX, 4096);
    }
    guest.notify(RX);
    assert_eq!(told(&mut guest), SILENCE);

    tell(&mut guest, u32::MAX, 0, 1); // DEVICE_READY
    assert_eq!(told(&mut guest), [(0, 1, 1, vec![]), (1, 1, 1, vec![])]); // DEVICE_ADD
    tell(&mut guest, 0, 3, 1); // PORT_READY
    let messages = [
        (0, 4, 1, vec![]),             // CONSOLE_PORT
        (0, 5, 1, vec![80, 0, 25, 0]), // RESIZE: cols, rows
        (0, 6, 1, vec![]),             // PORT_OPEN
    ];
    assert_eq!(told(&mut guest), messages);
    tell(&mut guest, 1, 3, 1);
    let messages = [(1, 7, 1, b"agent".to_vec()), (1, 6, 1, vec![])]; // PORT_NAME
    assert_eq!(told(&mut guest), messages);

    assert!(sinks[0].changes().is_empty());
    tell(&mut guest, 0, 6, 1);
    assert_eq!(sinks[0].changes(), [true]);
    tell(&mut guest, 1, 6, 1);
    tell(&mut guest, 1, 6, 1);
    tell(&mut guest, 1, 6, 0);
    assert_eq!(sinks[1].changes(), [true, false]);
    assert_eq!(told(&mut guest), SILENCE);
    assert_eq!(guest.events.take(), Vec::<String>::new());

    let open =
        |console: &mut Console, _: &mut Driver| Ok([0, 1, 2].map(|port| console.guest_open(port)));
    assert_eq!(guest.core().with_device(open), Some([true, false, false]));
}

#[test]
fn messages_wait_for_buffers() {
    let (mut guest, _) = guest();
    guest.start(F_MULTIPORT, ENTRIES);
    tell(&mut guest, 0, Event::DeviceReady.code(), 1);
    tell(&mut guest, 0, Event::DeviceReady.code(), 1);
    tell(&mut guest, 1, Event::PortReady.code(), 1);
    let mut codes = Vec::new();
    for _ in 0..6 {
        guest.lend(RX, 16);
        guest.notify(RX);
        codes.extend(
            told(&mut guest)
                .into_iter()
                .map(|message| (message.0, message.1)),
        );
    }
    // Asked twice, owed once.
    assert_eq!(codes, [(0, 1), (1, 1), (1, 7), (1, 6)]);

    // A port that has gone is owed nothing.
    let (mut guest, _) = self::guest();
    guest.start(F_MULTIPORT, ENTRIES);
    tell(&mut guest, 1, Event::PortReady.code(), 1);
    tell(&mut guest, 1, Event::PortReady.code(), 0);
    guest.lend(RX, 16);
    guest.notify(RX);
    assert_eq!(told(&mut guest), SILENCE);
}

#[test]
fn a_port_that_the_driver_could_not_add_is_left_alone() {
    let (mut guest, sinks) = up(0);
    tell(&mut guest, 0, Event::PortReady.code(), 0);
    assert_eq!(sinks[0].changes(), [false]);
    resize(&mut guest, 3, 4);
    assert_eq!(told(&mut guest), SILENCE);
    tell(&mut guest, 0, Event::DeviceReady.code(), 0);
    tell(&mut guest, 17, Event::PortReady.code(), 0);
    assert_eq!(told(&mut guest), SILENCE);
    assert_eq!(guest.events.take(), Vec::<String>::new());
}

#[test]
fn unknown_messages_are_ignored() {
    let (mut guest, sinks) = up(0);
    tell(&mut guest, 2, Event::PortReady.code(), 1);
    tell(&mut guest, u32::MAX, Event::PortOpen.code(), 1);
    // Only a device sends these, and no side sends the last one.
    for event in [1, 2, 4, 5, 7, 8, u16::MAX] {
        tell(&mut guest, 0, event, 1);
    }
    guest.send(TX, &[0; 7], &[], false);
    guest.send(TX, &[], &[], false);
    guest.notify(TX);
    assert_eq!(guest.returned(TX).len(), 2);
    // The last two are called the same.
    assert_eq!(guest.events.take().len(), 2 + 7 + 1);
    assert_eq!(guest.status(), LIVE);
    assert_eq!(told(&mut guest), SILENCE);
    assert!(sinks[0].changes().is_empty());

    // Scattered and followed by more than a message, it is one all the same.
    let mut message = Control {
        port: 1,
        event: 6,
        value: 0,
    }
    .encode();
    message.extend([1; 100]);
    guest.send(TX, &message, &[1, 2, 1, 90], true);
    guest.notify(TX);
    assert_eq!(sinks[1].changes(), [false]);
}

#[test]
fn a_new_size_is_sent_and_is_in_configuration_space() {
    let (mut guest, _) = guest();
    let space = |guest: &mut Guest| {
        let mut data = [0; 8];
        guest.transport.read(reg::CONFIG, &mut data);
        data
    };
    assert_eq!(space(&mut guest), [0, 0, 0, 0, 2, 0, 0, 0]);
    // A driver that is half way up may have read one half of the old size.
    let before = guest.read(reg::CONFIG_GENERATION);
    resize(&mut guest, 0x0102, 0x0304);
    assert_eq!(space(&mut guest), [4, 3, 2, 1, 2, 0, 0, 0]);
    assert_ne!(guest.read(reg::CONFIG_GENERATION), before);

    let (mut guest, _) = up(0);
    guest.write(reg::INTERRUPT_ACK, u32::MAX);
    let before = guest.read(reg::CONFIG_GENERATION);
    resize(&mut guest, 24, 132);
    assert_ne!(guest.read(reg::CONFIG_GENERATION), before);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 3);
    assert_eq!(told(&mut guest), [(0, 5, 1, vec![132, 0, 24, 0])]);
    // The same again is no news.
    guest.write(reg::INTERRUPT_ACK, u32::MAX);
    resize(&mut guest, 24, 132);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS), 0);
    assert_eq!(told(&mut guest), SILENCE);
}

#[test]
fn of_many_sizes_without_a_buffer_the_last_is_sent() {
    let (mut guest, _) = up(0);
    for rows in 1..100 {
        resize(&mut guest, rows, 80);
    }
    let messages = told(&mut guest);
    assert_eq!(messages.len(), 8, "as many as there were buffers");
    guest.notify(RX);
    assert_eq!(told(&mut guest), [(0, 5, 1, vec![80, 0, 99, 0])]);
}

#[test]
fn input_waits_for_a_port_to_be_opened_and_for_buffers() {
    let (mut guest, sinks) = guest();
    assert_eq!(input(&mut guest, 0, b"early"), 0);
    guest.start(F_MULTIPORT, ENTRIES);
    guest.lend(INPUT[0], 16);
    guest.notify(INPUT[0]);
    assert_eq!(input(&mut guest, 0, b"early"), 0);
    assert_eq!(sinks[0].input_room(), 0);
    tell(&mut guest, 0, Event::PortOpen.code(), 1);
    assert_eq!(sinks[0].input_room(), 1);
    assert_eq!(input(&mut guest, 0, b"early"), 5);
    assert_eq!(guest.received(INPUT[0]), [b"early"]);

    // No buffers; then fewer than enough.
    assert_eq!(input(&mut guest, 0, b"late"), 0);
    assert_eq!(sinks[0].input_room(), 0);
    guest.lend(INPUT[0], 3);
    guest.notify(INPUT[0]);
    assert_eq!(sinks[0].input_room(), 1);
    assert_eq!(input(&mut guest, 0, b"late"), 3);
    guest.lend(INPUT[0], 3);
    guest.notify(INPUT[0]);
    assert_eq!(sinks[0].input_room(), 1);
    assert_eq!(input(&mut guest, 0, b"e"), 1);
    assert_eq!(guest.received(INPUT[0]), [&b"lat"[..], b"e"]);
    // All was taken: buffers are no news.
    guest.lend(INPUT[0], 3);
    guest.notify(INPUT[0]);
    assert_eq!(sinks[0].input_room(), 0);

    assert_eq!(input(&mut guest, 1, b"closed"), 0);
    assert_eq!(input(&mut guest, 2, b"no such port"), 0);
    assert_eq!(input(&mut guest, usize::MAX / 4, b"no such port"), 0);
}

#[test]
fn empty_buffers_for_input_do_not_hold_it_up_for_ever() {
    let (mut guest, sinks) = up(0);
    for _ in 0..ENTRIES {
        guest.offer(INPUT[0], &[(BUFFERS, 0, true)], false);
    }
    assert_eq!(input(&mut guest, 0, b"x"), 0);
    assert_eq!(guest.received(INPUT[0]).len(), usize::from(ENTRIES));
    guest.lend(INPUT[0], 1);
    guest.run();
    assert_eq!(sinks[0].input_room(), 1);
    assert_eq!(input(&mut guest, 0, b"x"), 1);
    assert_eq!(guest.received(INPUT[0]), [b"x"]);
}

#[test]
fn output_waits_for_a_full_sink() {
    let (mut guest, sinks) = up(0);
    let text: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
    sinks[1].set_room(4_100);
    guest.send(OUTPUT[1], &text, &[4_000, 1, 98], false);
    guest.send(OUTPUT[1], b"more", &[], false);
    guest.notify(OUTPUT[1]);
    assert_eq!(sinks[1].take(), text[..4_100]);
    assert_eq!(guest.returned(OUTPUT[1]), []);
    // Asked while it is full, it takes nothing and loses nothing.
    guest.notify(OUTPUT[1]);
    assert!(sinks[1].take().is_empty());

    sinks[1].set_room(5_901);
    guest.core().process(Console::output_queue(1));
    assert_eq!(guest.returned(OUTPUT[1]).len(), 1);
    sinks[1].set_room(usize::MAX);
    guest.core().process(Console::output_queue(1));
    assert_eq!(guest.returned(OUTPUT[1]).len(), 1);
    let rest = [&text[4_100..], b"more"].concat();
    assert_eq!(sinks[1].take(), rest);
    // The other port was free all the time.
    assert!(sinks[0].take().is_empty());
}

#[test]
fn output_of_any_size_goes_on_in_further_calls() {
    let (mut guest, sinks) = up(RING);
    // The same memory over and over, in a chain of 64 times 400 KiB.
    let piece = (BUFFERS, 400 << 10, false);
    guest.offer(OUTPUT[0], &[piece; 64], true);
    guest.core().process(OUTPUT[0]);
    assert_eq!(sinks[0].take().len(), OUTPUT_PER_CALL);
    assert_eq!(guest.returned(OUTPUT[0]), []);
    assert_eq!(guest.run(), 99);
    assert_eq!(sinks[0].take().len(), (64 * 400 * 1024) - OUTPUT_PER_CALL);
    assert_eq!(guest.returned(OUTPUT[0]).len(), 1);

    // A chain that ends where the call does, and one behind it.
    let whole = (BUFFERS, OUTPUT_PER_CALL as u32, false);
    guest.offer(OUTPUT[0], &[whole], false);
    guest.send(OUTPUT[0], b"behind", &[], false);
    guest.core().process(OUTPUT[0]);
    assert_eq!(sinks[0].take().len(), OUTPUT_PER_CALL);
    assert_eq!(guest.returned(OUTPUT[0]).len(), 1);
    guest.run();
    assert_eq!(sinks[0].take(), b"behind");
}

#[test]
fn reset_in_the_middle_of_a_chain_forgets_its_rest() {
    let (mut guest, sinks) = up(0);
    sinks[1].set_room(3);
    guest.send(OUTPUT[1], b"abcdef", &[], false);
    guest.notify(OUTPUT[1]);
    assert_eq!(sinks[1].take(), b"abc");
    assert_eq!(input(&mut guest, 1, b"kept by the host"), 0);
    guest.set_status(0);
    assert_eq!(sinks[0].changes(), [false]);
    assert_eq!(sinks[1].changes(), [false]);
    sinks[1].set_room(usize::MAX);
    guest.core().process(Console::output_queue(1));
    assert!(sinks[1].take().is_empty());

    guest.start(F_MULTIPORT, ENTRIES);
    guest.send(OUTPUT[1], b"uvwxyz", &[], false);
    guest.notify(OUTPUT[1]);
    assert_eq!(sinks[1].take(), b"uvwxyz");
    // Nothing is owed to a driver that has asked for nothing, and input may come now.
    guest.lend(RX, 64);
    guest.notify(RX);
    assert_eq!(told(&mut guest), SILENCE);
    tell(&mut guest, 1, Event::PortOpen.code(), 1);
    assert_eq!(sinks[1].input_room(), 1);
}

#[test]
fn without_control_messages_there_is_one_port_and_it_is_open() {
    let (mut guest, sinks) = guest();
    assert_eq!(input(&mut guest, 0, b"early"), 0);
    guest.start(F_SIZE, ENTRIES);
    assert_eq!(sinks[0].changes(), [true]);
    // Room is told from the event loop, not from the vCPU that wrote Status.
    assert_eq!(sinks[0].input_room(), 0);
    guest.run();
    assert_eq!(sinks[0].input_room(), 1);
    guest.lend(INPUT[0], 16);
    assert_eq!(input(&mut guest, 0, b"early"), 5);
    guest.send(OUTPUT[0], b"out", &[], false);
    guest.notify(OUTPUT[0]);
    assert_eq!(sinks[0].take(), b"out");

    let message = Control {
        port: 1,
        event: 6,
        value: 1,
    }
    .encode();
    for queue in [TX, OUTPUT[1]] {
        guest.send(queue, &message, &[], false);
        guest.notify(queue);
    }
    guest.lend(RX, 64);
    guest.notify(RX);
    resize(&mut guest, 1, 2);
    assert!(sinks[1].changes().is_empty());
    assert!(sinks[1].take().is_empty());
    assert_eq!(guest.returned(RX), []);
    assert_eq!(guest.read(reg::INTERRUPT_STATUS) & 2, 2);
}

#[test]
fn a_chain_in_the_wrong_direction_stops_the_device() {
    let cases: [(usize, Piece); 5] = [
        (OUTPUT[0], (BUFFERS, 4, true)),
        (OUTPUT[1], (BUFFERS, 4, true)),
        (TX, (BUFFERS, 8, true)),
        (INPUT[0], (BUFFERS, 4, false)),
        (RX, (BUFFERS, 7, true)),
    ];
    for (queue, piece) in cases {
        let (mut guest, _) = guest();
        guest.start(F_MULTIPORT, ENTRIES);
        tell(&mut guest, 0, Event::DeviceReady.code(), 1);
        tell(&mut guest, 0, Event::PortOpen.code(), 1);
        guest.offer(queue, &[piece], false);
        guest.notify(queue);
        if queue == INPUT[0] {
            let give = |console: &mut Console, driver: &mut Driver| console.input(driver, 0, b"x");
            assert_eq!(guest.core().with_device(give), None);
        }
        assert_eq!(guest.status(), LIVE | NEEDS_RESET, "{queue}");
        assert_eq!(guest.events.take().len(), 1);
        assert_eq!(input(&mut guest, 0, b"x"), 0);
        resize(&mut guest, 1, 1);
        assert_eq!(guest.set_status(0), 0);
    }
}

/// What one queue is made to be: descriptors by their index, entries of the available ring, how
/// far its index goes; and words anywhere in the rings.
type Chaos = (
    usize,
    Vec<(u16, Descriptor)>,
    Vec<u16>,
    u16,
    Vec<(u64, u16)>,
);

fn chaos() -> impl Strategy<Value = Chaos> {
    let descriptors = prop::collection::vec((0..ENTRIES, descriptor(ENTRIES)), 0..40);
    let heads = prop::collection::vec(prop_oneof![30 => 0..ENTRIES, 1 => any::<u16>()], 64);
    let ahead = prop_oneof![10 => 0u16..10, 1 => 0..ENTRIES + 2];
    let words = (table(0)..table(6), any::<u16>());
    let words = words.prop_map(|(addr, value)| (addr & !1, value));
    (
        0usize..6,
        descriptors,
        heads,
        ahead,
        prop::collection::vec(words, 0..3),
    )
}

fn spread(guest: &Guest, (queue, descriptors, heads, ahead, words): Chaos) {
    for (index, descriptor) in descriptors {
        descriptor.write(&guest.memory, table(queue), index);
    }
    for (slot, head) in (0..).zip(heads) {
        guest.poke(avail(queue) + 4 + 2 * slot, head);
    }
    for (addr, value) in words {
        guest.poke(addr, value);
    }
    let index = guest.peek(used(queue) + 2).wrapping_add(ahead);
    guest.poke(avail(queue) + 2, index);
}

proptest! {
    #[test]
    fn output_arrives_as_it_was_written(
        chunks in prop::collection::vec(
            (1usize..6000, prop::collection::vec(1usize..3000, 0..5), any::<bool>()), 1..40),
        rooms in prop::collection::vec(0usize..9000, 0..40),
        event_idx in any::<bool>(),
    ) {
        let (mut guest, sinks) = up(if event_idx { RING } else { F_INDIRECT_DESC });
        let mut written = Vec::new();
        let mut rooms = rooms.into_iter();
        for (i, (len, lens, indirect)) in chunks.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|j| (j * 7 + i * 31) as u8).collect();
            // At most 6 descriptors a chain.
            while guest.in_flight(OUTPUT[1]) + 6 > ENTRIES / 6 {
                sinks[1].set_room(usize::MAX);
                guest.core().process(OUTPUT[1]);
                guest.run();
                guest.returned(OUTPUT[1]);
            }
            sinks[1].set_room(rooms.next().unwrap_or(usize::MAX));
            guest.send(OUTPUT[1], &bytes, &lens, indirect);
            written.extend(bytes);
            guest.kick(OUTPUT[1], event_idx);
            guest.run();
        }
        sinks[1].set_room(usize::MAX);
        guest.core().process(OUTPUT[1]);
        guest.run();
        prop_assert!(sinks[1].take() == written);
        guest.returned(OUTPUT[1]);
        prop_assert_eq!(guest.in_flight(OUTPUT[1]), 0);
        prop_assert_eq!(guest.status(), LIVE);
    }

    #[test]
    fn input_arrives_as_it_was_given(
        chunks in prop::collection::vec(1usize..5000, 1..30),
        buffers in prop::collection::vec(
            prop::collection::vec(1u32..2000, 1..4), 1..30),
        event_idx in any::<bool>(),
    ) {
        let (mut guest, sinks) = up(if event_idx { RING } else { 0 });
        let total = chunks.iter().sum();
        let bytes: Vec<u8> = (0..total).map(|i: usize| (i * 7 + i / 256) as u8).collect();
        let (mut given, mut received) = (0, Vec::new());
        let mut buffers = buffers.into_iter().cycle();
        for len in chunks {
            let end = given + len;
            while given < end {
                given += input(&mut guest, 1, &bytes[given..end]);
                received.extend(guest.received(INPUT[1]).concat());
                if given < end {
                    prop_assert_eq!(sinks[1].input_room(), 0);
                    let lens = buffers.next().unwrap();
                    let piece = |len| (guest.buffer(len), len, true);
                    let pieces: Vec<Piece> = lens.into_iter().map(piece).collect();
                    guest.offer(INPUT[1], &pieces, false);
                    // The device ran out of buffers, so it wants to hear of this one.
                    prop_assert!(guest.kick(INPUT[1], event_idx));
                    guest.run();
                    prop_assert_eq!(sinks[1].input_room(), 1);
                }
            }
        }
        prop_assert!(received == bytes);
    }

    #[test]
    fn no_memory_content_does_harm(
        features in prop::sample::select(vec![0, F_MULTIPORT, F_MULTIPORT | RING, RING]),
        rounds in prop::collection::vec(chaos(), 1..8),
        room in prop_oneof![Just(usize::MAX), 0usize..100_000],
    ) {
        let (mut guest, sinks) = if features & F_MULTIPORT != 0 { up(features) } else {
            let (mut guest, sinks) = guest();
            guest.start(features, ENTRIES);
            sinks[0].changes();
            (guest, sinks)
        };
        let mut lines = Vec::new();
        for chaos in rounds {
            spread(&guest, chaos);
            sinks.iter().for_each(|sink| sink.set_room(room));
            for queue in (0..6).cycle().take(18) {
                guest.core().process(queue);
                let output = sinks[0].take().len() + sinks[1].take().len();
                prop_assert!(output <= OUTPUT_PER_CALL);
            }
            let give = |console: &mut Console, driver: &mut Driver| {
                Ok((console.input(driver, 0, &[7; 9000])?, console.input(driver, 1, &[7; 10])?))
            };
            if let Some((first, second)) = guest.core().with_device(give) {
                prop_assert!(first <= 9000 && second <= 10);
            }
            lines.extend(guest.events.take());
            let stopped = lines.iter().any(|line| line.contains("stopped until"));
            let status = guest.status();
            prop_assert!(lines.len() <= 16);
            if status == LIVE {
                prop_assert!(!stopped);
                continue;
            }
            prop_assert_eq!(status, LIVE | NEEDS_RESET);
            prop_assert!(stopped || lines.len() == 16);
            // It lies still.
            let before = guest.snapshot();
            sinks.iter().for_each(|sink| sink.set_room(usize::MAX));
            guest.run();
            (0..6).for_each(|queue| guest.core().process(queue));
            prop_assert_eq!(input(&mut guest, 0, b"x"), 0);
            prop_assert!(guest.snapshot() == before);
            prop_assert_eq!(sinks[0].take().len() + sinks[1].take().len(), 0);
            break;
        }
        guest.set_status(0);
        guest.start(F_MULTIPORT, ENTRIES);
        sinks[0].set_room(usize::MAX);
        guest.send(OUTPUT[0], b"well again", &[], false);
        guest.notify(OUTPUT[0]);
        prop_assert_eq!(sinks[0].take(), b"well again");
    }
}

/// Sensible control messages.
fn messages() -> impl Strategy<Value = Vec<u8>> + Clone {
    (0u32..3, 0u16..8, 0u16..2).prop_map(|(port, event, value)| {
        let message = Control { port, event, value };
        message.encode()
    })
}

proptest! {
    #[test]
    fn a_restored_device_behaves_as_the_first(
        before in acts(6, messages()),
        after in acts(6, messages()),
        multiport in any::<bool>(),
        room in prop_oneof![3 => Just(usize::MAX), 1 => Just(0)],
        flips in flips(),
    ) {
        let new = || {
            let sinks = [Sink::new(), Sink::new()];
            for sink in &sinks {
                sink.set_room(room);
            }
            let [terminal, agent] = sinks;
            Console::new(Box::new(terminal)).with_port("agent", Box::new(agent))
        };
        let features = RING | if multiport { F_MULTIPORT } else { F_SIZE };
        goes_on(new, features, &before, &after, &flips);
    }
}

#[test]
fn a_restored_console_has_its_ports_and_the_new_size() {
    let (mut guest, _) = guest();
    guest.start(F_MULTIPORT | F_SIZE, ENTRIES);
    for _ in 0..20 {
        guest.lend(RX, 100);
    }
    for (port, event) in [
        (0, Event::DeviceReady),
        (0, Event::PortReady),
        (1, Event::PortReady),
        (1, Event::PortOpen),
    ] {
        let message = Control {
            port,
            event: event.code(),
            value: 1,
        };
        guest.send(TX, &message.encode(), &[], false);
    }
    guest.notify(TX);
    let sinks = [Sink::new(), Sink::new()];
    let [terminal, agent] = sinks.clone();
    let mut other = Console::new(Box::new(terminal)).with_port("agent", Box::new(agent));
    (other.rows, other.cols) = (50, 132);
    guest.returned(RX);
    let saved = guest.transport.save().unwrap();
    let mut guest = guest.carried_over(other, &saved).unwrap();
    assert_eq!(sinks[1].changes(), [true]);
    assert!(sinks[0].changes().is_empty());
    let told = guest.received(RX);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0][4..], [5, 0, 1, 0, 132, 0, 50, 0]);
    assert_eq!(guest.read(reg::CONFIG), 132 | 50 << 16);
    let lent = Console::input_queue(1);
    guest.lend(lent, 8);
    guest.run();
    let taken = guest
        .core()
        .with_device(|console: &mut Console, driver| console.input(driver, 1, b"more"));
    assert_eq!(taken, Some(4));
    assert_eq!(guest.received(lent), [b"more"]);
}
