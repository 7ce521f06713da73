//! When to look whether the guest goes on, and whether it has stood still for long.

use std::time::{Duration, Instant};

/// Time between two looks at the vCPUs, each of which brings them out of the guest for some ten
/// microseconds.
const INTERVAL: Duration = Duration::from_secs(5);
/// Looks in a row that find the vCPUs at the same place before the user is told.
const LOOKS: u32 = 12;
/// What counts as the same place, in bytes: a loop.
const LOOP: u64 = 64;

/// What the looks have found.
pub struct Standstill {
    next: Instant,
    /// RIP of each vCPU that ran with interrupts off at the last look.
    places: Vec<Option<u64>>,
    /// Looks in a row that found nothing else.
    same: u32,
}

impl Standstill {
    pub fn new() -> Self {
        Self {
            next: Instant::now() + INTERVAL,
            places: Vec::new(),
            same: 0,
        }
    }

    /// Whether it is time to look; then the next time is later.
    pub fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.next <= now;
        if due {
            self.next = now + INTERVAL;
        }
        due
    }

    /// When to look next.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// How long a guest stands still before the user is told.
    pub fn patience() -> Duration {
        INTERVAL * LOOKS
    }

    /// Whether all vCPUs, found at `places`, have now been there for long.
    pub fn is_long(&mut self, places: Vec<Option<u64>>) -> bool {
        let near = |(a, b): (&Option<u64>, &Option<u64>)| match (a, b) {
            (Some(a), Some(b)) => a.abs_diff(*b) < LOOP,
            _ => false,
        };
        let all = places.len() == self.places.len() && !places.is_empty();
        let stays = all && places.iter().zip(&self.places).all(near);
        self.same = if stays { self.same + 1 } else { 0 };
        self.places = places;
        self.same == LOOKS
    }
}
