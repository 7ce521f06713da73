//! A virtio entropy device in a slot.

use std::time::Instant;

use rustix::rand::{GetRandomFlags, getrandom};

use super::slots::{AttachContext, Slots};
use crate::devices::virtio::rng::Rng;
use crate::vmm::error::VmmError;

/// Attach a device that gives the guest entropy of the host.
///
/// # Errors
/// No slot or file descriptor is left.
pub fn attach(slots: &mut Slots, context: &mut AttachContext) -> Result<(), VmmError> {
    let source = |bytes: &mut [u8]| {
        let wanted = bytes.len();
        getrandom(bytes, GetRandomFlags::empty()) == Ok(wanted)
    };
    let started = Instant::now();
    let device = Rng::new(Box::new(source), Box::new(move || started.elapsed()));
    slots.attach(context, "rng", Box::new(device))?;
    Ok(())
}
