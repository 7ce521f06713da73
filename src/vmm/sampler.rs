//! Takes a sample of each vCPU at every tick of a profile.
//!
//! A profile thread kicks the vCPUs at each tick; a vCPU's own thread reads registers and stack, which
//! only it can do without stopping the machine, and sends them back; the profile thread finds the
//! callers. A vCPU that is outside of the guest at a tick answers at its next exit, for as many ticks
//! as have passed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::events::Events;
use crate::kvm::vcpu::Vcpu;
use crate::memory::GuestMemory;
use crate::profile::{MAX_STACK, Profile, Sample};
use crate::sandbox::{Role, spawn};

/// Limit of samples on their way between the threads.
const MAX_WAITING: usize = 256;

/// The side of the vCPUs' threads.
pub struct Sampler {
    profile: Arc<Profile>,
    /// For each vCPU, the ticks that wait for a sample.
    wanted: Vec<AtomicU32>,
    samples: SyncSender<Sample>,
}

impl Sampler {
    /// A sampler of `cpus` vCPUs, and the receiver of its samples.
    pub fn new(profile: Arc<Profile>, cpus: usize) -> (Arc<Self>, Receiver<Sample>) {
        let (samples, taken) = sync_channel(MAX_WAITING);
        let sampler = Self {
            profile,
            wanted: (0..cpus).map(|_| AtomicU32::new(0)).collect(),
            samples,
        };
        (Arc::new(sampler), taken)
    }

    /// On the thread of vCPU `cpu`, between two KVM_RUNs: take a sample if one is wanted.
    pub fn answer(&self, cpu: usize, vcpu: &Vcpu) {
        let Some(wanted) = self.wanted.get(cpu) else {
            return;
        };
        if wanted.load(Ordering::Relaxed) == 0 {
            return;
        }
        let ticks = wanted.swap(0, Ordering::Relaxed);
        let sent = vcpu.sample(MAX_STACK).map(|(regs, user, paging, stack)| {
            self.samples.try_send(Sample {
                cpu,
                ticks,
                rip: regs.rip,
                rsp: regs.rsp,
                rbp: regs.rbp,
                user,
                paging,
                stack,
            })
        });
        if !matches!(sent, Some(Ok(()))) {
            self.profile.lose(ticks);
        }
    }

    /// Count a tick for vCPU `cpu`. Returns whether it must be kicked: it was already if it has not
    /// answered the last tick.
    fn tick(&self, cpu: usize) -> bool {
        let wanted = self.wanted.get(cpu);
        wanted.is_some_and(|wanted| wanted.fetch_add(1, Ordering::Relaxed) == 0)
    }
}

/// Start the thread that takes samples until the machine stops; `kick` brings a vCPU out of KVM_RUN.
///
/// # Errors
/// No thread can be started.
pub fn start(
    sampler: Arc<Sampler>,
    samples: Receiver<Sample>,
    kick: impl Fn(usize) + Send + 'static,
    events: Arc<Events>,
    memory: GuestMemory,
) -> io::Result<JoinHandle<()>> {
    spawn(Role::Sampler, move || {
        let period = Duration::from_secs(1) / sampler.profile.hertz();
        let mut next = Instant::now() + period;
        while !events.stopping() {
            thread::sleep(next.saturating_duration_since(Instant::now()));
            // Ticks that were missed because of the host's scheduler are skipped.
            next = (next + period).max(Instant::now());
            for cpu in 0..sampler.wanted.len() {
                if sampler.tick(cpu) {
                    kick(cpu);
                }
            }
            let waiting = samples.try_iter();
            waiting.for_each(|sample| sampler.profile.add(&sample, &memory));
        }
        let rest = samples.try_iter();
        rest.for_each(|sample| sampler.profile.add(&sample, &memory));
    })
}
