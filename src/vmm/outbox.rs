//! Bytes from a UART to the event loop, with back pressure on the vCPUs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::events::Events;
use crate::devices::legacy::serial::Sink;
use crate::sync::lock;

/// Bytes at which the guest waits for the host.
const FULL: usize = 64 << 10;
/// Interval at which a waiting vCPU checks whether it is to leave.
const LEAVE_POLL: Duration = Duration::from_millis(50);

/// Bytes that the guest transmitted and the event loop has not taken.
///
/// A device must not block, so it accepts all bytes (at most a few per exit); the vCPU waits in
/// [`Outbox::throttle`] after the exit, without a lock.
#[derive(Default)]
pub struct Outbox {
    bytes: Mutex<VecDeque<u8>>,
    /// `bytes.len()`, which is read without the lock after every exit.
    len: AtomicUsize,
    drained: Condvar,
}

impl Outbox {
    /// On a vCPU's thread: wait while the outbox is full, until `leave`.
    pub fn throttle(&self, leave: impl Fn() -> bool) {
        if self.len.load(Ordering::Acquire) < FULL {
            return;
        }
        let mut bytes = lock(&self.bytes);
        while bytes.len() >= FULL && !leave() {
            bytes = match self.drained.wait_timeout(bytes, LEAVE_POLL) {
                Ok((bytes, _)) => bytes,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Take at most `most` bytes, oldest first.
    pub fn take(&self, most: usize) -> Vec<u8> {
        let mut bytes = lock(&self.bytes);
        let n = most.min(bytes.len());
        let taken = bytes.drain(..n).collect();
        self.len.store(bytes.len(), Ordering::Release);
        self.drained.notify_all();
        taken
    }

    /// Whether all bytes were taken.
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }

    /// Add bytes. Returns whether the outbox was empty, so that the event loop must be woken.
    pub fn push(&self, new: &[u8]) -> bool {
        let mut bytes = lock(&self.bytes);
        let was_empty = bytes.is_empty();
        bytes.extend(new);
        self.len.store(bytes.len(), Ordering::Release);
        was_empty
    }
}

/// A UART's end of an [`Outbox`].
pub struct Transmitter {
    /// The other end of it.
    pub outbox: Arc<Outbox>,
    /// Woken for the first bytes, and for room in the UART's input.
    pub events: Arc<Events>,
}

impl Sink for Transmitter {
    fn write(&mut self, bytes: &[u8]) {
        if self.outbox.push(bytes) {
            self.events.wake();
        }
    }

    fn input_room(&mut self) {
        self.events.wake();
    }
}
