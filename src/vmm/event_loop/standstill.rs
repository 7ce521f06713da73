//! A guest that can do nothing any more is told of, rather than left as a silent process.

use std::time::{Duration, Instant};

use super::super::console_log::News;
use super::super::events::GuestEnd;
use super::super::life::State;
use super::super::report;
use super::EventLoop;

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

    /// When to look next.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Whether all vCPUs, found at `places`, have now been there for long.
    fn is_long(&mut self, places: Vec<Option<u64>>) -> bool {
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

impl EventLoop<'_> {
    /// Look at the vCPUs, now and then: end a guest that has halted for good, and tell of one that
    /// goes on only in a loop.
    pub(super) fn look_for_standstill(&mut self) {
        if self.standstill.next > Instant::now() {
            return;
        }
        self.standstill.next = Instant::now() + INTERVAL;
        if self.leaving.begun() || self.vcpus.is_debugged() || self.life.state() != State::Running {
            return;
        }
        let held = self.vcpus.pause();
        let halted = self.vcpus.all().all(|mut vcpu| vcpu.is_halted_for_good());
        let places = self.vcpus.all().map(|mut vcpu| vcpu.uninterruptible_at());
        let places: Vec<_> = places.collect();
        drop(held);
        if halted {
            self.events().finish(GuestEnd::Halted);
            return;
        }
        let rip = places.first().copied().flatten().unwrap_or_default();
        let loaded = self.machine.loaded.as_ref();
        if self.standstill.is_long(places) && loaded.is_some_and(|loaded| loaded.format.is_linux())
        {
            let place = report::place(rip, self.config.images.symbols.as_ref());
            self.stdio.say(&format!(
                "the guest's kernel stands still: for {} s vCPU 0 has been at {place} with interrupts \
                 off; hull stop ends it, hull inspect shows more",
                INTERVAL.as_secs() * u64::from(LOOKS)
            ));
        }
    }

    /// Act on what the kernel has said.
    pub(super) fn take_news(&mut self) {
        for news in self.consoles.take_news() {
            match news {
                News::OutOfMemory(process) => {
                    let mib = self.config.machine.memory_bytes >> 20;
                    self.stdio.say(&format!(
                        "the guest has run out of its {mib} MiB of memory, so its kernel has killed \
                         {process}; --memory gives it more"
                    ));
                }
                News::Halted if !self.vcpus.is_debugged() => {
                    self.events().finish(GuestEnd::Halted);
                }
                News::Halted => {}
            }
        }
    }
}
