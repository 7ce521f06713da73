//! The thread of a share: takes requests in order, serves one at a time, reports several at once
//! (`devices::virtio::requests` draws the way of a request).

use std::io;
use std::sync::{Arc, mpsc};

use super::confined::Confined;
use super::service::Service;
use super::{Share, ShareError};
use crate::devices::virtio::fs::{Answer, Request};
use crate::devices::virtio::requests::{Doorbell, Next, Requests, Worker};
use crate::memory::GuestMemory;
use crate::sandbox;
use crate::sandbox::Role;

/// Answers that are reported together while more requests wait: one interrupt for all of them.
const TOGETHER: usize = 16;
/// So many bytes of answers do not wait for others.
const TOGETHER_BYTES: u32 = 64 << 10;

/// A request's id, and its answer or why there is none.
pub type Served = (u64, Result<Answer, String>);

/// Serve `requests` on `share`; `done` learns what came of each, of several at once where more
/// were waiting. It is called while no request is being served, so that it may wait for whoever
/// waits for that.
///
/// # Errors
/// No thread could be had, or it could not be confined to its folder.
pub fn start(
    share: Share,
    memory: GuestMemory,
    requests: Requests<Request>,
    doorbell: Arc<dyn Doorbell>,
    done: impl Fn(Vec<Served>) + Send + 'static,
) -> Result<Worker, ShareError> {
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
    let worker =
        Worker::start(Role::Share, requests, doorbell, serve).map_err(ShareError::Thread)?;
    let lost = |_| ShareError::Thread(io::Error::other("it ended at once"));
    told.recv().map_err(lost)??;
    Ok(worker)
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
    requests: &Requests<Request>,
    doorbell: &dyn Doorbell,
    done: impl Fn(Vec<Served>),
) {
    let (mut served, mut bytes) = (Vec::new(), 0);
    loop {
        match requests.next(1, |_| true) {
            Next::Serve(taken) => {
                for (id, request) in taken {
                    let answer = service.serve(&request);
                    bytes += answer.as_ref().map_or(0, |answer| answer.written);
                    served.push((id, answer));
                }
                requests.served();
                if served.len() < TOGETHER && bytes < TOGETHER_BYTES {
                    continue;
                }
            }
            Next::Forget => service.reset(),
            Next::Wait if served.is_empty() => doorbell.wait(None),
            Next::Pause if served.is_empty() => requests.stay_paused(None),
            Next::Wait | Next::Pause => {}
            Next::End => return,
        }
        done(std::mem::take(&mut served));
        bytes = 0;
    }
}
