//! Requests on their way from a device to whoever serves them on a thread of its own.
//!
//! ```text
//!  guest --- notification --> Doorbell::wait -> Transport::process -> Device -- submit --> Requests
//!  guest <-- used ring ------ Device::complete <- Transport::with_device <-- serve <-- take -'
//! ```
//! The thread waits for the guest's notifications itself, so that a request, for which the guest
//! mostly waits, costs one switch of threads and not two. A vCPU's thread resets the device
//! meanwhile: [`Backend::cancel`] waits until nothing touches guest memory any more.
//!
//! Before the machine is saved its threads are quieted ([`quiesce`]): each serves what was submitted,
//! and then stands still in [`Requests::rest`].

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sandbox::{Role, spawn};
use crate::sync::{lock, wait};

/// Who serves a device's requests, elsewhere and later, each with one call of the device's
/// `complete`.
pub trait Backend<R>: Send {
    /// Serve `request`; `id` comes back with it. Those of one queue come in its order.
    fn submit(&mut self, id: u64, request: R);

    /// Forget what was submitted, and all that the driver had of it. Returns when nothing touches
    /// guest memory any more; what was forgotten need not be reported. The one call of a device
    /// that may wait: for the requests that are being served, at most.
    fn cancel(&mut self);
}

/// How the guest and hull call the thread of a device.
pub trait Doorbell: Send + Sync {
    /// Wait for a notification of the guest's, or for [`Doorbell::ring`], at most so long, and have
    /// the device submit what the guest added. May come back early.
    fn wait(&self, at_most: Option<Duration>);

    /// End [`Doorbell::wait`], or the next one.
    fn ring(&self);
}

/// What waits to be served; shared by the device, as its [`Backend`], and the thread.
pub struct Requests<R>(Arc<Shared<R>>);

struct Shared<R> {
    state: Mutex<State<R>>,
    /// Something has changed for which another thread waits.
    changed: Condvar,
}

struct State<R> {
    waiting: VecDeque<(u64, R)>,
    /// Requests are being served, and may touch guest memory.
    serving: bool,
    /// Somebody waits for the end of that, whom to tell is a system call.
    awaited: bool,
    /// The driver has gone since the last request was taken.
    cancelled: bool,
    closed: bool,
    /// How many want the thread to stand still.
    quieters: usize,
    /// It does, and why what it holds is not where it should be.
    resting: Option<Option<String>>,
    /// The thread has returned, or panicked.
    ended: bool,
}

/// What a thread does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<R> {
    /// Serve these, then call [`Requests::served`].
    Serve(Vec<(u64, R)>),
    /// Forget what the driver had opened; another may come.
    Forget,
    /// Nothing is there that may be served.
    Wait,
    /// Nothing is there to be served: report all that was, put what is still only in hull where it
    /// belongs, and call [`Requests::rest`].
    Rest,
    /// Return.
    End,
}

impl<R> Default for Requests<R> {
    fn default() -> Self {
        let state = State {
            waiting: VecDeque::new(),
            serving: false,
            awaited: false,
            cancelled: false,
            closed: false,
            quieters: 0,
            resting: None,
            ended: false,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }
}

impl<R> Clone for Requests<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R> Requests<R> {
    fn state(&self) -> MutexGuard<'_, State<R>> {
        self.0.state()
    }

    /// What to do next: with `most` requests together, up to the first that `may` says no to. It is
    /// not asked while the thread is to come to rest.
    pub fn next(&self, most: usize, mut may: impl FnMut(&R) -> bool) -> Next<R> {
        let mut state = self.state();
        if state.closed {
            return Next::End;
        }
        if std::mem::take(&mut state.cancelled) {
            return Next::Forget;
        }
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((_, request)) = state.waiting.front()
            && (state.quieters > 0 || may(request))
        {
            taken.extend(state.waiting.pop_front());
        }
        state.serving = !taken.is_empty();
        match state.serving {
            true => Next::Serve(taken),
            false if state.quieters > 0 => Next::Rest,
            false => Next::Wait,
        }
    }

    /// Stand still for as long as anybody wants that. `fault` says why what the thread held could
    /// not be put where it belongs.
    pub fn rest(&self, fault: Option<String>) {
        let mut state = self.state();
        if state.quieters == 0 || state.closed {
            return;
        }
        state.resting = Some(fault);
        self.0.changed.notify_all();
        while state.quieters > 0 && !state.closed {
            state = self.0.wait(state);
        }
        state.resting = None;
    }

    /// What [`Requests::next`] gave out has been served, and is to be reported now.
    pub fn served(&self) {
        let mut state = self.state();
        state.serving = false;
        if std::mem::take(&mut state.awaited) {
            self.0.changed.notify_all();
        }
    }
}

impl<R> Shared<R> {
    fn state(&self) -> MutexGuard<'_, State<R>> {
        lock(&self.state)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State<R>>) -> MutexGuard<'a, State<R>> {
        wait(&self.changed, state)
    }
}

impl<R: Send> Backend<R> for Requests<R> {
    fn submit(&mut self, id: u64, request: R) {
        // By the thread itself, on its way out of `Doorbell::wait`.
        self.state().waiting.push_back((id, request));
    }

    fn cancel(&mut self) {
        let mut state = self.state();
        state.waiting.clear();
        state.cancelled = true;
        while state.serving {
            state.awaited = true;
            state = self.0.wait(state);
        }
    }
}

/// The thread of a device. Ends when dropped: what is being served is finished, what waits is not
/// begun.
pub struct Worker {
    requests: Arc<dyn Control>,
    doorbell: Arc<dyn Doorbell>,
    thread: Option<JoinHandle<()>>,
}

/// What a [`Worker`] knows of its [`Requests`].
trait Control: Send + Sync {
    /// Have the thread return, even if it stands still.
    fn close(&self);
    /// Have the thread come to rest, or not any more.
    fn hush(&self, quiet: bool);
    /// Wait until it rests, or is gone; why what it held is not where it belongs.
    fn await_rest(&self) -> Option<String>;
    /// The thread has ended.
    fn end(&self);
}

impl<R: Send> Control for Shared<R> {
    fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    fn hush(&self, quiet: bool) {
        let mut state = self.state();
        state.quieters = match quiet {
            true => state.quieters.saturating_add(1),
            false => state.quieters.saturating_sub(1),
        };
        self.changed.notify_all();
    }

    fn await_rest(&self) -> Option<String> {
        let mut state = self.state();
        while state.resting.is_none() && !state.ended {
            state = self.wait(state);
        }
        state.resting.clone().flatten()
    }

    fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        // Of a thread that panicked while it served; it touches nothing any more.
        state.serving = false;
        self.changed.notify_all();
    }
}

/// Tells when its thread is gone, however it goes.
struct Ended(Arc<dyn Control>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Worker {
    /// Start `work`, which waits for `doorbell` and ends when `requests` says so.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start<R: Send + 'static>(
        role: Role,
        requests: Requests<R>,
        doorbell: Arc<dyn Doorbell>,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let requests: Arc<dyn Control> = requests.0;
        let ended = Ended(requests.clone());
        let thread = spawn(role, move || {
            let _ended = ended;
            work();
        })?;
        Ok(Self {
            requests,
            doorbell,
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.requests.close();
        self.doorbell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed by its hook
        }
    }
}

/// Have all of `workers` come to rest, however fast their devices may be. Returns when each has
/// served and reported what was submitted, and stands still; what the guest adds meanwhile is not
/// looked at. They go on when the [`Quiet`] is dropped.
pub fn quiesce(workers: &[Worker]) -> Quiet<'_> {
    for worker in workers {
        worker.requests.hush(true);
        worker.doorbell.ring();
    }
    let faults = workers
        .iter()
        .filter_map(|worker| worker.requests.await_rest());
    Quiet {
        faults: faults.collect(),
        workers,
    }
}

/// While this lives, no worker touches guest memory, a queue or a device.
#[must_use]
pub struct Quiet<'a> {
    /// Why what a worker held of the guest's bytes could not be put where it belongs, a line each.
    pub faults: Vec<String>,
    workers: &'a [Worker],
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        for worker in self.workers {
            worker.requests.hush(false);
        }
    }
}

#[cfg(test)]
mod tests;
