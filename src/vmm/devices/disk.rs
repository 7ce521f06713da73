//! A disk's device in its slot, and the thread behind it.

use std::io;
use std::sync::Arc;

use super::bell::Bell;
use super::slots::{AttachContext, Slots};
use crate::devices::virtio::block::Block;
use crate::devices::virtio::requests::{Requests, Worker};
use crate::devices::virtio::transport::SharedCore;
use crate::disk::{self, Disk};
use crate::sync::lock;
use crate::vmm::error::VmmError;

/// A virtio block device, and the thread that serves it.
pub fn attach(
    slots: &mut Slots,
    context: &mut AttachContext,
    disk: Disk,
) -> Result<Worker, VmmError> {
    let requests = Requests::default();
    let device = Block::new(disk.geometry.clone(), Box::new(requests.clone()));
    let name = format!("disk {}", disk.geometry.name);
    let (slot, notifications) = slots.attach_unwatched(context, &name, Box::new(device))?;
    let bell = Arc::new(Bell::new(slot.clone(), notifications)?);
    let memory = context.vm.memory().clone();
    disk::start(disk, memory, requests, bell, Guest(slot)).map_err(VmmError::Thread)
}

/// A block device as the thread of its disk sees it.
struct Guest(SharedCore);

impl disk::Guest for Guest {
    fn served(&self, results: Vec<(u64, io::Result<()>)>) {
        lock(&self.0).with_device(|block: &mut Block, driver| {
            for (id, served) in results {
                block.complete(driver, id, served.map_err(|error| error.to_string()))?;
            }
            Ok(())
        });
    }

    fn resized(&self, sectors: u64) {
        lock(&self.0).with_device(|block: &mut Block, driver| {
            block.resize(driver, sectors);
            Ok(())
        });
    }
}
