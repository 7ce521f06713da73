//! A network in the machine: its device, and the thread that moves its frames.
//!
//! A thread of its own, so that frames wait for no console and no console for frames. It sleeps
//! in one `epoll_wait` over the queues' notifications, the network's descriptor and a timer for
//! rates, all edge-triggered: the device remembers what it could not do, and no call is spent on
//! taking the notice back.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use vmm_sys_util::eventfd::EventFd;

use super::VmmError;
use super::events::{Events, lock};
use super::machine::eventfd;
use super::windows::{Window, Windows, no_descriptor};
use crate::agent::Interface;
use crate::devices::MachineEvents;
use crate::devices::bus::Bus;
use crate::devices::virtio::net::{Clock, Net};
use crate::kvm;
use crate::kvm::vm::Vm;
use crate::net::{Assigned, Network};

/// Events taken from the kernel at once: there are no more.
const BATCH: usize = 5;

/// Tokens of what is polled; the queues' are their indices.
const WIRE: u64 = 10;
const TIMER: u64 = 11;
const STOP: u64 = 12;

/// The thread of a network; ends when dropped.
pub struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// What the thread has.
struct Link {
    epoll: OwnedFd,
    window: Window,
    _notifications: Vec<OwnedFd>,
    /// Gone when the thread is, and a process behind it, too.
    _network: Network,
}

/// Put a network device into the next window of `vm`, and start its thread.
///
/// # Errors
/// The network does not come up, or no window, descriptor or thread is left.
pub fn attach(
    vm: &Vm,
    windows: &mut Windows,
    mmio: &mut Bus,
    events: &Arc<Events>,
    mut network: Network,
) -> Result<Worker, VmmError> {
    if let Some(warning) = &network.warning {
        events.warn(&network.name, warning);
    }
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags);
    let timer = timer.map_err(no_descriptor)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(no_descriptor)?;
    let stop = eventfd()?;
    let add = |fd: BorrowedFd, token, flags| {
        let token = EventData::new_u64(token);
        epoll::add(&epoll, fd, token, flags).map_err(no_descriptor)
    };
    let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    add(network.as_fd(), WIRE, edges)?;
    add(timer.as_fd(), TIMER, EventFlags::IN | EventFlags::ET)?;
    add(kvm::descriptor(&stop), STOP, EventFlags::IN)?;

    let clock = Timer {
        started: Instant::now(),
        timer,
    };
    let wire = network.wire()?;
    let device = Net::new(network.properties, &network.limits, wire, Box::new(clock));
    let name = network.name.clone();
    let (window, notifications) =
        windows.attach_unwatched(vm, mmio, events, &name, Box::new(device))?;

    for (queue, event) in (0..).zip(&notifications) {
        add(event.as_fd(), queue, EventFlags::IN | EventFlags::ET)?;
    }
    let link = Link {
        epoll,
        window,
        _notifications: notifications,
        _network: network,
    };
    let thread = thread::Builder::new().name("net".into());
    let thread = thread.spawn(move || link.run()).map_err(VmmError::Thread)?;
    Ok(Worker {
        stop,
        thread: Some(thread),
    })
}

impl Link {
    fn run(&self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(BATCH);
        loop {
            events.clear();
            // An interrupted wait finds the same next time.
            let _ = epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            );
            for event in &events {
                match event.data.u64() {
                    STOP => return,
                    WIRE | TIMER => {
                        lock(&self.window).with_device(|net: &mut Net, driver| net.ready(driver));
                    }
                    queue => lock(&self.window).process_notified(queue as usize),
                }
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It fails only when it is signalled already.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic has been printed by its hook
        }
    }
}

/// The clock of one network.
struct Timer {
    started: Instant,
    timer: OwnedFd,
}

impl Clock for Timer {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn wake_in(&mut self, wait: Duration) {
        // A time of 0 would switch it off.
        let wait = wait.max(Duration::from_nanos(1));
        let wait = Timespec::try_from(wait).unwrap_or(Timespec {
            tv_sec: i64::from(u32::MAX),
            tv_nsec: 0,
        });
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: wait,
        };
        // With a descriptor and a time that are right it does not fail.
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }
}

/// What hull's init is told of a network.
pub fn assigned(network: &Network) -> Option<Interface> {
    let Assigned {
        mac,
        subnet,
        gateway,
        dns,
    } = network.assigned?;
    Some(Interface {
        mac,
        address: subnet.address.octets(),
        prefix: subnet.prefix,
        gateway: gateway.map(|address| address.octets()),
        dns: dns.map(|address| address.octets()),
    })
}
