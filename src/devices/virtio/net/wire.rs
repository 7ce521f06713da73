//! What a network device needs of the host: a wire for its frames, and a clock.

use std::io;
use std::time::Duration;

use crate::memory::transfer::Pieces;

/// Bytes of struct virtio_net_hdr_v1, which is before every frame (5.1.6).
pub const HEADER: usize = 12;
/// Bytes of an Ethernet header with a VLAN tag (IEEE 802.1Q).
const MAX_ETHERNET: usize = 18;
/// Bytes of the longest frame with its header: an IP packet can have 65535 (5.1.6.3.1 asks for
/// room for about as many).
pub const MAX_FRAME: usize = HEADER + MAX_ETHERNET + 65535;
/// Bytes of the shortest frame: two addresses and a type.
pub(super) const MIN_ETHERNET: usize = 14;

/// An Ethernet address, in the order of transmission.
pub type Mac = [u8; 6];

/// What the driver can handle in frames that it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums that are not filled in.
    pub checksum: bool,
    /// TCP over IPv4 that is to be cut into segments.
    pub tso4: bool,
    /// TCP over IPv6 that is to be cut into segments.
    pub tso6: bool,
    /// Segments to be cut that carry explicit congestion notification.
    pub ecn: bool,
}

/// Where frames go to and come from, each after the [`HEADER`] bytes of a virtio_net_hdr_v1.
/// Called with the core locked: do not block, do not call the core.
pub trait Wire: Send {
    /// Send `frame`, all of it or nothing. Its header comes from the guest, unchecked.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room: the device's `ready` is called when there is.
    /// `BrokenPipe` when the wire has closed. After any other error this frame is lost.
    fn send(&mut self, frame: &Pieces) -> io::Result<()>;

    /// Send what was gathered; there is no other [`Wire::send`] for now. Returns whether an answer
    /// can be received already.
    ///
    /// # Errors
    /// `BrokenPipe` when the wire has closed.
    fn flush(&mut self) -> io::Result<bool>;

    /// Receive the next frame into `room`, of [`MAX_FRAME`] bytes or more; returns its bytes with
    /// the header, of which num_buffers is not written.
    ///
    /// # Errors
    /// `WouldBlock` when there is none: the device's `ready` is called when there is. After any
    /// other error the wire counts as closed.
    fn receive(&mut self, room: &Pieces) -> io::Result<usize>;

    /// As [`Wire::receive`], into `buffer` of [`MAX_FRAME`] bytes.
    ///
    /// # Errors
    /// As [`Wire::receive`].
    fn receive_buffered(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Allow frames that need what `offloads` names. Only for wires that handle headers.
    ///
    /// # Errors
    /// The wire cannot do it.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;
}

/// Time, for networks with a rate limit.
pub trait Clock: Send {
    /// Time since a fixed moment.
    fn now(&self) -> Duration;
    /// Have the device's `ready` called after `wait`; replaces the last call.
    fn wake_in(&mut self, wait: Duration);
}
