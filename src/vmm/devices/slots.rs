//! The slots of virtio devices: virtio-mmio windows with interrupt lines, and their queues in the
//! event loop.

use std::io;
use std::ops::{Add, Range};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::epoll;
use serde::Serialize;

use super::notify::Writes;
use crate::devices::Reporter;
use crate::devices::bus::Bus;
use crate::devices::virtio::mmio::{Absent, MmioTransport, Page, Shortcuts};
use crate::devices::virtio::transport::{SharedCore, Transport};
use crate::devices::virtio::{Device, QueueCounters};
use crate::kvm::vm::Vm;
use crate::memory::layout::{MmioSlot, VIRTIO_GSIS, VIRTIO_MMIO_SIZE, virtio_slot};
use crate::sync::{EventFd, eventfd, lock};
use crate::trace::{Recorder, Trace};
use crate::vmm::error::VmmError;
use crate::vmm::events::Events;
use crate::vmm::irq::line;

/// Notifications taken from the kernel at once.
const BATCH: usize = 16;
/// In a token in place of the queue: the slot's timer.
const TIMER: u32 = u32::MAX;

/// Slots that are hidden at boot and revealed later: so many devices can be added to a machine that
/// was restored from a template.
pub const LATE_SLOTS: usize = 6;

/// What attaching a device needs of the machine.
pub struct AttachContext<'a> {
    /// For notifications (ioeventfd) and interrupt lines.
    pub vm: &'a Vm,
    /// The bus for the registers.
    pub mmio: &'a mut Bus,
    /// Where devices report faults.
    pub events: &'a Arc<Events>,
    /// Where to record interrupts and notifications, for `--trace`.
    pub trace: Option<&'a Arc<Trace>>,
}

/// A device in its slot.
struct Slot {
    /// The device's name in messages.
    name: String,
    core: SharedCore,
    transport: Arc<Mutex<dyn Transport>>,
}

/// All slots, and one descriptor that is readable when a queue is to be processed.
pub struct Slots {
    epoll: OwnedFd,
    /// Takes what drivers write without effect.
    ignored: Arc<EventFd>,
    slots: Vec<Slot>,
    /// The first hidden slot, if slots are hidden.
    hidden_from: Option<usize>,
    /// Number of empty slots behind those in use.
    absent: usize,
}

impl Slots {
    /// No slots yet.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new() -> Result<Self, VmmError> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(no_descriptor)?,
            ignored: Arc::new(eventfd().map_err(VmmError::EventFd)?),
            slots: Vec::new(),
            hidden_from: None,
            absent: 0,
        })
    }

    /// Hide the devices that are attached from now on, until [`Slots::reveal`].
    pub fn hide_from_here(&mut self) {
        self.hidden_from = Some(self.slots.len());
    }

    /// Index of the first hidden slot; the number of slots if none is hidden.
    pub fn hidden_from(&self) -> usize {
        self.hidden_from.unwrap_or(self.slots.len())
    }

    /// Add empty slots until there are `total`.
    ///
    /// # Errors
    /// More are in use, or `total` exceeds the interrupt lines.
    pub fn fill(&mut self, context: &mut AttachContext, total: usize) -> Result<(), VmmError> {
        let too_many = |max| VmmError::TooManyDevices { max };
        let used = self.slots.len();
        self.absent = total.checked_sub(used).ok_or(too_many(total))?;
        for index in used..total {
            let place = virtio_slot(index).ok_or(too_many(VIRTIO_GSIS.len()))?;
            if let Some(page) = page(context.vm, place) {
                page.show_none();
            }
            let absent = Arc::new(Mutex::new(Absent));
            context
                .mmio
                .insert(place.base, VIRTIO_MMIO_SIZE, "empty slot", absent)?;
        }
        Ok(())
    }

    /// Reveal the hidden devices to the guest. Returns their slots.
    pub fn reveal(&self) -> Range<usize> {
        let hidden = self.hidden_from()..self.slots.len();
        for slot in self.slots.iter().skip(hidden.start) {
            lock(&slot.transport).reveal();
        }
        hidden
    }

    /// Attach `device`, named `name`, to the next slot: its registers to the bus, an ioeventfd to each
    /// queue, and an interrupt line. The event loop processes its queues.
    ///
    /// # Errors
    /// No slot, interrupt line or file descriptor is left.
    pub fn attach(
        &mut self,
        context: &mut AttachContext,
        name: &str,
        device: Box<dyn Device>,
    ) -> Result<SharedCore, VmmError> {
        let index = self.slots.len();
        let (core, notifications) = self.attach_unwatched(context, name, device)?;
        for (queue, event) in (0u32..).zip(notifications) {
            epoll::add(
                &self.epoll,
                event,
                epoll::EventData::new_u64(token(index, queue)),
                epoll::EventFlags::IN,
            )
            .map_err(no_descriptor)?;
        }
        epoll::add(
            &self.epoll,
            lock(&core).timer(),
            epoll::EventData::new_u64(token(index, TIMER)),
            epoll::EventFlags::IN,
        )
        .map_err(no_descriptor)?;
        Ok(core)
    }

    /// As [`Slots::attach`], but the caller has the queues processed, each when its returned eventfd is
    /// readable.
    ///
    /// # Errors
    /// As [`Slots::attach`].
    pub fn attach_unwatched(
        &mut self,
        context: &mut AttachContext,
        name: &str,
        device: Box<dyn Device>,
    ) -> Result<(SharedCore, Vec<OwnedFd>), VmmError> {
        let place = virtio_slot(self.slots.len()).ok_or(VmmError::TooManyDevices {
            max: VIRTIO_GSIS.len(),
        })?;
        let reporter = Reporter::new(context.events.clone(), name);
        let recorder = context.trace.map(|trace| Recorder::new(trace, name));
        let interrupt = line(context.vm, place.gsi, recorder.clone());
        let memory = context.vm.memory().clone();
        let writes = Arc::new(Writes {
            events: context.vm.io_events(),
            slot: place,
            ignored: self.ignored.clone(),
        });
        let shortcuts = Shortcuts {
            page: page(context.vm, place),
            notify_port: Some(place.notify_port),
            often: Some(writes.clone()),
        };
        let watched = shortcuts.page.is_none();
        let transport = MmioTransport::new(memory, device, interrupt, reporter, shortcuts);
        let mut transport = transport.map_err(VmmError::EventFd)?;
        let core = transport.core().clone();
        if let Some(recorder) = recorder {
            lock(&core).record(recorder);
        }
        if self.hidden_from.is_some() {
            transport.hide();
        } else {
            transport.reveal();
        }
        let mut notifications = Vec::new();
        if watched {
            writes.watch(&transport)?;
        }
        for event in lock(&core).queue_events() {
            let event = event.as_fd().try_clone_to_owned();
            notifications.push(event.map_err(VmmError::EventFd)?);
        }
        let transport = Arc::new(Mutex::new(transport));
        context
            .mmio
            .insert(place.base, VIRTIO_MMIO_SIZE, name, transport.clone())?;
        self.slots.push(Slot {
            name: name.into(),
            core: core.clone(),
            transport,
        });
        Ok((core, notifications))
    }

    /// The transports of all devices, in the order of their slots.
    pub fn transports(&self) -> Vec<Arc<Mutex<dyn Transport>>> {
        let transports = self.slots.iter().map(|slot| slot.transport.clone());
        transports.collect()
    }

    /// Addresses and lines of all slots, empty ones included, for boot tables and the kernel command
    /// line.
    pub fn places(&self) -> Vec<MmioSlot> {
        let all = 0..self.slots.len() + self.absent;
        all.filter_map(virtio_slot).collect()
    }

    /// The devices with their names, addresses and lines.
    pub fn list(&self) -> Vec<(String, MmioSlot, SharedCore)> {
        let slots = (0..).map_while(virtio_slot).zip(&self.slots);
        slots
            .map(|(place, slot)| (slot.name.clone(), place, slot.core.clone()))
            .collect()
    }

    /// The traffic of each device.
    pub fn traffic(&self) -> Vec<DeviceReport> {
        let device = |slot: &Slot| DeviceReport {
            name: slot.name.clone(),
            traffic: lock(&slot.core)
                .counters()
                .fold(QueueCounters::default(), Add::add),
        };
        self.slots.iter().map(device).collect()
    }

    /// Process each queue that was notified, for one turn. A queue with more work makes
    /// [`Slots::as_fd`] readable again.
    pub fn process(&self) {
        let mut ready: Vec<epoll::Event> = Vec::with_capacity(BATCH);
        let now = rustix::event::Timespec::default();
        // After EINTR the next call finds the same notifications.
        let _ = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut ready),
            Some(&now),
        );
        for event in ready {
            let (slot, queue) = from_token(event.data.u64());
            if let Some(slot) = self.slots.get(slot) {
                match queue {
                    TIMER => lock(&slot.core).alarm(),
                    queue => lock(&slot.core).process(queue as usize),
                }
            }
        }
    }
}

/// The page of registers of a slot, if its reads do not leave the guest.
fn page(vm: &Vm, place: MmioSlot) -> Option<Page> {
    let windows = vm.windows()?;
    Some(Page::new(windows.clone(), place.base))
}

/// The traffic of a virtio device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    /// The device's name in messages.
    pub name: String,
    /// Sum over its queues.
    #[serde(flatten)]
    pub traffic: QueueCounters,
}

impl AsFd for Slots {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn token(slot: usize, queue: u32) -> u64 {
    (slot as u64) << 32 | u64::from(queue)
}

fn from_token(token: u64) -> (usize, u32) {
    ((token >> 32) as usize, token as u32)
}

pub fn no_descriptor(errno: rustix::io::Errno) -> VmmError {
    VmmError::EventFd(io::Error::from(errno))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::devices::virtio::rng::Rng;
    use crate::kvm::vm::{self, MissingFeatures};
    use crate::memory::backing;
    use crate::sync::eventfd;
    use crate::vmm::timeline::Timeline;

    #[test]
    fn a_token_names_its_window_and_queue() {
        assert_eq!(from_token(token(15, 67)), (15, 67));
        assert_eq!(from_token(token(0, u32::MAX)), (0, u32::MAX));
    }

    #[test]
    fn hidden_devices_are_found_once_they_are_revealed() {
        let memory = backing::allocate(16 << 20).unwrap();
        let windows = backing::windows().unwrap();
        let (kvm, all) = (vm::open().unwrap(), MissingFeatures::default());
        let vm = Vm::without(all, kvm, memory, Some(windows.clone())).unwrap();
        let timeline = Arc::new(Timeline::new(Instant::now()));
        let events = Arc::new(Events::new(timeline, eventfd().unwrap()));
        let mut mmio = Bus::new();
        let mut context = AttachContext {
            vm: &vm,
            mmio: &mut mmio,
            events: &events,
            trace: None,
        };
        let mut slots = Slots::new().unwrap();
        let rng = || Box::new(Rng::new(Box::new(|_| true), Box::new(|| Duration::ZERO)));
        slots.attach(&mut context, "first", rng()).unwrap();
        slots.hide_from_here();
        slots.attach(&mut context, "late", rng()).unwrap();
        slots.attach(&mut context, "last", rng()).unwrap();
        let total = slots.hidden_from() + LATE_SLOTS;
        assert!(slots.fill(&mut context, 2).is_err());
        slots.fill(&mut context, total).unwrap();
        let places = slots.places();
        assert_eq!(places.len(), total);
        let read = |offset| {
            let read = |place: &MmioSlot| {
                let mut data = [0xff; 4];
                assert!(mmio.read(place.base + offset, &mut data));
                let value = u32::from_le_bytes(data);
                let shown: u32 = windows.read_obj(GuestAddress(place.base + offset)).unwrap();
                assert_eq!(shown, value, "on the page");
                value
            };
            places.iter().map(read).collect::<Vec<_>>()
        };
        assert_eq!(read(0), vec![u32::from_le_bytes(*b"virt"); total]);
        assert_eq!(read(8), [4, 0, 0, 0, 0, 0, 0]);
        assert_eq!(slots.reveal(), 1..3);
        assert_eq!(read(8), [4, 4, 4, 0, 0, 0, 0]);
    }
}
