//! What a socket device goes on from in another process: no connection, and the guest's word on it.
//!
//! Linux resets its connected sockets when it is told of a reset of the transport (virtio 1.2,
//! 5.10.6.7, VIRTIO_VSOCK_EVENT_TRANSPORT_RESET; virtio_vsock_event_handle in
//! net/vmw_vsock/virtio_transport.c), and reads its CID anew. Sockets that are not yet connected it
//! leaves alone, so an RST goes to each port that the guest may wait for. What was connected before
//! it has read the event would be reset, too: until then, nothing is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::connection::{Connection, Ports};
use super::packet::{HOST_CID, STREAM};
use super::{CONNECTIONS_MOST, EVENTS, HOST_PORTS, RESETS_MOST, RX, Vsock};
use crate::devices::state::{self, StateError};
use crate::devices::virtio::queue::VirtQueue;
use crate::devices::virtio::{DeviceError, Driver};

/// struct virtio_vsock_event: its id, VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const TRANSPORT_RESET: [u8; 4] = 0u32.to_le_bytes();

/// Connections, and RSTs on their way.
const KNOWN_MOST: usize = 2 * CONNECTIONS_MOST + RESETS_MOST;

/// How far the guest has got with the news that its connections are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// There was no buffer for it.
    Untold,
    /// Nor was there for some seconds: then connections are made, and end when there is one.
    Late,
    /// It has it, and this many buffers are left: it gives another when it has read it.
    Told(usize),
}

#[derive(Serialize, Deserialize)]
struct State {
    /// Ports that the guest has, or waits to have, a connection between: host's, guest's.
    known: Vec<(u32, u32)>,
    /// Those before it may have been used a short time ago.
    next_port: u32,
}

impl Vsock {
    /// The bytes of the state.
    ///
    /// # Errors
    /// None, so far.
    pub(super) fn saved(&self) -> Result<Vec<u8>, StateError> {
        let connections = self.connections.values().filter(|it| it.is_known());
        let resets = self.resets.iter();
        let resets = resets.filter(|reset| reset.src_cid == HOST_CID && reset.kind == STREAM);
        let resets = resets.map(|reset| (reset.src_port, reset.dst_port));
        let ports = connections.map(Connection::ports);
        let known: BTreeSet<_> = ports
            .map(|Ports { host, guest }| (host, guest))
            .chain(resets)
            .collect();
        state::encode(&State {
            known: known.into_iter().collect(),
            next_port: self.next_port,
        })
    }

    /// Go on from the state of a device whose connections are gone.
    ///
    /// # Errors
    /// No device has such a state.
    pub(super) fn restore(&mut self, state: &[u8], driver: &mut Driver) -> Result<(), StateError> {
        let State { known, next_port } = state::decode(state)?;
        if known.len() > KNOWN_MOST || !HOST_PORTS.contains(&next_port) {
            return Err(StateError("has connections that cannot be".into()));
        }
        self.next_port = next_port;
        self.restored = true;
        if driver.queue(RX).is_some() {
            let ports = known.into_iter().map(|(host, guest)| Ports { host, guest });
            self.resets = ports.map(|ports| self.reset_of(ports)).collect();
            self.moved = Some(Moved::Untold);
            self.tick_later();
        }
        Ok(())
    }

    /// Whether no connection may be made now: the guest would end it with those that are gone.
    pub(super) fn is_deaf(&self) -> bool {
        matches!(self.moved, Some(Moved::Untold | Moved::Told(_)))
    }

    /// The guest has had some seconds.
    pub(super) fn lose_patience(&mut self) {
        self.moved = match self.moved.take() {
            Some(Moved::Untold | Moved::Late) => Some(Moved::Late),
            Some(Moved::Told(_)) | None => None,
        };
    }

    /// Put the event into a buffer of the guest's, when there is one, and see whether it has taken
    /// notice.
    pub(super) fn tell_of_move(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let (Some(moved), Some(queue)) = (&self.moved, driver.queue(EVENTS)) else {
            return Ok(());
        };
        if let Moved::Told(left) = *moved {
            if buffers(queue)? > left {
                self.moved = None;
            }
            return Ok(());
        }
        let late = *moved == Moved::Late;
        let Some(chain) = queue.pop()? else {
            return Ok(());
        };
        if !chain.readable().is_empty() || chain.writable_len() < TRANSPORT_RESET.len() as u64 {
            return Err(queue.refuse(&chain, "is no room for an event, or not that alone"));
        }
        queue.write(&chain, 0, &TRANSPORT_RESET)?;
        queue.finish(chain, TRANSPORT_RESET.len() as u32)?;
        self.moved = Some(Moved::Told(buffers(queue)?));
        self.tick_later();
        if late {
            let ids: Vec<_> = self.connections.keys().copied().collect();
            for id in ids {
                self.reset_connection(id);
            }
        }
        Ok(())
    }
}

/// Buffers that are available. Looks for more than there are, so that the driver notifies when it
/// adds one.
fn buffers(queue: &mut VirtQueue) -> Result<usize, DeviceError> {
    let mut chains = Vec::new();
    while let Some(chain) = queue.pop()? {
        chains.push(chain);
    }
    let count = chains.len();
    chains.into_iter().for_each(|chain| queue.put_back(chain));
    Ok(count)
}
