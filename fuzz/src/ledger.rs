//! The buffers that a guest that follows the rules has given to its device, and checks that the device
//! uses only those.

use std::collections::BTreeMap;

use hull::devices::virtio::testing::*;
use vm_memory::{Bytes, GuestAddress};

/// Size of the area for buffers, from one start to the next.
const WINDOW: u64 = 0x1_0000;
const PAGE: u64 = 0x1000;
/// Descriptor table and available ring in a queue's page.
const DRIVER_AREA: usize = 0x600;

/// A chain that the device has not returned.
struct Lent {
    /// Descriptors of the queue's table from the head on.
    taken: u16,
    writable: u64,
}

/// The account of a guest since its last correct start.
pub struct Ledger {
    /// Whether the guest has followed the rules.
    decent: bool,
    /// Whether memory is still empty.
    fresh: bool,
    /// The bytes that the guest wrote, from [`BUFFERS`] on.
    written: Vec<u8>,
    /// Bytes that the device may write.
    lent: Vec<(u64, u32)>,
    queues: Vec<BTreeMap<u16, Lent>>,
    /// The bytes that the guest wrote to its part of each queue's page.
    pages: Vec<Vec<u8>>,
    /// Queues with chains of which the device was not notified.
    unheard: Vec<bool>,
}

impl Ledger {
    /// The account of a guest with this many queues, before it starts.
    pub fn new(queues: usize) -> Self {
        Self {
            decent: false,
            fresh: true,
            written: Vec::new(),
            lent: Vec::new(),
            queues: (0..queues).map(|_| BTreeMap::new()).collect(),
            pages: vec![Vec::new(); queues],
            unheard: vec![false; queues],
        }
    }

    /// Whether the guest has followed the rules since its last start.
    pub fn is_decent(&self) -> bool {
        self.decent
    }

    /// The device was notified of the chains in a queue.
    pub fn notified(&mut self, queue: usize) {
        self.unheard[queue] = false;
    }

    /// How many chains the device has of a queue of whose chains it was notified; all were settled.
    pub fn lent(&self, queue: usize) -> Option<usize> {
        (self.decent && !self.unheard[queue]).then(|| self.queues[queue].len())
    }

    /// The guest is about to reset the device.
    pub fn close(&mut self, guest: &mut Guest) {
        self.check(guest);
        self.decent = false;
    }

    /// The guest is about to break a rule.
    pub fn give_up(&mut self, guest: &mut Guest) {
        self.close(guest);
        self.fresh = false;
    }

    /// The guest is about to start correctly: its memory is empty.
    pub fn open(&mut self, guest: &mut Guest) {
        self.close(guest);
        guest.next_buffer = BUFFERS;
        if !self.fresh {
            let zeros = [0; (BUFFERS + WINDOW + PAGE) as usize];
            guest.memory.write_slice(&zeros, GuestAddress(0)).unwrap();
        }
    }

    /// The guest has started.
    pub fn opened(&mut self, guest: &Guest) {
        self.decent = true;
        self.fresh = false;
        self.written = vec![0; (WINDOW + PAGE) as usize];
        self.lent.clear();
        self.queues.iter_mut().for_each(BTreeMap::clear);
        self.unheard.fill(false);
        for (queue, page) in self.pages.iter_mut().enumerate() {
            *page = driver_area(guest, queue);
        }
    }

    /// Whether `offer` is allowed: always without rules, otherwise if the chain fits.
    fn has_room(&self, guest: &Guest, queue: usize, pieces: &[Piece], indirect: bool) -> bool {
        let (size, next) = guest.place(queue);
        let taken = if indirect { 1 } else { pieces.len() };
        if size == 0 || size > MAX_SIZE || pieces.is_empty() || taken > usize::from(size) {
            return false;
        }
        let tables = if indirect {
            16 * pieces.len() as u64
        } else {
            0
        };
        let fits = guest.next_buffer + tables <= BUFFERS + WINDOW;
        let meets = |(head, lent): (&u16, &Lent)| {
            let ahead = (head + size - next % size) % size;
            usize::from(ahead) < taken || ahead + lent.taken > size
        };
        fits && !(self.decent && self.queues[queue].iter().any(meets))
    }

    /// Whether there is room for a buffer of `len` bytes. Without rules, buffers are used again.
    pub fn fits(&mut self, guest: &mut Guest, len: u64) -> bool {
        let fits = |guest: &Guest| guest.next_buffer + len <= BUFFERS + WINDOW;
        if !self.decent && !fits(guest) {
            guest.next_buffer = BUFFERS;
        }
        fits(guest)
    }

    /// A buffer for `bytes`, if there is room.
    pub fn place(&mut self, guest: &mut Guest, bytes: &[u8]) -> Option<u64> {
        if !self.fits(guest, bytes.len() as u64) {
            return None;
        }
        self.fresh = false;
        let addr = guest.buffer(bytes.len() as u32);
        guest.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
        self.wrote(addr, bytes);
        Some(addr)
    }

    fn wrote(&mut self, addr: u64, bytes: &[u8]) {
        if self.decent {
            let start = (addr - BUFFERS) as usize;
            self.written[start..start + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Offer a chain of buffers that were placed before, if there is room in the ring.
    pub fn offer(&mut self, guest: &mut Guest, queue: usize, pieces: &[Piece], indirect: bool) {
        if !self.has_room(guest, queue, pieces, indirect) {
            return;
        }
        self.check_page(guest, queue);
        self.fresh = false;
        let table = guest.next_buffer;
        let head = guest.offer(queue, pieces, indirect);
        if self.decent {
            let mut bytes = vec![0; (guest.next_buffer - table) as usize];
            let read = guest.memory.read_slice(&mut bytes, GuestAddress(table));
            read.unwrap();
            self.wrote(table, &bytes);
            let writable = pieces.iter().filter(|piece| piece.2);
            self.lent
                .extend(writable.clone().map(|piece| (piece.0, piece.1)));
            let lent = Lent {
                taken: if indirect { 1 } else { pieces.len() as u16 },
                writable: writable.map(|piece| u64::from(piece.1)).sum(),
            };
            self.queues[queue].insert(head, lent);
            self.unheard[queue] = true;
            self.pages[queue] = driver_area(guest, queue);
        }
    }

    /// Make the guest write to its part of a queue's page, by the rules.
    pub fn write(&mut self, guest: &mut Guest, queue: usize, write: impl FnOnce(&mut Guest)) {
        self.check_page(guest, queue);
        self.fresh = false;
        write(guest);
        self.pages[queue] = driver_area(guest, queue);
    }

    /// Take the chains that the device has returned.
    pub fn settle(&mut self, guest: &mut Guest) {
        if !self.decent {
            return;
        }
        for (queue, lent) in self.queues.iter_mut().enumerate() {
            for (head, written) in guest.returned(queue) {
                let head = u16::try_from(head).expect("a head");
                let lent = lent.remove(&head).expect("a chain that the device had");
                assert!(u64::from(written) <= lent.writable, "more than was lent");
            }
        }
    }

    /// Panic if the device wrote outside of its buffers.
    pub fn check(&mut self, guest: &mut Guest) {
        if !self.decent {
            return;
        }
        self.settle(guest);
        (0..self.queues.len()).for_each(|queue| self.check_page(guest, queue));
        let rings = table(self.queues.len());
        for (start, end) in [
            (0, table(0)),
            (rings, rings + PAGE),
            (BUFFERS - PAGE, BUFFERS),
        ] {
            assert!(read(guest, start, end).iter().all(|byte| *byte == 0));
        }
        let end = guest.next_buffer + PAGE;
        let mut there = read(guest, BUFFERS, end);
        for &(addr, len) in &self.lent {
            let (addr, len) = ((addr - BUFFERS) as usize, len as usize);
            there[addr..addr + len].fill(0);
        }
        assert!(
            there == self.written[..there.len()],
            "a buffer not lent was written"
        );
    }

    fn check_page(&self, guest: &Guest, queue: usize) {
        if self.decent {
            let page = read(guest, table(queue), table(queue + 1));
            let (driver, device) = page.split_at(DRIVER_AREA);
            assert!(driver == self.pages[queue], "the driver's area was written");
            let used = 6 + 8 * usize::from(guest.place(queue).0);
            assert!(
                device[used..].iter().all(|byte| *byte == 0),
                "past the used ring"
            );
        }
    }
}

fn driver_area(guest: &Guest, queue: usize) -> Vec<u8> {
    read(guest, table(queue), table(queue) + DRIVER_AREA as u64)
}

fn read(guest: &Guest, start: u64, end: u64) -> Vec<u8> {
    let mut bytes = vec![0; (end - start) as usize];
    let read = guest.memory.read_slice(&mut bytes, GuestAddress(start));
    read.map(|()| bytes).unwrap()
}
