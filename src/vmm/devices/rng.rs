//! An entropy device in its window.

use std::time::Instant;

use rustix::rand::{GetRandomFlags, getrandom};

use super::windows::{Board, Windows};
use crate::devices::virtio::rng::Rng;
use crate::vmm::VmmError;

/// The host's entropy for the guest.
pub fn attach(windows: &mut Windows, board: &mut Board) -> Result<(), VmmError> {
    let source = |bytes: &mut [u8]| {
        let wanted = bytes.len();
        getrandom(bytes, GetRandomFlags::empty()) == Ok(wanted)
    };
    let started = Instant::now();
    let device = Rng::new(Box::new(source), Box::new(move || started.elapsed()));
    windows.attach(board, "rng", Box::new(device))?;
    Ok(())
}
