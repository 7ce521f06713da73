//! The meaning of gdb's packets: the traits of gdbstub over a [`Guest`].

use gdbstub::common::{Signal, Tid};
use gdbstub::outputln;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{
    SingleRegisterAccess, SingleRegisterAccessOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps,
    SwBreakpoint, SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};

use super::arch::{self, Register, Values, X86_64};
use super::guest::{Guest, ResumeAction};
use super::points::Refusal;
use crate::kvm::KvmError;
use crate::kvm::debug::{PointKind, Registers, Trap};

/// EFAULT, for which gdb reports memory that cannot be accessed.
const FAULT: u8 = 14;

/// The machine, and how it is to continue according to the packets so far.
pub struct Session {
    /// The machine, while it is stopped.
    pub guest: Guest,
    actions: Vec<Option<ResumeAction>>,
    /// Whether vCPUs without an action stay stopped.
    locked: bool,
    /// Whether the machine has continued since gdb connected.
    pub resumed: bool,
}

impl Session {
    /// A session over a stopped machine.
    pub fn new(guest: Guest) -> Self {
        Self {
            actions: vec![None; guest.count()],
            locked: false,
            resumed: false,
            guest,
        }
    }

    fn set(&mut self, tid: Tid, action: ResumeAction) {
        if let Some(slot) = self.actions.get_mut(index(tid)) {
            *slot = Some(action);
        }
    }

    fn registers(&self, tid: Tid) -> TargetResult<Registers, Self> {
        let vcpu = self.guest.vcpu(index(tid));
        let mut vcpu = vcpu.ok_or(TargetError::NonFatal)?;
        vcpu.all_registers().map_err(|_| TargetError::NonFatal)
    }

    fn set_registers(
        &mut self,
        tid: Tid,
        before: &Registers,
        registers: &Registers,
    ) -> TargetResult<(), Self> {
        let vcpu = self.guest.vcpu(index(tid));
        let mut vcpu = vcpu.ok_or(TargetError::NonFatal)?;
        let set = vcpu.set_registers(before, registers);
        set.map_err(|_| TargetError::NonFatal)
    }
}

/// gdb's thread of a vCPU: threads count from 1.
pub fn tid(index: usize) -> Tid {
    Tid::MIN.saturating_add(index)
}

fn index(tid: Tid) -> usize {
    tid.get() - 1
}

fn refused(refusal: Refusal) -> TargetError<KvmError> {
    match refusal {
        Refusal::NotRam => TargetError::Errno(FAULT),
        Refusal::Overlap | Refusal::Full => TargetError::NonFatal,
    }
}

impl Target for Session {
    type Arch = X86_64;
    type Error = KvmError;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64, KvmError> {
        BaseOps::MultiThread(self)
    }

    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Session {
    fn read_registers(&mut self, regs: &mut Values, tid: Tid) -> TargetResult<(), Self> {
        *regs = Values::of(&self.registers(tid)?);
        Ok(())
    }

    fn write_registers(&mut self, regs: &Values, tid: Tid) -> TargetResult<(), Self> {
        let before = self.registers(tid)?;
        let mut registers = before.clone();
        regs.apply(&mut registers);
        self.set_registers(tid, &before, &registers)
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        match self.guest.read(index(tid), start, data) {
            0 if !data.is_empty() => Err(TargetError::Errno(FAULT)),
            read => Ok(read),
        }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let written = self.guest.write(index(tid), start, data);
        written.map_err(refused)
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), KvmError> {
        (0..self.guest.count()).map(tid).for_each(active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Session {
    fn read_register(
        &mut self,
        tid: Tid,
        register: Register,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let bytes = arch::read(&self.registers(tid)?, register);
        let size = arch::bytes_of(register).min(buffer.len());
        buffer
            .iter_mut()
            .zip(bytes)
            .take(size)
            .for_each(|(to, byte)| *to = byte);
        Ok(size)
    }

    fn write_register(
        &mut self,
        tid: Tid,
        register: Register,
        value: &[u8],
    ) -> TargetResult<(), Self> {
        let before = self.registers(tid)?;
        let mut registers = before.clone();
        arch::write(&mut registers, register, value).map_err(|()| TargetError::NonFatal)?;
        self.set_registers(tid, &before, &registers)
    }
}

impl ThreadExtraInfo for Session {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, KvmError> {
        let name = format!("vCPU {}", index(tid));
        let size = name.len().min(buffer.len());
        buffer
            .iter_mut()
            .zip(name.bytes())
            .for_each(|(to, byte)| *to = byte);
        Ok(size)
    }
}

impl MultiThreadResume for Session {
    fn resume(&mut self) -> Result<(), KvmError> {
        let rest = if self.locked {
            ResumeAction::Stay
        } else {
            ResumeAction::Continue
        };
        let actions = self.actions.iter().map(|action| action.unwrap_or(rest));
        let actions: Vec<ResumeAction> = actions.collect();
        self.resumed = true;
        self.guest.resume(&actions)
    }

    fn clear_resume_actions(&mut self) -> Result<(), KvmError> {
        self.actions.fill(None);
        self.locked = false;
        Ok(())
    }

    // A processor has no signals: gdb's are ignored.
    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), KvmError> {
        self.set(tid, ResumeAction::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Session {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), KvmError> {
        self.set(tid, ResumeAction::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Session {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), KvmError> {
        self.locked = true;
        Ok(())
    }
}

impl Breakpoints for Session {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        self.guest.powers().execute.then_some(self as _)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        self.guest.powers().watch.then_some(self as _)
    }
}

impl SwBreakpoint for Session {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.guest.plant(address).map_err(refused)?;
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.guest.pull(address))
    }
}

impl HwBreakpoint for Session {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let armed = self.guest.arm(address, 1, PointKind::Execute);
        armed.map_err(refused)?;
        Ok(true)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.guest.disarm(address, 1, PointKind::Execute))
    }
}

/// The processor cannot watch only reads; gdb itself ignores the stops of writes that changed the
/// value.
fn kind(kind: WatchKind) -> PointKind {
    match kind {
        WatchKind::Write => PointKind::Write,
        WatchKind::Read | WatchKind::ReadWrite => PointKind::Access,
    }
}

impl HwWatchpoint for Session {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        watched: WatchKind,
    ) -> TargetResult<bool, Self> {
        let armed = self.guest.arm(address, len, kind(watched));
        armed.map_err(refused)?;
        Ok(true)
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        watched: WatchKind,
    ) -> TargetResult<bool, Self> {
        Ok(self.guest.disarm(address, len, kind(watched)))
    }
}

impl MonitorCmd for Session {
    fn handle_monitor_cmd(
        &mut self,
        command: &[u8],
        mut out: ConsoleOutput<'_>,
    ) -> Result<(), KvmError> {
        match command {
            b"kvm" => {
                let powers = self.guest.powers();
                let has = |power| if power { "yes" } else { "no" };
                let trap = match powers.trap {
                    Trap::Exit => "everywhere",
                    Trap::Failure | Trap::Port => "in kernel code alone",
                };
                outputln!(out, "software breakpoints: {trap}");
                outputln!(out, "hardware breakpoints: {}", has(powers.execute));
                outputln!(out, "watchpoints: {}", has(powers.watch));
            }
            b"quit" => {
                outputln!(out, "the machine ends");
                self.guest.machine().kill();
            }
            _ => {
                outputln!(out, "monitor kvm   what this KVM can do for gdb");
                outputln!(out, "monitor quit  end the machine");
            }
        }
        Ok(())
    }
}
