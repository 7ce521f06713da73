//! How drivers notify queues: at first by exits, and those that do it often without one.
//!
//! To have KVM take a write (KVM_IOEVENTFD) costs as much as three exits, so a short run with many
//! queues does without. Where accesses are watched ([`watch`]), KVM takes them from the beginning, so
//! that a queue's notifications look alike.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use kvm_ioctls::IoEventAddress;

use crate::devices::bus::{self, Bus, BusDevice};
use crate::devices::virtio::transport::{Place, Shortcut, Transport};
use crate::kvm::KvmError;
use crate::kvm::vm::IoEvents;
use crate::memory::layout::{MmioSlot, VIRTIO_NOTIFY_PORT, VIRTIO_NOTIFY_PORTS};
use crate::sync::{EventFd, lock};

/// The writes of the driver in one slot.
pub struct Writes {
    pub events: IoEvents,
    pub slot: MmioSlot,
    /// Takes writes that have no effect.
    pub ignored: Arc<EventFd>,
}

impl Writes {
    fn register(
        &self,
        place: Place,
        value: u32,
        event: Option<BorrowedFd<'_>>,
    ) -> Result<(), KvmError> {
        let at = match place {
            Place::Register(offset) => IoEventAddress::Mmio(self.slot.base + offset),
            Place::Port => IoEventAddress::Pio(self.slot.notify_port.into()),
        };
        let event = event.unwrap_or_else(|| self.ignored.as_fd());
        self.events.register(event, &at, value)
    }

    /// Have KVM take all notifications of `transport`, so that none is seen as an access.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn watch(&self, transport: &dyn Transport) -> Result<(), KvmError> {
        for (queue, event) in (0u32..).zip(lock(transport.core()).queue_events()) {
            for place in [transport.notify_register(), Place::Port] {
                self.register(place, queue, Some(event.as_fd()))?;
            }
        }
        Ok(())
    }
}

impl Shortcut for Writes {
    fn take(&self, place: Place, value: u32, event: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.register(place, value, event).map_err(io::Error::other)
    }
}

/// The ports at which hull's own kernel notifies the devices of all slots, four for each
/// (guest/kernel/patches/0015-hull-virtio-exits.patch).
pub struct NotifyPorts(Vec<Arc<Mutex<dyn Transport>>>);

impl NotifyPorts {
    /// Put those of these transports, in the order of their slots, on the bus.
    ///
    /// # Errors
    /// Another device is there.
    pub fn insert(
        slots: Vec<Arc<Mutex<dyn Transport>>>,
        ports: &mut Bus,
    ) -> Result<(), bus::Error> {
        let notify = Arc::new(Mutex::new(Self(slots)));
        let (base, count) = (VIRTIO_NOTIFY_PORT.into(), VIRTIO_NOTIFY_PORTS.into());
        ports.insert(base, count, "virtio notify", notify)
    }
}

impl BusDevice for NotifyPorts {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        let slot = usize::try_from(offset / 4).ok();
        let transport = slot.and_then(|slot| self.0.get(slot));
        if let (Some(transport), Ok(queue)) = (transport, data.try_into())
            && offset.is_multiple_of(4)
        {
            lock(transport).notified(Place::Port, u32::from_le_bytes(queue));
        }
    }

    fn register(&self, _offset: u64, write: bool) -> Option<&'static str> {
        write.then_some("QueueNotify")
    }
}
