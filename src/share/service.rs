//! From a request in guest memory to the FUSE server of fuse-backend-rs, and back.
//!
//! The crate takes messages as descriptor chains of its own version of virtio-queue. [`Ring`] is a
//! table of descriptors in memory that no guest sees; it holds the checked segments of the request
//! being served. So file data is copied straight between guest memory and the host's files.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fuse_backend_rs::api::filesystem::FileSystem;
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use fuse_virtio_queue::{DescriptorChain, Queue, QueueT};
use fuse_vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vm_memory::Bytes as _;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::confined::Confined;
use crate::devices::virtio::fs::{Answer, OUT_HEADER, Request};
use crate::memory::transfer::Segment;
use crate::memory::{GuestMemory, mirror};

/// VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE (virtio 1.2, 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Where the ring lies: above all that guest memory reaches (4 PiB).
const RING: u64 = 1 << 52;
/// Entries: more than a request of the device has segments.
const ENTRIES: u16 = 1024;
const AVAILABLE: u64 = RING + 16 * ENTRIES as u64;
const USED: u64 = AVAILABLE + 0x1000;
const RING_BYTES: usize = 0x8000;

/// struct virtq_desc (virtio 1.2, 2.7.5).
#[derive(IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// The first part of struct fuse_in_header (uapi/linux/fuse.h).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Default)]
#[repr(C)]
struct InHeader {
    len: u32,
    opcode: u32,
    unique: u64,
}

/// struct fuse_out_header (uapi/linux/fuse.h).
#[derive(IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct OutHeader {
    len: u32,
    error: i32,
    unique: u64,
}

/// FUSE_FORGET and FUSE_BATCH_FORGET have no answer.
const FORGET: u32 = 2;
const BATCH_FORGET: u32 = 42;

/// A guest's file system.
pub struct Service {
    files: Arc<Confined>,
    server: Server<Arc<Confined>>,
    ring: Ring,
    memory: GuestMemory,
}

impl Service {
    /// Serve `files` to the guest that has `memory`.
    ///
    /// # Errors
    /// Guest memory cannot be given to the crate.
    pub fn new(files: Confined, memory: GuestMemory) -> io::Result<Self> {
        let files = Arc::new(files);
        Ok(Self {
            server: Server::new(files.clone()),
            files,
            ring: Ring::new(&memory)?,
            memory,
        })
    }

    /// Serve one request.
    ///
    /// # Errors
    /// The file system has failed and needs a [reset](Service::reset).
    pub fn serve(&mut self, request: &Request) -> Result<Answer, String> {
        // A message on which the crate panics must not end hull.
        let served = catch_unwind(AssertUnwindSafe(|| self.handle(request)));
        let lost = |_| "the file server failed at a request".to_string();
        let answered = served.map_err(lost)?;
        Ok(Answer {
            written: answered.unwrap_or_else(|_| self.refuse(request)),
            warning: self.files.warning(),
            mounted: self.files.is_mounted(),
        })
    }

    fn handle(&mut self, request: &Request) -> io::Result<u32> {
        let (memory, chain) = self.ring.chain(request)?;
        let reader = Reader::from_descriptor_chain(memory, chain.clone());
        let writer = VirtioFsWriter::new(memory, chain).map(Writer::VirtioFs);
        let (reader, writer) = (
            reader.map_err(io::Error::other)?,
            writer.map_err(io::Error::other)?,
        );
        let written = self.server.handle_message(reader, writer, None, None);
        let written = written.map_err(io::Error::other)?;
        u32::try_from(written).map_err(io::Error::other)
    }

    /// Answer an invalid message with an error. The crate does not answer some of them, and the
    /// guest's process would wait for ever.
    fn refuse(&self, request: &Request) -> u32 {
        let mut header = InHeader::default();
        let mut at = 0;
        for segment in &request.readable {
            let Some(rest) = header.as_mut_bytes().get_mut(at..) else {
                break;
            };
            let len = rest.len().min(segment.len as usize);
            let Some(part) = rest.get_mut(..len) else {
                break;
            };
            if self.memory.read_slice(part, segment.addr).is_err() {
                return 0;
            }
            at += len;
        }
        if matches!(header.opcode, FORGET | BATCH_FORGET) || request.writable.is_empty() {
            return 0;
        }
        let answer = OutHeader {
            len: OUT_HEADER as u32,
            error: -libc::EIO,
            unique: header.unique,
        };
        let mut answer = answer.as_bytes();
        for Segment { addr, len } in &request.writable {
            let (part, rest) = answer.split_at(answer.len().min(*len as usize));
            if self.memory.write_slice(part, *addr).is_err() {
                return 0;
            }
            answer = rest;
        }
        OUT_HEADER as u32
    }

    /// Close and forget all that the guest has opened.
    pub fn reset(&mut self) {
        // After a failure this may fail again; the next request then fails, too.
        let _ = catch_unwind(AssertUnwindSafe(|| self.files.destroy()));
    }
}

type Memory = GuestMemoryMmap<()>;

/// A ring with one chain at a time.
struct Ring {
    /// Guest memory with the ring at [`RING`].
    memory: Memory,
    queue: Queue,
}

impl Ring {
    fn new(memory: &GuestMemory) -> io::Result<Self> {
        let mut regions = mirror::regions(memory)?;
        let ring = MmapRegion::new(RING_BYTES).map_err(io::Error::other)?;
        let ring = GuestRegionMmap::new(ring, GuestAddress(RING));
        regions.push(ring.ok_or_else(|| io::Error::other("the ring's address"))?);
        let memory = GuestMemoryMmap::from_regions(regions).map_err(io::Error::other)?;
        let mut queue = Queue::new(ENTRIES).map_err(io::Error::other)?;
        let set = |queue: &mut Queue| {
            queue.try_set_desc_table_address(GuestAddress(RING))?;
            queue.try_set_avail_ring_address(GuestAddress(AVAILABLE))?;
            queue.try_set_used_ring_address(GuestAddress(USED))
        };
        set(&mut queue).map_err(io::Error::other)?;
        queue.set_ready(true);
        // The available ring has one entry for good, descriptor 0: flags, idx, ring.
        memory
            .write_slice(&[0, 0, 1, 0, 0, 0], GuestAddress(AVAILABLE))
            .map_err(io::Error::other)?;
        Ok(Self { memory, queue })
    }

    /// The chain of `request`, and the memory that contains it.
    fn chain(&mut self, request: &Request) -> io::Result<(&Memory, DescriptorChain<&Memory>)> {
        let readable = request.readable.iter().map(|segment| (segment, 0));
        let writable = request.writable.iter().map(|segment| (segment, WRITE));
        let count = request.readable.len() + request.writable.len();
        if count == 0 || count > usize::from(ENTRIES) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (index, (segment, flags)) in (1..).zip(readable.chain(writable)) {
            let more = usize::from(index) < count;
            let descriptor = Descriptor {
                addr: segment.addr.0,
                len: segment.len,
                flags: flags | if more { NEXT } else { 0 },
                next: if more { index } else { 0 },
            };
            let at = RING + 16 * (u64::from(index) - 1);
            self.memory
                .write_slice(descriptor.as_bytes(), GuestAddress(at))
                .map_err(io::Error::other)?;
        }
        self.queue.set_next_avail(0);
        let chain = self.queue.pop_descriptor_chain(&self.memory);
        let chain = chain.ok_or_else(|| io::Error::other("the ring has no chain"))?;
        Ok((&self.memory, chain))
    }
}
