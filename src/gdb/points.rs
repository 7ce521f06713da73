//! Breakpoints: instructions that were patched into guest memory, and debug registers in use.

use std::collections::BTreeMap;

use vm_memory::{Bytes, GuestAddress};

use crate::kvm::debug::{POINTS, Point};
use crate::memory::GuestMemory;

/// A patched byte in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Patch {
    gpa: u64,
    ours: u8,
    /// The guest's own byte.
    theirs: u8,
}

/// All breakpoints and watchpoints.
#[derive(Default)]
pub struct Points {
    /// Software breakpoints by their linear address.
    traps: BTreeMap<u64, Vec<Patch>>,
    registers: [Option<Point>; POINTS],
}

/// Why a breakpoint cannot be set.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The address is not in RAM.
    NotRam,
    /// Another breakpoint's instruction overlaps it.
    Overlap,
    /// All debug registers are in use.
    Full,
}

impl Points {
    /// Set a software breakpoint: write `instruction` to the linear `address`, whose bytes are at
    /// `gpas`.
    pub fn plant(
        &mut self,
        memory: &GuestMemory,
        address: u64,
        gpas: &[u64],
        instruction: &[u8],
    ) -> Result<(), Refusal> {
        if self.traps.contains_key(&address) {
            return Ok(());
        }
        if gpas.iter().any(|gpa| self.patch(*gpa).is_some()) {
            return Err(Refusal::Overlap);
        }
        let mut patches = Vec::with_capacity(instruction.len());
        for (gpa, ours) in gpas.iter().zip(instruction) {
            let theirs = memory.read_obj(GuestAddress(*gpa));
            patches.push(Patch {
                gpa: *gpa,
                ours: *ours,
                theirs: theirs.map_err(|_| Refusal::NotRam)?,
            });
        }
        for patch in &patches {
            // It cannot fail: the byte was just read.
            let _ = memory.write_obj(patch.ours, GuestAddress(patch.gpa));
        }
        self.traps.insert(address, patches);
        Ok(())
    }

    /// Remove a software breakpoint. Returns whether there was one.
    pub fn pull(&mut self, memory: &GuestMemory, address: u64) -> bool {
        let patches = self.traps.remove(&address);
        for patch in patches.iter().flatten() {
            let at = GuestAddress(patch.gpa);
            // A byte that the guest has overwritten stays.
            if memory
                .read_obj(at)
                .is_ok_and(|there: u8| there == patch.ours)
            {
                let _ = memory.write_obj(patch.theirs, at);
            }
        }
        patches.is_some()
    }

    /// Remove all software breakpoints and free the debug registers.
    pub fn clear(&mut self, memory: &GuestMemory) {
        while let Some(address) = self.traps.keys().next().copied() {
            self.pull(memory, address);
        }
        self.registers = Default::default();
    }

    /// Whether the instruction at `gpa` is a software breakpoint.
    pub fn is_trap(&self, gpa: u64) -> bool {
        let mut traps = self.traps.values();
        traps.any(|patches| patches.first().is_some_and(|patch| patch.gpa == gpa))
    }

    fn patch(&self, gpa: u64) -> Option<&Patch> {
        let mut all = self.traps.values().flatten();
        all.find(|patch| patch.gpa == gpa)
    }

    /// Replace breakpoints in `data`, which was read from `gpa` on, by the guest's own bytes.
    pub fn hide(&self, gpa: u64, data: &mut [u8]) {
        for patch in self.traps.values().flatten() {
            let at = patch
                .gpa
                .checked_sub(gpa)
                .and_then(|at| usize::try_from(at).ok());
            if let Some(byte) = at.and_then(|at| data.get_mut(at))
                && *byte == patch.ours
            {
                *byte = patch.theirs;
            }
        }
    }

    /// Write `data` to `gpa`, except where a breakpoint is: there it takes effect when the breakpoint
    /// is removed.
    pub fn write(&mut self, memory: &GuestMemory, gpa: u64, data: &[u8]) -> Result<(), Refusal> {
        let mut data = data.to_vec();
        for patch in self.traps.values_mut().flatten() {
            let at = patch
                .gpa
                .checked_sub(gpa)
                .and_then(|at| usize::try_from(at).ok());
            if let Some(byte) = at.and_then(|at| data.get_mut(at)) {
                patch.theirs = std::mem::replace(byte, patch.ours);
            }
        }
        let written = memory.write_slice(&data, GuestAddress(gpa));
        written.map_err(|_| Refusal::NotRam)
    }

    /// The points in debug registers, by register.
    pub fn registers(&self) -> [Option<Point>; POINTS] {
        self.registers
    }

    /// Use a debug register for each of `points`, or none at all.
    pub fn arm(&mut self, points: &[Point]) -> Result<(), Refusal> {
        let mut registers = self.registers;
        for point in points {
            if registers.contains(&Some(*point)) {
                continue;
            }
            let free = registers.iter_mut().find(|register| register.is_none());
            *free.ok_or(Refusal::Full)? = Some(*point);
        }
        self.registers = registers;
        Ok(())
    }

    /// Free the debug registers of `points`. Returns whether they were in use.
    pub fn disarm(&mut self, points: &[Point]) -> bool {
        let mut found = false;
        for register in &mut self.registers {
            if register.is_some_and(|point| points.contains(&point)) {
                *register = None;
                found = true;
            }
        }
        found
    }
}

/// `len` bytes from `address` on as aligned pieces of 1, 2, 4 or 8 bytes, as a debug register needs
/// them (Intel SDM 3B, 18.2.5); `None` if there are more pieces than registers.
pub fn pieces(address: u64, len: u64) -> Option<Vec<(u64, u64)>> {
    let mut pieces = Vec::new();
    let (mut at, mut left) = (address, len);
    while left > 0 {
        if pieces.len() == POINTS {
            return None;
        }
        let fits = |size: &u64| *size <= left && at % size == 0;
        let size = [8, 4, 2].into_iter().find(fits).unwrap_or(1);
        pieces.push((at, size));
        at = at.wrapping_add(size);
        left -= size;
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kvm::debug::PointKind;

    const INT3: &[u8] = &[0xcc];

    fn memory() -> GuestMemory {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let bytes: Vec<u8> = (0..=255).collect();
        memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        memory
    }

    fn byte(memory: &GuestMemory, gpa: u64) -> u8 {
        memory.read_obj(GuestAddress(gpa)).unwrap()
    }

    #[test]
    fn a_breakpoint_is_in_memory_but_hidden_from_gdb() {
        let memory = memory();
        let mut points = Points::default();
        points.plant(&memory, 0xffff_0010, &[0x10], INT3).unwrap();
        points.plant(&memory, 0xffff_0010, &[0x10], INT3).unwrap();
        assert_eq!(byte(&memory, 0x10), 0xcc);
        assert!(points.is_trap(0x10) && !points.is_trap(0x11));
        let mut shown = [0; 4];
        memory.read_slice(&mut shown, GuestAddress(0xe)).unwrap();
        points.hide(0xe, &mut shown);
        assert_eq!(shown, [0xe, 0xf, 0x10, 0x11]);

        points.write(&memory, 0xf, &[1, 2, 3]).unwrap();
        assert_eq!([0xf, 0x10, 0x11].map(|at| byte(&memory, at)), [1, 0xcc, 3]);
        assert!(points.pull(&memory, 0xffff_0010));
        assert_eq!(byte(&memory, 0x10), 2);
        assert!(!points.pull(&memory, 0xffff_0010));
    }

    #[test]
    fn a_byte_that_the_guest_wrote_over_a_breakpoint_stays() {
        let memory = memory();
        let mut points = Points::default();
        points.plant(&memory, 0x20, &[0x20], INT3).unwrap();
        memory.write_obj(0x77u8, GuestAddress(0x20)).unwrap();
        let mut shown = [0x77];
        points.hide(0x20, &mut shown);
        assert_eq!(shown, [0x77]);
        points.clear(&memory);
        assert_eq!(byte(&memory, 0x20), 0x77);
    }

    #[test]
    fn breakpoints_neither_overlap_nor_leave_ram() {
        let memory = memory();
        let mut points = Points::default();
        let two = &[0xe6, 0xb9];
        points.plant(&memory, 0x30, &[0x30, 0x31], two).unwrap();
        let next = points.plant(&memory, 0x31, &[0x31, 0x32], two);
        assert_eq!(next, Err(Refusal::Overlap));
        let outside = points.plant(&memory, 0xfff, &[0xfff, 0x1000], two);
        assert_eq!(outside, Err(Refusal::NotRam));
        points.clear(&memory);
        assert_eq!(byte(&memory, 0x30), 0x30);
        assert_eq!(byte(&memory, 0xfff), 0);
    }

    #[test]
    fn there_are_four_debug_registers() {
        let mut points = Points::default();
        let point = |address| Point {
            address,
            len: 1,
            kind: PointKind::Write,
        };
        let four: Vec<Point> = (0..4).map(point).collect();
        points.arm(&four[..3]).unwrap();
        assert_eq!(points.arm(&[point(3), point(4)]), Err(Refusal::Full));
        points.arm(&four[2..]).unwrap();
        assert!(points.disarm(&four[..1]) && !points.disarm(&four[..1]));
        points.arm(&[point(5)]).unwrap();
    }

    proptest! {
        #[test]
        fn pieces_cover_exactly_the_bytes(address in 0u64..64, len in 0u64..40) {
            match pieces(address, len) {
                Some(pieces) => {
                    prop_assert!(pieces.len() <= POINTS);
                    let mut at = address;
                    for (start, size) in pieces {
                        prop_assert_eq!(start, at);
                        prop_assert_eq!(start % size, 0);
                        at += size;
                    }
                    prop_assert_eq!(at, address + len);
                }
                None => prop_assert!(len > 4),
            }
        }

        #[test]
        fn guest_memory_is_restored_when_all_breakpoints_are_removed(
            at in proptest::collection::vec((0u64..0x1002, 1usize..3), 0..20),
        ) {
            let memory = memory();
            let mut points = Points::default();
            let mut before = vec![0; 0x1000];
            memory.read_slice(&mut before, GuestAddress(0)).unwrap();
            for (address, len) in at {
                let gpas: Vec<u64> = (address..address + len as u64).collect();
                let _ = points.plant(&memory, address, &gpas, &[0xcc; 2][..len]);
            }
            let mut shown = vec![0; 0x1000];
            memory.read_slice(&mut shown, GuestAddress(0)).unwrap();
            points.hide(0, &mut shown);
            prop_assert_eq!(&shown, &before);
            points.clear(&memory);
            memory.read_slice(&mut shown, GuestAddress(0)).unwrap();
            prop_assert_eq!(&shown, &before);
        }
    }
}
