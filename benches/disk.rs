//! The cost of a disk's request in hull itself: from the driver's notification to the used ring, with the thread of
//! the disk and a raw image, but without the eventfd, the switches of threads and the interrupt.
//!
//! `cargo bench --bench disk`.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hull::devices::Reporter;
use hull::devices::bus::BusDevice;
use hull::devices::virtio::block::Block;
use hull::devices::virtio::mmio::{MmioTransport, Shortcuts};
use hull::devices::virtio::requests::{Doorbell, Requests};
use hull::devices::virtio::transport::{SharedCore, Transport};
use hull::disk::{self, Config, Disk};
use hull::memory::GuestMemory;
use hull::sync::lock;
use support::Nobody;
use vm_memory::{Bytes, GuestAddress};

/// Entries of the ring: a chain each, in an indirect table.
const SIZE: u16 = 64;
/// Guest-physical addresses of the parts of the ring, of a page for each request, and of their data.
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const PAGES: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
const MEMORY: usize = 4 << 20;
/// Bytes of a request, and of the image.
const BLOCK: u64 = 4096;
const IMAGE: u64 = 64 << 20;

/// The guest, which offers requests whenever the disk's thread has nothing left to do.
struct Guest {
    memory: GuestMemory,
    core: SharedCore,
    /// Requests at once.
    depth: u16,
    available: AtomicU64,
    /// Batches that are still to be offered, and where the end of the last is told.
    left: Mutex<u64>,
    orders: Mutex<mpsc::Receiver<u64>>,
    done: Mutex<mpsc::Sender<()>>,
}

impl Guest {
    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        let written = self.memory.write_obj(value, GuestAddress(address));
        written.expect("it lies in memory");
    }

    fn descriptor(&self, at: u64, to: u64, len: u32, flags: u16, next: u16) {
        self.put(at, to);
        self.put(at + 8, len);
        self.put(at + 12, flags);
        self.put(at + 14, next);
    }

    /// Each entry of the ring is a read of a block, as Linux has it: header, data and status by a table.
    fn prepare(&self) {
        for slot in 0..SIZE {
            let page = PAGES + 4096 * u64::from(slot);
            let header = page + 1024;
            self.put(header + 8, u64::from(slot) * BLOCK / 512);
            self.descriptor(page, header, 16, 1, 1);
            let data = DATA + u64::from(slot) * BLOCK;
            self.descriptor(page + 16, data, BLOCK as u32, 3, 2);
            self.descriptor(page + 32, page + 2048, 1, 2, 0);
            self.descriptor(TABLE + 16 * u64::from(slot), page, 48, 4, 0);
        }
    }

    fn offer(&self) {
        let mut available = self.available.load(Ordering::Relaxed) as u16;
        for _ in 0..self.depth {
            let slot = available % SIZE;
            self.put(AVAILABLE + 4 + 2 * u64::from(slot), slot);
            available = available.wrapping_add(1);
        }
        self.put(AVAILABLE + 2, available);
        self.available.store(available.into(), Ordering::Relaxed);
        lock(&self.core).process_notified(0);
    }
}

struct Bell(Arc<Guest>);

impl Doorbell for Bell {
    fn wait(&self, _: Option<Duration>) {
        let mut left = lock(&self.0.left);
        if *left == 0 {
            let _ = lock(&self.0.done).send(());
            match lock(&self.0.orders).recv() {
                Ok(batches) => *left = batches,
                Err(_) => return,
            }
        }
        *left -= 1;
        self.0.offer();
    }

    fn ring(&self) {}
}

/// The device, for the thread of the disk.
struct Served(SharedCore);

impl disk::Guest for Served {
    fn served(&self, results: disk::Reports) {
        lock(&self.0).with_device(|block: &mut Block, driver| {
            for (id, served) in results {
                block.complete(driver, id, served.map_err(|error| error.to_string()))?;
            }
            Ok(())
        });
    }

    fn resized(&self, _: u64) {}
}

/// Device initialization (virtio 1.2, 3.1.1) with the registers of 4.2.2.
fn start(transport: &mut MmioTransport) {
    let mut write = |register: u64, value: u32| transport.write(register, &value.to_le_bytes());
    write(0x70, 1); // ACKNOWLEDGE
    write(0x70, 3); // and DRIVER
    write(0x20, 1 << 28 | 1 << 29 | 1 << 9); // indirect tables, EVENT_IDX, FLUSH
    write(0x24, 1);
    write(0x20, 1); // VIRTIO_F_VERSION_1, bit 32
    write(0x70, 0xb); // and FEATURES_OK
    write(0x38, SIZE.into());
    for (register, address) in [(0x80, TABLE), (0x90, AVAILABLE), (0xa0, USED)] {
        write(register, address as u32);
    }
    write(0x44, 1);
    write(0x70, 0xf); // and DRIVER_OK
}

/// Have `work` measure a disk: what it gets serves batches of `depth` requests, and returns the time for that.
fn measure(depth: u16, work: impl FnOnce(&mut dyn FnMut(u64) -> Duration)) {
    let image = tempfile::NamedTempFile::new().expect("a file");
    image.as_file().set_len(IMAGE).expect("room");
    let config: Config = image
        .path()
        .to_str()
        .expect("text")
        .parse()
        .expect("a disk");
    let disk = Disk::open(&config).expect("it opens");
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let requests = Requests::default();
    let device = Block::new(disk.geometry.clone(), Box::new(requests.clone()));
    let reporter = Reporter::new(Arc::new(Nobody), "disk");
    let nobody = Arc::new(Nobody);
    let shortcuts = Shortcuts::default();
    let transport = MmioTransport::new(
        memory.clone(),
        Box::new(device),
        nobody,
        reporter,
        shortcuts,
    );
    let mut transport = transport.expect("a window");
    start(&mut transport);
    let core = transport.core().clone();
    let (order, orders) = mpsc::channel();
    let (done, finished) = mpsc::channel();
    let guest = Arc::new(Guest {
        memory: memory.clone(),
        core: core.clone(),
        depth,
        available: AtomicU64::new(0),
        left: Mutex::new(0),
        orders: Mutex::new(orders),
        done: Mutex::new(done),
    });
    guest.prepare();
    let worker = disk::start(disk, memory, requests, Arc::new(Bell(guest)), Served(core));
    finished.recv().expect("the thread waits");
    work(&mut |batches| {
        let begin = Instant::now();
        order.send(batches).expect("the thread lives");
        finished.recv().expect("the thread waits");
        begin.elapsed()
    });
    drop(order);
    drop(worker);
}

fn disk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("disk");
    for depth in [1, 16] {
        group.throughput(Throughput::Elements(depth.into()));
        group.bench_function(format!("read, {depth} at once"), |bencher| {
            measure(depth, |serve| bencher.iter_custom(serve));
        });
    }
    group.finish();
}

criterion_group!(benches, disk);
criterion_main!(benches);
