//! A share's device in its window, and the thread behind it.

use std::sync::Arc;

use super::bell::Bell;
use super::files;
use super::windows::{Board, Windows};
use crate::devices::virtio::fs::Fs;
use crate::devices::virtio::requests::{Requests, Worker};
use crate::share::{self, Served, Share};
use crate::vmm::VmmError;
use crate::vmm::events::lock;

/// A virtio file system device, and the thread that serves it.
pub fn attach(windows: &mut Windows, board: &mut Board, share: Share) -> Result<Worker, VmmError> {
    files::allow_many();
    let requests = Requests::default();
    let device = Box::new(Fs::new(&share.tag, Box::new(requests.clone())));
    let name = format!("share {}", share.tag);
    let (window, notifications) = windows.attach_unwatched(board, &name, device)?;
    let bell = Arc::new(Bell::new(window.clone(), notifications)?);
    let done = move |served: Vec<Served>| {
        lock(&window).with_device(|fs: &mut Fs, driver| {
            let mut each = served.into_iter();
            each.try_for_each(|(id, answer)| fs.complete(driver, id, answer))
        });
    };
    let memory = board.vm.memory().clone();
    Ok(share::start(share, memory, requests, bell, done)?)
}
