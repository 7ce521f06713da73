//! The memory map: what lies where in the guest-physical addresses.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Hex;

/// What a range of addresses is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// RAM, of which hull has no more to say.
    Ram,
    /// RAM in which hull has put something before the guest started.
    Loaded,
    /// Registers of a device.
    Device,
    /// Nothing.
    Hole,
}

/// A range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// Its first GPA.
    pub start: Hex,
    /// The first GPA behind it.
    pub end: Hex,
    /// What it is.
    pub kind: Kind,
    /// In words.
    pub what: String,
    /// Bytes of it that the host has in memory, of RAM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident: Option<u64>,
}

/// All addresses from 0 to the end of RAM or of the hole below 4 GiB.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Bytes of RAM.
    pub bytes: u64,
    /// Bytes of it that the host has in memory.
    pub resident: u64,
    /// The areas, ascending, without a gap.
    pub areas: Vec<Area>,
}

impl Memory {
    /// RAM in the ranges `ram`, ascending, with `known` in and beside it. What overlaps something
    /// before it in the list is cut short, so that each address is one thing.
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

    /// What lies at `gpa`.
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
