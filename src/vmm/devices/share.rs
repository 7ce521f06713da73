//! A share: its virtio file system device in a slot, and the thread that passes its requests on.

use super::bell::attach_worker;
use super::slots::{AttachContext, Slots};
use crate::devices::virtio::fs::Fs;
use crate::devices::virtio::requests::{Requests, Worker};
use crate::share::{Served, Server};
use crate::sync::lock;
use crate::vmm::error::VmmError;

/// Attach the share of `server`, which has work then.
///
/// # Errors
/// No slot, thread or file descriptor is left.
pub fn attach(
    slots: &mut Slots,
    context: &mut AttachContext,
    server: Server,
) -> Result<Worker, VmmError> {
    let requests = Requests::default();
    let device = Box::new(Fs::new(server.tag(), Box::new(requests.clone())));
    let name = format!("share {}", server.tag());
    let (slot, bell) = attach_worker(slots, context, &name, device)?;
    let done = move |served: Vec<Served>| {
        lock(&slot).with_device(|fs: &mut Fs, driver| {
            let mut each = served.into_iter();
            each.try_for_each(|(id, answer)| fs.complete(driver, id, answer))
        });
    };
    let memory = context.vm.memory().clone();
    let worker = server.serve(memory, requests, bell, done);
    worker.map_err(VmmError::Thread)
}
