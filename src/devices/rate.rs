//! Rate limits of a device: token buckets for bytes and for operations a second.
//!
//! A pure model: the caller passes the time. [`Rate::take`] is called before each request, and
//! either lets it pass or returns how long to wait. A request that is larger than the bucket passes
//! when the bucket is full, and leaves it in debt: no request waits for ever.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::size;

/// What `rate=` takes, for messages.
pub const RATE: &str = "rate=BYTES[/BURST] a second, rate=Nops[/BURST], or both with a + between";

/// A bucket's size and how fast it fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Units added a second, at least 1.
    pub per_second: u64,
    /// Size of the bucket in units: what may pass at once after a pause; at least 1.
    pub burst: u64,
}

/// Limits of a device; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Limit of bytes a second.
    pub bytes: Option<Limit>,
    /// Limit of requests or packets a second.
    pub operations: Option<Limit>,
}

impl FromStr for Limits {
    type Err = String;

    /// Parse `BYTES[/BURST]`, `Nops[/BURST]`, or both with a `+` in between. A burst that is left
    /// out is what passes in a second.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut limits = Self::default();
        for part in text.split('+') {
            let (number, burst) = match part.split_once('/') {
                Some((number, burst)) => (number, Some(burst)),
                None => (part, None),
            };
            let (number, place) = match number.strip_suffix("ops") {
                Some(number) => (number, &mut limits.operations),
                None => (number, &mut limits.bytes),
            };
            let count = |text| size::parse(text).filter(|&count| (1..=1 << 50).contains(&count));
            let limit = count(number).and_then(|per_second| {
                let burst = burst.map_or(Some(per_second), count)?;
                Some(Limit { per_second, burst })
            });
            match (limit, place) {
                (Some(limit), place @ None) => *place = Some(limit),
                _ => return Err(format!("rate={text}: it is {RATE}, such as 10M/1M+500ops")),
            }
        }
        Ok(limits)
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Limit { per_second, burst }) = self.bytes {
            write!(f, "{}/{}", size::exact(per_second), size::exact(burst))?;
        }
        if self.bytes.and(self.operations).is_some() {
            f.write_str("+")?;
        }
        match self.operations {
            Some(Limit { per_second, burst }) => write!(f, "{per_second}ops/{burst}"),
            None => Ok(()),
        }
    }
}

/// The buckets of one device, or of one direction of it.
#[derive(Debug)]
pub struct Rate {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    limit: Limit,
    /// Its level in billionths of a unit; below 0 after a request larger than the bucket.
    level: i128,
    /// The time up to which it was filled.
    filled: Duration,
}

const SCALE: i128 = 1_000_000_000;

impl Rate {
    /// Buckets that are full at first.
    pub fn new(limits: &Limits) -> Self {
        Self {
            bytes: limits.bytes.map(Bucket::new),
            operations: limits.operations.map(Bucket::new),
        }
    }

    /// Take one operation of `bytes` at `now`, a time since any fixed moment.
    ///
    /// # Errors
    /// It has to wait for this time; nothing was taken.
    pub fn take(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        let wanted = [(&mut self.bytes, bytes), (&mut self.operations, 1)];
        let mut wanted = wanted.map(|(bucket, units)| (bucket.as_mut(), units));
        let waits = wanted.iter_mut().filter_map(|(bucket, units)| {
            let bucket = bucket.as_mut()?;
            bucket.fill(now);
            bucket.wait(*units)
        });
        if let Some(longest) = waits.max() {
            return Err(longest);
        }
        for (bucket, units) in wanted {
            if let Some(bucket) = bucket {
                bucket.level -= i128::from(units) * SCALE;
            }
        }
        Ok(())
    }
}

impl Bucket {
    fn new(limit: Limit) -> Self {
        Self {
            limit,
            level: i128::from(limit.burst) * SCALE,
            filled: Duration::ZERO,
        }
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.filled).as_nanos() as i128;
        self.filled = self.filled.max(now);
        let full = i128::from(self.limit.burst) * SCALE;
        let more = passed.saturating_mul(self.limit.per_second.into());
        self.level = self.level.saturating_add(more).min(full);
    }

    /// How long until `units` may pass; `None`: now.
    fn wait(&self, units: u64) -> Option<Duration> {
        let needed = i128::from(units.min(self.limit.burst)) * SCALE - self.level;
        let speed = i128::from(self.limit.per_second.max(1));
        let nanos = u64::try_from((needed + speed - 1) / speed).unwrap_or(u64::MAX);
        (needed > 0).then(|| Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(per_second: u64, burst: u64) -> Limits {
        Limits {
            bytes: Some(Limit { per_second, burst }),
            operations: None,
        }
    }

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let mut rate = Rate::new(&limits(1000, 500));
        let start = Duration::from_secs(7);
        assert_eq!(rate.take(500, start), Ok(()));
        assert_eq!(rate.take(100, start), Err(Duration::from_millis(100)));
        let later = start + Duration::from_millis(100);
        assert_eq!(rate.take(100, later), Ok(()));
        assert!(rate.take(1, later).is_err());
    }

    #[test]
    fn a_request_larger_than_the_bucket_passes_and_leaves_a_debt() {
        let mut rate = Rate::new(&limits(1000, 500));
        assert_eq!(rate.take(2500, Duration::ZERO), Ok(()));
        let wait = rate.take(500, Duration::ZERO).expect_err("in debt");
        assert_eq!(wait, Duration::from_millis(2500));
        assert_eq!(rate.take(500, wait), Ok(()));
    }

    #[test]
    fn both_limits_hold_and_a_refusal_takes_nothing() {
        let mut rate = Rate::new(&Limits {
            bytes: Some(Limit {
                per_second: 1000,
                burst: 1000,
            }),
            operations: Some(Limit {
                per_second: 10,
                burst: 1,
            }),
        });
        assert_eq!(rate.take(1, Duration::ZERO), Ok(()));
        assert_eq!(
            rate.take(999, Duration::ZERO),
            Err(Duration::from_millis(100))
        );
        assert_eq!(rate.take(999, Duration::from_millis(100)), Ok(()));
        let mut free = Rate::new(&Limits::default());
        assert_eq!(free.take(u64::MAX, Duration::ZERO), Ok(()));
    }

    #[test]
    fn a_rate_has_bytes_or_operations_or_both_once() {
        let limit = |per_second, burst| Some(Limit { per_second, burst });
        let limits: Limits = str::parse("10M/1M+500ops").expect("parsed");
        assert_eq!(limits.bytes, limit(10 << 20, 1 << 20));
        assert_eq!(limits.operations, limit(500, 500));
        let limits: Limits = str::parse("3ops/7").expect("parsed");
        assert_eq!((limits.bytes, limits.operations), (None, limit(3, 7)));
        for wrong in [
            "", "0", "ops", "1M+2M", "1/0", "1/2/3", "1ops+", "-1", "99999T",
        ] {
            assert!(wrong.parse::<Limits>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_more_passes_than_the_limit_and_a_wait_is_long_enough(
            per_second in 1..=u64::MAX,
            burst in 1..=u64::MAX,
            requests in prop::collection::vec((any::<u32>(), any::<u32>()), 1..40),
        ) {
            let mut rate = Rate::new(&limits(per_second, burst));
            let (mut now, mut passed, mut largest) = (Duration::ZERO, 0u128, 0u128);
            for (bytes, pause) in requests {
                now += Duration::from_nanos(pause.into());
                if let Err(wait) = rate.take(bytes.into(), now) {
                    now = now.saturating_add(wait);
                    prop_assert_eq!(rate.take(bytes.into(), now), Ok(()));
                }
                passed += u128::from(bytes);
                largest = largest.max(bytes.into());
                let earned = now.as_nanos() * u128::from(per_second) / SCALE as u128;
                prop_assert!(passed <= u128::from(burst) + earned + largest + 1);
            }
        }
    }
}
