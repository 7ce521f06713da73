//! The state of vCPUs and interrupt controllers, read while the vCPUs are paused.
//!
//! Source: Documentation/virt/kvm/api.rst.

use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_debugregs, kvm_irqchip,
    kvm_pic_state, kvm_pit_channel_state, kvm_regs, kvm_sregs, kvm_vcpu_events,
};
use kvm_ioctls::VmFd;

use super::vcpu::Vcpu;
use super::vm::Vm;
use super::{KvmError, msrs, refused};

/// Size of a local APIC's registers in bytes.
const LAPIC_BYTES: usize = 1024;

/// The state of a vCPU, for `hull inspect`.
#[derive(Clone)]
pub struct CpuState {
    /// General registers, RIP and RFLAGS.
    pub regs: kvm_regs,
    /// Segment, table and control registers.
    pub sregs: kvm_sregs,
    /// The debug registers, DR0 to DR7.
    pub debug: kvm_debugregs,
    /// Index and value of the requested MSRs that this KVM knows.
    pub msrs: Vec<(u32, u64)>,
    /// The registers of the local APIC.
    pub lapic: [u8; LAPIC_BYTES],
    /// Pending exceptions and interrupts.
    pub events: kvm_vcpu_events,
    /// KVM_MP_STATE_*: whether it runs, halts or waits for its INIT or SIPI.
    pub mp_state: u32,
}

impl Vcpu {
    /// Its state now, with the MSRs of these indexes.
    ///
    /// # Errors
    /// An ioctl that KVM refuses, with its errno.
    pub fn whole_state(&mut self, indexes: &[u32]) -> Result<CpuState, KvmError> {
        let fd = self.fd();
        let lapic = fd.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
        let mp_state = fd.get_mp_state().map_err(refused("KVM_GET_MP_STATE"))?;
        let mut state = CpuState {
            regs: fd.get_regs().map_err(refused("KVM_GET_REGS"))?,
            sregs: fd.get_sregs().map_err(refused("KVM_GET_SREGS"))?,
            debug: fd.get_debug_regs().map_err(refused("KVM_GET_DEBUGREGS"))?,
            msrs: Vec::with_capacity(indexes.len()),
            lapic: lapic.regs.map(|byte| byte as u8),
            events: fd
                .get_vcpu_events()
                .map_err(refused("KVM_GET_VCPU_EVENTS"))?,
            mp_state: mp_state.mp_state,
        };
        for &index in indexes {
            let mut list = msrs::one(index, 0)?;
            // One by one: KVM stops at the first that it does not know.
            if fd.get_msrs(&mut list).is_ok_and(|read| read == 1) {
                let value = list.as_slice().iter().map(|entry| (index, entry.data));
                state.msrs.extend(value);
            }
        }
        Ok(state)
    }
}

/// The interrupt controllers and the timer that all vCPUs share.
#[derive(Clone, Debug)]
pub struct ChipState {
    /// The two 8259s, master and slave.
    pub pics: [kvm_pic_state; 2],
    /// The ID of the IOAPIC.
    pub ioapic_id: u32,
    /// The raised pins of the IOAPIC, a bit each.
    pub ioapic_irr: u32,
    /// The redirection table of the IOAPIC.
    pub redirections: [u64; 24],
    /// The three channels of the 8254.
    pub pit: [kvm_pit_channel_state; 3],
}

/// A handle that reads [`ChipState`] at any time.
#[derive(Clone)]
pub struct Chips(Arc<VmFd>);

impl Chips {
    /// The chips of `vm`.
    pub fn of(vm: &Vm) -> Self {
        Self(vm.shared_fd())
    }

    /// Their state now.
    ///
    /// # Errors
    /// An ioctl that KVM refuses, with its errno.
    pub fn state(&self) -> Result<ChipState, KvmError> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            let done = self.0.get_irqchip(&mut chip);
            done.map_err(refused("KVM_GET_IRQCHIP")).map(|()| chip)
        };
        let pic = |chip: kvm_irqchip| {
            // SAFETY: KVM has filled in the state of an 8259, which is bytes of any value.
            unsafe { chip.chip.pic }
        };
        let pics = [
            pic(chip(KVM_IRQCHIP_PIC_MASTER)?),
            pic(chip(KVM_IRQCHIP_PIC_SLAVE)?),
        ];
        let ioapic = chip(KVM_IRQCHIP_IOAPIC)?;
        // SAFETY: KVM has filled in the state of an IOAPIC, which is integers of any value.
        let ioapic = unsafe { ioapic.chip.ioapic };
        let redirections = ioapic.redirtbl.map(|entry| {
            // SAFETY: both views of an entry are the same 64 bits, any value of which is valid.
            unsafe { entry.bits }
        });
        let pit = self.0.get_pit2().map_err(refused("KVM_GET_PIT2"))?;
        Ok(ChipState {
            pics,
            ioapic_id: ioapic.id,
            ioapic_irr: ioapic.irr,
            redirections,
            pit: pit.channels,
        })
    }
}
