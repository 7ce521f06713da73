//! The thread of a disk: takes requests in order, serves those that are there together, reports
//! them together (`devices::virtio::requests` draws the way of a request).
//!
//! A device may have one request served while another waits behind it: what the guest was told to
//! be written before it asked for a flush is behind that flush, which is all that it may count on
//! (virtio 1.2, 5.2.6.2).

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Disk;
use crate::devices::rate::Rate;
use crate::devices::virtio::block::Request;
use crate::devices::virtio::requests::{Doorbell, Next, Requests, Worker};
use crate::memory::GuestMemory;
use crate::sandbox::Role;

/// Most requests that are served together: a driver that has more is told of the first ones while
/// the others are served.
const TOGETHER: usize = 32;
/// How often the size of an image is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The device that is served. No request is being served while it is called, so that it may wait
/// for whoever waits for that.
pub trait Guest: Send {
    /// What came of requests.
    fn served(&self, results: Vec<(u64, io::Result<()>)>);

    /// The disk has another size.
    fn resized(&self, sectors: u64);
}

/// Serve `requests` of `guest` on `disk`.
///
/// # Errors
/// No thread could be had.
pub fn start(
    disk: Disk,
    memory: GuestMemory,
    requests: Requests<Request>,
    doorbell: Arc<dyn Doorbell>,
    guest: impl Guest + 'static,
) -> io::Result<Worker> {
    let mut service = Service {
        rate: Rate::new(&disk.limits),
        disk: Some(disk),
        memory,
        requests: requests.clone(),
        doorbell: doorbell.clone(),
        guest: Box::new(guest),
        started: Instant::now(),
        looked: Duration::ZERO,
    };
    Worker::start(Role::Disk, requests, doorbell, move || service.run())
}

struct Service {
    /// Gone once serving it has panicked: nobody knows what state it is in.
    disk: Option<Disk>,
    rate: Rate,
    memory: GuestMemory,
    requests: Requests<Request>,
    doorbell: Arc<dyn Doorbell>,
    guest: Box<dyn Guest>,
    started: Instant,
    /// When the image's size was looked at last, since `started`.
    looked: Duration,
}

impl Service {
    fn run(&mut self) {
        loop {
            let now = self.started.elapsed();
            let (rate, mut wait) = (&mut self.rate, LOOK);
            let next = self.requests.next(TOGETHER, |request| {
                let passed = rate.take(request.bytes(), now);
                wait = passed.err().map_or(wait, |left| left.min(LOOK));
                passed.is_ok()
            });
            match next {
                Next::Serve(taken) => {
                    let (ids, requests): (Vec<_>, Vec<_>) = taken.into_iter().unzip();
                    let results = self.serve(&requests);
                    self.requests.served();
                    self.guest.served(ids.into_iter().zip(results).collect());
                }
                Next::Forget => {}
                Next::Pause => {
                    let fault = self.write_back();
                    self.requests.stay_paused(fault);
                }
                Next::Wait => {
                    self.look(now);
                    self.doorbell.wait(Some(wait));
                }
                Next::End => return,
            }
        }
    }

    /// Have the image be what the guest has written; or why it is not.
    fn write_back(&mut self) -> Option<String> {
        let disk = self.disk.as_mut()?;
        let name = disk.geometry.name.clone();
        let written = panic::catch_unwind(AssertUnwindSafe(|| disk.write_back()));
        let why = match written {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                self.disk = None;
                "hull cannot serve it any more".into()
            }
        };
        Some(format!("disk {name}: {why}"))
    }

    /// Tell the guest of an image that has grown or shrunk.
    fn look(&mut self, now: Duration) {
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
