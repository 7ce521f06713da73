//! The virtio entropy device (virtio 1.2, 5.4): random bytes of the host for the guest's pool.

use std::time::Duration;

use super::{Device, DeviceError, Driver, Kind};
use crate::devices::rate::{Limit, Limits, Rate};

const KIND: Kind = Kind {
    id: 4,
    name: "entropy",
    features: &[],
    fields: &[],
};
const QUEUE_SIZE: u16 = 8;
/// Bytes of an answer. A pool needs some hundred; a driver that needs more asks again, so that no
/// single request keeps the host busy.
const MAX_ANSWER: u64 = 4096;
/// Rate of all requests together; faster ones wait.
const CAP: Limit = Limit {
    per_second: 1 << 20,
    burst: 1 << 20,
};

/// Fills a slice with random bytes; false if it cannot.
pub type Source = Box<dyn FnMut(&mut [u8]) -> bool + Send>;

/// Returns the time since a fixed moment.
pub type Clock = Box<dyn FnMut() -> Duration + Send>;

/// An entropy device.
pub struct Rng {
    source: Source,
    rate: Rate,
    clock: Clock,
}

impl Rng {
    /// A device that gives out the bytes of `source`, limited to `CAP` by `clock`.
    pub fn new(source: Source, clock: Clock) -> Self {
        Self {
            source,
            rate: Rate::new(&Limits {
                bytes: Some(CAP),
                operations: None,
            }),
            clock,
        }
    }
}

impl Device for Rng {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, _driver: &mut Driver) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn process(&mut self, _queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        let Some(queue) = driver.queue(0) else {
            return Ok(());
        };
        while let Some(chain) = queue.pop()? {
            if !chain.readable().is_empty() {
                return Err(queue.refuse(&chain, "is readable: entropy goes one way")); // 5.4.6.1
            }
            let mut answer = [0; MAX_ANSWER as usize];
            let room = chain.writable_len().min(MAX_ANSWER) as usize;
            if let Err(wait) = self.rate.take(room as u64, (self.clock)()) {
                queue.put_back(chain);
                driver.wake_in(wait);
                return Ok(());
            }
            let answer = answer.get_mut(..room).unwrap_or_default();
            let written = if (self.source)(answer) {
                queue.write(&chain, 0, answer)?
            } else {
                0
            };
            queue.finish(chain, written as u32)?;
        }
        Ok(())
    }

    fn alarm(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        self.process(0, driver)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::{Just, proptest};

    use super::*;
    use crate::devices::testing::flips;
    use crate::devices::virtio::testing::carry::{acts, goes_on};
    use crate::devices::virtio::testing::{Guest, LIVE, NEEDS_RESET};

    fn up() -> Guest {
        let mut count = 0u8;
        let source = move |bytes: &mut [u8]| {
            for byte in bytes {
                count = count.wrapping_add(1);
                *byte = count;
            }
            true
        };
        let mut guest = Guest::new(Rng::new(Box::new(source), Box::new(|| Duration::ZERO)));
        guest.start(0, QUEUE_SIZE);
        guest
    }

    #[test]
    fn requests_over_the_rate_wait() {
        let now = Arc::new(AtomicU64::new(0));
        let clock = now.clone();
        let clock = Box::new(move || Duration::from_secs(clock.load(Ordering::Relaxed)));
        let mut guest = Guest::new(Rng::new(Box::new(|_| true), clock));
        guest.start(0, QUEUE_SIZE);
        for _ in 0..CAP.burst / MAX_ANSWER {
            guest.lend(0, MAX_ANSWER as u32);
            guest.notify(0);
            assert_eq!(guest.returned(0).len(), 1);
        }
        guest.lend(0, 1);
        guest.notify(0);
        guest.core().alarm();
        assert!(guest.returned(0).is_empty());
        now.store(1, Ordering::Relaxed);
        guest.core().alarm();
        assert_eq!(guest.returned(0).len(), 1);
    }

    #[test]
    fn a_buffer_comes_back_full() {
        let mut guest = up();
        guest.lend(0, 3);
        guest.lend(0, 2);
        guest.notify(0);
        assert_eq!(guest.received(0), [vec![1, 2, 3], vec![4, 5]]);
    }

    #[test]
    fn an_answer_has_an_end() {
        let mut guest = up();
        guest.lend(0, 3 * MAX_ANSWER as u32);
        guest.notify(0);
        assert_eq!(guest.returned(0), [(0, MAX_ANSWER as u32)]);
        assert_eq!(guest.status(), LIVE);
    }

    #[test]
    fn a_source_that_fails_gives_nothing() {
        let mut guest = Guest::new(Rng::new(Box::new(|_| false), Box::new(|| Duration::ZERO)));
        guest.start(0, QUEUE_SIZE);
        guest.lend(0, 16);
        guest.notify(0);
        assert_eq!(guest.returned(0), [(0, 0)]);
    }

    #[test]
    fn a_readable_buffer_stops_the_device() {
        let mut guest = up();
        guest.send(0, b"seed", &[], false);
        guest.notify(0);
        assert_eq!(guest.status() & NEEDS_RESET, NEEDS_RESET);
    }

    proptest! {
        #[test]
        fn a_restored_device_behaves_as_the_first(
            before in acts(1, Just(vec![])), after in acts(1, Just(vec![])), flips in flips(),
        ) {
            let new = || Rng::new(Box::new(|_| true), Box::new(|| Duration::ZERO));
            goes_on(new, 0, &before, &after, &flips);
        }
    }
}
