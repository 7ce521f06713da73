//! Packets to the guest (virtio 1.2, 5.10.6).

use super::device::{MAX_RESETS, RX, TX, Vsock};
use super::packet::{Header, MAX_DATA};
use crate::devices::virtio::queue::{Chain, VirtQueue};
use crate::devices::virtio::{DeviceError, Driver};

/// Buffers of the guest that one read may fill: a Linux guest has 4 KiB in each.
const MAX_BATCH: usize = 16;

impl Vsock {
    pub(super) fn transmit(
        &mut self,
        driver: &mut Driver,
        scratch: &mut [u8],
    ) -> Result<(), DeviceError> {
        let Some(queue) = driver.queue(RX) else {
            return Ok(());
        };
        let mut batch = 1;
        while !self.resets.is_empty() || !self.tx_pending.is_empty() {
            let (chains, room) = buffers(queue, batch)?;
            if chains.is_empty() {
                break;
            }
            let Some(header) = self.next_packet(scratch.get_mut(..room).unwrap_or_default()) else {
                chains.into_iter().for_each(|chain| queue.put_back(chain));
                break;
            };
            let data = scratch.get(..header.len as usize).unwrap_or_default();
            batch = if data.len() == room {
                (2 * batch).min(MAX_BATCH)
            } else {
                1
            };
            send(queue, chains, header, data)?;
        }
        if self.rx_held
            && self.resets.len() < MAX_RESETS
            && let Some(queue) = driver.queue(TX)
        {
            queue.process_again();
        }
        Ok(())
    }

    /// The next packet, with its data in `buffer`: RSTs first, then a packet of each connection
    /// in turn.
    fn next_packet(&mut self, buffer: &mut [u8]) -> Option<Header> {
        // Not before the transport reset: the guest takes an RST for a clean end of a connection.
        if self.awaits_transport_reset() {
            return None;
        }
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(id) = self.tx_pending.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            connection.tx_queued = false;
            if let Some(header) = connection.next_packet(self.cid.into(), buffer) {
                if connection.waits() {
                    self.tick_later();
                }
                self.queue_tx(id);
                return Some(header);
            }
        }
        None
    }
}

/// Up to `count` buffers of the guest, and how many bytes of data they hold.
fn buffers(queue: &mut VirtQueue, count: usize) -> Result<(Vec<Chain>, usize), DeviceError> {
    let (mut chains, mut space) = (Vec::new(), 0);
    while chains.len() < count
        && space < MAX_DATA
        && let Some(chain) = queue.pop()?
    {
        if !chain.readable().is_empty() {
            return Err(queue.refuse(&chain, "is to be read, in a queue to be written"));
        }
        match room(&chain) {
            0 => return Err(queue.refuse(&chain, "is too short for a packet")),
            room => space += room,
        }
        chains.push(chain);
    }
    Ok((chains, space.min(MAX_DATA)))
}

/// Bytes of data that fit into a buffer after a header.
fn room(chain: &Chain) -> usize {
    let room = chain.writable_len().saturating_sub(Header::SIZE as u64);
    usize::try_from(room).unwrap_or(usize::MAX).min(MAX_DATA)
}

/// Send `data`, in one packet for each buffer that it needs; put the other `chains` back.
fn send(
    queue: &mut VirtQueue,
    chains: Vec<Chain>,
    mut header: Header,
    mut data: &[u8],
) -> Result<(), DeviceError> {
    for (index, chain) in chains.into_iter().enumerate() {
        if index > 0 && data.is_empty() {
            queue.put_back(chain);
            continue;
        }
        let now;
        (now, data) = data.split_at(data.len().min(room(&chain)));
        header.len = now.len() as u32;
        queue.write(&chain, 0, &header.encode())?;
        queue.write(&chain, Header::SIZE as u64, now)?;
        queue.finish(chain, Header::SIZE as u32 + header.len)?;
    }
    Ok(())
}
