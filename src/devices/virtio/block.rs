//! The virtio block device (virtio 1.2, 5.2): requests are checked here and served by a backend.
//!
//! [`Block`] is the front end: it parses chains, refuses invalid ones and hands a [`Request`] to a
//! [`Backend`], which serves it on its own thread and reports by [`Block::complete`]. So no vCPU
//! waits for a disk, and this model does not depend on what a disk is.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::queue::{Chain, Segments, VirtQueue, part};
use super::requests::Backend;
use super::{Device, DeviceError, Driver, Kind, read_config_bytes};
use crate::devices::state::{self, StateError};

const KIND: Kind = Kind {
    id: 2,
    name: "block",
    features: &[
        (2, "SEG_MAX"),
        (5, "RO"),
        (6, "BLK_SIZE"),
        (9, "FLUSH"),
        (13, "DISCARD"),
        (14, "WRITE_ZEROES"),
    ],
    fields: &[
        ("capacity", 0, 8),
        ("seg_max", 12, 4),
        ("blk_size", 20, 4),
        ("max_discard_sectors", 36, 4),
        ("max_discard_seg", 40, 4),
        ("max_write_zeroes_sectors", 48, 4),
        ("max_write_zeroes_seg", 52, 4),
    ],
};
/// Unit of all positions and sizes, whatever the block size (5.2).
pub const SECTOR: u64 = 512;
/// Entries of the one queue.
const QUEUE_SIZE: u16 = 256;
/// Data segments of a request: what a chain of the queue's length holds beside header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// Bytes of the longest name (5.2.6, VIRTIO_BLK_T_GET_ID).
pub const MAX_NAME: usize = 20;
/// Sectors of one discarded or zeroed range: 1 GiB.
const MAX_RANGE: u32 = 1 << 21;
/// Ranges of one request to discard.
const MAX_DISCARD_RANGES: u32 = 16;
/// Ranges of one request to write zeroes: a host that cannot record zeroes writes them, and a reset
/// waits for that.
const MAX_ZERO_RANGES: u32 = 1;

// Features (5.2.3).
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

// Requests (5.2.6).
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

// A request's last byte (5.2.6).
const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

/// Flag of a range: the sectors may be given back to the host.
const UNMAP: u32 = 1;

/// struct virtio_blk_req, up to its data (5.2.6).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Default)]
#[repr(C)]
struct Header {
    kind: U32,
    reserved: U32,
    sector: U64,
}

/// struct virtio_blk_discard_write_zeroes (5.2.6).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Default)]
#[repr(C)]
struct RangeEntry {
    sector: U64,
    sectors: U32,
    flags: U32,
}

/// The configuration space (5.2.4).
#[derive(IntoBytes, Immutable, Default)]
#[repr(C)]
struct Space {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    topology: [u8; 8],
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

/// A range of bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Its first byte.
    pub at: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The host may free their space. Never set in a [`Request::Discard`], which implies it.
    pub unmap: bool,
}

/// A request to a disk. All of it lies within the disk and within guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill `to` from byte `at` on.
    Read {
        /// Byte of the disk, a multiple of 512.
        at: u64,
        /// Guest memory, a multiple of 512 bytes in all.
        to: Segments,
    },
    /// Write `from` at byte `at`.
    Write {
        /// Byte of the disk, a multiple of 512.
        at: u64,
        /// Guest memory, a multiple of 512 bytes in all.
        from: Segments,
        /// The driver sends no flushes: the bytes must be on the disk when the request is reported.
        stable: bool,
    },
    /// All that was reported as written must be on the disk.
    Flush,
    /// The guest no longer needs these bytes.
    Discard(Vec<Range>),
    /// Set these bytes to 0.
    WriteZeroes {
        /// The bytes to set.
        ranges: Vec<Range>,
        /// As in a write.
        stable: bool,
    },
}

impl Request {
    /// Bytes of the disk that it reads, writes, zeroes or discards, which a rate limit counts.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Read { to: segments, .. } | Self::Write { from: segments, .. } => {
                segments.iter().map(|segment| u64::from(segment.len)).sum()
            }
            Self::Discard(ranges) | Self::WriteZeroes { ranges, .. } => {
                ranges.iter().map(|range| range.len).sum()
            }
            Self::Flush => 0,
        }
    }

    /// Split off the beginning of a request that goes beyond the next multiple of `piece` bytes on the
    /// disk, a multiple of 512: the returned request and then `self` do what `self` did.
    pub fn split(&mut self, piece: u64) -> Option<Self> {
        let all = self.bytes();
        // Up to there from byte `at` on.
        let until = |at: u64| piece - at % piece;
        match self {
            Self::Read { at, to } if until(*at) < all => {
                let now = until(*at);
                let first = (*at, part(to, 0, now));
                (*at, *to) = (*at + now, part(to, now, all - now));
                let (at, to) = first;
                Some(Self::Read { at, to })
            }
            Self::Write { at, from, .. } if until(*at) < all => {
                let now = until(*at);
                let first = (*at, part(from, 0, now));
                (*at, *from) = (*at + now, part(from, now, all - now));
                let (at, from) = first;
                let stable = false; // by the last piece
                Some(Self::Write { at, from, stable })
            }
            Self::Discard(ranges) => split_first(ranges, until).map(Self::Discard),
            Self::WriteZeroes { ranges, .. } => {
                let ranges = split_first(ranges, until)?;
                let stable = false;
                Some(Self::WriteZeroes { ranges, stable })
            }
            _ => None,
        }
    }
}

/// Split off the first range, or as much of it as `until` says for its first byte; `None` if that is all.
fn split_first(ranges: &mut Vec<Range>, until: impl Fn(u64) -> u64) -> Option<Vec<Range>> {
    let several = ranges.len() > 1;
    let range = ranges.first_mut()?;
    let first = Range {
        len: range.len.min(until(range.at)),
        ..*range
    };
    if first.len < range.len {
        range.at += first.len;
        range.len -= first.len;
    } else if several {
        ranges.remove(0);
    } else {
        return None;
    }
    Some(vec![first])
}

/// A disk as its driver sees it.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Nothing may be written.
    pub read_only: bool,
    /// The smallest space that a discard frees, in sectors; `None` if it frees nothing.
    pub discard_unit: Option<u32>,
    /// The serial number, in the guest's /sys/block/vda/serial; cut to [`MAX_NAME`] bytes.
    pub name: String,
}

/// A device as it is saved; `disk::Identity` has the disk itself.
#[derive(Serialize, Deserialize)]
struct State {
    sectors: u64,
    read_only: bool,
    /// Heads of the chains whose requests were not reported, in their order: they are served again.
    in_flight: Vec<u16>,
}

/// A block device.
pub struct Block {
    geometry: Geometry,
    backend: Box<dyn Backend<Request>>,
    /// Chains of requests that are being served, by rising ids. An id is never used twice, so a report that
    /// comes after a reset finds nothing.
    in_flight: VecDeque<(u64, Chain)>,
    next_id: u64,
}

impl Block {
    /// A disk of this geometry, served by `backend`.
    pub fn new(geometry: Geometry, backend: Box<dyn Backend<Request>>) -> Self {
        Self {
            geometry,
            backend,
            in_flight: VecDeque::new(),
            next_id: 0,
        }
    }

    /// Request `id` has been served, or failed for the reason given.
    ///
    /// # Errors
    /// The driver has broken the ring.
    pub fn complete(
        &mut self,
        driver: &mut Driver,
        id: u64,
        served: Result<(), String>,
    ) -> Result<(), DeviceError> {
        let found = self.in_flight.binary_search_by_key(&id, |(id, _)| *id);
        let Some((_, chain)) = found.ok().and_then(|index| self.in_flight.remove(index)) else {
            return Ok(());
        };
        if let Err(reason) = &served {
            driver.warn(reason);
        }
        let Some(queue) = driver.queue(0) else {
            return Ok(());
        };
        match served {
            Ok(()) => {
                let data = chain.writable_len().saturating_sub(1) as u32;
                finish(queue, chain, S_OK, data)
            }
            Err(_) => finish(queue, chain, S_IOERR, 0),
        }
    }

    /// The disk has another size now (5.2.5: the driver reads the capacity again).
    pub fn resize(&mut self, driver: &mut Driver, sectors: u64) {
        self.geometry.sectors = sectors;
        driver.config_changed();
    }

    /// Parse one chain and submit its request, or answer it.
    fn handle(
        &mut self,
        queue: &mut VirtQueue,
        chain: Chain,
        stable: bool,
    ) -> Result<(), DeviceError> {
        let mut header = Header::default();
        if queue.read(&chain, 0, header.as_mut_bytes())? < size_of::<Header>() {
            return Err(queue.refuse(&chain, "is shorter than a block request"));
        }
        if chain.writable_len() == 0 {
            return Err(queue.refuse(&chain, "has no room for a status"));
        }
        let request = match header.kind.get() {
            T_GET_ID => {
                let mut name = [0; MAX_NAME];
                for (to, from) in name.iter_mut().zip(self.geometry.name.bytes()) {
                    *to = from;
                }
                let room = (chain.writable_len() - 1).min(MAX_NAME as u64) as usize;
                let written = queue.write(&chain, 0, name.get(..room).unwrap_or_default())?;
                return finish(queue, chain, S_OK, written as u32);
            }
            kind => match self.parse(kind, header.sector.get(), queue, &chain, stable)? {
                Ok(request) => request,
                Err(status) => return finish(queue, chain, status, 0),
            },
        };
        if self.in_flight.len() >= usize::from(QUEUE_SIZE) {
            return Err(queue.refuse(&chain, "is one more than the queue holds"));
        }
        let id = self.next_id;
        self.next_id += 1;
        self.in_flight.push_back((id, chain));
        self.backend.submit(id, request);
        Ok(())
    }

    /// The request of this kind, or the status that answers it.
    fn parse(
        &self,
        kind: u32,
        sector: u64,
        queue: &VirtQueue,
        chain: &Chain,
        stable: bool,
    ) -> Result<Result<Request, u8>, DeviceError> {
        let header = size_of::<Header>() as u64;
        let (sent, asked) = (chain.readable_len() - header, chain.writable_len() - 1);
        let writes = matches!(kind, T_OUT | T_DISCARD | T_WRITE_ZEROES);
        if writes && self.geometry.read_only {
            return Ok(Err(S_IOERR)); // 5.2.6.2
        }
        Ok(match kind {
            T_IN => self.bytes(sector, asked).map(|at| Request::Read {
                at,
                to: part(chain.writable(), 0, asked),
            }),
            T_OUT => self.bytes(sector, sent).map(|at| Request::Write {
                at,
                from: part(chain.readable(), header, sent),
                stable,
            }),
            T_FLUSH => Ok(Request::Flush),
            T_DISCARD => match self.ranges(queue, chain, sent, MAX_DISCARD_RANGES)? {
                Ok(ranges) if ranges.iter().any(|range| range.unmap) => Err(S_UNSUPP), // 5.2.6.2
                ranges => ranges.map(Request::Discard),
            },
            T_WRITE_ZEROES => {
                let ranges = self.ranges(queue, chain, sent, MAX_ZERO_RANGES)?;
                ranges.map(|ranges| Request::WriteZeroes { ranges, stable })
            }
            _ => Err(S_UNSUPP),
        })
    }

    /// The byte at which `len` bytes from `sector` on begin, if they are whole sectors of the disk.
    fn bytes(&self, sector: u64, len: u64) -> Result<u64, u8> {
        let end = sector.checked_add(len / SECTOR).ok_or(S_IOERR)?;
        if !len.is_multiple_of(SECTOR) || len == 0 || end > self.geometry.sectors {
            return Err(S_IOERR);
        }
        sector.checked_mul(SECTOR).ok_or(S_IOERR)
    }

    /// The ranges of a request to discard or to write zeroes.
    fn ranges(
        &self,
        queue: &VirtQueue,
        chain: &Chain,
        sent: u64,
        most: u32,
    ) -> Result<Result<Vec<Range>, u8>, DeviceError> {
        let entry = size_of::<RangeEntry>() as u64;
        let count = sent / entry;
        if !sent.is_multiple_of(entry) || count == 0 || count > u64::from(most) {
            return Ok(Err(S_IOERR));
        }
        let mut ranges = Vec::new();
        for index in 0..count {
            let mut range = RangeEntry::default();
            let at = size_of::<Header>() as u64 + index * entry;
            queue.read(chain, at, range.as_mut_bytes())?;
            if range.flags.get() & !UNMAP != 0 {
                return Ok(Err(S_UNSUPP)); // 5.2.6.2
            }
            let len = u64::from(range.sectors.get()) * SECTOR;
            match self.bytes(range.sector.get(), len) {
                Ok(at) if range.sectors.get() <= MAX_RANGE => ranges.push(Range {
                    at,
                    len,
                    unmap: range.flags.get() == UNMAP,
                }),
                _ => return Ok(Err(S_IOERR)),
            }
        }
        Ok(Ok(ranges))
    }
}

fn finish(queue: &mut VirtQueue, chain: Chain, status: u8, data: u32) -> Result<(), DeviceError> {
    queue.write(&chain, chain.writable_len().saturating_sub(1), &[status])?;
    queue.finish(chain, data.saturating_add(1))
}

impl Device for Block {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        let writes = match (self.geometry.read_only, self.geometry.discard_unit) {
            (true, _) => F_RO,
            (false, None) => F_WRITE_ZEROES,
            (false, Some(_)) => F_DISCARD | F_WRITE_ZEROES,
        };
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | writes
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self, offset: u64, data: &mut [u8]) {
        let space = Space {
            capacity: self.geometry.sectors.into(),
            seg_max: MAX_SEGMENTS.into(),
            blk_size: (SECTOR as u32).into(),
            num_queues: 1.into(),
            max_discard_sectors: MAX_RANGE.into(),
            max_discard_seg: MAX_DISCARD_RANGES.into(),
            discard_sector_alignment: self.geometry.discard_unit.unwrap_or_default().into(),
            max_write_zeroes_sectors: MAX_RANGE.into(),
            max_write_zeroes_seg: MAX_ZERO_RANGES.into(),
            write_zeroes_may_unmap: self.geometry.discard_unit.is_some().into(),
            ..Space::default()
        };
        read_config_bytes(space.as_bytes(), offset, data);
    }

    fn activate(&mut self, _driver: &mut Driver) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {
        self.backend.cancel();
        self.in_flight.clear();
    }

    fn process(&mut self, _queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        let stable = !driver.has(F_FLUSH); // 5.2.6.2: a driver without flushes writes through
        let Some(queue) = driver.queue(0) else {
            return Ok(());
        };
        while let Some(chain) = queue.pop()? {
            self.handle(queue, chain, stable)?;
        }
        Ok(())
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        let Geometry {
            sectors, read_only, ..
        } = self.geometry;
        state::encode(&State {
            sectors,
            read_only,
            in_flight: self
                .in_flight
                .iter()
                .map(|(_, chain)| chain.head())
                .collect(),
        })
    }

    fn load(&mut self, state: &[u8], driver: &mut Driver) -> Result<(), StateError> {
        let State {
            sectors,
            read_only,
            in_flight,
        } = state::decode(state)?;
        let Geometry {
            sectors: now_sectors,
            read_only: now_read_only,
            ..
        } = self.geometry;
        let bytes = |sectors: u64| u128::from(sectors) * u128::from(SECTOR);
        let to_write = |read_only| if read_only { "read-only" } else { "writable" };
        if sectors != now_sectors {
            let (then, now) = (bytes(sectors), bytes(now_sectors));
            return Err(StateError(format!(
                "has {now} bytes, and had {then} when it was saved; give the image as it was"
            )));
        }
        if read_only != now_read_only {
            let (then, now) = (to_write(read_only), to_write(now_read_only));
            return Err(StateError(format!(
                "is {now}, and was {then} when it was saved; give it as it was"
            )));
        }
        let stable = !driver.has(F_FLUSH);
        let Some(queue) = driver.queue(0) else {
            return Ok(());
        };
        for head in in_flight {
            let chain = queue.reclaim(head)?;
            self.handle(queue, chain, stable)?;
        }
        Ok(())
    }
}
