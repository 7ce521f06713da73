//! Section "MEMO": the description of the file of guest memory, encoded and decoded.

use std::fmt;
use std::ops::Range;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::header::Tag;
use super::id::Id;
use crate::memory::pages::{PAGE, Pages};

pub(super) const TAG: Tag = *b"MEMO";

/// Most regions of guest memory that a snapshot may have.
const MAX_REGIONS: usize = 16;
/// The end of all physical addresses (Intel SDM 3A 4.1.4: 52 bits), so that no sum here overflows.
const ADDRESSES: u64 = 1 << 52;
/// Longest section in bytes, for a million extents and more: decoded, they take eight times as much.
pub(super) const MAX_BYTES: usize = 4 << 20;

/// The section as it is stored.
#[derive(Deserialize, Serialize)]
struct Stored<E> {
    id: [u8; 16],
    parent: Option<[u8; 16]>,
    /// GPA and size of each region.
    regions: Vec<(u64, u64)>,
    /// Of each extent, the pages between the previous one and it, and its pages.
    extents: E,
    crc: u32,
}

/// Extents that are decoded one by one.
struct Extents(Vec<Range<u64>>);

impl<'de> Deserialize<'de> for Extents {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(Extents(Vec::new()))
    }
}

impl<'de> Visitor<'de> for Extents {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("extents")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut pairs: A) -> Result<Self, A::Error> {
        let mut end = 0;
        while let Some((between, pages)) = pairs.next_element()? {
            let place = |pages: u64, after: u64| {
                let end = pages.checked_mul(PAGE)?.checked_add(after)?;
                (end <= ADDRESSES).then_some(end)
            };
            let start = place(between, end).ok_or(A::Error::custom("after the end"))?;
            let next = place(pages, start).ok_or(A::Error::custom("beyond the end"))?;
            if pages == 0 || (between == 0 && !self.0.is_empty()) {
                return Err(A::Error::custom("touching"));
            }
            self.0.push(start..next);
            end = next;
        }
        Ok(self)
    }
}

/// The description of a file of guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Memo {
    pub id: Id,
    pub parent: Option<Id>,
    /// GPA and size of each region.
    pub regions: Vec<(u64, u64)>,
    /// The extents with content; in a diff, those that it replaces.
    pub extents: Vec<Range<u64>>,
    /// CRC-32 of all extents, in order.
    pub crc: u32,
}

impl Memo {
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The extents as a set of pages.
    pub fn pages(&self) -> Pages {
        Pages::from_ranges(self.extents.iter().cloned())
    }

    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        let mut end = 0;
        let extent = |extent: &Range<u64>| {
            let between = extent.start - end;
            end = extent.end;
            (between / PAGE, (extent.end - extent.start) / PAGE)
        };
        postcard::to_allocvec(&Stored::<Vec<(u64, u64)>> {
            id: self.id.0,
            parent: self.parent.map(|id| id.0),
            regions: self.regions.clone(),
            extents: self.extents.iter().map(extent).collect(),
            crc: self.crc,
        })
    }

    /// Decode `bytes`; the error says which part is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_BYTES {
            return Err("too many extents".into());
        }
        let stored = match postcard::take_from_bytes::<Stored<Extents>>(bytes) {
            Ok((stored, [])) => stored,
            Ok(_) => return Err("data after the section".into()),
            Err(error) => return Err(error.to_string()),
        };
        let total = judge(&stored.regions)?;
        let Extents(extents) = stored.extents;
        if extents.last().is_some_and(|last| last.end > total) {
            return Err("an extent beyond the end".into());
        }
        Ok(Self {
            id: Id(stored.id),
            parent: stored.parent.map(Id),
            regions: stored.regions,
            extents,
            crc: stored.crc,
        })
    }
}

/// The size of `regions`, if a guest can have them.
fn judge(regions: &[(u64, u64)]) -> Result<u64, &'static str> {
    if regions.is_empty() || regions.len() > MAX_REGIONS {
        return Err("no regions, or too many");
    }
    let (mut free, mut total) = (0u64, 0u64);
    for &(gpa, bytes) in regions {
        let end = gpa.checked_add(bytes).filter(|end| *end <= ADDRESSES);
        let end = end.ok_or("a region beyond all addresses")?;
        if bytes == 0 || !gpa.is_multiple_of(PAGE) || !bytes.is_multiple_of(PAGE) {
            return Err("a region that is not whole pages");
        }
        if gpa < free {
            return Err("regions out of order");
        }
        free = end;
        total += bytes; // apart and below ADDRESSES
    }
    Ok(total)
}
