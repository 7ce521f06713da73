//! A disk's device in its window, and the thread behind it.

use std::io;
use std::sync::Arc;

use super::bell::Bell;
use super::windows::{Board, Window, Windows};
use crate::devices::virtio::block::Block;
use crate::devices::virtio::requests::{Requests, Worker};
use crate::disk::{self, Disk};
use crate::vmm::VmmError;
use crate::vmm::events::lock;

/// A virtio block device, and the thread that serves it.
pub fn attach(windows: &mut Windows, board: &mut Board, disk: Disk) -> Result<Worker, VmmError> {
    let requests = Requests::default();
    let device = Block::new(disk.geometry.clone(), Box::new(requests.clone()));
    let name = format!("disk {}", disk.geometry.name);
    let (window, notifications) = windows.attach_unwatched(board, &name, Box::new(device))?;
    let bell = Arc::new(Bell::new(window.clone(), notifications)?);
    let memory = board.vm.memory().clone();
    disk::start(disk, memory, requests, bell, Guest(window)).map_err(VmmError::Thread)
}

/// A block device as the thread of its disk sees it.
struct Guest(Window);

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
