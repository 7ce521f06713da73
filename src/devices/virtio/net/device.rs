//! The device: queues, link, offloads.

use std::io;

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::U16;
use zerocopy::{Immutable, IntoBytes};

use super::receive::{RX, Receiver};
use super::transmit::{TX, Transmitter};
use super::wire::{Clock, Mac, Offloads, Wire};
use crate::devices::rate::Limits;
use crate::devices::state::{self, StateError};
use crate::devices::virtio::{Device, DeviceError, Driver, Kind, read_config_bytes};

const KIND: Kind = Kind {
    id: 1,
    name: "network",
    features: &[
        (0, "CSUM"),
        (1, "GUEST_CSUM"),
        (3, "MTU"),
        (5, "MAC"),
        (7, "GUEST_TSO4"),
        (8, "GUEST_TSO6"),
        (9, "GUEST_ECN"),
        (11, "HOST_TSO4"),
        (12, "HOST_TSO6"),
        (13, "HOST_ECN"),
        (15, "MRG_RXBUF"),
        (16, "STATUS"),
    ],
    fields: &[("mac", 0, 6), ("status", 6, 2), ("mtu", 10, 2)],
};
const QUEUE_SIZES: [u16; 2] = [256; 2];

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

/// Features of a device whose wire handles headers.
const OFFLOADS: u64 = F_CSUM
    | F_GUEST_CSUM
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_GUEST_ECN
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_HOST_ECN;

/// VIRTIO_NET_S_LINK_UP, a bit of the status (5.1.4).
const LINK_UP: u16 = 1;

/// What the driver reads of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// The address of the guest's interface.
    pub mac: Mac,
    /// Bytes of the longest packet without its Ethernet header, at least 68 (5.1.4.1).
    pub mtu: u16,
    /// The wire handles headers: it fills in checksums and cuts segments.
    pub offloads: bool,
}

/// A device as it is saved. A frame on its way to the guest is lost, as on any Ethernet; one that
/// waits to be sent is still in its queue.
#[derive(Serialize, Deserialize)]
struct State {
    mac: Mac,
    mtu: u16,
    link_up: bool,
    /// Heads of the chains that the receiver holds.
    held: Vec<u16>,
}

/// A network device on a [`Wire`].
pub struct Net {
    properties: Properties,
    wire: Box<dyn Wire>,
    clock: Box<dyn Clock>,
    receiver: Receiver,
    transmitter: Transmitter,
    link_up: bool,
}

impl Net {
    /// A device on `wire`, with `limits` for each direction.
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

    /// The wire has frames or room again, or the clock's time has come. May be called without a
    /// reason.
    ///
    /// # Errors
    /// The driver broke the rules.
    pub fn ready(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        self.receiver.wire_is_ready();
        self.receiver.deadline = None;
        // Mostly called for frames that arrive: the other direction is not touched unless it waits.
        if self.transmitter.held_up {
            self.transmit(driver)?;
        } else {
            let done = self.wire.flush().map(drop);
            self.end_turn(driver, done)?;
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
        self.end_turn(driver, done.map(drop))?;
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
            self.end_turn(driver, done)?;
        }
        Ok(())
    }

    /// After a turn: take the link down, for good, when the wire has closed; set the clock for the
    /// next deadline.
    fn end_turn(&mut self, driver: &mut Driver, wire: io::Result<()>) -> Result<(), DeviceError> {
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

    /// Tell the wire what the driver can handle.
    fn negotiate_offloads(&mut self, driver: &mut Driver) {
        let offloads = Offloads {
            checksum: driver.has(F_GUEST_CSUM),
            // Segments need checksums (5.1.3.1), and congestion marks need segments.
            tso4: driver.has(F_GUEST_CSUM | F_GUEST_TSO4),
            tso6: driver.has(F_GUEST_CSUM | F_GUEST_TSO6),
            ecn: driver.has(F_GUEST_CSUM | F_GUEST_ECN)
                && (driver.has(F_GUEST_TSO4) || driver.has(F_GUEST_TSO6)),
        };
        if let Err(error) = self.set_offloads(offloads) {
            // The host does the work then.
            driver.warn(&format!(
                "the host cannot leave work to the guest ({error})"
            ));
        }
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        if !self.properties.offloads {
            return Ok(());
        }
        self.wire.set_offloads(offloads)
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
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        let offloads = if self.properties.offloads {
            OFFLOADS
        } else {
            0
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
        self.negotiate_offloads(driver);
        // This is a vCPU's thread; frames are moved by the device's own.
        if let Some(queue) = driver.queue(RX) {
            queue.process_again();
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.receiver.reset();
        self.transmitter.reset();
        // After a failure they are set when the next driver is live.
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

    /// The device keeps its own address and its wire's state; the driver gets a configuration change
    /// if they differ from those it has read. Linux reads the address once, at its probe.
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
        self.negotiate_offloads(driver);
        // Without a live driver there are no chains.
        if let Some(queue) = driver.queue(RX) {
            self.receiver.take_back(queue, &state.held)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
