//! Provides what the host asks for before the command, and in a restored machine while it runs.

use hull_agent::{Buffer, FromGuest, FromHost, MountKind};

use crate::network;
use crate::resume::Files;
use crate::root;
use crate::setup;
use crate::sys::Errno;
use crate::text::decimal;

/// Do what `message` asks for, and report a failure in `outbox`. Other messages ask for nothing.
pub fn provide<const N: usize>(
    message: &FromHost<'_>,
    files: &Files,
    outbox: &mut Buffer<N>,
) -> Result<(), Errno> {
    match message {
        FromHost::Interface(interface) => network::set_up(interface)
            .inspect_err(|_| complain(outbox, &[b"a network interface cannot be set up"])),
        FromHost::Mount(mount) => setup::share(mount).inspect_err(|_| {
            let path = mount.path.to_bytes();
            if mount.is_root() {
                return complain(
                    outbox,
                    &[b"the root disk cannot be mounted: the guest's kernel \
                    finds no file system on it"],
                );
            }
            let what: &[u8] = match mount.kind {
                MountKind::Share => b"a shared folder",
                MountKind::Memory => b"a file system in memory",
                MountKind::Disk => b"the file system of a disk",
            };
            complain(outbox, &[what, b" cannot be mounted at ", path]);
        }),
        FromHost::Root(root) => root::enter(root).map_err(|(what, errno)| {
            complain(outbox, &[b"the image cannot become the root file system: ", what]);
            errno
        }),
        FromHost::Resumed(resumed) => files.resume(resumed).map_err(|(slot, errno)| {
            let (digits, zeros) = decimal(slot);
            let text = b"no driver binds the device that was added in virtio slot ";
            complain(outbox, &[text, &digits[zeros..]]);
            errno
        }),
        _ => Ok(()),
    }
}

/// Put an error message into the outbox, as far as there is room.
fn complain<const N: usize>(outbox: &mut Buffer<N>, pieces: &[&[u8]]) {
    let mut text = [0; 1024];
    let mut len = 0;
    for byte in pieces.iter().copied().flatten() {
        if let Some(place) = text.get_mut(len) {
            *place = *byte;
            len += 1;
        }
    }
    let message = FromGuest::Error(text.get(..len).unwrap_or_default());
    if let Some(len) = message.encode(outbox.space()) {
        outbox.filled(len);
    }
}
