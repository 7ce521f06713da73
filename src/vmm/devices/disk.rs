//! A disk: its virtio block device in a slot, and the thread that serves it.

use super::bell::attach_worker;
use super::slots::{AttachContext, Slots};
use crate::devices::virtio::block::Block;
use crate::devices::virtio::requests::{Requests, Worker};
use crate::devices::virtio::transport::SharedCore;
use crate::disk::{self, Disk};
use crate::sync::lock;
use crate::vmm::error::VmmError;

/// Attach `disk` and start its thread.
///
/// # Errors
/// No slot, file descriptor or thread is left.
pub fn attach(
    slots: &mut Slots,
    context: &mut AttachContext,
    disk: Disk,
) -> Result<Worker, VmmError> {
    let requests = Requests::default();
    let device = Block::new(disk.geometry.clone(), Box::new(requests.clone()));
    let name = format!("disk {}", disk.geometry.name);
    let (slot, bell) = attach_worker(slots, context, &name, Box::new(device))?;
    let memory = context.vm.memory().clone();
    disk::start(disk, memory, requests, bell, Guest(slot)).map_err(VmmError::Thread)
}

/// The block device, for the thread of its disk.
struct Guest(SharedCore);

impl disk::Guest for Guest {
    fn served(&self, results: disk::Reports) {
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
