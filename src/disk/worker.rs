//! The thread of a disk: takes requests in order, serves one at a time, reports each.
//!
//! ```text
//!  event loop, vCPU --- Backend::submit, cancel --> Requests --- take --> Worker --- done(id)
//! ```
//! Order kept: what the guest flushes after a write was answered is behind that write.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::{Disk, DiskError};
use crate::devices::virtio::block::{Backend, Request};
use crate::memory::GuestMemory;

/// What waits to be served; shared by the device, as its [`Backend`], and the worker.
#[derive(Clone, Default)]
pub struct Requests(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to serve, or nothing more will come.
    more: Condvar,
    /// Nothing is being served.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(u64, Request)>,
    /// A request is being served, and may touch guest memory.
    serving: bool,
    closed: bool,
}

impl Requests {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that panics is done under this lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request, which is being served from now on; `None` once closed.
    fn take(&self) -> Option<(u64, Request)> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            if let Some(next) = state.waiting.pop_front() {
                state.serving = true;
                return Some(next);
            }
            let waited = self.0.more.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn served(&self) {
        self.state().serving = false;
        self.0.idle.notify_all();
    }

    fn close(&self) {
        self.state().closed = true;
        self.0.more.notify_all();
    }
}

impl Backend for Requests {
    fn submit(&mut self, id: u64, request: Request) {
        self.state().waiting.push_back((id, request));
        self.0.more.notify_one();
    }

    fn cancel(&mut self) {
        let mut state = self.state();
        state.waiting.clear();
        while state.serving {
            let waited = self.0.idle.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends when dropped: the request that is being served is finished, those behind it are not begun.
pub struct Worker {
    requests: Requests,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Serve `requests` on `disk`; `done` learns what came of each. It is called
    /// while no request is being served, so that it may wait for whoever waits for that.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start(
        disk: Disk,
        memory: GuestMemory,
        requests: Requests,
        done: impl Fn(u64, io::Result<()>) + Send + 'static,
    ) -> Result<Self, DiskError> {
        let queue = requests.clone();
        let serve = move || {
            while let Some((id, request)) = queue.take() {
                let served = disk.serve(&memory, &request);
                queue.served();
                done(id, served);
            }
        };
        let thread = thread::Builder::new().name("disk".into()).spawn(serve);
        Ok(Self {
            requests,
            thread: Some(thread.map_err(DiskError::Thread)?),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.requests.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed by its hook
        }
    }
}
