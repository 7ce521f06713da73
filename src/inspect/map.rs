//! The memory map: what lies where in guest-physical memory.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::devices::register::Hex;

/// The kind of a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// RAM that hull has not written to.
    Ram,
    /// RAM that hull has written to before the guest started.
    Loaded,
    /// Registers of a device.
    Device,
    /// Neither RAM nor a device.
    Hole,
}

/// A range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// The first guest-physical address.
    pub start: Hex,
    /// The first guest-physical address behind it.
    pub end: Hex,
    /// RAM, device or hole.
    pub kind: Kind,
    /// What lies there, in words.
    pub what: String,
    /// For RAM, how many bytes of it the host has in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident: Option<u64>,
}

/// All addresses from 0 to the end of RAM or of the hole below 4 GiB.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Size of all RAM in bytes.
    pub bytes: u64,
    /// Bytes of it that the host has in memory.
    pub resident: u64,
    /// The areas, ascending, without a gap.
    pub areas: Vec<Area>,
}

impl Memory {
    /// A map of the RAM ranges `ram`, ascending, with `known` in and beside them. A known range that
    /// overlaps an earlier one is cut, so that each address is in one area.
    pub fn new(
        ram: &[Range<u64>],
        known: &[(Range<u64>, Kind, String)],
        mut resident: impl FnMut(&Range<u64>) -> u64,
        end: u64,
    ) -> Self {
        let mut known: Vec<_> = known.iter().filter(|(r, ..)| r.start < r.end).collect();
        known.sort_by_key(|(range, ..)| range.start);
        let mut memory = Self::default();
        let mut at = 0;
        for (range, kind, what) in known {
            memory.fill(ram, at, range.start.max(at), &mut resident);
            let start = range.start.max(at);
            if start < range.end {
                memory.push(start..range.end, *kind, what, &mut resident);
                at = range.end;
            }
        }
        memory.fill(ram, at, end.max(at), &mut resident);
        memory.bytes = ram.iter().map(|range| range.end - range.start).sum();
        let there = memory.areas.iter().filter_map(|area| area.resident);
        memory.resident = there.sum();
        memory
    }

    /// What lies at the guest-physical address `gpa`.
    pub fn what(&self, gpa: u64) -> String {
        let after = self.areas.partition_point(|area| area.end.0 <= gpa);
        match self.areas.get(after) {
            Some(area) => area.what.clone(),
            None => "nothing".into(),
        }
    }

    /// RAM and holes from `at` to `end`.
    fn fill(
        &mut self,
        ram: &[Range<u64>],
        mut at: u64,
        end: u64,
        resident: &mut impl FnMut(&Range<u64>) -> u64,
    ) {
        for range in ram {
            let (start, stop) = (range.start.clamp(at, end), range.end.clamp(at, end));
            if start >= stop {
                continue;
            }
            self.push(at..start, Kind::Hole, "nothing", resident);
            self.push(start..stop, Kind::Ram, "RAM", resident);
            at = stop;
        }
        self.push(at..end, Kind::Hole, "nothing", resident);
    }

    fn push(
        &mut self,
        range: Range<u64>,
        kind: Kind,
        what: &str,
        resident: &mut impl FnMut(&Range<u64>) -> u64,
    ) {
        if range.is_empty() {
            return;
        }
        let is_ram = matches!(kind, Kind::Ram | Kind::Loaded);
        self.areas.push(Area {
            start: Hex(range.start),
            end: Hex(range.end),
            kind,
            what: what.into(),
            resident: is_ram.then(|| resident(&range)),
        });
    }
}
