//! The vCPU threads: one KVM_RUN loop each, until the machine stops; and the gate at which they
//! wait while the machine is paused.
//!
//! ```text
//!   start      gate open                     events.stopping()
//!  -------> (running) -----------------------------------------> (stopped)
//!            |  ^  |  ^                                              ^
//!       exit |  |  |  | the last Pause is dropped                    |
//!            v  |  v  |                                              |
//!        (outside) (parked: the vCPU's lock is free) ----------------+
//! ```
//!
//! A thread holds its vCPU's lock from the gate until it parks there again, so the holder of a
//! [`Pause`] and of that lock has exclusive access to the vCPU. Lock order: a vCPU's, then a
//! device's; the gate's is taken with no other held.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::{self, JoinHandle};

use super::events::{Events, GuestEnd};
use super::sampler::Sampler;
use super::shared::Shared;
use super::watch::{Watch, Watched};
use crate::kvm::debug::Stop;
use crate::kvm::vcpu::{Exit, Kicker, Vcpu};
use crate::sandbox::{Role, spawn};
use crate::sync::{lock, wait};

/// The machine's vCPUs, each with its thread.
pub struct Vcpus {
    cells: Vec<Cell>,
    shared: Arc<Shared>,
    gate: Gate,
    sampler: Option<Arc<Sampler>>,
    /// The listener for stops of a debugger.
    stopped: OnceLock<Box<dyn Fn(Stopped) + Send + Sync>>,
}

struct Cell {
    vcpu: Mutex<Vcpu>,
    /// Number of [`Pause`]s that hold it.
    pauses: AtomicUsize,
    kicker: Kicker,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Closed to a vCPU while a [`Pause`] holds it.
#[derive(Default)]
struct Gate {
    waiting: Mutex<()>,
    opened: Condvar,
}

impl Cell {
    fn is_held(&self) -> bool {
        self.pauses.load(Ordering::Acquire) > 0
    }
}

impl Gate {
    /// Wait until it is open to `cell`, or for the machine's end.
    fn pass(&self, cell: &Cell, events: &Events) {
        let mut waiting = lock(&self.waiting);
        while cell.is_held() && !events.stopping() {
            waiting = wait(&self.opened, waiting);
        }
    }

    /// Have all waiting threads check again.
    fn notify(&self) {
        // With the lock, so that no thread is between its check and its wait.
        let _waiting = lock(&self.waiting);
        self.opened.notify_all();
    }
}

/// While it exists, the vCPUs that it holds do not run.
///
/// Several may exist at once, of different owners; a vCPU runs again when the last one that holds it
/// is dropped.
pub struct Pause {
    vcpus: Arc<Vcpus>,
    held: Range<usize>,
}

impl Pause {
    /// The vCPU `index`, as soon as its thread has parked; `None` if there is no such vCPU.
    ///
    /// Not to be called on a vCPU's thread.
    pub fn vcpu(&self, index: usize) -> Option<MutexGuard<'_, Vcpu>> {
        self.vcpus.vcpu(index)
    }

    /// The number of vCPUs.
    pub fn count(&self) -> usize {
        self.vcpus.cells.len()
    }

    /// Wait until all vCPUs have parked.
    pub fn wait(&self) {
        // A vCPU's lock is free once its thread has parked.
        self.vcpus.all().for_each(drop);
    }

    /// The guest sees a gap in time, as on a busy host: tell its watchdogs, before it runs again.
    pub fn tell_guest(&self) {
        self.vcpus.all().for_each(|vcpu| vcpu.tell_of_pause());
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        for cell in self
            .vcpus
            .cells
            .iter()
            .take(self.held.end)
            .skip(self.held.start)
        {
            cell.pauses.fetch_sub(1, Ordering::AcqRel);
        }
        self.vcpus.gate.notify();
    }
}

/// A vCPU that stopped where its debugger had wanted, and with it all others.
pub struct Stopped {
    /// Index of the vCPU that stopped first.
    pub index: usize,
    /// The cause, and where.
    pub stop: Stop,
    /// Holds all vCPUs until it is dropped.
    pub pause: Pause,
}

impl Vcpus {
    /// Take `vcpus`, which do not run yet; each answers to `sampler`.
    pub fn new(vcpus: Vec<Vcpu>, shared: Arc<Shared>, sampler: Option<Arc<Sampler>>) -> Arc<Self> {
        let cell = |vcpu: Vcpu| Cell {
            kicker: vcpu.kicker(),
            vcpu: Mutex::new(vcpu),
            pauses: AtomicUsize::new(0),
            thread: Mutex::new(None),
        };
        Arc::new(Self {
            cells: vcpus.into_iter().map(cell).collect(),
            shared,
            gate: Gate::default(),
            sampler,
            stopped: OnceLock::new(),
        })
    }

    /// Start a thread for each vCPU. They wait at the gate first if there is a [`Pause`].
    ///
    /// # Errors
    /// No thread can be started; those that started are stopped again.
    pub fn start(self: &Arc<Self>) -> io::Result<()> {
        for (index, cell) in self.cells.iter().enumerate() {
            let vcpus = self.clone();
            let thread = spawn(Role::Vcpu(index), move || vcpus.run(index));
            match thread {
                Ok(thread) => *lock(&cell.thread) = Some(thread),
                Err(error) => {
                    self.stop();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The number of vCPUs.
    pub fn count(&self) -> usize {
        self.cells.len()
    }

    /// Close the gate to all vCPUs and kick them; does not wait until they have parked.
    pub fn pause(self: &Arc<Self>) -> Pause {
        self.hold(0..self.cells.len())
    }

    /// As [`Vcpus::pause`], for these vCPUs alone.
    pub fn hold(self: &Arc<Self>, held: Range<usize>) -> Pause {
        let pause = Pause {
            vcpus: self.clone(),
            held: held.clone(),
        };
        for (index, cell) in self
            .cells
            .iter()
            .enumerate()
            .take(held.end)
            .skip(held.start)
        {
            cell.pauses.fetch_add(1, Ordering::AcqRel);
            self.kick(index);
        }
        pause
    }

    /// Call `listener` for each [`Exit::Debug`], on the vCPU's thread. Only the first listener counts.
    pub fn on_stop(&self, listener: impl Fn(Stopped) + Send + Sync + 'static) {
        let _ = self.stopped.set(Box::new(listener));
    }

    /// Whether a debugger may want to see the guest, whatever it does.
    pub fn is_debugged(&self) -> bool {
        self.stopped.get().is_some()
    }

    /// End the threads. No vCPU enters the guest again.
    pub fn stop(&self) {
        self.shared.events.stop();
        self.gate.notify();
        (0..self.cells.len()).for_each(|index| self.kick(index));
        for cell in &self.cells {
            let thread = lock(&cell.thread).take();
            // The panic hook has reported a panic.
            let _ = thread.map(JoinHandle::join);
        }
    }

    /// The vCPU `index`, once its thread has parked or ended; `None` if there is no such vCPU.
    pub fn vcpu(&self, index: usize) -> Option<MutexGuard<'_, Vcpu>> {
        self.cells.get(index).map(|cell| lock(&cell.vcpu))
    }

    /// All vCPUs, each once its thread has parked or ended.
    pub fn all(&self) -> impl Iterator<Item = MutexGuard<'_, Vcpu>> {
        self.cells.iter().map(|cell| lock(&cell.vcpu))
    }

    /// Bring vCPU `index` out of KVM_RUN.
    pub fn kick(&self, index: usize) {
        if let Some(cell) = self.cells.get(index)
            && let Some(thread) = lock(&cell.thread).as_ref()
        {
            cell.kicker.kick(thread);
        }
    }

    fn run(self: &Arc<Self>, index: usize) {
        let events = &self.shared.events;
        let _ended = EndOnPanic(events);
        let Some(cell) = self.cells.get(index) else {
            return;
        };
        while !events.stopping() {
            self.gate.pass(cell, events);
            match Watched::new(&self.shared, index) {
                None => self.run_until_paused(index, cell, &self.shared.buses),
                Some(watched) => self.run_until_paused(index, cell, &watched),
            }
        }
    }

    fn run_until_paused(self: &Arc<Self>, index: usize, cell: &Cell, watch: &impl Watch) {
        let vcpu = &mut *lock(&cell.vcpu);
        let events = &self.shared.events;
        let leave = || events.stopping() || cell.is_held();
        if !leave() {
            self.shared.first_entry.get_or_init(|| events.now());
        }
        while !leave() {
            let exit = vcpu.run(watch);
            if matches!(exit, Ok(Exit::Handled | Exit::Interrupted)) {
                let outboxes = self.shared.outboxes.iter();
                outboxes.for_each(|outbox| outbox.throttle(leave));
                if let Some(sampler) = &self.sampler {
                    sampler.answer(index, vcpu);
                }
            }
            watch.handled(vcpu, &exit);
            let failed = match exit {
                Ok(Exit::Handled | Exit::Interrupted) => continue,
                Ok(Exit::Debug(stop)) => {
                    let pause = self.pause();
                    if let Some(listener) = self.stopped.get() {
                        listener(Stopped { index, stop, pause });
                    }
                    continue;
                }
                Ok(Exit::Shutdown) => GuestEnd::TripleFault { rip: rip(vcpu) },
                Ok(Exit::Failed(reason)) => GuestEnd::Failed {
                    rip: rip(vcpu),
                    reason,
                },
                Err(error) => GuestEnd::Failed {
                    rip: rip(vcpu),
                    reason: error.to_string(),
                },
            };
            events.finish(failed);
        }
    }
}

/// Ends the machine if the thread of a vCPU panics, which would go unnoticed otherwise.
struct EndOnPanic<'a>(&'a Events);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.finish(GuestEnd::Failed {
                rip: 0,
                reason: "hull itself failed in a vCPU's thread; see the output above".into(),
            });
        }
    }
}

fn rip(vcpu: &Vcpu) -> u64 {
    vcpu.rip().unwrap_or_default()
}
