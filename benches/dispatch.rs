//! The cost of an exit in hull itself: the bus finds a device, which handles the access. Also the whole round
//! trip, in a loop over kvm-ioctls that contains only this bus.
//!
//! `cargo bench --bench dispatch`. `hull bench exit` measures the same round trip with `hull run`.
use std::hint::black_box;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use hull::devices::bus::{Bus, Interrupt};
use hull::devices::legacy::serial::{self, Serial, Sink};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const COM1: u64 = 0x3f8;
/// The UART's scratch register, to which a write has no effect.
const SCRATCH: u16 = 0x3ff;
const START: u64 = 0x8000;
const MEMORY: usize = 2 << 20;

struct Nowhere;

impl Sink for Nowhere {
    fn write(&mut self, _: &[u8]) {}
}

impl Interrupt for Nowhere {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

fn bus() -> Bus {
    let mut bus = Bus::new();
    let uart = Arc::new(Mutex::new(Serial::new(Nowhere, Arc::new(Nowhere))));
    let inserted = bus.insert(COM1, serial::PORTS, "COM1", uart);
    inserted.expect("the bus is empty");
    bus
}

fn dispatch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("exit");
    let bus = bus();
    group.bench_function("bus and device alone", |bencher| {
        bencher.iter(|| bus.write(black_box(SCRATCH.into()), black_box(&[1])));
    });
    if std::path::Path::new("/dev/kvm").exists() {
        let mut machine = Machine::new();
        group.bench_function("round trip by a bare loop", |bencher| {
            bencher.iter_custom(|exits| machine.exits(&bus, exits));
        });
    } else {
        eprintln!("no /dev/kvm: no round trip");
    }
    group.finish();
}

/// A guest in real mode that writes to the port in an endless loop.
struct Machine {
    // Dropped before the memory, which it uses.
    vcpu: VcpuFd,
    _vm: VmFd,
    _memory: GuestMemoryMmap<()>,
}

impl Machine {
    fn new() -> Self {
        let vm = Kvm::new().and_then(|kvm| kvm.create_vm()).expect("KVM");
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]);
        let memory = memory.expect("memory");
        // again: mov dx, SCRATCH; out dx, al; jmp again
        let code = [0xba, 0xff, 0x03, 0xee, 0xeb, 0xfd];
        let written = memory.write_slice(&code, GuestAddress(START));
        written.expect("it is large enough");
        let address = memory.get_host_address(GuestAddress(0));
        let slot = kvm_userspace_memory_region {
            memory_size: MEMORY as u64,
            userspace_addr: address.expect("it begins at 0") as u64,
            ..Default::default()
        };
        // SAFETY: the region is a whole mapping, which outlives the last run of the vCPU.
        unsafe { vm.set_user_memory_region(slot) }.expect("a slot");
        vm.create_irq_chip().expect("interrupt controllers");
        vm.create_pit2(kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        })
        .expect("a timer");
        let vcpu = vm.create_vcpu(0).expect("a vCPU");
        let mut sregs = vcpu.get_sregs().expect("its registers");
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).expect("its registers");
        let mut regs = vcpu.get_regs().expect("its registers");
        (regs.rip, regs.rflags) = (START, 2);
        vcpu.set_regs(&regs).expect("its registers");
        Self {
            vcpu,
            _vm: vm,
            _memory: memory,
        }
    }

    fn exits(&mut self, bus: &Bus, exits: u64) -> Duration {
        let started = Instant::now();
        for _ in 0..exits {
            match self.vcpu.run().expect("it runs") {
                VcpuExit::IoOut(port, data) => {
                    bus.write(port.into(), data);
                }
                other => panic!("an exit that the guest does not make: {other:?}"),
            }
        }
        started.elapsed()
    }
}

criterion_group!(benches, dispatch);
criterion_main!(benches);
