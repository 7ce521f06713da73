//! The socket device (virtio 1.2, 5.10): streams between ports of the guest and programs on the
//! host, by Firecracker's protocol (its docs/vsock.md).
//!
//! A program on the host connects to the device's socket and writes `CONNECT <port>\n`; when the
//! guest has accepted, it reads `OK <its own port>\n`, and bytes from then on. A program in the
//! guest connects to port P of CID 2, and the [`Host`] connects it to the server for P.
//!
//! A `connection` is a pair of ports with a [`Stream`]; `packet` is what passes between device
//! and driver; [`Vsock`] is the `device`, which takes packets in `receive` and gives them out in
//! `transmit`. Nothing is read from a stream before the guest has buffers and credit for it, and
//! no connection keeps more than [`BUFFER`] bytes of the guest's.
//!
//! A restored machine has lost its connections: `saved` has the guest reset them.

mod connection;
mod device;
mod packet;
mod receive;
mod saved;
#[cfg(test)]
mod tests;
mod transmit;

pub use connection::{BUFFER, Stream};
pub use device::{Host, Id, MAX_CID, MAX_CONNECTIONS, MIN_CID, Vsock};
