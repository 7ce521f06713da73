//! The guest's RAM, as loaders and firmware maps see it.
//!
//! The e820 table (`linux64`) and the PVH memory map (`pvh`) are both made from [`map`]; [`write`]
//! copies tables into guest memory.

use std::ops::Range;

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::error::BootError;
use crate::memory::GuestMemory;
use crate::memory::layout::{ACPI, CONVENTIONAL_END, EBDA, HIGH_MEMORY, MMIO_HOLE};

/// The type of an address range; the numbers are those of e820 (ACPI 6.5, 15.1) and of
/// `hvm_memmap_table_entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// RAM that the guest may use.
    Usable = 1,
    /// Tables that the guest must leave alone.
    Reserved = 2,
}

/// Most entries that [`map`] returns, for which `boot_params` has room.
pub const MAP_CAPACITY: usize = 128;

/// The guest's memory map in ascending order: RAM without the EBDA, the VGA hole and the ACPI
/// tables. At most [`MAP_CAPACITY`] entries; the guest does not learn of RAM beyond those.
pub fn map(memory: &GuestMemory) -> Vec<(Range<u64>, Kind)> {
    let mut entries = vec![
        (0..EBDA, Kind::Usable),
        (EBDA..CONVENTIONAL_END, Kind::Reserved),
        (ACPI..HIGH_MEMORY, Kind::Reserved),
    ];
    for range in ranges(memory) {
        let start = range.start.max(HIGH_MEMORY);
        if start < range.end {
            entries.push((start..range.end, Kind::Usable));
        }
    }
    entries.truncate(MAP_CAPACITY);
    entries
}

/// Bytes of RAM that [`add_phantom`] adds, which do not exist.
const PHANTOM: u64 = 64 << 20;

/// Make the map's last RAM below the hole longer than it is.
pub fn add_phantom(map: &mut [(Range<u64>, Kind)]) {
    let low = |entry: &&mut (Range<u64>, Kind)| entry.1 == Kind::Usable && entry.0.end <= MMIO_HOLE;
    if let Some((range, _)) = map.iter_mut().rfind(low) {
        range.end = (range.end + PHANTOM).min(MMIO_HOLE);
    }
}

/// End of the RAM that starts at 0, at most [`MMIO_HOLE`]; 0 when there is none.
pub fn low_end(memory: &GuestMemory) -> u64 {
    let mut end = 0;
    for range in ranges(memory) {
        if range.start == end {
            end = range.end;
        }
    }
    end.min(MMIO_HOLE)
}

/// Size of all RAM in bytes.
pub fn size(memory: &GuestMemory) -> u64 {
    ranges(memory).map(|range| range.end - range.start).sum()
}

/// Whether RAM backs every byte of the range; an empty range always fits.
pub fn contains(memory: &GuestMemory, gpa: u64, size: u64) -> bool {
    let Ok(size) = usize::try_from(size) else {
        return false;
    };
    gpa.checked_add(size as u64).is_some()
        && GuestMemoryBackend::check_range(memory, GuestAddress(gpa), size)
}

/// Write `bytes` at `gpa`; `what` names them in the error.
pub fn write(
    memory: &GuestMemory,
    what: &'static str,
    gpa: u64,
    bytes: &[u8],
) -> Result<(), BootError> {
    memory
        .write_slice(bytes, GuestAddress(gpa))
        .map_err(|_| outside(what, gpa, bytes.len() as u64))
}

/// The error for a table `what` that does not fit into guest memory.
pub fn outside(what: &'static str, gpa: u64, size: u64) -> BootError {
    BootError::OutsideMemory { what, gpa, size }
}

/// The ranges that RAM backs, ascending.
fn ranges(memory: &GuestMemory) -> impl Iterator<Item = Range<u64>> + '_ {
    memory.iter().map(|region| {
        let start = region.start_addr().raw_value();
        start..start.saturating_add(region.len())
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Guest memory of `mib` MiB from 0.
    pub fn memory(mib: u64) -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), (mib * MIB) as usize)]).unwrap()
    }

    /// `size` bytes of guest memory.
    pub fn read(memory: &GuestMemory, gpa: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    #[test]
    fn the_map_leaves_out_the_hole_and_keeps_ram_above_4_gib() {
        let memory = GuestMemory::from_ranges(&[
            (GuestAddress(0), MMIO_HOLE as usize),
            (GuestAddress(1 << 32), (3 * MIB) as usize),
        ])
        .unwrap();
        assert_eq!(
            map(&memory),
            [
                (0..EBDA, Kind::Usable),
                (EBDA..CONVENTIONAL_END, Kind::Reserved),
                (ACPI..HIGH_MEMORY, Kind::Reserved),
                (HIGH_MEMORY..MMIO_HOLE, Kind::Usable),
                ((1 << 32)..(1 << 32) + 3 * MIB, Kind::Usable),
            ]
        );
        assert_eq!(low_end(&memory), MMIO_HOLE);
    }

    #[test]
    fn phantom_ram_follows_the_ram_below_the_hole() {
        let memory = memory(128);
        let mut lie = map(&memory);
        add_phantom(&mut lie);
        let (last, before) = lie.split_last().unwrap();
        assert_eq!(*last, (HIGH_MEMORY..192 * MIB, Kind::Usable));
        assert_eq!(before, &map(&memory)[..before.len()]);
    }

    #[test]
    fn ram_in_several_mappings_is_one_low_range() {
        let memory = GuestMemory::from_ranges(&[
            (GuestAddress(0), MIB as usize),
            (GuestAddress(MIB), MIB as usize),
        ])
        .unwrap();
        assert_eq!(low_end(&memory), 2 * MIB);
        assert!(contains(&memory, MIB - 8, 16));
        assert!(!contains(&memory, 2 * MIB - 8, 9));
        assert!(!contains(&memory, u64::MAX, 1));
        assert!(!contains(&memory, u64::MAX - 1, u64::MAX));
    }

    #[test]
    fn writing_outside_of_memory_names_the_table() {
        let error = write(&memory(1), "the zero page", MIB - 1, &[0; 2]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("the zero page of 2 bytes at 0xfffff"),
            "{error}"
        );
    }
}
