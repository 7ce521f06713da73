//! A ring of fixed size, which keeps the newest events and counts the dropped ones.

use std::collections::VecDeque;

/// The newest events, at most as many as its capacity.
#[derive(Clone, Debug)]
pub struct Ring<T> {
    events: VecDeque<T>,
    capacity: usize,
    dropped: u64,
}

impl<T> Ring<T> {
    /// An empty ring for `capacity` events, at least one. It allocates memory as it fills.
    pub fn new(capacity: usize) -> Self {
        Self {
            events: VecDeque::new(),
            capacity: capacity.max(1),
            dropped: 0,
        }
    }

    /// Add an event; drop the oldest one if the ring is full.
    pub fn push(&mut self, event: T) {
        if self.events.len() == self.capacity {
            self.events.pop_front();
            self.dropped += 1;
        }
        self.events.push_back(event);
    }

    /// The events, oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &T> {
        self.events.iter()
    }

    /// The number of events dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_newest_events_stay_in_order_and_the_others_are_counted(
            capacity in 1usize..40,
            pushed in 0u32..120,
        ) {
            let mut ring = Ring::new(capacity);
            let mut all = Vec::new();
            for event in 0..pushed {
                ring.push(event);
                all.push(event);
                let kept = all.len().min(capacity);
                let newest = &all[all.len() - kept..];
                prop_assert!(ring.iter().eq(newest));
                prop_assert_eq!(ring.dropped() as usize + kept, all.len());
            }
        }
    }
}
