//! A network: its virtio network device in a slot, and a thread that moves its frames, so that frames
//! and consoles do not wait for each other.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::bell::{FIRST_OTHER, attach_worker};
use super::slots::{AttachContext, Slots, no_descriptor};
use crate::agent::Interface;
use crate::devices::virtio::net::{Clock, Net};
use crate::devices::virtio::requests::{Next, Requests, Worker};
use crate::net::{Assigned, Network};
use crate::sandbox::Role;
use crate::sync::lock;
use crate::vmm::error::VmmError;

/// Tokens of the descriptors that the thread waits for beside the queues.
const WIRE: u64 = FIRST_OTHER;
const TIMER: u64 = FIRST_OTHER + 1;

/// Attach `network` and start its thread.
///
/// # Errors
/// The network does not come up, or no slot, file descriptor or thread is left.
pub fn attach(
    slots: &mut Slots,
    context: &mut AttachContext,
    mut network: Network,
) -> Result<Worker, VmmError> {
    if let Some(warning) = &network.warning {
        log::warn!("{}: {warning}", network.name);
    }
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags);
    let timer = timer.map_err(no_descriptor)?;
    let expiry = timer.try_clone().map_err(VmmError::EventFd)?;
    let clock = Timer {
        started: Instant::now(),
        timer,
    };
    let wire = network.wire()?;
    let device = Net::new(network.properties, &network.limits, wire, Box::new(clock));
    let (slot, bell) = attach_worker(slots, context, &network.name, Box::new(device))?;
    bell.watch(&network, WIRE)?;
    bell.watch(&expiry, TIMER)?;
    // The device moves the frames itself: the only request is the end.
    let requests = Requests::<()>::default();
    let (end, rung) = (requests.clone(), bell.clone());
    let work = move || {
        let _expiry = expiry;
        // Dropped with the thread: a process that serves it ends, too.
        let _network = network;
        loop {
            match end.next(0, |()| false) {
                Next::End => return,
                Next::Pause => end.stay_paused(None),
                _ => rung.wait_for(None, |_| {
                    lock(&slot).with_device(|net: &mut Net, driver| net.ready(driver));
                }),
            }
        }
    };
    Worker::start(Role::Net, requests, bell, work).map_err(VmmError::Thread)
}

/// The clock of one network device.
struct Timer {
    started: Instant,
    timer: OwnedFd,
}

impl Clock for Timer {
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn wake_in(&mut self, wait: Duration) {
        // A time of 0 would disarm it.
        let wait = wait.max(Duration::from_nanos(1));
        let wait = Timespec::try_from(wait).unwrap_or(Timespec {
            tv_sec: i64::from(u32::MAX),
            tv_nsec: 0,
        });
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: wait,
        };
        // It cannot fail with a valid descriptor and time.
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }
}

/// The networks as hull's init is told of them, eth0 first. The drivers of a `restored` machine keep
/// the MAC address that they read before, which a copy must change: init sets it then.
pub fn assigned(networks: &[Network], restored: bool) -> Vec<Interface> {
    let interface = |(index, network): (u8, &Network)| {
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
            index: restored.then_some(index),
        })
    };
    // `u8` suffices: there are fewer slots.
    (0..).zip(networks).filter_map(interface).collect()
}
