//! The program of lesson 1: a virtual machine monitor that is only the KVM loop. It runs a flat
//! payload in real mode (guest/payloads/hello.S) and counts the exits.

use std::io::{self, Write};
use std::{env, fs};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// All the RAM there is: from address 0 on, what real mode reaches with its segments at 0.
const MEMORY: usize = 64 << 10;
/// Where the payload is loaded and starts.
const ENTRY: u64 = 0x8000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = env::args().nth(1).ok_or("name a flat payload")?;
    let payload = fs::read(path)?;

    // A machine, its memory, and the payload in it.
    let kvm = Kvm::new()?; // open("/dev/kvm")
    assert_eq!(kvm.get_api_version(), 12); // KVM_GET_API_VERSION
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)])?; // mmap
    memory.write_slice(&payload, GuestAddress(ENTRY))?;
    let vm = kvm.create_vm()?; // KVM_CREATE_VM
    let slot = kvm_userspace_memory_region {
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        ..Default::default()
    };
    // SAFETY: the range is a whole mapping of `memory`, which lives until main returns.
    unsafe { vm.set_user_memory_region(slot) }?; // KVM_SET_USER_MEMORY_REGION

    // A CPU in real mode, before the first instruction.
    let mut vcpu = vm.create_vcpu(0)?; // KVM_CREATE_VCPU, and mmap of struct kvm_run
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0); // after a reset it is 0xffff0000
    vcpu.set_sregs(&sregs)?; // KVM_SET_SREGS
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (ENTRY, 2); // bit 1 of RFLAGS is always set
    vcpu.set_regs(&regs)?; // KVM_SET_REGS

    for exits in 1.. {
        match vcpu.run()? {
            VcpuExit::IoOut(0x3f8, data) => io::stdout().write_all(data)?,
            VcpuExit::IoOut(0x604, _) => {
                println!("{exits} exits");
                break;
            }
            other => return Err(format!("unexpected exit: {other:?}").into()),
        }
    }
    Ok(())
}
