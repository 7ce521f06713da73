//! Model-specific registers that firmware leaves set and KVM does not.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{KvmError, refused};

/// IA32_MISC_ENABLE (Intel SDM 4, table 2-2); bit 0: fast string operations.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// IA32_MTRR_DEF_TYPE: MTRRs on (bit 11), memory is write-back (type 6) where no range says
/// otherwise (Intel SDM 3A, 12.11.2.1). A kernel that finds them off takes all memory as uncached.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Set them on a new vCPU.
///
/// # Errors
/// KVM_SET_MSRS failed. A KVM that does not know one of the registers is no error: the guest
/// finds it as that KVM shows it.
pub fn set(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entries = [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    for entry in entries {
        let Ok(msrs) = Msrs::from_entries(&[entry]) else {
            continue;
        };
        vcpu.set_msrs(&msrs).map_err(refused("KVM_SET_MSRS"))?;
    }
    Ok(())
}
