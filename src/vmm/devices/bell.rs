//! How a device's own thread sleeps: in one `epoll_wait` over the notifications of the device's
//! queues, what else it waits for, and a call of hull's. All are edge-triggered: the device
//! remembers what it could not do, and no call is spent on taking a notice back.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::slots::no_descriptor;
use crate::devices::virtio::requests::Doorbell;
use crate::devices::virtio::transport::SharedCore;
use crate::sync::lock;
use crate::sync::{EventFd, eventfd};
use crate::vmm::error::VmmError;

/// Events taken from the kernel at once.
const BATCH: usize = 8;
/// Token of hull's call.
const OWN: u64 = u64::MAX;
/// Tokens from here on are the caller's; below are the queues' indices.
pub const FIRST_OTHER: u64 = 1 << 32;

/// The bell of one device.
pub struct Bell {
    epoll: OwnedFd,
    slot: SharedCore,
    _notifications: Vec<OwnedFd>,
    own: EventFd,
}

impl Bell {
    /// Rung by `notifications`, the eventfds of the queues of the device in `slot`.
    ///
    /// # Errors
    /// No more file descriptors.
    pub fn new(slot: SharedCore, notifications: Vec<OwnedFd>) -> Result<Self, VmmError> {
        let bell = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(no_descriptor)?,
            slot,
            own: eventfd().map_err(VmmError::EventFd)?,
            _notifications: Vec::new(),
        };
        for (queue, event) in (0..).zip(&notifications) {
            bell.watch(event, queue)?;
        }
        bell.watch(&bell.own, OWN)?;
        Ok(Self {
            _notifications: notifications,
            ..bell
        })
    }

    /// Rung by `descriptor`, too, when it becomes readable or writable.
    ///
    /// # Errors
    /// No more memory in the kernel.
    pub fn watch(&self, descriptor: impl AsFd, token: u64) -> Result<(), VmmError> {
        let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, descriptor, EventData::new_u64(token), edges).map_err(no_descriptor)
    }

    /// Sleep until it rings, at most so long, and have the device process the queues that were
    /// notified; `other` is called with the token of what else rang.
    pub fn wait_for(&self, at_most: Option<Duration>, mut other: impl FnMut(u64)) {
        let mut ready: Vec<epoll::Event> = Vec::with_capacity(BATCH);
        let at_most = at_most.and_then(|time| Timespec::try_from(time).ok());
        // An interrupted wait finds the same next time.
        let _ = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut ready),
            at_most.as_ref(),
        );
        for event in ready {
            match event.data.u64() {
                OWN => {}
                token if token >= FIRST_OTHER => other(token),
                queue => lock(&self.slot).process_notified(queue as usize),
            }
        }
    }
}

impl Doorbell for Bell {
    fn wait(&self, at_most: Option<Duration>) {
        self.wait_for(at_most, |_| {});
    }

    fn ring(&self) {
        self.own.raise();
    }
}
