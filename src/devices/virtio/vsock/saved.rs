//! Saving and restoring: connections do not survive, and the guest has to reset them.
//!
//! On VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.2, 5.10.6.7; virtio_vsock_event_handle in
//! net/vmw_vsock/virtio_transport.c) Linux resets its connected sockets and reads its CID again. It
//! does not touch sockets that are still connecting, so an RST goes to each port on which the guest
//! may wait. A connection made before the guest has read the event would be reset with the others:
//! none is made until then.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::connection::{Connection, Ports};
use super::device::{EVENTS, HOST_PORTS, MAX_CONNECTIONS, MAX_RESETS, RX, TransportReset, Vsock};
use super::packet::{HOST_CID, STREAM};
use crate::devices::state::{self, StateError};
use crate::devices::virtio::queue::VirtQueue;
use crate::devices::virtio::{DeviceError, Driver};

/// struct virtio_vsock_event: its id, VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const EVENT: [u8; 4] = 0u32.to_le_bytes();

/// Connections, and RSTs that were not sent yet.
const MAX_KNOWN: usize = 2 * MAX_CONNECTIONS + MAX_RESETS;

#[derive(Serialize, Deserialize)]
struct State {
    /// Ports that the guest has, or waits to have, a connection between: host's, guest's.
    known: Vec<(u32, u32)>,
    /// Ports before it may have been used a short time ago.
    next_port: u32,
}

impl Vsock {
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

    /// Continue from the state of another device, without its connections.
    pub(super) fn restore(&mut self, state: &[u8], driver: &mut Driver) -> Result<(), StateError> {
        let State { known, next_port } = state::decode(state)?;
        if known.len() > MAX_KNOWN || !HOST_PORTS.contains(&next_port) {
            return Err(StateError("has impossible connections".into()));
        }
        self.next_port = next_port;
        self.restored = true;
        if driver.queue(RX).is_some() {
            let ports = known.into_iter().map(|(host, guest)| Ports { host, guest });
            self.resets = ports.map(|ports| self.reset_of(ports)).collect();
            self.transport_reset = Some(TransportReset::Unsent);
            self.tick_later();
        }
        Ok(())
    }

    /// Whether no connection may be made now: the guest would reset it with the lost ones.
    pub(super) fn awaits_transport_reset(&self) -> bool {
        use TransportReset::{Sent, Unsent};
        matches!(self.transport_reset, Some(Unsent | Sent(_)))
    }

    /// The guest has had some seconds for the event.
    pub(super) fn transport_reset_tick(&mut self) {
        use TransportReset::{Late, Sent, Unsent};
        self.transport_reset = match self.transport_reset.take() {
            Some(Unsent | Late) => Some(Late),
            Some(Sent(_)) | None => None,
        };
    }

    /// Put the event into a buffer of the guest, when there is one, then watch for a new buffer.
    pub(super) fn send_transport_reset(&mut self, driver: &mut Driver) -> Result<(), DeviceError> {
        let (Some(reset), Some(queue)) = (self.transport_reset, driver.queue(EVENTS)) else {
            return Ok(());
        };
        if let TransportReset::Sent(left) = reset {
            if buffers(queue)? > left {
                self.transport_reset = None;
            }
            return Ok(());
        }
        let Some(chain) = queue.pop()? else {
            return Ok(());
        };
        if !chain.readable().is_empty() || chain.writable_len() < EVENT.len() as u64 {
            return Err(queue.refuse(&chain, "has no room for an event, or a readable part"));
        }
        queue.write(&chain, 0, &EVENT)?;
        queue.finish(chain, EVENT.len() as u32)?;
        self.transport_reset = Some(TransportReset::Sent(buffers(queue)?));
        self.tick_later();
        if reset == TransportReset::Late {
            let ids: Vec<_> = self.connections.keys().copied().collect();
            for id in ids {
                self.reset_connection(id);
            }
        }
        Ok(())
    }
}

/// How many buffers are available. Looks past the last, so that the driver notifies when it adds
/// one.
fn buffers(queue: &mut VirtQueue) -> Result<usize, DeviceError> {
    let mut chains = Vec::new();
    while let Some(chain) = queue.pop()? {
        chains.push(chain);
    }
    let count = chains.len();
    chains.into_iter().for_each(|chain| queue.put_back(chain));
    Ok(count)
}
