//! A queue as it lies in guest memory, for inspections.
//!
//! All that is read here comes from the guest and may have any value: rings outside memory, chains
//! with loops. So a constant of this file bounds each loop.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::QueueCounters;
use super::VirtQueue;
use crate::devices::register::Hex;

/// Chains shown of a queue.
const MAX_CHAINS: u16 = 8;
/// Descriptors shown of a chain.
const MAX_DESCRIPTORS: usize = 64;

/// Bits of a descriptor's flags (virtio 1.2, 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Bytes of a descriptor.
const SIZE: u64 = 16;

/// A queue with its rings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueView {
    /// Its index in the device.
    pub index: usize,
    /// Entries that the driver has set.
    pub size: u32,
    /// Most entries that the device allows.
    pub max_size: u16,
    /// Whether the driver has made it ready.
    pub ready: bool,
    /// GPA of the descriptor table.
    pub descriptors: Hex,
    /// GPA of the available ring.
    pub available: Hex,
    /// GPA of the used ring.
    pub used: Hex,
    /// The rings, if the queue is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rings: Option<Rings>,
    /// What passed through it.
    pub traffic: QueueCounters,
}

/// The indices of both rings, which wrap at 65536.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rings {
    /// Flags of the available ring.
    pub avail_flags: u16,
    /// Where the driver will put the next chain.
    pub avail_idx: u16,
    /// The next chain that the device will take.
    pub next_avail: u16,
    /// Flags of the used ring.
    pub used_flags: u16,
    /// Where the device will give the next chain back, as the driver sees it.
    pub used_idx: u16,
    /// The entry at which the driver wants an interrupt, if that was negotiated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_event: Option<u16>,
    /// The entry at which the device wants a notification, if that was negotiated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avail_event: Option<u16>,
    /// Chains that the device has taken and not given back.
    pub in_flight: u16,
    /// Chains that wait for the device.
    pub waiting: u16,
    /// The first of the waiting chains.
    pub chains: Vec<ChainView>,
    /// What is wrong with the rings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// A chain of descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainView {
    /// Index of its first descriptor.
    pub head: u16,
    /// Its descriptors, in order.
    pub descriptors: Vec<DescriptorView>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// A descriptor of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorView {
    /// Its index in its table.
    pub index: u16,
    /// GPA of the indirect table that it is in, if it is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<Hex>,
    /// GPA of the buffer, or of an indirect table.
    pub addr: Hex,
    /// Length of the buffer or table in bytes.
    pub len: u32,
    /// Names of the set flags: NEXT, WRITE, INDIRECT.
    pub flags: String,
}

impl VirtQueue {
    /// The queue as it is now.
    pub fn view(&self) -> QueueView {
        let setup = self.setup;
        QueueView {
            index: self.index,
            size: setup.size,
            max_size: self.queue.max_size(),
            ready: self.queue.ready(),
            descriptors: Hex(setup.descriptors),
            available: Hex(setup.available),
            used: Hex(setup.used),
            rings: self.queue.ready().then(|| self.rings()),
            traffic: self.counters,
        }
    }

    fn word(&self, base: u64, offset: u64) -> Option<u16> {
        let at = GuestAddress(base.checked_add(offset)?);
        let word = self.memory.load::<u16>(at, Ordering::Relaxed).ok()?;
        Some(u16::from_le(word))
    }

    fn rings(&self) -> Rings {
        let (avail, used) = (self.queue.avail_ring(), self.queue.used_ring());
        let size = self.queue.size().max(1);
        let entries = u64::from(size);
        let event = |ring, offset| self.event_idx.then(|| self.word(ring, offset)).flatten();
        let next_avail = self.queue.next_avail();
        let avail_idx = self.word(avail, 2);
        let waiting = avail_idx.map_or(0, |idx| idx.wrapping_sub(next_avail));
        let fault = match avail_idx {
            None => Some("the rings do not lie in memory".into()),
            Some(_) if waiting > size => Some(format!(
                "the driver's index is {waiting} ahead of the device's, and the queue has {size} \
                 entries"
            )),
            Some(_) => None,
        };
        let shown = waiting.min(size).min(MAX_CHAINS);
        let head = |n: u16| {
            let entry = next_avail.wrapping_add(n) % size;
            self.word(avail, 4 + 2 * u64::from(entry))
        };
        Rings {
            avail_flags: self.word(avail, 0).unwrap_or_default(),
            avail_idx: avail_idx.unwrap_or_default(),
            next_avail,
            used_flags: self.word(used, 0).unwrap_or_default(),
            used_idx: self.word(used, 2).unwrap_or_default(),
            used_event: event(avail, 4 + 2 * entries),
            avail_event: event(used, 4 + 8 * entries),
            in_flight: next_avail.wrapping_sub(self.queue.next_used()),
            waiting,
            chains: (0..shown)
                .filter_map(head)
                .map(|head| self.chain(head))
                .collect(),
            fault,
        }
    }

    fn chain(&self, head: u16) -> ChainView {
        let mut descriptors = Vec::new();
        let fault = self.follow(head, &mut descriptors);
        ChainView {
            head,
            descriptors,
            fault: fault.err().map(str::to_string),
        }
    }

    /// Follow a chain as far as it is valid.
    fn follow(&self, head: u16, seen: &mut Vec<DescriptorView>) -> Result<(), &'static str> {
        let (mut table, mut entries) = (self.queue.desc_table(), u64::from(self.queue.size()));
        let mut indirect = None;
        let mut index = head;
        let mut left = entries;
        loop {
            if u64::from(index) >= entries {
                return Err("names a descriptor that its table does not have");
            }
            if left == 0 {
                return Err("is longer than its table: it has a loop");
            }
            left -= 1;
            if seen.len() == MAX_DESCRIPTORS {
                return Err("is not shown any further");
            }
            let at = table.checked_add(SIZE * u64::from(index));
            let raw = at.and_then(|at| self.memory.read_obj::<[u8; 16]>(GuestAddress(at)).ok());
            let raw = u128::from_le_bytes(raw.ok_or("has a table outside of memory")?);
            let (addr, len) = (raw as u64, (raw >> 64) as u32);
            let (flags, next) = ((raw >> 96) as u16, (raw >> 112) as u16);
            seen.push(DescriptorView {
                index,
                table: indirect.map(Hex),
                addr: Hex(addr),
                len,
                flags: words(flags),
            });
            if flags & INDIRECT != 0 {
                if indirect.is_some() {
                    return Err("has an indirect table inside of one");
                }
                (table, entries) = (addr, u64::from(len) / SIZE);
                indirect = Some(addr);
                (index, left) = (0, entries);
            } else if flags & NEXT != 0 {
                index = next;
            } else {
                return Ok(());
            }
        }
    }
}

fn words(flags: u16) -> String {
    let names = [(NEXT, "NEXT"), (WRITE, "WRITE"), (INDIRECT, "INDIRECT")];
    let set = names.iter().filter(|(bit, _)| flags & bit != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::GuestMemoryMmap;

    use super::super::Setup;
    use super::*;
    use crate::memory::GuestMemory;

    const SIZE: u64 = 8;
    const TABLE: u64 = 0x1000;
    const AVAIL: u64 = 0x2000;
    const USED: u64 = 0x3000;

    fn memory() -> GuestMemory {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
    }

    fn queue(memory: &GuestMemory) -> VirtQueue {
        let mut queue = VirtQueue::new(0, 16, memory.clone()).unwrap();
        queue.setup = Setup {
            size: SIZE as u32,
            descriptors: TABLE,
            available: AVAIL,
            used: USED,
        };
        queue.start(true).unwrap();
        queue
    }

    fn describe(memory: &GuestMemory, table: u64, index: u64, words: (u64, u32, u16, u16)) {
        let (addr, len, flags, next) = words;
        let raw = u128::from(addr)
            | u128::from(len) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        let at = GuestAddress(table + SIZE_OF * index);
        memory.write_obj(raw.to_le_bytes(), at).unwrap();
    }
    const SIZE_OF: u64 = super::SIZE;

    fn offer(memory: &GuestMemory, heads: &[u16]) {
        let mut at = AVAIL + 4;
        for head in heads {
            memory.write_obj(*head, GuestAddress(at)).unwrap();
            at += 2;
        }
        let idx = GuestAddress(AVAIL + 2);
        memory.write_obj(heads.len() as u16, idx).unwrap();
    }

    #[test]
    fn waiting_chains_are_shown_and_not_taken() {
        let memory = memory();
        let mut queue = queue(&memory);
        describe(&memory, TABLE, 2, (0x8000, 16, NEXT, 5));
        describe(&memory, TABLE, 5, (0x9000, 512, WRITE, 0));
        describe(&memory, TABLE, 0, (0x5000, 32, INDIRECT, 0));
        describe(&memory, 0x5000, 0, (0xa000, 4, NEXT, 1));
        describe(&memory, 0x5000, 1, (0xb000, 8, WRITE, 0));
        offer(&memory, &[2, 0]);
        let view = queue.view();
        let rings = view.rings.expect("ready");
        assert_eq!((rings.avail_idx, rings.waiting, rings.in_flight), (2, 2, 0));
        let told = |chain: &ChainView| {
            let each = chain.descriptors.iter();
            each.map(|d| format!("{} {} {} {}", d.index, d.addr, d.len, d.flags))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            told(&rings.chains[0]),
            ["2 0x8000 16 NEXT", "5 0x9000 512 WRITE"]
        );
        assert_eq!(
            told(&rings.chains[1]),
            [
                "0 0x5000 32 INDIRECT",
                "0 0xa000 4 NEXT",
                "1 0xb000 8 WRITE"
            ]
        );
        assert!(rings.chains.iter().all(|chain| chain.fault.is_none()));
        queue.begin();
        queue.pop().unwrap().expect("still there");
        let rings = queue.view().rings.expect("ready");
        assert_eq!((rings.waiting, rings.in_flight), (1, 1));
    }

    #[test]
    fn loops_and_invalid_rings_are_reported() {
        let memory = memory();
        let queue = queue(&memory);
        describe(&memory, TABLE, 0, (0, 1, NEXT, 0));
        describe(&memory, TABLE, 1, (0, 1, NEXT, 99));
        describe(&memory, TABLE, 2, (0xffff_0000, 64, INDIRECT, 0));
        offer(&memory, &[0, 1, 2]);
        let rings = queue.view().rings.expect("ready");
        let faults: Vec<_> = rings
            .chains
            .iter()
            .map(|chain| chain.fault.as_deref().unwrap_or(""))
            .collect();
        assert_eq!(
            faults,
            [
                "is longer than its table: it has a loop",
                "names a descriptor that its table does not have",
                "has a table outside of memory",
            ]
        );
        memory.write_obj(500u16, GuestAddress(AVAIL + 2)).unwrap();
        let rings = queue.view().rings.expect("ready");
        assert!(rings.fault.is_some_and(|fault| fault.contains("500 ahead")));
    }

    proptest! {
        #[test]
        fn any_guest_memory_is_shown_within_bounds(
            bytes in prop::collection::vec(any::<u8>(), 0x800),
            at in 0u64..0x3000,
        ) {
            let memory = memory();
            let queue = queue(&memory);
            memory.write_slice(&bytes, GuestAddress(TABLE + at)).unwrap();
            let rings = queue.view().rings.expect("ready");
            prop_assert!(rings.chains.len() <= usize::from(MAX_CHAINS));
            for chain in &rings.chains {
                prop_assert!(chain.descriptors.len() <= MAX_DESCRIPTORS);
            }
        }
    }
}
