//! Instructions at CPL 0 and 3 on the machine's own KVM, whichever kind that is: what the guest
//! sees has to be the same whether the processor, KVM's emulator or hull executes them.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{Counts, bulk_port, enable, finish};
use crate::kvm::assist::bulk;
use crate::memory::GuestMemory;

const MEMORY_SIZE: usize = 8 << 20;
const PML4: u64 = 0x1000;
const IDT: u64 = 0x6000;
const GDT: u64 = 0x7000;
const TSS: u64 = 0x7800;
const HANDLERS: u64 = 0x8000;
const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x3_f000;
const PRESENT_WRITE_USER: u64 = 7;

struct Machine {
    _vm: VmFd,
    vcpu: VcpuFd,
    memory: GuestMemory,
    counts: Counts,
}

/// How a snippet ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// At its own HLT.
    Halt,
    /// In the handler of this vector, with the error code pushed and CR2.
    Vector {
        vector: u64,
        stack: [u64; 5],
        cr2: u64,
    },
}

/// A machine in 64-bit mode with the first 4 MiB mapped and a HLT behind every vector, or None
/// (and why, on stderr) where there is no /dev/kvm.
fn machine() -> Option<Machine> {
    if !std::path::Path::new("/dev/kvm").exists() {
        eprintln!("skipped: there is no /dev/kvm");
        return None;
    }
    let kvm = Kvm::new().expect("/dev/kvm opens");
    let vm = kvm.create_vm().expect("a VM");
    enable(&vm).expect("KVM_CAP_EXIT_ON_EMULATION_FAILURE");
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).expect("memory");
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY_SIZE as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0)).expect("mapped") as u64,
        ..Default::default()
    };
    // SAFETY: the mapping lives as long as the VM; both are in Machine.
    unsafe { vm.set_user_memory_region(region) }.expect("memory in its slot");
    let vcpu = vm.create_vcpu(0).expect("a vCPU");
    let cpuid: CpuId = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .expect("CPUID");
    vcpu.set_cpuid2(&cpuid).expect("CPUID is taken");
    write_tables(&memory);
    set_registers(&vcpu);
    Some(Machine {
        _vm: vm,
        vcpu,
        memory,
        counts: Counts::default(),
    })
}

fn write_tables(memory: &GuestMemory) {
    let put = |gpa: u64, value: u64| memory.write_obj(value, GuestAddress(gpa)).expect("in RAM");
    put(PML4, 0x2000 | PRESENT_WRITE_USER);
    put(0x2000, 0x3000 | PRESENT_WRITE_USER);
    put(0x3000, 0x4000 | PRESENT_WRITE_USER);
    put(0x3008, 0x5000 | PRESENT_WRITE_USER);
    for page in 0..1024 {
        put(0x4000 + page * 8, page << 12 | PRESENT_WRITE_USER);
    }
    let descriptors = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
    ];
    for (slot, descriptor) in (0..).zip(descriptors) {
        put(GDT + slot * 8, descriptor);
    }
    put(GDT + 0x28, 0x0000_8b00_0000_0067 | (TSS & 0xff_ffff) << 16);
    put(GDT + 0x30, 0);
    put(TSS + 4, STACK);
    for vector in 0..256 {
        let handler = HANDLERS + vector * 16;
        memory
            .write_obj(0xf4u8, GuestAddress(handler))
            .expect("in RAM");
        // Interrupt gate, DPL 3 for 3 and 80H.
        let access = if vector == 3 || vector == 0x80 {
            0xee
        } else {
            0x8e
        };
        put(IDT + vector * 16, handler & 0xffff | 8 << 16 | access << 40);
        put(IDT + vector * 16 + 8, 0);
    }
}

fn segment(selector: u16, type_: u8, dpl: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl,
        db: u8::from(type_ < 8),
        s: 1,
        l: u8::from(type_ >= 8),
        g: 1,
        ..Default::default()
    }
}

fn set_registers(vcpu: &VcpuFd) {
    let mut sregs = vcpu.get_sregs().expect("sregs");
    sregs.cs = segment(8, 11, 0);
    for data in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *data = segment(0x10, 3, 0);
    }
    sregs.tr = kvm_segment {
        base: TSS,
        limit: 0x67,
        selector: 0x28,
        type_: 11,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 0x37;
    sregs.idt.base = IDT;
    sregs.idt.limit = 0xfff;
    sregs.cr0 = 0x8001_0033;
    sregs.cr3 = PML4;
    // PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE.
    sregs.cr4 = 0x5_0620;
    sregs.efer = 0x500;
    vcpu.set_sregs(&sregs).expect("sregs are taken");
}

impl Machine {
    /// Runs `code`, a HLT behind it, from CODE until a HLT.
    fn run(&mut self, code: &[u8], change: impl FnOnce(&mut kvm_bindings::kvm_regs)) -> End {
        self.memory
            .write_slice(code, GuestAddress(CODE))
            .expect("in RAM");
        let end = CODE + code.len() as u64;
        self.memory
            .write_obj(0xf4u8, GuestAddress(end))
            .expect("in RAM");
        let mut regs = kvm_bindings::kvm_regs {
            rip: CODE,
            rsp: STACK,
            rflags: 2,
            ..Default::default()
        };
        change(&mut regs);
        self.vcpu.set_regs(&regs).expect("regs are taken");
        loop {
            match self.vcpu.run().expect("KVM_RUN") {
                VcpuExit::Hlt => break,
                VcpuExit::InternalError => {
                    finish(&mut self.vcpu, &self.memory, &mut self.counts).expect("finished")
                }
                VcpuExit::IoOut(bulk::PORT, _) => {
                    bulk_port(&mut self.vcpu, &self.memory, &mut self.counts).expect("done")
                }
                exit => panic!("unexpected exit {exit:?}"),
            }
        }
        let regs = self.regs();
        if regs.rip == end + 1 {
            return End::Halt;
        }
        let mut stack = [0; 5];
        for (slot, value) in (0..).zip(&mut stack) {
            *value = self
                .memory
                .read_obj(GuestAddress(regs.rsp + slot * 8))
                .expect("a stack");
        }
        let cr2 = self.vcpu.get_sregs().expect("sregs").cr2;
        End::Vector {
            vector: (regs.rip - 1 - HANDLERS) / 16,
            stack,
            cr2,
        }
    }

    fn regs(&self) -> kvm_bindings::kvm_regs {
        self.vcpu.get_regs().expect("regs")
    }
}

#[test]
fn popcnt_gives_count_and_flags() {
    let Some(mut machine) = machine() else { return };
    // popcnt rax, rbx
    let end = machine.run(&[0xf3, 0x48, 0x0f, 0xb8, 0xc3], |regs| {
        regs.rbx = 0xff00_0000_0000_0001;
        regs.rflags |= 0x8d5;
    });
    assert_eq!(end, End::Halt);
    assert_eq!(machine.regs().rax, 9);
    assert_eq!(machine.regs().rflags & 0x8d5, 0);
}

#[test]
fn int3_arrives_behind_itself() {
    let Some(mut machine) = machine() else { return };
    let End::Vector { vector, stack, .. } = machine.run(&[0xcc], |_| {}) else {
        panic!("no exception")
    };
    assert_eq!((vector, stack[0], stack[1]), (3, CODE + 1, 8));
}
