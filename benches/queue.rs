//! The cost of a virtqueue request in hull itself: from the driver's notification to the used ring, for a
//! device that does nothing with it.
//!
//! `cargo bench --bench queue`.

mod support;

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hull::devices::Reporter;
use hull::devices::bus::BusDevice;
use hull::devices::virtio::mmio::{MmioTransport, Shortcuts};
use hull::devices::virtio::transport::Transport;
use hull::devices::virtio::{Device, DeviceError, Driver, Kind};
use hull::memory::GuestMemory;
use hull::sync::lock;
use support::Nobody;
use vm_memory::{Bytes, GuestAddress};

/// The number of entries in the ring.
const SIZE: u16 = 64;
/// Guest-physical addresses of the parts of the ring, and of the buffers.
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x1_0000;
const MEMORY: usize = 1 << 20;

/// Returns each request unchanged.
struct Idle;

impl Device for Idle {
    fn kind(&self) -> &'static Kind {
        // An entropy source, which the driver does not use as one.
        &Kind {
            id: 4,
            name: "entropy",
            features: &[],
            fields: &[],
        }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[SIZE]
    }

    fn config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, _: &mut Driver) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn process(&mut self, queue: usize, driver: &mut Driver) -> Result<(), DeviceError> {
        let Some(queue) = driver.queue(queue) else {
            return Ok(());
        };
        while let Some(chain) = queue.pop()? {
            queue.finish(chain, 0)?;
        }
        Ok(())
    }
}

/// A driver as in virtio 1.2.
struct Guest {
    memory: GuestMemory,
    transport: MmioTransport,
    available: u16,
}

impl Guest {
    fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        let nobody = Reporter::new(Arc::new(Nobody), "idle");
        let device = MmioTransport::new(
            memory.clone(),
            Box::new(Idle),
            Arc::new(Nobody),
            nobody,
            Shortcuts::default(),
        );
        let mut guest = Self {
            memory,
            transport: device.expect("a window"),
            available: 0,
        };
        guest.start();
        guest
    }

    /// Device initialization (3.1.1) with the registers of 4.2.2.
    fn start(&mut self) {
        self.write(0x70, 1); // ACKNOWLEDGE
        self.write(0x70, 3); // and DRIVER
        self.write(0x24, 1);
        self.write(0x20, 1); // VIRTIO_F_VERSION_1, bit 32
        self.write(0x70, 0xb); // and FEATURES_OK
        self.write(0x38, SIZE.into());
        for (register, address) in [(0x80, TABLE), (0x90, AVAILABLE), (0xa0, USED)] {
            self.write(register, address as u32);
        }
        self.write(0x44, 1);
        self.write(0x70, 0xf); // and DRIVER_OK
        for index in 0..u64::from(SIZE) {
            // A buffer of 512 bytes that the device may write to.
            let entry = TABLE + 16 * index;
            self.put(entry, BUFFERS + 512 * index);
            self.put(entry + 8, 512u32);
            self.put(entry + 12, 2u16);
        }
    }

    fn write(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        let written = self.memory.write_obj(value, GuestAddress(address));
        written.expect("it lies in memory");
    }

    /// Offers a number of buffers and has the device serve them.
    fn serve(&mut self, requests: u16) {
        for _ in 0..requests {
            let slot = self.available % SIZE;
            self.put(AVAILABLE + 4 + 2 * u64::from(slot), slot);
            self.available = self.available.wrapping_add(1);
        }
        self.put(AVAILABLE + 2, self.available);
        lock(self.transport.core()).process(0);
        let used: u16 = self
            .memory
            .read_obj(GuestAddress(USED + 2))
            .expect("a ring");
        assert_eq!(used, self.available, "all of them were served");
    }
}

fn queue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("virtqueue");
    for requests in [1, 16] {
        let mut guest = Guest::new();
        group.throughput(Throughput::Elements(requests.into()));
        group.bench_function(format!("{requests} at once"), |bencher| {
            bencher.iter(|| guest.serve(requests));
        });
    }
    group.finish();
}

criterion_group!(benches, queue);
criterion_main!(benches);
