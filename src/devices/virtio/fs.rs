//! The virtio file system device (virtio 1.2, 5.11): FUSE messages in, FUSE messages out.
//!
//! [`Fs`] is the front end: it checks a chain's shape and hands it as a [`Request`] to a
//! [`Backend`], which interprets the messages, serves them on its own thread and reports by
//! [`Fs::complete`]. So no vCPU waits for a file, and this model does not depend on what a file is.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::queue::{Chain, Segment};
use super::requests::Backend;
use super::{Device, DeviceError, Driver, Kind, read_config_bytes};
use crate::devices::state::{self, StateError};

const KIND: Kind = Kind {
    id: 26,
    name: "file system",
    features: &[(0, "NOTIFICATION")],
    fields: &[("tag", 0, 36), ("num_request_queues", 36, 4)],
};
/// Bytes of a tag in the configuration space (5.11.4).
pub const MAX_TAG: usize = 36;
/// Entries of the queue of high priority (5.11.2): mostly requests without an answer.
const HIPRIO_SIZE: u16 = 64;
/// Entries of the one request queue: enough for 1 MiB of data in single pages with FUSE's headers.
const REQUEST_SIZE: u16 = 512;
const QUEUE_SIZES: [u16; 2] = [HIPRIO_SIZE, REQUEST_SIZE];

/// struct fuse_in_header (uapi/linux/fuse.h), which begins every message to the device.
pub const IN_HEADER: u64 = 40;
/// struct fuse_out_header, which begins every answer.
pub const OUT_HEADER: u64 = 16;
/// Bytes of a message in one direction: the most data that FUSE allows, 256 pages, and a page for
/// the headers before it.
pub const MAX_MESSAGE: u64 = (1 << 20) + 4096;

/// A message and the room for its answer, both in guest memory and of at most [`MAX_MESSAGE`] bytes;
/// the message has at least its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The message, with its header.
    pub readable: Vec<Segment>,
    /// Room for the answer; empty for a message without one.
    pub writable: Vec<Segment>,
}

/// The answer to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Bytes written to guest memory.
    pub written: u32,
    /// A warning for the user.
    pub warning: Option<String>,
    /// The guest has the file system mounted: the backend holds files and names for it.
    pub mounted: bool,
}

/// A file system device.
pub struct Fs {
    /// The configuration space: tag, num_request_queues.
    space: [u8; MAX_TAG + 4],
    backend: Box<dyn Backend<Request>>,
    /// Queue and chain of requests that are being served. An id is never used twice, so a
    /// report that comes after a reset finds nothing.
    in_flight: BTreeMap<u64, (usize, Chain)>,
    next_id: u64,
    mounted: bool,
}

impl Fs {
    /// A file system that the guest mounts by `tag`, cut to [`MAX_TAG`] bytes.
    pub fn new(tag: &str, backend: Box<dyn Backend<Request>>) -> Self {
        let mut space = [0; MAX_TAG + 4];
        let queues = 1u32.to_le_bytes();
        let bytes = tag.bytes().chain(std::iter::repeat(0)).take(MAX_TAG);
        for (to, from) in space.iter_mut().zip(bytes.chain(queues)) {
            *to = from;
        }
        Self {
            space,
            backend,
            in_flight: BTreeMap::new(),
            next_id: 0,
            mounted: false,
        }
    }

    /// Request `id` has been served; or the backend has failed for the reason given.
    ///
    /// # Errors
    /// The driver has broken the ring, or the backend has failed.
    pub fn complete(
        &mut self,
        driver: &mut Driver,
        id: u64,
        served: Result<Answer, String>,
    ) -> Result<(), DeviceError> {
        let Some((index, chain)) = self.in_flight.remove(&id) else {
            return Ok(());
        };
        let answer = served.map_err(DeviceError::Protocol)?;
        self.mounted = answer.mounted;
        if let Some(warning) = &answer.warning {
            driver.warn(warning);
        }
        let Some(queue) = driver.queue(index) else {
            return Ok(());
        };
        let room = u32::try_from(chain.writable_len()).unwrap_or(u32::MAX);
        queue.finish(chain, answer.written.min(room))
    }

    fn tag(&self) -> String {
        let tag = self.space.get(..MAX_TAG).unwrap_or_default();
        let tag = tag.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(tag).into_owned()
    }
}

impl Device for Fs {
    fn kind(&self) -> &'static Kind {
        &KIND
    }

    fn features(&self) -> u64 {
        0 // no VIRTIO_FS_F_NOTIFICATION (5.11.3): no host sends notifications
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.space, offset, data);
    }

    fn activate(&mut self, _driver: &mut Driver) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {
        self.backend.cancel();
        self.in_flight.clear();
        self.mounted = false;
    }

    fn process(&mut self, index: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        let Some(queue) = driver.queue(index) else {
            return Ok(());
        };
        while let Some(chain) = queue.pop()? {
            let (message, room) = (chain.readable_len(), chain.writable_len());
            if message < IN_HEADER {
                return Err(queue.refuse(&chain, "is shorter than a FUSE message's header"));
            }
            if room > 0 && room < OUT_HEADER {
                return Err(queue.refuse(&chain, "has no room for an answer's header"));
            }
            if message > MAX_MESSAGE || room > MAX_MESSAGE {
                return Err(queue.refuse(&chain, "is longer than a FUSE message can be"));
            }
            let most: usize = QUEUE_SIZES.iter().map(|&size| usize::from(size)).sum();
            if self.in_flight.len() >= most {
                return Err(queue.refuse(&chain, "is one more than the queues hold"));
            }
            let id = self.next_id;
            self.next_id += 1;
            let request = Request {
                readable: chain.readable().to_vec(),
                writable: chain.writable().to_vec(),
            };
            self.in_flight.insert(id, (index, chain));
            self.backend.submit(id, request);
        }
        Ok(())
    }

    /// Saves the tag, which the guest has read. Inodes and open files of the host cannot be saved.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        let tag = self.tag();
        if self.mounted {
            return Err(StateError(format!(
                "is mounted in the guest, and open files of the host cannot be saved; unmount \
                 {tag} there first (umount -t virtiofs -a)"
            )));
        }
        match self.in_flight.len() {
            0 => state::encode(&tag),
            count => Err(StateError(format!("is still serving {count} requests"))),
        }
    }

    fn load(&mut self, state: &[u8], _driver: &mut Driver) -> Result<(), StateError> {
        let then: String = state::decode(state)?;
        match self.tag() {
            now if now == then => Ok(()),
            now => Err(StateError(format!(
                "has the tag {now:?}, and had {then:?} when it was saved; give it that"
            ))),
        }
    }
}
