//! The thread of a share: takes requests in order, serves one at a time, reports several at once
//! (`devices::virtio::requests` has a picture).

use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::error::ShareError;
use super::files::Files;
use super::folder::Share;
use super::service::Service;
use crate::devices::virtio::fs::{Answer, Request};
use crate::devices::virtio::requests::{Doorbell, Next, Requests, Worker};
use crate::memory::GuestMemory;
use crate::sandbox::{self, Role, spawn};

/// Answers that are reported together while more requests wait, with one interrupt.
const MAX_BATCH: usize = 16;
/// Bytes of answers that are reported without waiting for more.
const MAX_BATCH_BYTES: u32 = 64 << 10;

/// How often it is tried whether a lock is free that the guest waits for.
const LOCK_PERIOD: Duration = Duration::from_millis(10);
/// Most requests that wait for locks, so that the queue has room for the one that ends a lock.
const MAX_WAITING: usize = 64;

/// A request's id, and its answer or the reason why there is none.
pub type Served = (u64, Result<Answer, String>);

/// What the thread is to do with the files of its folder.
type Job = Box<dyn FnOnce(Files) + Send>;

/// The thread of a share before it has anything to serve: it is confined to its folder already, and has
/// the rights over files that other threads of hull give up.
pub struct Server {
    tag: String,
    jobs: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

impl Server {
    /// Start the thread of `share`, one of the machine's `shares`.
    ///
    /// # Errors
    /// The host has no thread left, or it could not be confined to its folder.
    pub fn start(share: Share, shares: NonZeroUsize) -> Result<Self, ShareError> {
        let tag = share.tag().to_string();
        let (jobs, given) = mpsc::channel::<Job>();
        // The result of the preparations goes to the caller, which waits for it.
        let (tell, told) = mpsc::channel();
        let work = move || match prepare(share, shares) {
            Ok(files) => {
                let _ = tell.send(Ok(()));
                // There is none if the machine is not made.
                if let Ok(job) = given.recv() {
                    job(files);
                }
            }
            Err(error) => {
                let _ = tell.send(Err(error));
            }
        };
        let thread = spawn(Role::Share, work).map_err(ShareError::Thread)?;
        let lost = |_| ShareError::Thread(io::Error::other("it ended at once"));
        told.recv().map_err(lost)??;
        Ok(Self { tag, jobs, thread })
    }

    /// The tag by which the guest mounts the share.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Serve `requests`; `done` is called with the answers, several at once where more requests were
    /// waiting. It is called while no request is being served, so it may wait for other threads.
    pub fn serve(
        self,
        memory: GuestMemory,
        requests: Requests<Request>,
        doorbell: Arc<dyn Doorbell>,
        done: impl Fn(Vec<Served>) + Send + 'static,
    ) -> Worker {
        let (queue, bell) = (requests.clone(), doorbell.clone());
        Worker::on(self.thread, requests, doorbell, |ended| {
            let job = move |files| {
                let _ended = ended;
                work(Service::new(files, memory), &queue, &*bell, done);
            };
            // The thread waits for it.
            let _ = self.jobs.send(Box::new(job));
        })
    }
}

/// The thread's first steps: give up rights, open the folder, and confine itself to it.
fn prepare(share: Share, shares: NonZeroUsize) -> Result<Files, ShareError> {
    let Share { folder, config } = share;
    let path = || config.folder.clone();
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
    // /proc is out of reach afterwards.
    let files = Files::new(folder.into(), &config, shares).map_err(serve)?;
    sandbox::confine(bounds, config.read_only).map_err(confine)?;
    sandbox::restrict_calls(Role::Share);
    Ok(files)
}

fn work(
    mut service: Service,
    requests: &Requests<Request>,
    doorbell: &dyn Doorbell,
    done: impl Fn(Vec<Served>),
) {
    let (mut served, mut bytes) = (Vec::new(), 0);
    // Requests that wait for a lock of the host, which does not say when it is free.
    let mut waiting = Vec::new();
    loop {
        match requests.next(1, |_| true) {
            Next::Serve(taken) => {
                for (id, request) in taken {
                    match service.serve(&request, waiting.len() < MAX_WAITING) {
                        Some(answer) => {
                            bytes += answer.written;
                            served.push((id, Ok(answer)));
                        }
                        None => waiting.push((id, request)),
                    }
                }
                requests.served();
                if served.len() < MAX_BATCH && bytes < MAX_BATCH_BYTES {
                    continue;
                }
            }
            Next::Forget => {
                waiting.clear();
                service.reset();
            }
            Next::Wait if served.is_empty() => {
                doorbell.wait((!waiting.is_empty()).then_some(LOCK_PERIOD));
                requests.again(waiting.drain(..));
            }
            Next::Pause if served.is_empty() => requests.stay_paused(None),
            Next::Wait | Next::Pause => {}
            Next::End => return,
        }
        done(std::mem::take(&mut served));
        bytes = 0;
    }
}
