//! A vCPU under a debugger: what is to stop it, what did, and all of its registers.
//!
//! Sources: Documentation/virt/kvm/api.rst, "KVM_SET_GUEST_DEBUG"; Intel SDM 3B, 18.2 (the debug
//! registers); Intel SDM 1, 10.5.1 (the FXSAVE area).

use kvm_bindings::*;
use kvm_ioctls::VcpuExit;

use super::vcpu::{Exit, Vcpu};
use super::{KvmError, refused};

/// The port of [`Trap::Port`], which no device has.
pub const TRAP_PORT: u16 = 0xb9;
/// Debug registers that hold an address.
pub const POINTS: usize = 4;
/// Bytes of the FXSAVE area.
pub const FXSAVE: usize = 512;

const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
const DEBUG_VECTOR: u32 = 1;
const BREAKPOINT_VECTOR: u32 = 3;
/// DR6.BS: a single step.
const DR6_BS: u64 = 1 << 14;
/// DR7.LE and GE, which old processors want for exact watchpoints, and bit 10, which is 1.
const DR7_FIXED: u64 = 0x700;
/// XSTATE_BV in the XSAVE header, as an index of the area's words, and its bits of x87 and SSE.
const XSTATE_BV: usize = FXSAVE / 4;
const X87_AND_SSE: u32 = 3;

/// What stands in guest memory where a software breakpoint is, by what KVM makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// INT3, which ends in KVM_EXIT_DEBUG: every processor.
    Exit,
    /// INT3, which KVM's emulator does not know and reports: a software KVM. Only at CPL 0; code at
    /// CPL 3 runs in the processor, and the guest gets the exception.
    Failure,
    /// INT3 goes to the guest whatever KVM asks for, as where SVM itself is emulated by QEMU: a byte
    /// to a port instead, which leaves the guest at CPL 0 everywhere.
    Port,
}

impl Trap {
    /// The instruction.
    pub fn bytes(self) -> &'static [u8] {
        match self {
            Self::Exit | Self::Failure => &[0xcc],
            // out TRAP_PORT, al
            Self::Port => &[0xe6, TRAP_PORT as u8],
        }
    }
}

/// What this host's KVM can do for a debugger (`probe::debugging`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Powers {
    /// How software breakpoints are made.
    pub trap: Trap,
    /// Whether the debug registers stop the guest before an instruction.
    pub execute: bool,
    /// Whether they stop it at an access to memory.
    pub watch: bool,
    /// Whether a single step can be kept from ending in an interrupt's handler.
    pub blocks_interrupts: bool,
}

/// What a debug register waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointKind {
    /// The instruction there.
    Execute,
    /// A write.
    Write,
    /// A read or a write.
    Access,
}

/// A debug register in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Linear address, a multiple of `len`.
    pub address: u64,
    /// 1, 2, 4 or 8.
    pub len: u64,
    /// What it waits for.
    pub kind: PointKind,
}

impl Point {
    /// Its two fields in DR7, R/W and LEN.
    fn conditions(&self) -> u64 {
        let len = match self.len {
            1 => 0,
            2 => 1,
            8 => 2,
            _ => 3,
        };
        match self.kind {
            PointKind::Execute => 0, // LEN has to be 0, too
            PointKind::Write => 1 | len << 2,
            PointKind::Access => 3 | len << 2,
        }
    }
}

/// What is to stop a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Software breakpoints, when somebody looks after them.
    pub trap: Option<Trap>,
    /// The debug registers.
    pub points: [Option<Point>; POINTS],
    /// Each instruction.
    pub step: bool,
    /// No interrupt in a step.
    pub block_interrupts: bool,
}

/// Why a vCPU stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The instruction of a software breakpoint, or one that the guest has itself.
    Trap,
    /// A step is done.
    Step,
    /// This debug register.
    Point(usize),
    /// #DB of the guest's own.
    Debug {
        /// As it was at the exit.
        dr6: u64,
    },
}

/// A vCPU's stop. RIP is at the instruction of [`Cause::Trap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Why.
    pub cause: Cause,
    /// Linear address of the instruction.
    pub pc: u64,
}

impl Control {
    /// What a KVM_EXIT_DEBUG under this control means.
    pub(super) fn stop(&self, exit: &kvm_debug_exit_arch) -> Stop {
        let hit = |index: &usize| exit.dr6 >> index & 1 != 0;
        let used = |index: &usize| self.points.get(*index).is_some_and(Option::is_some);
        let cause = if exit.exception == BREAKPOINT_VECTOR {
            Cause::Trap
        } else if let Some(index) = (0..POINTS).filter(used).find(hit) {
            Cause::Point(index)
        } else if self.step && exit.dr6 & DR6_BS != 0 {
            Cause::Step
        } else {
            Cause::Debug { dr6: exit.dr6 }
        };
        Stop { cause, pc: exit.pc }
    }

    fn ioctl(&self) -> kvm_guest_debug {
        let mut debug = kvm_guest_debug::default();
        if *self == Self::default() {
            return debug;
        }
        debug.control = KVM_GUESTDBG_ENABLE;
        if self.trap.is_some() {
            debug.control |= KVM_GUESTDBG_USE_SW_BP;
        }
        if self.step {
            debug.control |= KVM_GUESTDBG_SINGLESTEP;
            if self.block_interrupts {
                debug.control |= KVM_GUESTDBG_BLOCKIRQ;
            }
        }
        let mut dr7 = DR7_FIXED;
        for (index, point) in self.points.iter().enumerate() {
            let Some(point) = point else { continue };
            if let Some(register) = debug.arch.debugreg.get_mut(index) {
                *register = point.address;
            }
            dr7 |= 2 << (2 * index) | point.conditions() << (16 + 4 * index); // G0 to G3
        }
        if dr7 != DR7_FIXED {
            debug.control |= KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[7] = dr7;
        }
        debug
    }
}

/// The registers of a vCPU that a debugger shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Registers {
    /// RAX to RFLAGS.
    pub general: kvm_regs,
    /// Segments, tables, control registers.
    pub special: kvm_sregs,
    /// x87 and SSE as FXSAVE writes them (Intel SDM 1, table 10-2).
    pub fxsave: [u8; FXSAVE],
    /// MSR_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            general: kvm_regs::default(),
            special: kvm_sregs::default(),
            fxsave: [0; FXSAVE],
            kernel_gs_base: 0,
        }
    }
}

impl Vcpu {
    /// Have it stop at what `control` says from the next KVM_RUN on.
    pub fn control(&mut self, control: Control) -> Result<(), KvmError> {
        if self.control != control {
            let set = self.fd().set_guest_debug(&control.ioctl());
            set.map_err(refused("KVM_SET_GUEST_DEBUG"))?;
            self.control = control;
        }
        Ok(())
    }

    /// Finish the access that the last exit was for. Until then RIP and the register that a read
    /// fills are not those behind the instruction (api.rst, "KVM_EXIT_IO").
    pub fn complete(&mut self) {
        let fd = self.fd();
        fd.set_kvm_immediate_exit(1);
        // It does not enter the guest, and so can only report that.
        let _ = fd.run();
        fd.set_kvm_immediate_exit(0);
    }

    /// Let the guest have the exception of a stop that is not the debugger's.
    pub fn reinject(&mut self, stop: &Stop) -> Result<Exit, KvmError> {
        match (stop.cause, self.control.trap) {
            (Cause::Trap, Some(Trap::Failure)) => return Ok(self.finish(|_| {})),
            (Cause::Trap, Some(Trap::Port)) => {
                // The guest wrote to the port itself: nobody is there.
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

    /// The stop behind a byte to [`TRAP_PORT`], RIP back at the instruction that wrote it.
    pub(super) fn stopped_by_port(&mut self) -> Result<Exit, KvmError> {
        self.complete();
        let mut regs = self.general()?;
        regs.rip = regs.rip.wrapping_sub(Trap::Port.bytes().len() as u64);
        self.set_general(&regs)?;
        self.stopped_by_trap()
    }

    /// The stop at an instruction of [`Trap`] at RIP.
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

    /// RAX to RFLAGS.
    pub fn general(&mut self) -> Result<kvm_regs, KvmError> {
        self.fd().get_regs().map_err(refused("KVM_GET_REGS"))
    }

    /// Set RAX to RFLAGS.
    pub fn set_general(&mut self, regs: &kvm_regs) -> Result<(), KvmError> {
        self.fd().set_regs(regs).map_err(refused("KVM_SET_REGS"))
    }

    /// Segments, tables, control registers.
    pub fn special(&mut self) -> Result<kvm_sregs, KvmError> {
        self.fd().get_sregs().map_err(refused("KVM_GET_SREGS"))
    }

    /// All registers.
    pub fn all_registers(&mut self) -> Result<Registers, KvmError> {
        let mut fxsave = [0; FXSAVE];
        let xsave = self.fd().get_xsave().map_err(refused("KVM_GET_XSAVE"))?;
        for (to, from) in fxsave.chunks_exact_mut(4).zip(xsave.region) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        let mut msrs = kernel_gs_base(0)?;
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
            let msrs = kernel_gs_base(registers.kernel_gs_base)?;
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

    /// Run it under `control` once, for a probe: whether it stopped by that.
    pub(super) fn stops_under(&mut self, control: &Control) -> Result<Stopped, KvmError> {
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

/// What ended a run of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// KVM_EXIT_DEBUG.
    Debug,
    /// An instruction that KVM does not know.
    Failure,
    /// Whatever comes when debugging does not work.
    Otherwise,
}

fn kernel_gs_base(data: u64) -> Result<Msrs, KvmError> {
    let entry = kvm_msr_entry {
        index: MSR_KERNEL_GS_BASE,
        data,
        ..Default::default()
    };
    // Only memory can be lacking.
    Msrs::from_entries(&[entry]).map_err(|_| KvmError::Ioctl {
        ioctl: "a list of one MSR",
        error: kvm_ioctls::Error::new(libc::ENOMEM),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(kind: PointKind, len: u64) -> Option<Point> {
        let address = 0x1000;
        Some(Point { address, len, kind })
    }

    #[test]
    fn nothing_to_stop_at_is_no_debugging() {
        assert_eq!(Control::default().ioctl().control, 0);
    }

    #[test]
    fn dr7_has_each_points_condition_in_its_place() {
        let mut control = Control::default();
        control.points[0] = point(PointKind::Execute, 1);
        control.points[2] = point(PointKind::Write, 8);
        control.points[3] = point(PointKind::Access, 4);
        let debug = control.ioctl();
        assert_eq!(debug.control, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP);
        assert_eq!(debug.arch.debugreg[7], 0xf900_07a2, "SDM 3B, figure 18-1");
        assert_eq!(debug.arch.debugreg[..4], [0x1000, 0, 0x1000, 0x1000]);
    }

    #[test]
    fn a_stop_is_told_by_the_exception_and_dr6() {
        let mut control = Control::default();
        control.points[1] = point(PointKind::Write, 8);
        let cause = |control: &Control, exception, dr6| {
            let exit = kvm_debug_exit_arch {
                exception,
                dr6,
                pc: 0x1000,
                ..Default::default()
            };
            control.stop(&exit).cause
        };
        assert_eq!(cause(&control, 3, 0), Cause::Trap);
        assert_eq!(cause(&control, 1, 0xffff_0ff2), Cause::Point(1));
        let guests = 0xffff_4ff1;
        assert_eq!(cause(&control, 1, guests), Cause::Debug { dr6: guests });
        control.step = true;
        assert_eq!(cause(&control, 1, guests), Cause::Step);
    }
}
