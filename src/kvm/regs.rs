//! From a boot [`Entry`] to the registers of the first vCPU.
//!
//! Sources: Documentation/arch/x86/boot.rst, "32-bit" and "64-bit Boot Protocol"; Intel SDM 3A, 2.5
//! and 9.8.5.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::{KvmError, refused};
use crate::boot::tables::{CR3, GDT_LIMIT, Segment, code, data, is_long};
use crate::boot::{Entry, Mode};
use crate::memory::layout::{BOOT_STACK_TOP, GDT, IDT};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS bit 1 is always set (Intel SDM 1, 3.4.3).
const RFLAGS_FIXED: u64 = 2;

/// Set a vCPU's registers for `entry`.
pub fn set(vcpu: &VcpuFd, entry: &Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
    set_sregs(&mut sregs, entry.mode);
    vcpu.set_sregs(&sregs).map_err(refused("KVM_SET_SREGS"))?;
    vcpu.set_regs(&general(entry))
        .map_err(refused("KVM_SET_REGS"))
}

fn general(entry: &Entry) -> kvm_regs {
    let mut regs = kvm_regs {
        rflags: RFLAGS_FIXED,
        rip: entry.rip,
        rsp: BOOT_STACK_TOP,
        ..Default::default()
    };
    match entry.mode {
        Mode::Linux64 | Mode::Linux32 => regs.rsi = entry.params,
        Mode::Pvh => regs.rbx = entry.params,
        // SP has 16 bits in real mode; 0 wraps to the top of the first 64 KiB.
        Mode::Flat16 => regs.rsp = 0,
        Mode::Flat32 | Mode::Flat64 => {}
    }
    regs
}

fn set_sregs(sregs: &mut kvm_sregs, mode: Mode) {
    let data = hidden(data(mode));
    sregs.cs = hidden(code(mode));
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // The vCPU may have run in another mode before.
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0_ET, 0, 0, 0);
    if mode == Mode::Flat16 {
        return;
    }
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: GDT_LIMIT,
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT,
        limit: 0,
        ..Default::default()
    };
    sregs.cr0 |= CR0_PE;
    if is_long(mode) {
        sregs.cr3 = CR3;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 |= CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
    }
}

fn hidden(segment: Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base.into(),
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: 1,
        dpl: 0,
        db: segment.default_32.into(),
        s: 1,
        l: segment.long.into(),
        g: segment.pages.into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_mode_has_paging_and_a_64_bit_code_segment() {
        let mut sregs = kvm_sregs::default();
        set_sregs(&mut sregs, Mode::Linux64);
        assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
        assert_eq!(sregs.cr0, 0x8000_0011);
        assert_eq!(sregs.efer, 0x500);
    }

    #[test]
    fn no_state_of_the_previous_mode_is_left() {
        for (mode, cr0) in [(Mode::Pvh, 0x11), (Mode::Flat16, 0x10)] {
            let mut sregs = kvm_sregs::default();
            set_sregs(&mut sregs, Mode::Flat64);
            set_sregs(&mut sregs, mode);
            assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (cr0, 0, 0));
        }
    }

    #[test]
    fn each_protocol_passes_its_parameters_in_its_register() {
        let entry = |mode| {
            general(&Entry {
                mode,
                rip: 0x10_0000,
                params: 0x7000,
            })
        };
        assert_eq!(entry(Mode::Linux64).rsi, 0x7000);
        assert_eq!(entry(Mode::Pvh).rbx, 0x7000);
    }
}
