//! Requests on their way from a device to whoever serves them on a thread of its own.
//!
//! ```text
//!  guest --- notification --> Doorbell::wait -> Transport::process -> Device -- submit --> Requests
//!  guest <-- used ring ------ Device::complete <- Transport::with_device <-- serve <-- take -'
//! ```
//! The thread waits for the guest's notifications itself, so that a request, for which the guest
//! mostly waits, costs one switch of threads and not two. A vCPU's thread resets the device
//! meanwhile: [`Backend::cancel`] waits until nothing touches guest memory any more.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::memory::STACK;

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
    /// Nothing is being served.
    idle: Condvar,
}

struct State<R> {
    waiting: VecDeque<(u64, R)>,
    /// Requests are being served, and may touch guest memory.
    serving: bool,
    /// Somebody waits for `idle`, whom to tell is a system call.
    awaited: bool,
    /// The driver has gone since the last request was taken.
    cancelled: bool,
    closed: bool,
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
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            idle: Condvar::new(),
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
        // Nothing that panics is done under this lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to do next: with `most` requests together, up to the first that `may` says no to.
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
            && may(request)
        {
            taken.extend(state.waiting.pop_front());
        }
        state.serving = !taken.is_empty();
        match state.serving {
            true => Next::Serve(taken),
            false => Next::Wait,
        }
    }

    /// What [`Requests::next`] gave out has been served, and is to be reported now.
    pub fn served(&self) {
        let mut state = self.state();
        state.serving = false;
        if std::mem::take(&mut state.awaited) {
            self.0.idle.notify_all();
        }
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
            let waited = self.0.idle.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The thread of a device. Ends when dropped: what is being served is finished, what waits is not
/// begun.
pub struct Worker {
    close: Box<dyn Fn() + Send>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Start `work`, which waits for `doorbell` and ends when `requests` says so.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start<R: Send + 'static>(
        name: &str,
        requests: Requests<R>,
        doorbell: Arc<dyn Doorbell>,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let thread = thread::Builder::new().name(name.into()).stack_size(STACK);
        let thread = thread.spawn(work)?;
        let close = move || {
            requests.state().closed = true;
            doorbell.ring();
        };
        Ok(Self {
            close: Box::new(close),
            thread: Some(thread),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        (self.close)();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed by its hook
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_taken_in_order_as_many_as_may_be() {
        let mut requests = Requests::default();
        assert_eq!(requests.next(9, |_| true), Next::Wait);
        for (id, request) in (0..).zip("abcde".chars()) {
            requests.submit(id, request);
        }
        assert_eq!(
            requests.next(2, |_| true),
            Next::Serve(vec![(0, 'a'), (1, 'b')])
        );
        requests.served();
        assert_eq!(requests.next(9, |c| *c < 'd'), Next::Serve(vec![(2, 'c')]));
        requests.served();
        assert_eq!(requests.next(9, |c| *c < 'd'), Next::Wait);
        requests.cancel();
        assert_eq!(requests.next(9, |_| true), Next::Forget);
        assert_eq!(requests.next(9, |_| true), Next::Wait);
    }

    #[test]
    fn a_reset_waits_for_what_is_being_served() {
        let mut requests = Requests::default();
        requests.submit(0, ());
        assert_eq!(requests.next(1, |()| true), Next::Serve(vec![(0, ())]));
        requests.submit(1, ());
        let mut other = requests.clone();
        let reset = thread::spawn(move || other.cancel());
        while !requests.state().cancelled {
            thread::yield_now();
        }
        assert!(!reset.is_finished());
        requests.served();
        reset.join().expect("it comes back");
        assert_eq!(requests.next(1, |()| true), Next::Forget);
        assert_eq!(requests.next(1, |()| true), Next::Wait);
    }

    #[test]
    fn a_thread_ends_with_its_worker() {
        struct Bell(Mutex<bool>, Condvar);
        impl Doorbell for Bell {
            fn wait(&self, _: Option<Duration>) {
                let mut rung = self.0.lock().expect("whole");
                while !*rung {
                    rung = self.1.wait(rung).expect("whole");
                }
            }
            fn ring(&self) {
                *self.0.lock().expect("whole") = true;
                self.1.notify_all();
            }
        }
        let requests = Requests::<()>::default();
        let bell = Arc::new(Bell(Mutex::new(false), Condvar::new()));
        let (queue, waited) = (requests.clone(), bell.clone());
        let work = move || {
            while queue.next(1, |()| true) != Next::End {
                waited.wait(None);
            }
        };
        let worker = Worker::start("test", requests, bell, work).expect("a thread");
        drop(worker);
    }
}
