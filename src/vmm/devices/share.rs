//! A share's device in its slot, and the thread behind it.

use std::sync::Arc;

use super::bell::Bell;
use super::files;
use super::slots::{AttachContext, Slots};
use crate::devices::virtio::fs::Fs;
use crate::devices::virtio::requests::{Requests, Worker};
use crate::share::{self, Served, Share};
use crate::sync::lock;
use crate::vmm::error::VmmError;

/// A virtio file system device, and the thread that serves it.
pub fn attach(
    slots: &mut Slots,
    context: &mut AttachContext,
    share: Share,
) -> Result<Worker, VmmError> {
    files::allow_many();
    let requests = Requests::default();
    let device = Box::new(Fs::new(&share.tag, Box::new(requests.clone())));
    let name = format!("share {}", share.tag);
    let (slot, notifications) = slots.attach_unwatched(context, &name, device)?;
    let bell = Arc::new(Bell::new(slot.clone(), notifications)?);
    let done = move |served: Vec<Served>| {
        lock(&slot).with_device(|fs: &mut Fs, driver| {
            let mut each = served.into_iter();
            each.try_for_each(|(id, answer)| fs.complete(driver, id, answer))
        });
    };
    let memory = context.vm.memory().clone();
    Ok(share::start(share, memory, requests, bell, done)?)
}
