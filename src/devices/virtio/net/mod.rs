//! The network device (virtio 1.2, 5.1): one pair of queues, frames of an Ethernet between them
//! and a [`Wire`].
//!
//! `receive` and `transmit` are the two directions. Nothing is read from the wire for which the
//! guest has no buffers, so what waits is the wire's to keep; a frame that the guest sends and the
//! wire refuses is lost, as on any Ethernet. Checksums and segmentation are left to whoever is
//! behind the wire, when wire and driver both can: a header before each frame says what is to be
//! done, and the guest's is handed on as it is.

mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::U16;
use zerocopy::{Immutable, IntoBytes};

use super::{Device, DeviceError, Driver, StateError, read_config_bytes};
use crate::devices::rate::Limits;
use crate::devices::state;
use crate::memory::transfer::Pieces;
use receive::Receiver;
use transmit::Transmitter;

/// Device type (virtio 1.2, 5).
const ID: u32 = 1;
/// The queues.
pub const RX: usize = 0;
/// The driver sends here.
pub const TX: usize = 1;
/// Entries of each.
const QUEUE_SIZES: [u16; 2] = [256; 2];

/// Bytes of struct virtio_net_hdr_v1, which is before every frame (5.1.6).
pub const HEADER: usize = 12;
/// Bytes before an IP packet, with a VLAN tag (IEEE 802.1Q).
const ETHERNET_MOST: usize = 18;
/// Most bytes of a frame with its header: an IP packet can have 65535 (5.1.6.3.1 asks for room
/// for about as many).
pub const FRAME_MOST: usize = HEADER + ETHERNET_MOST + 65535;
/// Least bytes of a frame: two addresses and a type.
const ETHERNET_LEAST: usize = 14;

// Features (5.1.3).
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_GUEST_ECN: u64 = 1 << 9;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_ECN: u64 = 1 << 13;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;

/// What a wire that works on headers takes off the guest's hands.
const OFFLOADS: u64 = F_CSUM
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_GUEST_ECN
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_HOST_ECN;

/// VIRTIO_NET_S_LINK_UP (5.1.4).
const LINK_UP: u16 = 1;

/// A station's address.
pub type Mac = [u8; 6];

/// What the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Its address.
    pub mac: Mac,
    /// Most bytes of a packet without its Ethernet header, at least 68 (5.1.4.1).
    pub mtu: u16,
    /// The wire knows what to do with headers: it fills in checksums and cuts segments.
    pub offloads: bool,
}

/// What the driver can make of frames that it receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums that are not filled in.
    pub checksum: bool,
    /// TCP over IPv4 that is to be cut into segments.
    pub tso4: bool,
    /// TCP over IPv6.
    pub tso6: bool,
    /// The same with explicit congestion notification.
    pub ecn: bool,
}

/// Where frames go to and come from, each with [`HEADER`] bytes of a virtio_net_hdr_v1 before it.
/// Called with the transport locked: do not block, do not call the transport.
pub trait Wire: Send {
    /// Send `frame`, all of it or nothing. What its header says is the guest's word.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room: [`Net::ready`] says when there is. `BrokenPipe` when
    /// the wire is gone. After anything else this frame is lost.
    fn send(&mut self, frame: &Pieces) -> io::Result<()>;

    /// The last [`Wire::send`] for now: what was gathered has to go. Says whether there is an
    /// answer to be received already.
    ///
    /// # Errors
    /// `BrokenPipe` when the wire is gone.
    fn flush(&mut self) -> io::Result<bool>;

    /// The next frame, into `room` for any frame ([`FRAME_MOST`]); returns its bytes, header and
    /// all. Of the header, num_buffers is left as it was.
    ///
    /// # Errors
    /// `WouldBlock` when there is none: [`Net::ready`] says when there is. After anything else
    /// the wire is taken for gone.
    fn receive(&mut self, room: &Pieces) -> io::Result<usize>;

    /// As [`Wire::receive`], into `buffer` of [`FRAME_MOST`] bytes.
    ///
    /// # Errors
    /// As [`Wire::receive`].
    fn receive_apart(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// From now on, frames that are received may need what `offloads` names. Only for wires that
    /// work on headers.
    ///
    /// # Errors
    /// The wire cannot.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;
}

/// Time, for networks that have a limit.
pub trait Clock: Send {
    /// Since any fixed moment.
    fn now(&self) -> Duration;
    /// Have [`Net::ready`] called so long from now; takes the place of what was asked for before.
    fn wake_in(&mut self, wait: Duration);
}

/// What is saved of the device. A frame that was on its way to the guest is lost, as on any
/// Ethernet; one that waits to be sent is still in its queue.
#[derive(Serialize, Deserialize)]
struct State {
    mac: Mac,
    mtu: u16,
    link_up: bool,
    /// Chains of the receiver, by their heads.
    held: Vec<u16>,
}

/// The device.
pub struct Net {
    properties: Properties,
    wire: Box<dyn Wire>,
    clock: Box<dyn Clock>,
    receiver: Receiver,
    transmitter: Transmitter,
    link_up: bool,
}

impl Net {
    /// A device on `wire`, each direction of which is bound to `limits`.
    pub fn new(
        properties: Properties,
        limits: &Limits,
        wire: Box<dyn Wire>,
        clock: Box<dyn Clock>,
    ) -> Self {
        Self {
            properties,
            wire,
            clock,
            receiver: Receiver::new(limits),
            transmitter: Transmitter::new(limits),
            link_up: true,
        }
    }

    /// The wire has frames or room again, or the time asked for has come. May come for nothing.
    ///
    /// # Errors
    /// The driver broke the rules.
    pub fn ready(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        self.receiver.wire_is_ready();
        self.receiver.deadline = None;
        // Mostly it is for frames that come: the other direction is left alone unless it waits.
        if self.transmitter.held_up {
            self.transmit(driver)?;
        } else {
            let done = self.wire.flush().map(drop);
            self.look_after(driver, done)?;
        }
        self.receive(driver)
    }

    fn transmit(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        if !self.link_up {
            return self.transmitter.discard(driver);
        }
        let (wire, clock) = (self.wire.as_mut(), self.clock.as_ref());
        let done = self.transmitter.turn(driver, wire, clock)?;
        let answered = matches!(done, Ok(true));
        self.look_after(driver, done.map(drop))?;
        if answered {
            self.receiver.wire_is_ready();
            self.receive(driver)?;
        }
        Ok(())
    }

    fn receive(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        if self.link_up {
            let mergeable = driver.has(F_MRG_RXBUF);
            let (wire, clock) = (self.wire.as_mut(), self.clock.as_ref());
            let done = self.receiver.turn(driver, mergeable, wire, clock)?;
            self.look_after(driver, done)?;
        }
        Ok(())
    }

    /// Draw the consequences of a turn: the link is down for good when the wire is gone; whoever
    /// waits for the time is woken.
    fn look_after(&mut self, driver: &mut Driver, wire: io::Result<()>) -> Result<(), DeviceError> {
        if let Err(error) = wire
            && self.link_up
        {
            self.link_up = false;
            driver.warn(&format!("the network is gone ({error}); its link is down"));
            driver.config_changed();
            self.receiver.deadline = None;
            self.transmitter.discard(driver)?;
        }
        let next = [self.receiver.deadline, self.transmitter.deadline];
        if let Some(next) = next.into_iter().flatten().min() {
            self.clock.wake_in(next.saturating_sub(self.clock.now()));
        }
        Ok(())
    }

    /// Have the wire leave to the guest what its driver said that it can do.
    fn share_work(&mut self, driver: &mut Driver) {
        let offloads = Offloads {
            checksum: driver.has(F_GUEST_CSUM),
            // Segments need checksums (5.1.3.1), and congestion marks need segments.
            tso4: driver.has(F_GUEST_CSUM | F_GUEST_TSO4),
            tso6: driver.has(F_GUEST_CSUM | F_GUEST_TSO6),
            ecn: driver.has(F_GUEST_CSUM | F_GUEST_ECN)
                && (driver.has(F_GUEST_TSO4) || driver.has(F_GUEST_TSO6)),
        };
        if let Err(error) = self.set_offloads(offloads) {
            // Then the host does the work.
            driver.warn(&format!(
                "the host cannot leave work to the guest ({error})"
            ));
        }
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        match self.properties.offloads {
            true => self.wire.set_offloads(offloads),
            false => Ok(()),
        }
    }
}

/// The configuration space (5.1.4).
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Space {
    mac: Mac,
    status: U16,
    max_virtqueue_pairs: U16,
    mtu: U16,
}

impl Device for Net {
    fn id(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        let offloads = match self.properties.offloads {
            true => OFFLOADS,
            false => 0,
        };
        F_MAC | F_STATUS | F_MTU | F_MRG_RXBUF | offloads
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self, offset: u64, data: &mut [u8]) {
        let space = Space {
            mac: self.properties.mac,
            status: U16::new(if self.link_up { LINK_UP } else { 0 }),
            max_virtqueue_pairs: 1.into(),
            mtu: self.properties.mtu.into(),
        };
        read_config_bytes(space.as_bytes(), offset, data);
    }

    fn activate(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        self.share_work(driver);
        self.receive(driver)
    }

    fn reset(&mut self) {
        self.receiver.reset();
        self.transmitter.reset();
        // What cannot be undone is done again when the next driver is up.
        let _ = self.set_offloads(Offloads::default());
    }

    fn process(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        match queue {
            RX => self.receive(driver),
            TX => self.transmit(driver),
            _ => Ok(()),
        }
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        state::encode(&State {
            mac: self.properties.mac,
            mtu: self.properties.mtu,
            link_up: self.link_up,
            held: self.receiver.heads().collect(),
        })
    }

    /// The device keeps the address that it was made with, and its wire's state: the driver is told
    /// if they are others than it has read. Linux reads the address once, at its probe.
    fn load(&mut self, state: &[u8], driver: &mut Driver) -> Result<(), StateError> {
        let state: State = state::decode(state)?;
        let Properties { mac, mtu, .. } = self.properties;
        if mtu < state.mtu {
            let then = state.mtu;
            return Err(StateError(format!(
                "takes packets of {mtu} bytes, and took {then} when it was saved; set the MTU of \
                 its interface to {then}"
            )));
        }
        if (mac, mtu, self.link_up) != (state.mac, state.mtu, state.link_up) {
            driver.config_changed();
        }
        self.share_work(driver);
        // The chains of a driver that has failed are nobody's.
        if let Some(queue) = driver.queue(RX) {
            self.receiver.take_back(queue, &state.held)?;
        }
        Ok(())
    }
}
