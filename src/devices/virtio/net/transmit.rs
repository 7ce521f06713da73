//! Frames from the guest to the wire (virtio 1.2, 5.1.6.2).

use std::io::{self, ErrorKind};
use std::time::Duration;

use super::wire::{Clock, HEADER, MAX_FRAME, MIN_ETHERNET, Wire};
use crate::devices::rate::{Limits, Rate};
use crate::devices::virtio::queue::Chain;
use crate::devices::virtio::{DeviceError, Driver};
use crate::memory::transfer::Pieces;

/// Queue of the frames from the guest.
pub const TX: usize = 1;

/// The guest's sending side.
pub(super) struct Transmitter {
    rate: Option<Rate>,
    /// When the rate lets the next frame pass.
    pub deadline: Option<Duration>,
    /// The next frame has passed the rate and waits for the wire.
    paid: bool,
    /// A frame waits for the rate or the wire.
    pub held_up: bool,
    pieces: Pieces,
}

impl Transmitter {
    pub fn new(limits: &Limits) -> Self {
        Self {
            rate: limited(limits),
            deadline: None,
            paid: false,
            held_up: false,
            pieces: Pieces::default(),
        }
    }

    /// Send what the guest has made available, as far as rate and wire allow. Returns whether the wire
    /// has an answer; the inner error says that the wire has closed.
    pub fn turn(
        &mut self,
        driver: &mut Driver,
        wire: &mut dyn Wire,
        clock: &dyn Clock,
    ) -> Result<io::Result<bool>, DeviceError> {
        self.deadline = None;
        self.held_up = false;
        while let Some(queue) = driver.queue(TX) {
            let Some(chain) = queue.pop()? else { break };
            if !chain.writable().is_empty() {
                return Err(queue.refuse(&chain, "is to be written, in a queue to be read"));
            }
            let Some(bytes) = frame_len(&chain) else {
                let len = chain.readable_len();
                queue.finish(chain, 0)?;
                driver.warn(&format!("a frame of {len} bytes with its header; dropped"));
                continue;
            };
            if !self.paid
                && let Some(deadline) = pay(&mut self.rate, bytes, clock)
            {
                self.deadline = Some(deadline);
                self.held_up = true;
                queue.put_back(chain);
                break;
            }
            self.pieces.clear();
            let mapped = self.pieces.extend(queue.memory(), chain.readable());
            mapped.map_err(|_| queue.refuse(&chain, "points outside of memory"))?;
            let sent = wire.send(&self.pieces);
            let kind = sent.as_ref().map_err(io::Error::kind);
            self.paid = kind == Err(ErrorKind::WouldBlock);
            if self.paid {
                self.held_up = true;
                queue.put_back(chain);
                break;
            }
            // After any other error the frame is lost, as on any Ethernet.
            queue.finish(chain, 0)?;
            if kind == Err(ErrorKind::BrokenPipe) {
                return Ok(sent.map(|()| false));
            }
        }
        Ok(wire.flush())
    }

    /// Drop what the guest sends while the link is down.
    pub fn discard(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        self.reset();
        if let Some(queue) = driver.queue(TX) {
            while let Some(chain) = queue.pop()? {
                queue.finish(chain, 0)?;
            }
        }
        Ok(())
    }

    pub fn reset(&mut self) {
        self.deadline = None;
        self.paid = false;
        self.held_up = false;
        self.pieces.clear();
    }
}

/// Bytes of the frame in `chain` without its header, if the length is possible.
fn frame_len(chain: &Chain) -> Option<u64> {
    let len = chain.readable_len();
    let fits = ((HEADER + MIN_ETHERNET) as u64..=MAX_FRAME as u64).contains(&len);
    fits.then(|| len - HEADER as u64)
}

/// The rate of one direction, if it is limited.
pub(super) fn limited(limits: &Limits) -> Option<Rate> {
    (*limits != Limits::default()).then(|| Rate::new(limits))
}

/// Take a frame of `bytes` from `rate`; returns until when it has to wait.
pub(super) fn pay(rate: &mut Option<Rate>, bytes: u64, clock: &dyn Clock) -> Option<Duration> {
    let rate = rate.as_mut()?;
    let now = clock.now();
    let wait = rate.take(bytes, now).err()?;
    Some(now.saturating_add(wait))
}
