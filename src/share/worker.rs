//! The thread of a share: waits for the guest's notifications, takes requests in order, serves one
//! at a time, reports each.
//!
//! ```text
//!  guest --- ioeventfd --> Doorbell::wait -> Transport::process -> Requests
//!                                     ^                               |
//!                       Worker ------ '- nothing there <-- take ------'-- serve, done(id)
//! ```
//! It waits for the notifications itself, so that a request, for which the guest mostly waits,
//! costs one switch of threads and not two. A vCPU's thread resets the device, meanwhile.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use super::confined::Confined;
use super::service::Service;
use super::{Share, ShareError};
use crate::devices::virtio::fs::{Answer, Backend, Request};
use crate::memory::GuestMemory;
use crate::sandbox;

/// Answers that are reported together while more requests wait: one interrupt for all of them.
const TOGETHER: usize = 16;
/// So many bytes of answers do not wait for others.
const TOGETHER_BYTES: u32 = 64 << 10;

/// A request's id, and its answer or why there is none.
pub type Served = (u64, Result<Answer, String>);

/// How the guest and hull call a share's thread.
pub trait Doorbell: Send + Sync {
    /// Wait for a notification of the guest's, or for [`Doorbell::ring`], and have the device
    /// submit what the guest added.
    fn wait(&self);

    /// End [`Doorbell::wait`], or the next one.
    fn ring(&self);
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
    /// A request is being served, and may touch guest memory.
    serving: bool,
    /// What the driver had opened is to be closed before anything else is served.
    forget: bool,
    closed: bool,
}

/// What a worker does next.
enum Next {
    Serve(u64, Request),
    Forget,
    Wait,
    End,
}

impl Requests {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that panics is done under this lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Next {
        let mut state = self.state();
        if state.closed {
            return Next::End;
        }
        if std::mem::take(&mut state.forget) {
            return Next::Forget;
        }
        match state.waiting.pop_front() {
            Some((id, request)) => {
                state.serving = true;
                Next::Serve(id, request)
            }
            None => Next::Wait,
        }
    }

    fn served(&self) {
        self.state().serving = false;
        self.0.idle.notify_all();
    }
}

impl Backend for Requests {
    fn submit(&mut self, id: u64, request: Request) {
        // By the worker itself, on its way out of `Doorbell::wait`.
        self.state().waiting.push_back((id, request));
    }

    fn cancel(&mut self) {
        let mut state = self.state();
        state.waiting.clear();
        state.forget = true;
        while state.serving {
            let waited = self.0.idle.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends when dropped: the request that is being served is finished, those behind it are not begun.
pub struct Worker {
    requests: Requests,
    doorbell: Arc<dyn Doorbell>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Serve `requests` on `share`; `done` learns what came of each, of several at once where more
    /// were waiting. It is called while no request is being served, so that it may wait for
    /// whoever waits for that.
    ///
    /// # Errors
    /// No thread could be had, or it could not be confined to its folder.
    pub fn start(
        share: Share,
        memory: GuestMemory,
        requests: Requests,
        doorbell: Arc<dyn Doorbell>,
        done: impl Fn(Vec<Served>) + Send + 'static,
    ) -> Result<Self, ShareError> {
        let (tell, told) = mpsc::channel();
        let (queue, bell) = (requests.clone(), doorbell.clone());
        // Who starts the thread waits for what is told.
        let serve = move || match prepare(share, memory) {
            Ok(service) => {
                let _ = tell.send(Ok(()));
                work(service, &queue, &*bell, done);
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        };
        let thread = thread::Builder::new().name("share".into()).spawn(serve);
        let thread = thread.map_err(ShareError::Thread)?;
        let lost = |_| ShareError::Thread(io::Error::other("it ended at once"));
        told.recv().map_err(lost)??;
        Ok(Self {
            requests,
            doorbell,
            thread: Some(thread),
        })
    }
}

/// The thread's first steps: give up what it does not need, and open the folder in between.
fn prepare(share: Share, memory: GuestMemory) -> Result<Service, ShareError> {
    let Share {
        folder,
        path,
        read_only,
        ..
    } = share;
    let path = || path.clone();
    let confine = |reason| ShareError::Confine {
        path: path(),
        reason,
    };
    let serve = |reason| ShareError::Serve {
        path: path(),
        reason,
    };
    sandbox::give_up_rights().map_err(confine)?;
    let bounds = folder.try_clone().map_err(serve)?;
    // The crate reads of mounts in /proc, which is out of reach afterwards.
    let service = Confined::new(folder, read_only)
        .and_then(|files| Service::new(files, memory))
        .map_err(serve)?;
    sandbox::confine(bounds, read_only).map_err(confine)?;
    Ok(service)
}

fn work(
    mut service: Service,
    requests: &Requests,
    doorbell: &dyn Doorbell,
    done: impl Fn(Vec<Served>),
) {
    let (mut served, mut bytes) = (Vec::new(), 0);
    loop {
        match requests.next() {
            Next::Serve(id, request) => {
                let answer = service.serve(&request);
                requests.served();
                bytes += answer.as_ref().map_or(0, |answer| answer.written);
                served.push((id, answer));
                if served.len() < TOGETHER && bytes < TOGETHER_BYTES {
                    continue;
                }
            }
            Next::Forget => service.reset(),
            Next::Wait if served.is_empty() => doorbell.wait(),
            Next::Wait => {}
            Next::End => return,
        }
        done(std::mem::take(&mut served));
        bytes = 0;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.requests.state().closed = true;
        self.doorbell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed by its hook
        }
    }
}
