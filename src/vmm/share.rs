//! A share's device in its window, and the thread behind it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;
use vmm_sys_util::eventfd::EventFd;

use super::events::{Events, lock};
use super::machine::eventfd;
use super::windows::{Window, Windows, no_descriptor};
use super::{VmmError, files};
use crate::devices::bus::Bus;
use crate::devices::virtio::fs::Fs;
use crate::kvm;
use crate::kvm::vm::Vm;
use crate::share::{Doorbell, Requests, Served, Share, Worker};

/// Notifications taken from the kernel at once.
const BATCH: usize = 4;
/// Token of the event that is no queue's.
const OWN: u64 = u64::MAX;

/// A virtio file system device, and the thread that serves it.
pub fn attach(
    vm: &Vm,
    windows: &mut Windows,
    mmio: &mut Bus,
    events: &Arc<Events>,
    share: Share,
) -> Result<Worker, VmmError> {
    files::allow_many();
    let requests = Requests::default();
    let device = Box::new(Fs::new(&share.tag, Box::new(requests.clone())));
    let name = format!("share {}", share.tag);
    let (window, queues) = windows.attach_unwatched(vm, mmio, events, &name, device)?;
    let bell = Bell::new(window.clone(), queues)?;
    let done = move |served: Vec<Served>| {
        lock(&window).with_device(|fs: &mut Fs, driver| {
            let mut each = served.into_iter();
            each.try_for_each(|(id, answer)| fs.complete(driver, id, answer))
        });
    };
    let memory = vm.memory().clone();
    Ok(Worker::start(
        share,
        memory,
        requests,
        Arc::new(bell),
        done,
    )?)
}

/// The notifications of one device's queues, and a call that is the host's own.
struct Bell {
    epoll: OwnedFd,
    window: Window,
    own: EventFd,
}

impl Bell {
    fn new(window: Window, queues: Vec<OwnedFd>) -> Result<Self, VmmError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(no_descriptor)?;
        for (token, event) in (0..).zip(&queues) {
            watch(&epoll, event, token)?;
        }
        let own = eventfd()?;
        watch(&epoll, kvm::descriptor(&own), OWN)?;
        Ok(Self { epoll, window, own })
    }
}

impl Doorbell for Bell {
    fn wait(&self) {
        let mut ready: Vec<epoll::Event> = Vec::with_capacity(BATCH);
        // An interrupted wait is one for nothing.
        let _ = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut ready),
            None,
        );
        for event in ready {
            match event.data.u64() {
                OWN => drop(self.own.read()),
                queue => lock(&self.window).process(queue as usize),
            }
        }
    }

    fn ring(&self) {
        // Fails only when the counter is at its end, and then it is readable.
        let _ = self.own.write(1);
    }
}

fn watch(epoll: &OwnedFd, event: impl AsFd, token: u64) -> Result<(), VmmError> {
    let data = epoll::EventData::new_u64(token);
    epoll::add(epoll, event, data, epoll::EventFlags::IN).map_err(no_descriptor)
}
