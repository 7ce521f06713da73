//! How a device's own thread sleeps: in one `epoll_wait` over the notifications of the device's
//! queues, other descriptors of the thread, and a call by hull. All are edge-triggered: the device
//! remembers what it could not do, and no system call is spent on resetting a notification.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::slots::{AttachContext, Slots, no_descriptor};
use crate::devices::virtio::Device;
use crate::devices::virtio::requests::Doorbell;
use crate::devices::virtio::transport::SharedCore;
use crate::sync::{EventFd, eventfd, lock};
use crate::vmm::error::VmmError;

/// Events taken from the kernel at once.
const BATCH: usize = 8;
/// Token of a call by hull.
const CALL: u64 = u64::MAX;
/// First token for other descriptors; the tokens below are queue indices.
pub const FIRST_OTHER: u64 = 1 << 32;

/// Wakes the thread of one device.
pub struct Bell {
    epoll: OwnedFd,
    slot: SharedCore,
    _notifications: Vec<OwnedFd>,
    own: EventFd,
}

/// Attach `device`, whose queues a thread of its own processes: its slot, and what wakes the thread.
///
/// # Errors
/// No slot, interrupt line or file descriptor is left.
pub fn attach_worker(
    slots: &mut Slots,
    context: &mut AttachContext,
    name: &str,
    device: Box<dyn Device>,
) -> Result<(SharedCore, Arc<Bell>), VmmError> {
    let (slot, notifications) = slots.attach_unwatched(context, name, device)?;
    let bell = Bell::new(slot.clone(), notifications)?;
    Ok((slot, Arc::new(bell)))
}

impl Bell {
    /// A bell rung by `notifications`, the eventfds of the queues of the device in `slot`.
    ///
    /// # Errors
    /// No file descriptor is left.
    fn new(slot: SharedCore, notifications: Vec<OwnedFd>) -> Result<Self, VmmError> {
        let bell = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(no_descriptor)?,
            slot,
            own: eventfd().map_err(VmmError::EventFd)?,
            _notifications: Vec::new(),
        };
        for (queue, event) in (0..).zip(&notifications) {
            bell.watch(event, queue)?;
        }
        bell.watch(&bell.own, CALL)?;
        Ok(Self {
            _notifications: notifications,
            ..bell
        })
    }

    /// Let `descriptor` ring it, too, when it becomes readable or writable.
    ///
    /// # Errors
    /// The kernel has no memory left.
    pub fn watch(&self, descriptor: impl AsFd, token: u64) -> Result<(), VmmError> {
        let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.epoll, descriptor, EventData::new_u64(token), edges).map_err(no_descriptor)
    }

    /// Sleep until it rings, or for the given time, and have the device process the queues that were
    /// notified; `other` is called with the tokens of other descriptors.
    pub fn wait_for(&self, at_most: Option<Duration>, mut other: impl FnMut(u64)) {
        let mut room = [const { MaybeUninit::uninit() }; BATCH];
        let at_most = at_most.and_then(|time| Timespec::try_from(time).ok());
        let Ok((ready, _)) = epoll::wait(&self.epoll, &mut room, at_most.as_ref()) else {
            return; // An interrupted wait finds the same next time.
        };
        for event in ready {
            match event.data.u64() {
                CALL => {}
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
