//! The thread of a share: takes requests in order, has the server serve one at a time, reports several at
//! once (`devices::virtio::requests` has a picture).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::server::{Remote, Server};
use crate::devices::virtio::fs::{Answer, Request};
use crate::devices::virtio::requests::{Doorbell, Next, Requests, Worker};
use crate::memory::GuestMemory;
use crate::sandbox::Role;

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

impl Server {
    /// Have the server serve `requests` of the guest with `memory`; `done` is called with the answers, several
    /// at once where more requests were waiting. It is called while no request is being served, so it may wait
    /// for other threads.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn serve(
        self,
        memory: GuestMemory,
        requests: Requests<Request>,
        doorbell: Arc<dyn Doorbell>,
        done: impl Fn(Vec<Served>) + Send + 'static,
    ) -> io::Result<Worker> {
        let (queue, bell) = (requests.clone(), doorbell.clone());
        Worker::start(Role::Share, requests, doorbell, move || {
            work(&mut Remote::new(self, memory), &queue, &*bell, done);
        })
    }
}

/// Serve `requests` until their end.
fn work(
    remote: &mut Remote,
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
                    match remote.serve(&request, waiting.len() < MAX_WAITING) {
                        Ok(Some(answer)) => {
                            bytes += answer.written;
                            served.push((id, Ok(answer)));
                        }
                        Ok(None) => waiting.push((id, request)),
                        Err(error) => served.push((id, Err(error.to_string()))),
                    }
                }
                requests.served();
                if served.len() < MAX_BATCH && bytes < MAX_BATCH_BYTES {
                    continue;
                }
            }
            Next::Forget => {
                waiting.clear();
                remote.reset();
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
