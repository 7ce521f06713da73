//! The thread of a disk: takes requests in order, serves those that are there together and reports
//! them together (`devices::virtio::requests` has a picture).
//!
//! Requests may be reordered, except that a flush covers all writes reported before it was submitted:
//! that is all that a guest may rely on (virtio 1.2, 5.2.6.2).

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::{IntoIter, SmallVec};

use super::image::Results;
use super::open::Disk;
use crate::devices::rate::Rate;
use crate::devices::virtio::block::Request;
use crate::devices::virtio::requests::{Doorbell, Next, Requests, Worker};
use crate::memory::GuestMemory;
use crate::sandbox::{self, Role};

/// Requests that are taken together, and the bytes after which no more are: of more, the first ones are
/// reported while the others are served.
const MAX_BATCH: usize = 32;
const MAX_BATCH_BYTES: u64 = 16 << 20;
/// Bytes served at once, between two looks at whether the machine ends, is saved, or the device is reset;
/// and of ranges, which a host that cannot record zeroes writes.
const PIECE: u64 = 4 << 20;
const RANGE_PIECE: u64 = 16 << 20;
/// Time between two checks of an image's size.
const SIZE_INTERVAL: Duration = Duration::from_secs(1);

/// The results of requests, by their ids.
pub type Reports = SmallVec<[(u64, io::Result<()>); 4]>;

/// The device that is served. It is called while no request is being served, so it may wait for
/// other threads.
pub trait Guest: Send {
    /// Report the results of requests.
    fn served(&self, results: Reports);

    /// The disk has this size now.
    fn resized(&self, sectors: u64);
}

/// Serve `requests` of `guest` on `disk`.
///
/// # Errors
/// The host has no thread left.
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
        checked: Duration::ZERO,
    };
    Worker::start(Role::Disk, requests, doorbell, move || {
        if let Some(disk) = &service.disk {
            disk.prepare();
        }
        sandbox::restrict(Role::Disk);
        service.run();
    })
}

struct Service {
    /// `None` after a panic: its state is unknown then.
    disk: Option<Disk>,
    rate: Rate,
    memory: GuestMemory,
    requests: Requests<Request>,
    doorbell: Arc<dyn Doorbell>,
    guest: Box<dyn Guest>,
    started: Instant,
    /// Time of the last check of the image's size, since `started`.
    checked: Duration,
}

impl Service {
    fn run(&mut self) {
        loop {
            let now = self.started.elapsed();
            let (rate, mut wait, mut bytes) = (&mut self.rate, SIZE_INTERVAL, 0);
            // Before a pause none: what waits is saved as it is.
            let most = match self.requests.is_interrupted() {
                true => 0,
                false => MAX_BATCH,
            };
            let next = self.requests.next(most, |request| {
                if bytes >= MAX_BATCH_BYTES {
                    return false;
                }
                let passed = rate.take(request.bytes(), now);
                wait = passed.err().map_or(wait, |left| left.min(SIZE_INTERVAL));
                bytes += request.bytes();
                passed.is_ok()
            });
            match next {
                Next::Serve(taken) => {
                    let results = self.serve_in_pieces(taken.into_iter());
                    self.requests.served();
                    self.guest.served(results);
                }
                Next::Forget => {}
                Next::Pause => {
                    let fault = self.write_back();
                    self.requests.stay_paused(fault);
                }
                Next::Wait => {
                    self.check_size(now);
                    self.doorbell.wait(Some(wait));
                }
                Next::End => {
                    // Here, and not by the thread that drops the image. The guest has flushed what counts.
                    let _ = self.write_back();
                    return;
                }
            }
        }
    }

    /// Put all that the guest has written into the image's file; returns why that failed.
    fn write_back(&mut self) -> Option<String> {
        let disk = self.disk.as_mut()?;
        let name = disk.geometry.name.clone();
        let written = panic::catch_unwind(AssertUnwindSafe(|| disk.write_back()));
        let why = match written {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(_) => {
                self.disk = None;
                "hull can no longer serve it".into()
            }
        };
        Some(format!("disk {name}: {why}"))
    }

    /// Report a new size of the image to the guest.
    fn check_size(&mut self, now: Duration) {
        if now.saturating_sub(self.checked) < SIZE_INTERVAL {
            return;
        }
        self.checked = now;
        if let Some(sectors) = self.disk.as_mut().and_then(Disk::new_size) {
            self.guest.resized(sectors);
        }
    }

    /// Serve `left` until it is done or the thread is interrupted, and put back the rest. Returns the
    /// results of those that are done.
    fn serve_in_pieces(&mut self, mut left: IntoIter<[(u64, Request); 2]>) -> Reports {
        let mut reports = Reports::new();
        while !left.as_slice().is_empty() && !self.requests.is_interrupted() {
            let Pieces { about, requests } = next_pieces(&mut left);
            for ((id, is_last), result) in about.into_iter().zip(self.serve(&requests)) {
                if result.is_err() && !is_last {
                    left.next(); // the rest of it
                }
                if result.is_err() || is_last {
                    reports.push((id, result));
                }
            }
        }
        self.requests.put_back(left);
        reports
    }

    /// Serve `requests`; there is a result for each, after a panic, too.
    fn serve(&mut self, requests: &[Request]) -> Results {
        let served = self.disk.as_mut().and_then(|disk| {
            let serve = || disk.serve(&self.memory, requests);
            panic::catch_unwind(AssertUnwindSafe(serve)).ok()
        });
        served.unwrap_or_else(|| {
            self.disk = None;
            let fault = || io::Error::other("hull can no longer serve this disk");
            requests.iter().map(|_| Err(fault())).collect()
        })
    }
}

/// What is served at once: requests, or their beginnings.
#[derive(Default)]
struct Pieces {
    requests: SmallVec<[Request; 2]>,
    /// With each its id, and whether it is the end of its request.
    about: SmallVec<[(u64, bool); 4]>,
}

/// Take from the front of `left` what is served at once: whole requests, and of the last one perhaps the
/// beginning.
fn next_pieces(left: &mut IntoIter<[(u64, Request); 2]>) -> Pieces {
    let (mut pieces, mut bytes) = (Pieces::default(), 0);
    while bytes < PIECE
        && let Some((id, request)) = left.as_mut_slice().first_mut()
    {
        let at_once = match request {
            Request::Discard(_) | Request::WriteZeroes { .. } => RANGE_PIECE,
            Request::Read { .. } | Request::Write { .. } | Request::Flush => PIECE,
        };
        if let Some(first) = request.split(at_once) {
            pieces.about.push((*id, false));
            pieces.requests.push(first);
            break;
        }
        bytes += request.bytes();
        pieces.about.push((*id, true));
        pieces
            .requests
            .extend(left.next().map(|(_, request)| request));
    }
    pieces
}
