//! Requests on their way from a device to the thread of its backend.
//!
//! ```text
//!  guest --- notification --> Doorbell::wait -> Transport::process -> Device -- submit --> Requests
//!  guest <-- used ring ------ Device::complete <- Transport::with_device <-- serve <-- take -'
//! ```
//! The thread itself waits for the guest's notifications, so that a request, for which the guest
//! mostly waits, costs one switch of threads and not two. A vCPU's thread may reset the device at
//! any time: [`Backend::cancel`] waits until no thread touches guest memory for it.
//!
//! Before the machine is saved its threads are paused ([`quiesce`]): each comes to the end of what it
//! serves, and then waits in [`Requests::stay_paused`]. What a device has not reported by then is saved
//! with it. A thread that serves a long request looks at [`Requests::is_interrupted`] now and then, and
//! puts back what is left of it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use smallvec::SmallVec;

use crate::sandbox::{Role, spawn};
use crate::sync::{lock, wait};

/// Serves a device's requests on another thread, and reports each by the device's `complete`.
pub trait Backend<R>: Send {
    /// Serve `request`, which is reported by `id`. Requests of one queue are submitted in order.
    fn submit(&mut self, id: u64, request: R);

    /// Forget what was submitted, and all that the driver opened. Returns when guest memory is no
    /// longer touched; forgotten requests need not be reported. The one call of a device that may
    /// wait: for the requests that are being served.
    fn cancel(&mut self);
}

/// How the guest and hull wake the thread of a device.
pub trait Doorbell: Send + Sync {
    /// Wait for a notification of the guest, for [`Doorbell::ring`] or for `timeout`, and have the
    /// device submit what the guest added. May return early.
    fn wait(&self, timeout: Option<Duration>);

    /// End [`Doorbell::wait`], or the next one.
    fn ring(&self);
}

/// Requests that wait to be served; shared by the device, as its [`Backend`], and the thread.
pub struct Requests<R>(Arc<Shared<R>>);

struct Shared<R> {
    state: Mutex<State<R>>,
    /// Notified when the state changes and another thread waits for it.
    changed: Condvar,
}

struct State<R> {
    waiting: VecDeque<(u64, R)>,
    /// How many of them, the first, were taken before and put back.
    begun: usize,
    /// Requests are being served, and may touch guest memory.
    serving: bool,
    /// A thread waits for the end of that; without one the notification, a system call, is spared.
    awaited: bool,
    /// The device was reset since the last request was taken.
    cancelled: bool,
    closed: bool,
    /// How many want the thread to pause.
    pause_count: usize,
    /// It has paused; inside, why what it held could not be written.
    paused: Option<Option<String>>,
    /// The thread has returned, or panicked.
    ended: bool,
}

/// Requests with their ids, which are mostly few at once.
pub type Taken<R> = SmallVec<[(u64, R); 2]>;

/// What a thread does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<R> {
    /// Serve these, then call [`Requests::served`].
    Serve(Taken<R>),
    /// Forget what the driver opened; the device was reset.
    Forget,
    /// No request may be served now.
    Wait,
    /// No request may be served before the thread has paused: report all that were served, write out
    /// what only hull holds, and call [`Requests::stay_paused`].
    Pause,
    /// Return from the thread.
    End,
}

impl<R> Default for Requests<R> {
    fn default() -> Self {
        let state = State {
            waiting: VecDeque::new(),
            begun: 0,
            serving: false,
            awaited: false,
            cancelled: false,
            closed: false,
            pause_count: 0,
            paused: None,
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

    /// What to do next: serve up to `max` requests together, up to the first that `may` refuses. `may`
    /// is not called for requests that were put back.
    pub fn next(&self, max: usize, mut may: impl FnMut(&R) -> bool) -> Next<R> {
        let mut state = self.state();
        if state.closed {
            return Next::End;
        }
        if std::mem::take(&mut state.cancelled) {
            return Next::Forget;
        }
        let mut taken = Taken::new();
        while taken.len() < max
            && let Some((_, request)) = state.waiting.front()
            && (taken.len() < state.begun || may(request))
        {
            taken.extend(state.waiting.pop_front());
        }
        state.begun = state.begun.saturating_sub(taken.len());
        state.serving = !taken.is_empty();
        if state.serving {
            Next::Serve(taken)
        } else if state.pause_count > 0 {
            Next::Pause
        } else {
            Next::Wait
        }
    }

    /// Wait while the thread has to pause. `fault` says why what it held could not be written.
    pub fn stay_paused(&self, fault: Option<String>) {
        let mut state = self.state();
        if state.pause_count == 0 || state.closed {
            return;
        }
        state.paused = Some(fault);
        self.0.changed.notify_all();
        while state.pause_count > 0 && !state.closed {
            state = self.0.wait(state);
        }
        state.paused = None;
    }

    /// Whether the thread is to end, to pause or to forget its requests: what it serves is to be put back.
    pub fn is_interrupted(&self) -> bool {
        let state = self.state();
        state.closed || state.cancelled || state.pause_count > 0
    }

    /// Put back what is left of the requests that [`Requests::next`] returned: they are taken next, in
    /// this order. To be called before [`Requests::served`]; does nothing if the device was reset since.
    pub fn put_back(&self, left: impl DoubleEndedIterator<Item = (u64, R)>) {
        let mut state = self.state();
        if !state.cancelled {
            for request in left.rev() {
                state.waiting.push_front(request);
                state.begun += 1;
            }
        }
    }

    /// Put requests back that could not be served yet, unless the device was reset since.
    pub fn again(&self, requests: impl Iterator<Item = (u64, R)>) {
        let mut state = self.state();
        if !state.cancelled {
            state.waiting.extend(requests);
        }
    }

    /// The requests that [`Requests::next`] returned have been served; they are reported after this.
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
        // Called by the thread itself, before it returns from `Doorbell::wait`.
        self.state().waiting.push_back((id, request));
    }

    fn cancel(&mut self) {
        let mut state = self.state();
        state.waiting.clear();
        state.begun = 0;
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

/// The side of [`Requests`] that a [`Worker`] controls.
trait Control: Send + Sync {
    /// Have the thread return, even if it is paused.
    fn close(&self);
    /// Have the thread pause, or take that back.
    fn pause(&self, pause: bool);
    /// Wait until it has paused or ended; returns why it could not write out what it held.
    fn await_pause(&self) -> Option<String>;
    /// The thread has ended.
    fn end(&self);
}

impl<R: Send> Control for Shared<R> {
    fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    fn pause(&self, pause: bool) {
        let mut state = self.state();
        state.pause_count = if pause {
            state.pause_count.saturating_add(1)
        } else {
            state.pause_count.saturating_sub(1)
        };
        self.changed.notify_all();
    }

    fn await_pause(&self) -> Option<String> {
        let mut state = self.state();
        while state.paused.is_none() && !state.ended {
            state = self.wait(state);
        }
        state.paused.clone().flatten()
    }

    fn end(&self) {
        let mut state = self.state();
        state.ended = true;
        // The thread may have panicked while it served; it touches nothing any more.
        state.serving = false;
        self.changed.notify_all();
    }
}

/// Reports the end of its thread, by a panic, too.
struct Ended(Arc<dyn Control>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Worker {
    /// Start `work`, which waits for `doorbell` and ends on [`Next::End`] of `requests`.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn start<R: Send + 'static>(
        role: Role,
        requests: Requests<R>,
        doorbell: Arc<dyn Doorbell>,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let control: Arc<dyn Control> = requests.0;
        let ended = Ended(control.clone());
        let thread = spawn(role, move || {
            let _ended = ended;
            work();
        })?;
        Ok(Self {
            requests: control,
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

/// Pause all of `workers`. Returns when each has reported what it has served; the other requests wait.
/// The workers continue when the [`Quiet`] is dropped.
pub fn quiesce(workers: &[Worker]) -> Quiet<'_> {
    for worker in workers {
        worker.requests.pause(true);
        worker.doorbell.ring();
    }
    let faults = workers
        .iter()
        .filter_map(|worker| worker.requests.await_pause());
    Quiet {
        faults: faults.collect(),
        workers,
    }
}

/// While this lives, no worker touches guest memory, a queue or a device.
#[must_use]
pub struct Quiet<'a> {
    /// Why a worker could not write out the guest's bytes, a line each.
    pub faults: Vec<String>,
    workers: &'a [Worker],
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        for worker in self.workers {
            worker.requests.pause(false);
        }
    }
}

#[cfg(test)]
mod tests;
