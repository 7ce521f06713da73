//! Model-specific registers: their numbers (Intel SDM 4, tables 2-2 and 2-3; AMD APM 2, appendix A),
//! and those that firmware leaves set and KVM does not.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{KvmError, refused};

/// IA32_TIME_STAMP_COUNTER, the TSC.
pub const TSC: u32 = 0x10;
/// IA32_APIC_BASE: where the local APIC is, and whether it is on.
pub const APIC_BASE: u32 = 0x1b;
/// IA32_MISC_ENABLE; bit 0: fast string operations.
const MISC_ENABLE: u32 = 0x1a0;
/// IA32_PAT: the memory types that page tables choose from.
pub const PAT: u32 = 0x277;
/// IA32_MTRR_DEF_TYPE: MTRRs on (bit 11), the type of memory that no range names (bits 7:0).
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// IA32_TSC_DEADLINE: when the local APIC's timer interrupts.
pub const TSC_DEADLINE: u32 = 0x6e0;
/// IA32_XSS: the state components that XSAVES saves for the supervisor.
pub const XSS: u32 = 0xda0;
/// IA32_STAR: the segments of SYSCALL and SYSRET.
pub const STAR: u32 = 0xc000_0081;
/// IA32_LSTAR: where SYSCALL of 64-bit code goes.
pub const LSTAR: u32 = 0xc000_0082;
/// IA32_FMASK: the flags that SYSCALL clears.
pub const FMASK: u32 = 0xc000_0084;
/// IA32_FS_BASE, the base of FS.
pub const FS_BASE: u32 = 0xc000_0100;
/// IA32_GS_BASE, the base of GS.
pub const GS_BASE: u32 = 0xc000_0101;
/// IA32_KERNEL_GS_BASE: what SWAPGS puts into [`GS_BASE`].
pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
/// IA32_TSC_AUX: what RDTSCP and RDPID return.
pub const TSC_AUX: u32 = 0xc000_0103;

/// MTRRs on, and memory is write-back (type 6) where no range says otherwise (Intel SDM 3A,
/// 12.11.2.1). A kernel that finds them off takes all memory as uncached.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// A list of one MSR, for KVM_GET_MSRS and KVM_SET_MSRS.
///
/// # Errors
/// There is no memory for it.
pub(super) fn one(index: u32, data: u64) -> Result<Msrs, KvmError> {
    let entry = kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[entry]).map_err(|_| KvmError::Ioctl {
        ioctl: "a list of one MSR",
        error: kvm_ioctls::Error::new(libc::ENOMEM),
    })
}

/// Set a new vCPU's MSRs as firmware would.
///
/// # Errors
/// KVM_SET_MSRS failed. A KVM that does not know one of the registers is no error: the guest
/// finds it as that KVM shows it.
pub fn set(vcpu: &VcpuFd) -> Result<(), KvmError> {
    for (index, data) in [(MISC_ENABLE, 1), (MTRR_DEF_TYPE, MTRR_WRITE_BACK)] {
        let set = vcpu.set_msrs(&one(index, data)?);
        set.map_err(refused("KVM_SET_MSRS"))?;
    }
    Ok(())
}
