//! What stops a vCPU for a debugger, why it stopped, and the registers that a debugger shows.
//! [`super::vcpu::Vcpu`] applies it.
//!
//! Sources: Documentation/virt/kvm/api.rst, "KVM_SET_GUEST_DEBUG"; Intel SDM 3B, 18.2 (the debug
//! registers); Intel SDM 1, 10.5.1 (the FXSAVE area).

use kvm_bindings::*;

/// The port of [`Trap::Port`], at which there is no device.
pub const TRAP_PORT: u16 = 0xb9;
/// Debug registers that hold an address.
pub const POINTS: usize = 4;
/// Size of the FXSAVE area in bytes.
pub const FXSAVE: usize = 512;

/// The vector of #BP, an INT3.
pub const BREAKPOINT_VECTOR: u32 = 3;
/// DR6.BS: the cause is a single step.
const DR6_BS: u64 = 1 << 14;
/// DR7.LE and GE, which old processors need for exact watchpoints, and bit 10, which is always 1.
const DR7_FIXED: u64 = 0x700;

/// The instruction of a software breakpoint, which depends on how KVM handles it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// INT3, which causes KVM_EXIT_DEBUG: on every processor.
    Exit,
    /// INT3, which the emulator of a software KVM does not know and reports. Only at CPL 0: code at
    /// CPL 3 runs on the processor, and the guest gets the exception.
    Failure,
    /// OUT to a port, which exits at CPL 0 everywhere: for hosts where INT3 always goes to the guest,
    /// as where QEMU emulates SVM itself.
    Port,
}

impl Trap {
    /// The machine code of the instruction.
    pub fn bytes(self) -> &'static [u8] {
        match self {
            Self::Exit | Self::Failure => &[0xcc],
            // out TRAP_PORT, al
            Self::Port => &[0xe6, TRAP_PORT as u8],
        }
    }
}

/// The debugging features of this host's KVM (`probe::debugging`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Powers {
    /// The instruction of software breakpoints.
    pub trap: Trap,
    /// Whether the debug registers stop the guest before an instruction.
    pub execute: bool,
    /// Whether the debug registers stop the guest at an access to memory.
    pub watch: bool,
    /// Whether a single step can be kept from entering an interrupt handler.
    pub blocks_interrupts: bool,
}

/// The access for which a debug register stops the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointKind {
    /// The instruction at the address is about to run.
    Execute,
    /// A write to the address.
    Write,
    /// A read of the address or a write to it.
    Access,
}

/// A debug register in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Linear address, a multiple of `len`.
    pub address: u64,
    /// Length in bytes: 1, 2, 4 or 8.
    pub len: u64,
    /// The access that stops the vCPU.
    pub kind: PointKind,
}

impl Point {
    /// Its fields R/W and LEN in DR7.
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

/// The conditions under which a vCPU stops for a debugger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// The instruction of software breakpoints, if there are any.
    pub trap: Option<Trap>,
    /// The contents of the debug registers.
    pub points: [Option<Point>; POINTS],
    /// Stop after each instruction.
    pub step: bool,
    /// Deliver no interrupt during a step.
    pub block_interrupts: bool,
}

/// The reason why a vCPU stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The instruction of a software breakpoint, the debugger's or the guest's own.
    Trap,
    /// A single step is complete.
    Step,
    /// The debug register with this number.
    Point(usize),
    /// A debug exception (#DB) that is the guest's own.
    Debug {
        /// DR6 at the exit.
        dr6: u64,
    },
}

/// A vCPU's stop. RIP is at the instruction of [`Cause::Trap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The reason for the stop.
    pub cause: Cause,
    /// Linear address of the instruction.
    pub pc: u64,
}

impl Control {
    /// The stop that a KVM_EXIT_DEBUG reports.
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

    /// The argument of KVM_SET_GUEST_DEBUG.
    pub(super) fn ioctl(&self) -> kvm_guest_debug {
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
    /// General registers, RAX to RFLAGS.
    pub general: kvm_regs,
    /// Segment, table and control registers.
    pub special: kvm_sregs,
    /// x87 and SSE as FXSAVE writes them (Intel SDM 1, table 10-2).
    pub fxsave: [u8; FXSAVE],
    /// IA32_KERNEL_GS_BASE, which SWAPGS exchanges with the base of GS.
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

/// The end of a probe's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// KVM_EXIT_DEBUG, as asked for.
    Debug,
    /// KVM reported an instruction that it cannot emulate.
    Failure,
    /// Any other exit: debugging does not work.
    Otherwise,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(kind: PointKind, len: u64) -> Option<Point> {
        let address = 0x1000;
        Some(Point { address, len, kind })
    }

    #[test]
    fn debugging_is_off_without_conditions() {
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
    fn a_stop_has_the_cause_that_exception_and_dr6_show() {
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
