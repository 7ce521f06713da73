//! A guest that can do nothing any more is told of, rather than left as a silent process.

use super::super::console_log::News;
use super::super::events::GuestEnd;
use super::super::life::State;
use super::super::place::place;
use super::EventLoop;
use super::standstill::Standstill;

impl EventLoop<'_> {
    /// Look at the vCPUs, now and then: end a guest that has halted for good, and tell of one that
    /// goes on only in a loop.
    pub(super) fn look_for_standstill(&mut self) {
        if !self.standstill.is_due() {
            return;
        }
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
            let place = place(rip, self.config.images.symbols.as_ref());
            self.stdio.say(&format!(
                "the guest's kernel stands still: for {} s vCPU 0 has been at {place} with interrupts \
                 off; hull stop ends it, hull inspect shows more",
                Standstill::patience().as_secs()
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
