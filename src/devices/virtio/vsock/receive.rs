//! Packets from the guest (virtio 1.2, 5.10.6).

use std::io::ErrorKind;

use super::connection::{Connection, Ports, Verdict};
use super::device::{MAX_CONNECTIONS, MAX_RESETS, TX, Vsock};
use super::packet::{HOST_CID, Header, Op, STREAM};
use crate::devices::virtio::{DeviceError, Driver};

impl Vsock {
    pub(super) fn receive(
        &mut self,
        driver: &mut Driver,
        scratch: &mut [u8],
    ) -> Result<(), DeviceError> {
        loop {
            let Some(queue) = driver.queue(TX) else {
                return Ok(());
            };
            self.rx_held = self.resets.len() >= MAX_RESETS;
            if self.rx_held {
                return Ok(());
            }
            let Some(chain) = queue.pop()? else {
                return Ok(());
            };
            if !chain.writable().is_empty() {
                return Err(queue.refuse(&chain, "is to be written, in a queue to be read"));
            }
            let mut bytes = [0; Header::SIZE];
            let whole = queue.read(&chain, 0, &mut bytes)? == bytes.len();
            let header = Header::decode(&bytes);
            let len = usize::try_from(header.len).unwrap_or(usize::MAX);
            let space = scratch.get_mut(..len).unwrap_or_default();
            let there = queue.read(&chain, Header::SIZE as u64, space)?;
            queue.finish(chain, 0)?;
            // The data of a packet that is too long was not read either.
            let data = scratch.get(..len).filter(|_| there == len);
            let handled = if whole {
                self.handle(&header, data)
            } else {
                Err("a packet without a whole header; ignored".into())
            };
            if let Err(what) = handled {
                driver.warn(&what);
            }
        }
    }

    /// Handle one packet; without its data if that has another length than the header says, or
    /// more than is allowed. Returns what was wrong with it.
    fn handle(&mut self, header: &Header, data: Option<&[u8]>) -> Result<(), String> {
        if header.src_cid != u64::from(self.cid) {
            // There is no one to answer. A restored guest may have used its former CID before it
            // read the new one.
            if self.restored {
                return Ok(());
            }
            return Err(format!(
                "a packet from CID {}, which is not the guest's; ignored",
                header.src_cid
            ));
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let op = Op::from_code(header.op);
        let known = header.dst_cid == HOST_CID && header.kind == STREAM;
        let id = self.ids.get(&ports).copied().filter(|_| known);
        let Some(id) = id else {
            match op {
                Some(Op::Rst) => {}
                Some(Op::Request) if known && data.is_some() => return self.open(ports, header),
                // virtio 1.2, 5.10.6.4.1 for unknown types; the same for unknown CIDs.
                _ => self.resets.push_back(header.reset()),
            }
            return Ok(());
        };
        let verdict = match (self.connections.get_mut(&id), op, data) {
            (Some(connection), Some(op), Some(data)) => connection.handle(op, header, data),
            (Some(_), None, _) => Verdict::Reset("was sent an unknown operation"),
            _ => Verdict::Reset("was sent a packet whose length is wrong"),
        };
        let reason = match verdict {
            Verdict::Stay => {
                self.queue_tx(id);
                return Ok(());
            }
            Verdict::Drop => {
                self.remove(id);
                return Ok(());
            }
            Verdict::Close => {
                if let Some(connection) = self.reset_connection(id) {
                    self.draining.insert(id, connection.into_outlet());
                    self.draining.retain(|_, outlet| !outlet.is_empty());
                }
                return Ok(());
            }
            Verdict::Reset(reason) => reason,
        };
        self.reset_connection(id);
        match reason {
            "" => Ok(()),
            _ => Err(format!(
                "the connection of port {} to {} {reason}; reset",
                ports.guest, ports.host
            )),
        }
    }

    /// The guest opens a connection.
    fn open(&mut self, ports: Ports, request: &Header) -> Result<(), String> {
        let id = self.new_id();
        if self.streams() >= MAX_CONNECTIONS {
            self.resets.push_back(request.reset());
            return Err(format!("more than {MAX_CONNECTIONS} connections; reset"));
        }
        match self.host.connect(ports.host, id) {
            Ok(stream) => {
                self.add(id, Connection::accepted(ports, stream, request));
                Ok(())
            }
            Err(error) => {
                self.resets.push_back(request.reset());
                match error.kind() {
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused => Ok(()),
                    _ => Err(format!("port {} cannot be reached: {error}", ports.host)),
                }
            }
        }
    }
}
