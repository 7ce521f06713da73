//! The virtio memory balloon (virtio 1.2, 5.5): the guest gives unused memory back to the host.
//!
//! The guest *inflates* the balloon: it stops using as many pages as the host asks for. It *reports*
//! pages that are free for the moment, and uses them again without notice (5.5.6.7). Its statistics
//! show the host how much to ask for (5.5.6.3). Pages are given back through [`Release`]; a page
//! that the guest gives back and still uses reads as zeroes, which harms only that guest.

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

use super::queue::{Chain, VirtQueue};
use super::{Device, DeviceError, Driver, Kind, read_config_bytes};
use crate::devices::state::{StateError, decode, encode};

const KIND: Kind = Kind {
    id: 5,
    name: "memory balloon",
    features: &[
        (1, "STATS_VQ"),
        (2, "DEFLATE_ON_OOM"),
        (5, "PAGE_REPORTING"),
    ],
    fields: &[("num_pages", 0, 4), ("actual", 4, 4)],
};
const QUEUE_SIZE: u16 = 128;
/// Unit of page numbers, whatever the guest's pages are (5.5.6).
const PAGE: u64 = 4096;
/// Page numbers of one chain: a page of them. Linux sends 256.
const MAX_PAGES: u64 = 1024;
/// Statistics of one buffer; Linux sends 16.
const MAX_STATISTICS: u64 = 64;

// Queues (5.5.2) when all offered features are accepted.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;

// Features (5.5.3).
const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_REPORTING: u64 = 1 << 5;

/// Offset of `actual` in the configuration space (5.5.4).
const ACTUAL: u64 = 4;

/// Names of the statistics by their tag (5.5.6.4, and uapi/linux/virtio_balloon.h from 10 on).
const TAGS: [&str; 16] = [
    "swap_in_bytes",
    "swap_out_bytes",
    "major_faults",
    "minor_faults",
    "free_bytes",
    "total_bytes",
    "available_bytes",
    "disk_caches_bytes",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kills",
    "allocation_stalls",
    "async_scans",
    "direct_scans",
    "async_reclaims",
    "direct_reclaims",
];

/// Bytes that one call gives back at most, beside the rest of a chain: the event loop waits meanwhile.
const PER_CALL: u64 = 1 << 30;
/// What a range costs beside its bytes, as so many bytes.
const RANGE_COST: u64 = 64 << 10;

/// Gives guest memory back to the host: a GPA, unchecked, and a number of bytes.
pub type Release = Box<dyn FnMut(GuestAddress, u64) + Send>;

/// The balloon's size and the guest's statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct State {
    /// Size that the host asks for.
    pub target_bytes: u64,
    /// Size that the guest reports.
    pub actual_bytes: u64,
    /// Bytes given back so far, by inflating or reporting; the same page counts each time.
    pub released_bytes: u64,
    /// The guest's last statistics, by name.
    pub statistics: Vec<(&'static str, u64)>,
}

/// A balloon as it is saved.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    target_bytes: u64,
    actual_pages: u32,
    released_bytes: u64,
    /// By index into [`TAGS`].
    statistics: Vec<(u8, u64)>,
    /// Head of the buffer held for the next request of statistics.
    statistics_buffer: Option<u16>,
}

/// A balloon device.
pub struct Balloon {
    state: State,
    /// Time between two requests of statistics; the guest sends the first by itself.
    period: Option<Duration>,
    release: Release,
    /// The guest's buffer, held until the next statistics are requested by giving it back.
    statistics_buffer: Option<Chain>,
}

impl Balloon {
    /// A balloon of `target_bytes`, which requests statistics once a `period`.
    pub fn new(target_bytes: u64, period: Option<Duration>, release: Release) -> Self {
        Self {
            state: State {
                target_bytes,
                ..State::default()
            },
            period,
            release,
            statistics_buffer: None,
        }
    }

    /// The current state, for reports.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Index of the queue of free pages: after that of statistics, if there is one.
    fn reporting(driver: &Driver) -> Option<usize> {
        let index = STATISTICS + usize::from(driver.has(F_STATS_VQ));
        driver.has(F_PAGE_REPORTING).then_some(index)
    }

    /// Give back the pages that the guest no longer uses.
    fn inflate(&mut self, queue: &mut VirtQueue) -> Result<(), DeviceError> {
        let mut left = PER_CALL;
        while left > 0
            && let Some(chain) = queue.pop()?
        {
            let pages = chain.readable_len() / 4;
            if pages > MAX_PAGES {
                return Err(queue.refuse(&chain, "carries more than 1024 page numbers"));
            }
            let mut numbers = [0; 4 * MAX_PAGES as usize];
            let read = queue.read(&chain, 0, &mut numbers)?;
            let numbers = numbers.get(..read).unwrap_or_default();
            let numbers = numbers.as_chunks().0.iter().copied();
            for (first, pages) in runs(numbers.map(u32::from_le_bytes)) {
                let start = GuestAddress(u64::from(first) * PAGE);
                self.give_back(start, pages * PAGE, &mut left);
            }
            queue.finish(chain, 0)?;
        }
        if left == 0 {
            queue.process_again();
        }
        Ok(())
    }

    /// Give back the memory that is free for the moment.
    fn report(&mut self, queue: &mut VirtQueue) -> Result<(), DeviceError> {
        let mut left = PER_CALL;
        while left > 0
            && let Some(chain) = queue.pop()?
        {
            for segment in chain.writable() {
                self.give_back(segment.addr, segment.len.into(), &mut left);
            }
            queue.finish(chain, 0)?;
        }
        if left == 0 {
            queue.process_again();
        }
        Ok(())
    }

    /// Give back `bytes` from `start` on, and take their cost from what is `left` of a call.
    fn give_back(&mut self, start: GuestAddress, bytes: u64, left: &mut u64) {
        *left = left.saturating_sub(bytes.saturating_add(RANGE_COST));
        self.state.released_bytes += bytes;
        (self.release)(start, bytes);
    }

    /// Read statistics, and hold the buffer for the next request.
    fn read_statistics(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let Some(queue) = driver.queue(STATISTICS) else {
            return Ok(());
        };
        while let Some(chain) = queue.pop()? {
            if self.statistics_buffer.is_some() {
                return Err(queue.refuse(&chain, "is a second buffer for statistics")); // 5.5.6.3
            }
            let count = (chain.readable_len() / 10).min(MAX_STATISTICS);
            self.state.statistics.clear();
            for index in 0..count {
                let mut entry = [0; 10];
                queue.read(&chain, index * 10, &mut entry)?;
                let [t0, t1, value @ ..] = entry;
                let tag = TAGS.get(usize::from(u16::from_le_bytes([t0, t1])));
                // The first of two values with the same tag counts.
                if let Some(&name) = tag
                    && self
                        .state
                        .statistics
                        .iter()
                        .all(|(known, _)| *known != name)
                {
                    let value = u64::from_le_bytes(value);
                    self.state.statistics.push((name, value));
                }
            }
            self.statistics_buffer = Some(chain);
        }
        if let Some(period) = self.period {
            driver.wake_in(period);
        }
        Ok(())
    }
}

impl Device for Balloon {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        F_STATS_VQ | F_DEFLATE_ON_OOM | F_PAGE_REPORTING
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 4]
    }

    /// struct virtio_balloon_config (5.5.4): num_pages, actual; neither hint nor poison.
    fn config(&self, offset: u64, data: &mut [u8]) {
        let pages = |bytes: u64| u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        let mut space = [0; 16];
        let (target, rest) = space.split_at_mut(4);
        target.copy_from_slice(&pages(self.state.target_bytes).to_le_bytes());
        let (actual, _) = rest.split_at_mut(4);
        actual.copy_from_slice(&pages(self.state.actual_bytes).to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(pages)) = (offset, data.try_into()) {
            self.state.actual_bytes = u64::from(u32::from_le_bytes(pages)) * PAGE;
        }
    }

    fn activate(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        // Linux sends the first statistics before it is up, against virtio 1.2, 3.1.1
        // (drivers/virtio/virtio_balloon.c, init_vqs).
        if let Some(queue) = driver.queue(STATISTICS) {
            queue.process_again();
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.statistics_buffer = None;
        self.state.actual_bytes = 0;
    }

    fn process(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        let reporting = Self::reporting(driver);
        match queue {
            STATISTICS if driver.has(F_STATS_VQ) => return self.read_statistics(driver),
            _ => {}
        }
        let Some(ring) = driver.queue(queue) else {
            return Ok(());
        };
        match queue {
            INFLATE => self.inflate(ring),
            // The pages read as zeroes when they are touched; there is nothing to do before.
            DEFLATE => {
                while let Some(chain) = ring.pop()? {
                    ring.finish(chain, 0)?;
                }
                Ok(())
            }
            queue if Some(queue) == reporting => self.report(ring),
            _ => Ok(()),
        }
    }

    /// Request new statistics.
    fn alarm(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        match (driver.queue(STATISTICS), self.statistics_buffer.take()) {
            (Some(queue), Some(chain)) => queue.finish(chain, 0),
            _ => Ok(()),
        }
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        let numbered = self.state.statistics.iter().filter_map(|(name, value)| {
            let index = TAGS.iter().position(|tag| tag == name)?;
            Some((index as u8, *value))
        });
        encode(&Saved {
            target_bytes: self.state.target_bytes,
            actual_pages: u32::try_from(self.state.actual_bytes / PAGE).unwrap_or(u32::MAX),
            released_bytes: self.state.released_bytes,
            statistics: numbered.collect(),
            statistics_buffer: self.statistics_buffer.as_ref().map(Chain::head),
        })
    }

    fn load(&mut self, state: &[u8], driver: &mut Driver) -> Result<(), StateError> {
        let saved: Saved = decode(state)?;
        let named = |(index, value): (u8, u64)| Some((*TAGS.get(usize::from(index))?, value));
        self.state.actual_bytes = u64::from(saved.actual_pages) * PAGE;
        // Only a count for reports; limited so that it cannot overflow.
        self.state.released_bytes = saved.released_bytes.min(u64::MAX / 2);
        let statistics = saved.statistics.into_iter().filter_map(named);
        self.state.statistics = statistics.take(TAGS.len()).collect();
        if saved.target_bytes != self.state.target_bytes {
            // The target is that of this run.
            driver.config_changed();
        }
        let Some(head) = saved.statistics_buffer else {
            return Ok(());
        };
        match driver
            .has(F_STATS_VQ)
            .then(|| driver.queue(STATISTICS))
            .flatten()
        {
            Some(queue) => self.statistics_buffer = Some(queue.reclaim(head)?),
            None => {
                return Err(StateError(
                    "has a buffer of a queue that is not in use".into(),
                ));
            }
        }
        if let Some(period) = self.period {
            driver.wake_in(period);
        }
        Ok(())
    }
}

/// Runs of neighbouring page numbers, which Linux gives in ascending or descending order: the lowest
/// of each run and its length.
fn runs(pages: impl Iterator<Item = u32>) -> Vec<(u32, u64)> {
    let mut runs: Vec<(u32, u64)> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some((first, count)) if u64::from(*first) + *count == u64::from(page) => *count += 1,
            Some((first, count)) if page.checked_add(1) == Some(*first) => {
                *first = page;
                *count += 1;
            }
            _ => runs.push((page, 1)),
        }
    }
    runs
}
