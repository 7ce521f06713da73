//! What the host has a machine get before its command, and in a clone while it runs.

use hull_agent::{Buffer, FromGuest, FromHost};

use crate::network;
use crate::resume::Files;
use crate::setup;
use crate::sys::Errno;
use crate::text::decimal;

/// Do what `message` asks for; what cannot be done is told in `outbox`. Other messages ask for
/// nothing.
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
            complain(outbox, &[b"a shared folder cannot be mounted at ", path]);
        }),
        FromHost::Resumed(resumed) => files.resume(resumed).map_err(|(window, errno)| {
            let (digits, zeros) = decimal(window);
            let text = b"no driver takes the device that was added in virtio window ";
            complain(outbox, &[text, &digits[zeros..]]);
            errno
        }),
        _ => Ok(()),
    }
}

/// An error text in pieces, put into the outbox where it has room.
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
