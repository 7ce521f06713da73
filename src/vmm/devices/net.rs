//! A network's device in its slot, and the thread that moves its frames: one of its own, so that
//! frames wait for no console and no console for frames.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use super::bell::{Bell, FIRST_OTHER};
use super::slots::{AttachContext, Slots, no_descriptor};
use crate::agent::Interface;
use crate::devices::virtio::net::{Clock, Net};
use crate::devices::virtio::requests::{Next, Requests, Worker};
use crate::net::{Assigned, Network};
use crate::sandbox::Role;
use crate::sync::lock;
use crate::vmm::error::VmmError;

/// Tokens of what the thread waits for beside the queues.
const WIRE: u64 = FIRST_OTHER;
const TIMER: u64 = FIRST_OTHER + 1;

/// Put a network device into the next slot, and start its thread.
///
/// # Errors
/// The network does not come up, or no slot, descriptor or thread is left.
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
    let (slot, notifications) = slots.attach_unwatched(context, &network.name, Box::new(device))?;

    let bell = Arc::new(Bell::new(slot.clone(), notifications)?);
    bell.watch(&network, WIRE)?;
    bell.watch(&expiry, TIMER)?;
    // The device moves the frames itself: nothing is ever requested but the end.
    let requests = Requests::<()>::default();
    let (end, rung) = (requests.clone(), bell.clone());
    let work = move || {
        let _expiry = expiry;
        // Gone when the thread is, and a process behind it, too.
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

/// What hull's init is told of the networks, eth0's first. In a machine that was `restored` a driver
/// goes by the address that it read before, which is another's in a copy: init then sets it.
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
    // There are fewer slots than indexes.
    (0..).zip(networks).filter_map(interface).collect()
}
