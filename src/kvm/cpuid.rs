//! CPUID as the guest sees it: what KVM supports, with the topology of this machine.
//!
//! One package of `cpus` cores with one thread each; the APIC id is the vCPU's number. Sources:
//! Intel SDM 2A, CPUID; AMD APM 3, E.4; Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// CPUID.1:EBX[31:24], the initial APIC id, and [23:16], logical processors in the package.
const EBX_PACKAGE: u32 = 0xffff_0000;
/// CPUID.1:ECX[31]: the processor is a hypervisor's.
const ECX_HYPERVISOR: u32 = 1 << 31;
/// CPUID.1:ECX[24]: the local APIC's timer has TSC-deadline mode. KVM's in-kernel APIC has it.
pub(super) const ECX_TSC_DEADLINE: u32 = 1 << 24;
/// CPUID.1:EDX[28]: EBX[23:16] is valid, the package has several logical processors.
const EDX_MULTITHREADED: u32 = 1 << 28;

/// CPUID.80000001H:EDX[29]: the processor has long mode.
const EDX_LONG_MODE: u32 = 1 << 29;

/// Level types of leaf 0BH, ECX[15:8].
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// Write the topology of vCPU `id` among `cpus` (1 to 32) into `cpuid`.
pub fn describe(cpuid: &mut CpuId, id: u8, cpus: u8) {
    for entry in cpuid.as_mut_slice() {
        describe_entry(entry, id.into(), cpus.into());
    }
}

/// Clear the bit of long mode. KVM then refuses a guest that sets EFER.LME (kvm_valid_efer in
/// arch/x86/kvm/x86.c).
pub fn hide_long_mode(cpuid: &mut CpuId) {
    for entry in cpuid.as_mut_slice() {
        if entry.function == 0x8000_0001 {
            entry.edx &= !EDX_LONG_MODE;
        }
    }
}

fn describe_entry(entry: &mut kvm_cpuid_entry2, id: u32, cpus: u32) {
    match entry.function {
        1 => {
            entry.ebx = entry.ebx & !EBX_PACKAGE | id << 24 | cpus << 16;
            entry.ecx |= ECX_HYPERVISOR | ECX_TSC_DEADLINE;
            entry.edx = with(entry.edx, EDX_MULTITHREADED, cpus > 1);
        }
        // Cache parameters: EAX[25:14] is the highest number of a thread that shares the cache,
        // EAX[31:26] of a core in the package. Level 3 (EAX[7:5]) is shared by the package.
        4 if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 >= 3 { cpus } else { 1 };
            entry.eax = entry.eax & 0x3fff | (sharing - 1) << 14 | (cpus - 1) << 26;
        }
        0xb | 0x1f => {
            let bits = core_bits(cpus);
            (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                0 => (0, 1, LEVEL_THREAD << 8),
                1 => (bits, cpus, LEVEL_CORE << 8 | 1),
                index => (0, 0, index),
            };
            entry.edx = id;
        }
        // ECX[7:0]: cores in the package less 1; ECX[15:12]: bits of the APIC id that number them.
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | core_bits(cpus) << 12 | (cpus - 1),
        // EAX: extended APIC id; EBX: core id, one thread a core; ECX: node 0 of 1.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

/// Bits of the APIC id that number `cpus` cores.
fn core_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

fn with(bits: u32, mask: u32, set: bool) -> u32 {
    if set { bits | mask } else { bits & !mask }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(function: u32, index: u32, id: u32, cpus: u32) -> kvm_cpuid_entry2 {
        let mut entry = kvm_cpuid_entry2 {
            function,
            index,
            eax: if function == 4 { 0x63 } else { 0 },
            ..Default::default()
        };
        describe_entry(&mut entry, id, cpus);
        entry
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let entry = described(1, 0, 3, 4);
        assert_eq!(entry.ebx, 0x0304_0000);
        assert_eq!(entry.edx & EDX_MULTITHREADED, EDX_MULTITHREADED);
        assert_eq!(described(1, 0, 0, 1).edx & EDX_MULTITHREADED, 0);
        assert_eq!(described(0xb, 0, 3, 4).edx, 3);
        assert_eq!(described(0x8000_001e, 0, 3, 4).eax, 3);
    }

    #[test]
    fn hidden_long_mode_leaves_the_other_features() {
        let entry = |edx| kvm_cpuid_entry2 {
            function: 0x8000_0001,
            edx,
            ..Default::default()
        };
        let mut cpuid = CpuId::from_entries(&[entry(u32::MAX)]).unwrap();
        hide_long_mode(&mut cpuid);
        assert_eq!(cpuid.as_slice(), [entry(!EDX_LONG_MODE)]);
    }

    #[test]
    fn the_package_has_one_core_a_vcpu() {
        let core = described(0xb, 1, 0, 6);
        assert_eq!((core.eax, core.ebx, core.ecx), (3, 6, 0x201));
        assert_eq!(described(0x8000_0008, 0, 0, 6).ecx, 3 << 12 | 5);
        assert_eq!(described(4, 3, 0, 6).eax, 0x63 | 5 << 14 | 5 << 26);
    }
}
