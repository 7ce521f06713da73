//! A vCPU under a debugger: set what stops it, report why it stopped, access its registers.
//!
//! Sources: Documentation/virt/kvm/api.rst, "KVM_SET_GUEST_DEBUG"; Intel SDM 1, 10.5.1 (the FXSAVE
//! area) and 13.4.2 (the XSAVE header).

use kvm_bindings::{kvm_guest_debug, kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuExit;

use super::{Exit, Vcpu};
use crate::kvm::debug::{
    BREAKPOINT_VECTOR, Cause, Control, FXSAVE, Registers, Stop, Stopped, Trap,
};
use crate::kvm::{KvmError, msrs, refused};

/// The vector of #DB, a debug exception.
const DEBUG_VECTOR: u32 = 1;
/// XSTATE_BV in the XSAVE header, as an index of the area's words, and its bits of x87 and SSE.
const XSTATE_BV: usize = FXSAVE / 4;
const X87_AND_SSE: u32 = 3;

impl Vcpu {
    /// Make it stop under the conditions of `control` from the next KVM_RUN on.
    pub fn control(&mut self, control: Control) -> Result<(), KvmError> {
        if self.control != control {
            let set = self.fd().set_guest_debug(&control.ioctl());
            set.map_err(refused("KVM_SET_GUEST_DEBUG"))?;
            self.control = control;
        }
        Ok(())
    }

    /// Complete the access that caused the last exit. Until then RIP and the register that a read
    /// fills still have their values from before the instruction (api.rst, "KVM_EXIT_IO").
    pub fn complete(&mut self) {
        let fd = self.fd();
        fd.set_kvm_immediate_exit(1);
        // It does not enter the guest, and so can only return EINTR.
        let _ = fd.run();
        fd.set_kvm_immediate_exit(0);
    }

    /// Give the guest the exception of a stop that is not the debugger's.
    pub fn reinject(&mut self, stop: &Stop) -> Result<Exit, KvmError> {
        match (stop.cause, self.control.trap) {
            (Cause::Trap, Some(Trap::Failure)) => return Ok(self.finish(|_| {})),
            (Cause::Trap, Some(Trap::Port)) => {
                // The guest's own write to the port: there is no device.
                let mut regs = self.general()?;
                regs.rip = regs.rip.wrapping_add(Trap::Port.bytes().len() as u64);
                self.set_general(&regs)?;
            }
            // RIP stays at INT3: KVM injects it as a software exception and moves it.
            (Cause::Trap, _) => self.inject(BREAKPOINT_VECTOR)?,
            (Cause::Debug { dr6 }, _) => {
                let fd = self.fd();
                let mut debug = fd.get_debug_regs().map_err(refused("KVM_GET_DEBUGREGS"))?;
                debug.dr6 = dr6;
                fd.set_debug_regs(&debug)
                    .map_err(refused("KVM_SET_DEBUGREGS"))?;
                self.inject(DEBUG_VECTOR)?;
            }
            (Cause::Step | Cause::Point(_), _) => {}
        }
        Ok(Exit::Handled)
    }

    fn inject(&mut self, vector: u32) -> Result<(), KvmError> {
        let fd = self.fd();
        let mut events = fd
            .get_vcpu_events()
            .map_err(refused("KVM_GET_VCPU_EVENTS"))?;
        events.exception.injected = 1;
        events.exception.nr = vector as u8;
        events.exception.has_error_code = 0;
        fd.set_vcpu_events(&events)
            .map_err(refused("KVM_SET_VCPU_EVENTS"))
    }

    /// The stop after a write to the port of [`Trap::Port`], with RIP back at the instruction.
    pub(super) fn stopped_by_port(&mut self) -> Result<Exit, KvmError> {
        self.complete();
        let mut regs = self.general()?;
        regs.rip = regs.rip.wrapping_sub(Trap::Port.bytes().len() as u64);
        self.set_general(&regs)?;
        self.stopped_by_trap()
    }

    /// The stop at a breakpoint's instruction at RIP.
    pub(super) fn stopped_by_trap(&mut self) -> Result<Exit, KvmError> {
        Ok(Exit::Debug(Stop {
            cause: Cause::Trap,
            pc: self.linear_pc()?,
        }))
    }

    /// Linear address of the instruction at RIP.
    fn linear_pc(&mut self) -> Result<u64, KvmError> {
        let cs = self.special()?.cs;
        let base = if cs.l != 0 { 0 } else { cs.base };
        Ok(base.wrapping_add(self.general()?.rip))
    }

    /// General registers, RAX to RFLAGS.
    pub fn general(&mut self) -> Result<kvm_regs, KvmError> {
        self.fd().get_regs().map_err(refused("KVM_GET_REGS"))
    }

    /// Set the general registers, RAX to RFLAGS.
    pub fn set_general(&mut self, regs: &kvm_regs) -> Result<(), KvmError> {
        self.fd().set_regs(regs).map_err(refused("KVM_SET_REGS"))
    }

    /// Segment, table and control registers.
    pub fn special(&mut self) -> Result<kvm_sregs, KvmError> {
        self.fd().get_sregs().map_err(refused("KVM_GET_SREGS"))
    }

    /// All registers that a debugger shows.
    pub fn all_registers(&mut self) -> Result<Registers, KvmError> {
        let mut fxsave = [0; FXSAVE];
        let xsave = self.fd().get_xsave().map_err(refused("KVM_GET_XSAVE"))?;
        for (to, from) in fxsave.chunks_exact_mut(4).zip(xsave.region) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        let mut msrs = msrs::one(msrs::KERNEL_GS_BASE, 0)?;
        let known = self.fd().get_msrs(&mut msrs);
        known.map_err(refused("KVM_GET_MSRS"))?;
        Ok(Registers {
            general: self.general()?,
            special: self.special()?,
            fxsave,
            kernel_gs_base: msrs.as_slice().first().map_or(0, |entry| entry.data),
        })
    }

    /// Set those registers that differ from `before`, which [`Vcpu::all_registers`] gave.
    ///
    /// # Errors
    /// KVM refuses values that the processor would, such as reserved bits of CR4.
    pub fn set_registers(
        &mut self,
        before: &Registers,
        registers: &Registers,
    ) -> Result<(), KvmError> {
        if registers.special != before.special {
            let set = self.fd().set_sregs(&registers.special);
            set.map_err(refused("KVM_SET_SREGS"))?;
        }
        if registers.general != before.general {
            self.set_general(&registers.general)?;
        }
        if registers.fxsave != before.fxsave {
            self.set_fxsave(&registers.fxsave)?;
        }
        if registers.kernel_gs_base != before.kernel_gs_base {
            let msrs = msrs::one(msrs::KERNEL_GS_BASE, registers.kernel_gs_base)?;
            let set = self.fd().set_msrs(&msrs);
            set.map_err(refused("KVM_SET_MSRS"))?;
        }
        Ok(())
    }

    fn set_fxsave(&mut self, fxsave: &[u8; FXSAVE]) -> Result<(), KvmError> {
        let mut xsave = self.fd().get_xsave().map_err(refused("KVM_GET_XSAVE"))?;
        for (to, from) in xsave.region.iter_mut().zip(fxsave.chunks_exact(4)) {
            *to = from
                .iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        if let Some(present) = xsave.region.get_mut(XSTATE_BV) {
            *present |= X87_AND_SSE;
        }
        // SAFETY: KVM reads more than these 4096 bytes only for state that a process has to ask
        // for (arch_prctl ARCH_REQ_XCOMP_GUEST_PERM), which hull does not.
        unsafe { self.fd().set_xsave(&xsave) }.map_err(refused("KVM_SET_XSAVE"))
    }

    /// Run it once under `control`, for a probe, and return why it stopped.
    pub(in crate::kvm) fn stops_under(&mut self, control: &Control) -> Result<Stopped, KvmError> {
        let fd = self.fd();
        fd.set_guest_debug(&control.ioctl())
            .map_err(refused("KVM_SET_GUEST_DEBUG"))?;
        let stopped = match fd.run() {
            Ok(VcpuExit::Debug(_)) => Stopped::Debug,
            Ok(VcpuExit::InternalError) => Stopped::Failure,
            _ => Stopped::Otherwise,
        };
        self.complete();
        let off = self.fd().set_guest_debug(&kvm_guest_debug::default());
        off.map_err(refused("KVM_SET_GUEST_DEBUG"))?;
        Ok(stopped)
    }
}
