//! An entropy device in its slot.

use std::time::Instant;

use rustix::rand::{GetRandomFlags, getrandom};

use super::slots::{AttachContext, Slots};
use crate::devices::virtio::rng::Rng;
use crate::vmm::error::VmmError;

/// The host's entropy for the guest.
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
