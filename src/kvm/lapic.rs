//! The local APIC as firmware leaves it: LINT0 takes the 8259's interrupts, LINT1 is NMI.
//!
//! MultiProcessor Specification 1.4, 3.6.2.2 "Virtual Wire Mode"; registers: Intel SDM 3A, 11.4.1.

use kvm_ioctls::VcpuFd;

use super::{KvmError, refused};

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery modes in bits 8 to 10.
const MODE_NMI: u32 = 0b100 << 8;
const MODE_EXTINT: u32 = 0b111 << 8;

/// Set up a new vCPU's local APIC.
///
/// It has a second effect: KVM makes its table of APICs while a vCPU is not yet part of the
/// machine, and again when an APIC is set. Without that the last vCPU gets no INIT from a guest
/// that never enables its own APIC, as memtest86+.
pub fn set(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut state = vcpu.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
    for (at, value) in [(LVT_LINT0, MODE_EXTINT), (LVT_LINT1, MODE_NMI)] {
        for (register, byte) in state.regs.iter_mut().skip(at).zip(value.to_le_bytes()) {
            *register = byte as _;
        }
    }
    vcpu.set_lapic(&state).map_err(refused("KVM_SET_LAPIC"))
}
