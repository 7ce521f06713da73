//! The thread of a disk: is told by the guest itself that there are requests, takes them in order,
//! serves those that are there together, reports them together.
//!
//! ```text
//!  guest --- notification (eventfd) --> Worker -- Guest::notified --> device
//!  device -- Backend::submit, cancel --> Requests -- take --> Worker -- Guest::served --> device
//! ```
//! A device may have one request served while another waits behind it: what the guest was told to
//! be written before it asked for a flush is behind that flush, which is all that it may count on
//! (virtio 1.2, 5.2.6.2).

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::{Disk, DiskError};
use crate::devices::rate::Rate;
use crate::devices::virtio::block::{Backend, Request};
use crate::memory::GuestMemory;

/// Most requests that are served together: a driver that has more is told of the first ones while
/// the others are served.
const TOGETHER: usize = 32;
/// How often the size of an image is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The device that a [`Worker`] serves. No request is being served while it is called, so that it
/// may wait for whoever waits for that.
pub trait Guest: Send {
    /// The guest says that there are requests: submit them.
    fn notified(&self);

    /// What came of requests.
    fn served(&self, results: Vec<(u64, io::Result<()>)>);

    /// The disk has another size.
    fn resized(&self, sectors: u64);
}

/// What waits to be served; shared by the device, as its [`Backend`], and the worker.
#[derive(Clone, Default)]
pub struct Requests(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Nothing is being served.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(u64, Request)>,
    /// Requests are being served, and may touch guest memory.
    serving: bool,
    /// Somebody waits for `idle`: otherwise it costs no system call.
    awaited: bool,
    closed: bool,
}

impl Requests {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that panics is done under this lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next requests, which are being served from now on, as far as `rate` allows; otherwise
    /// how long it has to be waited for, if anything waits.
    fn take(&self, rate: &mut Rate, now: Duration) -> (Vec<(u64, Request)>, Option<Duration>) {
        let mut state = self.state();
        let (mut taken, mut wait) = (Vec::new(), None);
        while taken.len() < TOGETHER
            && let Some((_, request)) = state.waiting.front()
        {
            if let Err(left) = rate.take(request.bytes(), now) {
                wait = Some(left);
                break;
            }
            taken.extend(state.waiting.pop_front());
        }
        state.serving = !taken.is_empty();
        (taken, wait)
    }

    fn served(&self) {
        let mut state = self.state();
        state.serving = false;
        if std::mem::take(&mut state.awaited) {
            self.0.idle.notify_all();
        }
    }
}

impl Backend for Requests {
    fn submit(&mut self, id: u64, request: Request) {
        self.state().waiting.push_back((id, request));
    }

    fn cancel(&mut self) {
        let mut state = self.state();
        state.waiting.clear();
        while state.serving {
            state.awaited = true;
            let waited = self.0.idle.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends when dropped: the requests that are being served are finished, those behind them are not
/// begun.
pub struct Worker {
    requests: Requests,
    waker: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Serve `requests` of `guest` on `disk`; `notifications` is the eventfd of its one queue.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start(
        disk: Disk,
        memory: GuestMemory,
        requests: Requests,
        notifications: Vec<OwnedFd>,
        guest: impl Guest + 'static,
    ) -> Result<Self, DiskError> {
        let notifications = notifications.into_iter().next();
        let waker =
            notifications.ok_or_else(|| DiskError::Thread(io::ErrorKind::InvalidInput.into()))?;
        let mut service = Service {
            epoll: edges(&waker).map_err(|errno| DiskError::Thread(errno.into()))?,
            rate: Rate::new(&disk.limits),
            disk: Some(disk),
            memory,
            requests: requests.clone(),
            guest: Box::new(guest),
            started: Instant::now(),
            looked: Duration::ZERO,
        };
        let thread = thread::Builder::new().name("disk".into());
        let thread = thread.spawn(move || service.run());
        Ok(Self {
            requests,
            waker,
            thread: Some(thread.map_err(DiskError::Thread)?),
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.requests.state().closed = true;
        // Fails only when the counter is at its end.
        let _ = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed by its hook
        }
    }
}

/// Tells of each write to `event`, which nobody reads then: one system call less a notification.
fn edges(event: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let flags = EventFlags::IN | EventFlags::ET;
    epoll::add(&epoll, event, EventData::new_u64(0), flags)?;
    Ok(epoll)
}

struct Service {
    epoll: OwnedFd,
    /// Gone once serving it has panicked: nobody knows what state it is in.
    disk: Option<Disk>,
    rate: Rate,
    memory: GuestMemory,
    requests: Requests,
    guest: Box<dyn Guest>,
    started: Instant,
    /// When the image's size was looked at last, since `started`.
    looked: Duration,
}

impl Service {
    fn run(&mut self) {
        let mut wait = None;
        loop {
            let notified = self.wait(wait);
            if self.requests.state().closed {
                return;
            }
            self.look();
            if notified {
                self.guest.notified();
            }
            wait = loop {
                let (taken, wait) = self.requests.take(&mut self.rate, self.started.elapsed());
                if taken.is_empty() {
                    break wait;
                }
                let (ids, requests): (Vec<_>, Vec<_>) = taken.into_iter().unzip();
                let results = self.serve(&requests);
                self.requests.served();
                self.guest.served(ids.into_iter().zip(results).collect());
            };
        }
    }

    /// Wait for a notification, for `at_most` so long; says whether one came.
    fn wait(&self, at_most: Option<Duration>) -> bool {
        let timeout = at_most.map_or(LOOK, |wait| wait.min(LOOK));
        let timeout = Timespec::try_from(timeout).ok();
        let mut events: Vec<epoll::Event> = Vec::with_capacity(1);
        // An interrupted wait is one that was too short.
        let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref());
        !events.is_empty()
    }

    /// Tell the guest of an image that has grown or shrunk.
    fn look(&mut self) {
        let now = self.started.elapsed();
        if now.saturating_sub(self.looked) < LOOK {
            return;
        }
        self.looked = now;
        if let Some(sectors) = self.disk.as_mut().and_then(Disk::new_size) {
            self.guest.resized(sectors);
        }
    }

    /// What came of each of `requests`, whatever happens.
    fn serve(&mut self, requests: &[Request]) -> Vec<io::Result<()>> {
        let served = self.disk.as_mut().and_then(|disk| {
            let serve = || disk.serve(&self.memory, requests);
            panic::catch_unwind(AssertUnwindSafe(serve)).ok()
        });
        served.unwrap_or_else(|| {
            self.disk = None;
            let fault = || io::Error::other("hull cannot serve this disk any more");
            requests.iter().map(|_| Err(fault())).collect()
        })
    }
}
