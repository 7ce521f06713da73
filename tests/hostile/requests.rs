//! Requests of drivers that no driver sends: of each device's protocol the valid ones, and what they are
//! not. guest/payloads/requests.S sends them.

/// Types of devices (virtio 1.2, 5).
const NET: u32 = 1;
const BLOCK: u32 = 2;
const CONSOLE: u32 = 3;
const RNG: u32 = 4;
const BALLOON: u32 = 5;
const VSOCK: u32 = 19;
const FS: u32 = 26;

// Flags of a request.
const FRESH: u16 = 1;
const WAIT: u16 = 2;

/// Addresses at which a device may write what it likes; nothing; a device; no memory at all.
const ROOM: u64 = 0x200_0000;
const PLACES: [u64; 6] = [
    ROOM,
    0xc000_1000,
    0xbfff_fffe,
    0xffff_f000,
    (128 << 20) - 2,
    u64::MAX - 1,
];

/// A table of requests.
#[derive(Default)]
struct Requests {
    table: Vec<u8>,
    count: usize,
}

impl Requests {
    /// A request of these bytes, with so much room at an address.
    fn send(&mut self, device: u32, queue: u16, flags: u16, bytes: &[u8], room: (u64, u32)) {
        let features: u32 = match device {
            CONSOLE => 1 << 1,          // MULTIPORT
            BALLOON => 1 << 1 | 1 << 5, // STATS_VQ, PAGE_REPORTING
            _ => 0,
        };
        self.table.extend(device.to_le_bytes());
        self.table
            .extend([queue, flags].map(u16::to_le_bytes).concat());
        let len = u32::try_from(bytes.len()).expect("few bytes");
        self.table
            .extend([features, len, room.1, 0].map(u32::to_le_bytes).concat());
        self.table.extend(room.0.to_le_bytes());
        self.table.extend(bytes);
        self.count += 1;
    }

    /// A message with each end of it missing, and with each byte wrong.
    fn spoil(&mut self, device: u32, queue: u16, valid: &[u8], room: (u64, u32)) {
        for len in 0..valid.len() {
            self.send(device, queue, FRESH | WAIT, &valid[..len], room);
        }
        for at in 0..valid.len() {
            let mut spoiled = valid.to_vec();
            spoiled[at] = !spoiled[at];
            self.send(device, queue, FRESH | WAIT, &spoiled, room);
        }
    }

    fn disk(&mut self) {
        let kinds = [0, 1, 4, 8, 11, 13, 16, u32::MAX];
        let sectors = [0, 2048, 1 << 55, u64::MAX];
        for (kind, sector) in product(&kinds, &sectors) {
            let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
            for data in [1, 16, 512] {
                let bytes = [&header[..], &vec![0xff; data]].concat();
                self.send(BLOCK, 0, FRESH | WAIT, &bytes, (ROOM, 1));
            }
            for (place, room) in product(&PLACES, &[513, u32::MAX]) {
                self.send(BLOCK, 0, FRESH, &header, (place, room));
            }
        }
        self.spoil(BLOCK, 0, &[0; 16], (ROOM, 513));
    }

    fn random(&mut self) {
        for (place, room) in product(&PLACES, &[1, 65536, u32::MAX]) {
            self.send(RNG, 0, FRESH | WAIT, &[], (place, room));
        }
        self.send(RNG, 0, FRESH, &[1], (0, 0));
    }

    fn balloon(&mut self) {
        let pages = [0x2000, 0x7fff, 0x8000, 0xbffff, 0xc0001, 0xfffff, u32::MAX];
        let all = pages.map(u32::to_le_bytes).concat();
        for (queue, bytes) in product(
            &[0, 1, 2],
            &[
                &all[..],
                &all[..27],
                &all.repeat(160),
                &[0xff; 10],
                &[0xff; 700],
            ],
        ) {
            self.send(BALLOON, queue, FRESH | WAIT, bytes, (0, 0));
        }
        for (place, room) in product(&PLACES, &[1, 4096, 32 << 20, u32::MAX]) {
            self.send(BALLOON, 3, FRESH | WAIT, &[], (place, room));
        }
    }

    /// The control queue's messages, and text; of the other port hull expects what [`of_an_init`] makes.
    fn console(&mut self) {
        for (port, event) in product(
            &[0u32, 1, 2, 31, u32::MAX],
            &[0u16, 1, 2, 3, 5, 6, 7, 8, 99],
        ) {
            for value in [0u16, 1, u16::MAX] {
                let rest = [event, value].map(u16::to_le_bytes).concat();
                let message = [&port.to_le_bytes()[..], &rest].concat();
                self.send(CONSOLE, 3, FRESH | WAIT, &message, (0, 0));
            }
        }
        self.spoil(CONSOLE, 3, &[0, 0, 0, 0, 3, 0, 1, 0], (0, 0));
        for (queue, place) in product(&[0, 2, 4], &PLACES) {
            self.send(CONSOLE, queue, FRESH, &[0; 9], (place, 4096));
        }
        self.send(CONSOLE, 1, FRESH, &[0; 65536], (0, 0));
    }

    /// Packets to port 52, where a program of the host's listens, and to another.
    fn sockets(&mut self) {
        let packet = |op: u16, port: u32, len: u32, data: usize| {
            let ids = [3u64, 2].map(u64::to_le_bytes).concat();
            let ports = [1000, port, len].map(u32::to_le_bytes).concat();
            let kind = [1, op].map(u16::to_le_bytes).concat();
            let credit = [0, 1 << 16, 0].map(u32::to_le_bytes).concat();
            [ids, ports, kind, credit, vec![0x41; data]].concat()
        };
        let connect = |to: &mut Self| {
            to.send(VSOCK, 0, FRESH, &[], (ROOM, 4096));
            to.send(VSOCK, 0, 0, &[], (ROOM, 44));
            to.send(VSOCK, 1, WAIT, &packet(1, 52, 0, 0), (0, 0));
        };
        for (op, port) in product(&[0, 1, 2, 3, 4, 5, 6, 7, 99], &[52, 53, u32::MAX]) {
            for (len, data) in [
                (0, 0),
                (4, 4),
                (4, 0),
                (0, 4),
                (1 << 16, 1 << 16),
                (u32::MAX, 9),
            ] {
                connect(self);
                self.send(VSOCK, 1, WAIT, &packet(op, port, len, data), (0, 0));
            }
        }
        self.spoil(VSOCK, 1, &packet(1, 52, 0, 0), (0, 0));
        for at in 0..44 {
            let mut spoiled = packet(5, 52, 4, 4);
            spoiled[at] = 0xff;
            connect(self);
            self.send(VSOCK, 1, WAIT, &spoiled, (0, 0));
        }
        // More credit than was agreed on is used, and all of it taken back.
        connect(self);
        for _ in 0..8 {
            self.send(VSOCK, 1, WAIT, &packet(5, 52, 1 << 16, 1 << 16), (0, 0));
        }
    }

    /// FUSE messages after INIT, of each operation and of some that are none.
    fn files(&mut self) {
        let message = |op: u32, node: u64, wrong: u32, body: &[u8]| {
            let len = (40 + body.len() as u32).wrapping_add(wrong);
            let head = [len, op].map(u32::to_le_bytes).concat();
            let ids = [7, node].map(u64::to_le_bytes).concat();
            [&head[..], &ids, &[0; 16], body].concat()
        };
        let hello = [
            [7u32, 38, 1 << 17, u32::MAX].map(u32::to_le_bytes).concat(),
            vec![0; 48],
        ];
        let hello = message(26, 0, 0, &hello.concat());
        let room = (ROOM, 1 << 16);
        let long = vec![b'a'; 5000];
        let bodies = [
            &[][..],
            &[0; 64],
            &[0xff; 64],
            b"..\0../../victim\0",
            b"\0\0\0\0\0\0\0\0..\0..\0",
            b"a/b\0c/../d\0",
            b"no end",
            &long,
        ];
        let mut operations: Vec<u32> = (0..=54).collect();
        operations.extend([4096, u32::MAX]);
        for op in operations {
            self.send(FS, 1, FRESH | WAIT, &hello, room);
            for body in bodies {
                self.send(FS, 1, 0, &message(op, 1, 0, body), room);
            }
            self.send(FS, 1, WAIT, &message(op, u64::MAX, 0, &[0; 64]), room);
            self.send(FS, 1, FRESH, &message(op, 1, 1, &[0; 64]), room);
            self.send(FS, 0, 0, &message(op, 1, u32::MAX, &[0; 64]), (ROOM, 15));
        }
        self.spoil(FS, 1, &hello, room);
        for (place, room) in product(&PLACES, &[1, 16, u32::MAX]) {
            self.send(FS, 1, FRESH, &hello, (place, room));
        }
    }

    /// Frames with each kind of header (virtio 1.2, 5.1.6) and of many lengths.
    fn frames(&mut self) {
        for (flags, kind) in product(&[0, 1, 0xff], &[0, 1, 3, 4, 5, 0xff]) {
            for (number, len) in product(&[1, u16::MAX], &[0, 14, 1514, 65536]) {
                let numbers = [number, number, number, number, 0].map(u16::to_le_bytes);
                let header = [&[flags, kind][..], &numbers.concat()].concat();
                let frame = [header, vec![0xff; len]].concat();
                self.send(NET, 1, FRESH, &frame, (0, 0));
            }
        }
        self.spoil(NET, 1, &[0; 26], (0, 0));
        for (place, room) in product(&PLACES, &[1, 12, 65536, u32::MAX]) {
            self.send(NET, 0, FRESH, &[], (place, room));
        }
    }

    /// The table with its end: all is sent so many `times`.
    fn end(mut self, times: u16) -> Vec<u8> {
        let device = 0u32.to_le_bytes();
        self.table.extend(device);
        self.table.extend(times.to_le_bytes());
        self.table.extend([0; 26]);
        self.table
    }
}

/// Requests of all devices: the table, and how many it has.
pub fn of_all_devices() -> (Vec<u8>, usize) {
    let mut all = Requests::default();
    all.disk();
    all.random();
    all.balloon();
    all.console();
    all.sockets();
    all.files();
    all.frames();
    let count = all.count;
    (all.end(2), count)
}

/// What an init says to hull over its port of the console, in pieces.
pub fn of_an_init(pieces: &[&[u8]]) -> Vec<u8> {
    const OUTPUT: u16 = 5;
    let mut all = Requests::default();
    for (index, piece) in pieces.iter().enumerate() {
        let fresh = if index == 0 { FRESH } else { 0 };
        all.send(CONSOLE, OUTPUT, fresh | WAIT, piece, (0, 0));
    }
    all.end(1)
}

fn product<'a, A: Copy, B: Copy>(
    some: &'a [A],
    others: &'a [B],
) -> impl Iterator<Item = (A, B)> + 'a {
    some.iter()
        .flat_map(move |one| others.iter().map(move |other| (*one, *other)))
}
