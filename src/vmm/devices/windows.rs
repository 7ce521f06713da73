//! The machine's virtio devices: a window each on the MMIO bus, their queues in the event loop.

use std::io;
use std::ops::{Add, Range};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::event::epoll;

use crate::devices::Reporter;
use crate::devices::bus::Bus;
use crate::devices::virtio::absent::Absent;
use crate::devices::virtio::front::Front;
use crate::devices::virtio::mmio::{QUEUE_NOTIFY, Transport};
use crate::devices::virtio::{Device, QueueCounters};
use crate::kvm;
use crate::kvm::vm::Vm;
use crate::memory::layout::{MmioSlot, VIRTIO_GSIS, VIRTIO_MMIO_SIZE, virtio_slot};
use crate::trace::{Recorder, Trace};
use crate::vmm::VmmError;
use crate::vmm::events::{Events, lock};
use crate::vmm::machine::line;
use crate::vmm::report::DeviceReport;

/// Notifications taken from the kernel at once.
const BATCH: usize = 16;
/// In a token, for the queue: the window's timer.
const TIMER: u32 = u32::MAX;

/// Windows of a machine whose devices are to be found only later, beside those that are found at
/// boot: so many devices can be added to one that was saved before.
pub const LATE_WINDOWS: usize = 6;

/// What devices are put on.
pub struct Board<'a> {
    /// The machine, for notifications and interrupts.
    pub vm: &'a Vm,
    /// The bus that windows are on.
    pub mmio: &'a mut Bus,
    /// Where a device's faults are told.
    pub events: &'a Arc<Events>,
    /// Where to record what happens, if anybody wants to know.
    pub trace: Option<&'a Arc<Trace>>,
}

/// A window that the bus, the event loop and whoever talks to the device share.
pub type Window = Arc<Mutex<Transport>>;

/// The windows in use, and one descriptor that is readable when a queue is to be processed.
pub struct Windows {
    epoll: OwnedFd,
    windows: Vec<Window>,
    /// What messages call the devices.
    names: Vec<String>,
    /// From this one on they are hidden from the guest, once that was asked for.
    hidden_from: Option<usize>,
    /// Behind them, windows with nothing in them.
    absent: usize,
}

impl Windows {
    /// No devices yet.
    ///
    /// # Errors
    /// No more file descriptors.
    pub fn new() -> Result<Self, VmmError> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(no_descriptor)?,
            windows: Vec::new(),
            names: Vec::new(),
            hidden_from: None,
            absent: 0,
        })
    }

    /// Have the guest not find the devices that are attached from now on, until
    /// [`Windows::reveal`].
    pub fn hide_from_here(&mut self) {
        self.hidden_from = Some(self.windows.len());
    }

    /// Index of the first window that was hidden; as many as there are, without one.
    pub fn hidden_from(&self) -> usize {
        self.hidden_from.unwrap_or(self.windows.len())
    }

    /// Put windows with nothing in them behind those in use, until there are `total`.
    ///
    /// # Errors
    /// More are in use, or there cannot be so many.
    pub fn fill(&mut self, board: &mut Board, total: usize) -> Result<(), VmmError> {
        let too_many = |most| VmmError::TooManyDevices { most };
        let used = self.windows.len();
        self.absent = total.checked_sub(used).ok_or(too_many(total))?;
        for index in used..total {
            let slot = virtio_slot(index).ok_or(too_many(VIRTIO_GSIS.len()))?;
            let absent = Arc::new(Mutex::new(Absent));
            board
                .mmio
                .insert(slot.base, VIRTIO_MMIO_SIZE, "empty window", absent)?;
        }
        Ok(())
    }

    /// Have the guest find the devices that were hidden; in which windows they are.
    pub fn reveal(&self) -> Range<usize> {
        let hidden = self.hidden_from()..self.windows.len();
        for window in self.windows.iter().skip(hidden.start) {
            lock(window).reveal();
        }
        hidden
    }

    /// Put `device`, which messages call `name`, into the next window: its registers on the
    /// bus, an ioeventfd for each queue's notifications, a line for its interrupt. The event
    /// loop processes its queues.
    ///
    /// # Errors
    /// No window, interrupt line or file descriptor is left.
    pub fn attach(
        &mut self,
        board: &mut Board,
        name: &str,
        device: Box<dyn Device>,
    ) -> Result<Window, VmmError> {
        let index = self.windows.len();
        let (window, notifications) = self.attach_unwatched(board, name, device)?;
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
            lock(&window).timer(),
            epoll::EventData::new_u64(token(index, TIMER)),
            epoll::EventFlags::IN,
        )
        .map_err(no_descriptor)?;
        Ok(window)
    }

    /// As [`Windows::attach`], but a thread of the device's own processes the queues, each when its
    /// eventfd of those returned is readable.
    ///
    /// # Errors
    /// As there.
    pub fn attach_unwatched(
        &mut self,
        board: &mut Board,
        name: &str,
        device: Box<dyn Device>,
    ) -> Result<(Window, Vec<OwnedFd>), VmmError> {
        let slot = virtio_slot(self.windows.len()).ok_or(VmmError::TooManyDevices {
            most: VIRTIO_GSIS.len(),
        })?;
        let reporter = Reporter::new(board.events.clone(), name);
        let recorder = board.trace.map(|trace| Recorder::new(trace, name));
        let interrupt = line(board.vm, slot.gsi, recorder.clone());
        let memory = board.vm.memory().clone();
        let transport = Transport::new(memory, device, interrupt, reporter);
        let mut transport = transport.map_err(VmmError::EventFd)?;
        if let Some(recorder) = recorder {
            transport.record(recorder);
        }
        if self.hidden_from.is_some() {
            transport.hide();
        }
        let mut notifications = Vec::new();
        for (queue, event) in (0u32..).zip(transport.queue_events()) {
            board
                .vm
                .register_ioeventfd(event, slot.base + QUEUE_NOTIFY, queue)?;
            let event = kvm::descriptor(event).try_clone_to_owned();
            notifications.push(event.map_err(VmmError::EventFd)?);
        }
        let window = Arc::new(Mutex::new(transport));
        let front = Arc::new(Mutex::new(Front::new(window.clone())));
        board
            .mmio
            .insert(slot.base, VIRTIO_MMIO_SIZE, name, front)?;
        self.windows.push(window.clone());
        self.names.push(name.into());
        Ok((window, notifications))
    }

    /// The windows, those with nothing in them included, for boot tables and the kernel command
    /// line.
    pub fn slots(&self) -> Vec<MmioSlot> {
        let all = 0..self.windows.len() + self.absent;
        all.filter_map(virtio_slot).collect()
    }

    /// The windows with their names and places.
    pub fn list(&self) -> Vec<(String, MmioSlot, Window)> {
        let slots = (0..).map_while(virtio_slot);
        let windows = self.names.iter().zip(slots).zip(&self.windows);
        windows
            .map(|((name, slot), window)| (name.clone(), slot, window.clone()))
            .collect()
    }

    /// What passed through each device, by name.
    pub fn traffic(&self) -> Vec<DeviceReport> {
        let device = |(window, name): (&Window, &String)| DeviceReport {
            name: name.clone(),
            traffic: lock(window)
                .counters()
                .fold(QueueCounters::default(), Add::add),
        };
        self.windows.iter().zip(&self.names).map(device).collect()
    }

    /// Have every device handle the queues that were notified, one turn each; what a turn leaves
    /// over makes [`Windows::as_fd`] readable again.
    pub fn process(&self) {
        let mut ready: Vec<epoll::Event> = Vec::with_capacity(BATCH);
        let now = rustix::event::Timespec::default();
        // An interrupted look finds the same notifications next time.
        let _ = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut ready),
            Some(&now),
        );
        for event in ready {
            let (window, queue) = from_token(event.data.u64());
            if let Some(window) = self.windows.get(window) {
                match queue {
                    TIMER => lock(window).alarm(),
                    queue => lock(window).process(queue as usize),
                }
            }
        }
    }
}

impl AsFd for Windows {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn token(window: usize, queue: u32) -> u64 {
    (window as u64) << 32 | u64::from(queue)
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

    use super::*;
    use crate::devices::virtio::rng::Rng;
    use crate::kvm::vm;
    use crate::memory::backing;
    use crate::vmm::machine::eventfd;
    use crate::vmm::timeline::Timeline;

    #[test]
    fn a_token_names_its_window_and_queue() {
        assert_eq!(from_token(token(15, 67)), (15, 67));
        assert_eq!(from_token(token(0, u32::MAX)), (0, u32::MAX));
    }

    #[test]
    fn late_devices_are_found_when_they_are_revealed() {
        let memory = backing::allocate(16 << 20).unwrap();
        let vm = Vm::new(vm::open().unwrap(), memory).unwrap();
        let timeline = Arc::new(Timeline::new(Instant::now()));
        let events = Arc::new(Events::new(timeline, eventfd().unwrap()));
        let mut mmio = Bus::new();
        let mut board = Board {
            vm: &vm,
            mmio: &mut mmio,
            events: &events,
            trace: None,
        };
        let mut windows = Windows::new().unwrap();
        let rng = || Box::new(Rng::new(Box::new(|_| true), Box::new(|| Duration::ZERO)));
        windows.attach(&mut board, "first", rng()).unwrap();
        windows.hide_from_here();
        windows.attach(&mut board, "late", rng()).unwrap();
        windows.attach(&mut board, "last", rng()).unwrap();
        let total = windows.hidden_from() + LATE_WINDOWS;
        assert!(windows.fill(&mut board, 2).is_err());
        windows.fill(&mut board, total).unwrap();
        let slots = windows.slots();
        assert_eq!(slots.len(), total);
        let read = |offset| {
            let read = |slot: &MmioSlot| {
                let mut data = [0xff; 4];
                assert!(mmio.read(slot.base + offset, &mut data));
                u32::from_le_bytes(data)
            };
            slots.iter().map(read).collect::<Vec<_>>()
        };
        assert_eq!(read(0), vec![u32::from_le_bytes(*b"virt"); total]);
        assert_eq!(read(8), [4, 0, 0, 0, 0, 0, 0]);
        assert_eq!(windows.reveal(), 1..3);
        assert_eq!(read(8), [4, 4, 4, 0, 0, 0, 0]);
    }
}
