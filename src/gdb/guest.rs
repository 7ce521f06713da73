//! A machine that is stopped for gdb: its registers, its memory by linear address, its breakpoints,
//! and how it continues.

use std::sync::MutexGuard;

use vm_memory::{Bytes, GuestAddress};

use super::points::{Points, Refusal, pieces};
use crate::boot::tables;
use crate::kvm::KvmError;
use crate::kvm::debug::{Cause, Control, Point, PointKind, Powers, Stop};
use crate::kvm::vcpu::Vcpu;
use crate::kvm::walk::{CR0_PG, LOOK, Paging};
use crate::vmm::debugger::Debugged;
use crate::vmm::vcpus::{Pause, Stopped};

/// What a vCPU does when the machine continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResumeAction {
    /// Run until a stop.
    Continue,
    /// Run one instruction, then stop.
    Step,
    /// Stay stopped while other vCPUs run.
    Stay,
}

/// The machine of a gdb session.
pub struct Guest {
    machine: Debugged,
    powers: Powers,
    points: Points,
    /// Holds all vCPUs while the machine is stopped.
    pause: Option<Pause>,
    /// Hold the vCPUs that stay stopped while others run.
    held: Vec<Pause>,
    /// The vCPU that gdb means when it names none.
    pub focus: usize,
    /// Stops not reported yet that do not repeat when the vCPU runs again.
    unreported: Vec<(usize, Stop)>,
}

impl Guest {
    /// Stop all vCPUs of `machine` for a session.
    pub fn stop(machine: Debugged, powers: Powers) -> Self {
        let mut guest = Self {
            powers,
            points: Points::default(),
            pause: None,
            held: Vec::new(),
            focus: 0,
            unreported: Vec::new(),
            machine,
        };
        guest.halt();
        guest
    }

    /// What this KVM can do.
    pub fn powers(&self) -> Powers {
        self.powers
    }

    /// The machine as a debugger sees it.
    pub fn machine(&self) -> &Debugged {
        &self.machine
    }

    /// The number of vCPUs.
    pub fn count(&self) -> usize {
        self.machine.vcpus.count()
    }

    /// Stop all vCPUs and complete their instructions.
    pub fn halt(&mut self) {
        let pause = self.machine.vcpus.pause();
        self.rest(pause);
    }

    /// Stay stopped by `pause`, and complete the instructions under way.
    fn rest(&mut self, pause: Pause) {
        for index in 0..self.count() {
            if let Some(mut vcpu) = pause.vcpu(index) {
                vcpu.complete();
            }
        }
        self.pause = Some(pause);
        self.held.clear();
    }

    /// A vCPU stopped: returns the stop if it is to be reported. If not, the exception was the guest's
    /// own and is injected, and the vCPU continues when `stopped` is dropped.
    pub fn stopped(&mut self, stopped: Stopped) -> Result<Option<(usize, Stop)>, KvmError> {
        let Stopped { index, stop, pause } = stopped;
        if !self.is_ours(index, &stop) {
            if let Some(mut vcpu) = pause.vcpu(index) {
                vcpu.reinject(&stop)?;
            }
            return Ok(None);
        }
        self.rest(pause);
        self.focus = index;
        Ok(Some((index, stop)))
    }

    /// Another vCPU stopped before the machine did: a breakpoint repeats, a watchpoint does not.
    pub fn also_stopped(&mut self, stopped: &Stopped) -> Result<(), KvmError> {
        let (index, stop) = (stopped.index, stopped.stop);
        if !self.is_ours(index, &stop) {
            if let Some(mut vcpu) = stopped.pause.vcpu(index) {
                vcpu.reinject(&stop)?;
            }
        } else if self.watched(&stop).is_some() {
            self.unreported.push((index, stop));
        }
        Ok(())
    }

    fn is_ours(&self, index: usize, stop: &Stop) -> bool {
        match stop.cause {
            Cause::Trap => {
                let gpa = self.translate(index, stop.pc);
                gpa.is_some_and(|(gpa, _)| self.points.is_trap(gpa))
            }
            Cause::Step | Cause::Point(_) => true,
            Cause::Debug { .. } => false,
        }
    }

    /// The watchpoint that caused `stop`, if one did.
    pub fn watched(&self, stop: &Stop) -> Option<Point> {
        let Cause::Point(index) = stop.cause else {
            return None;
        };
        let point = self.points.registers().get(index).copied().flatten()?;
        (point.kind != PointKind::Execute).then_some(point)
    }

    /// A stop to report before the machine continues.
    pub fn unreported(&mut self) -> Option<(usize, Stop)> {
        let stop = self.unreported.pop()?;
        self.focus = stop.0;
        Some(stop)
    }

    /// Continue; `actions` has one for each vCPU.
    pub fn resume(&mut self, actions: &[ResumeAction]) -> Result<(), KvmError> {
        let Some(pause) = self.pause.take() else {
            return Ok(());
        };
        for (index, action) in actions.iter().enumerate() {
            let control = Control {
                trap: Some(self.powers.trap),
                points: self.points.registers(),
                step: *action == ResumeAction::Step,
                block_interrupts: self.powers.blocks_interrupts,
            };
            if let Some(mut vcpu) = pause.vcpu(index) {
                vcpu.control(control)?;
            }
            if *action == ResumeAction::Stay {
                self.held.push(self.machine.vcpus.hold(index..index + 1));
            }
        }
        Ok(())
    }

    /// Remove all breakpoints and let the machine continue.
    pub fn release(&mut self) -> Result<(), KvmError> {
        if self.pause.is_none() {
            self.halt();
        }
        self.points.clear(&self.machine.memory);
        let mut done = Ok(());
        for index in 0..self.count() {
            if let Some(mut vcpu) = self.vcpu(index) {
                done = done.and(vcpu.control(Control::default()));
            }
        }
        self.pause = None;
        self.held.clear();
        done
    }

    /// The vCPU `index`, while the machine is stopped.
    pub fn vcpu(&self, index: usize) -> Option<MutexGuard<'_, Vcpu>> {
        self.pause.as_ref()?.vcpu(index)
    }

    /// The guest-physical address of `linear` for vCPU `index`, and the bytes to the page's end.
    fn translate(&self, index: usize, linear: u64) -> Option<(u64, u64)> {
        let special = self.machine.vcpus.vcpu(index)?.special().ok()?;
        // hull's boot tables map only the first 4 GiB; the kernel's symbols are linked higher.
        let before_the_kernel = special.cr0 & CR0_PG == 0 || special.cr3 == tables::CR3;
        if before_the_kernel
            && let Some(kernel) = &self.machine.kernel
            && kernel.linear.contains(&linear)
        {
            let offset = linear - kernel.linear.start;
            let run = 0x1000 - (linear & 0xfff);
            return Some((kernel.gpa + offset, run));
        }
        let paging = Paging::new(&special);
        let found = paging.translate(&self.machine.memory, linear, LOOK).ok()?;
        Some((found.gpa, found.run))
    }

    /// Read `data` from `address` on, as far as RAM is mapped there. Returns how many bytes.
    pub fn read(&self, index: usize, address: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = address.wrapping_add(done as u64);
            let Some((gpa, run)) = self.translate(index, at) else {
                break;
            };
            let len = rest.len().min(usize::try_from(run).unwrap_or(usize::MAX));
            let (part, _) = rest.split_at_mut(len);
            let memory = &self.machine.memory;
            if memory.read_slice(part, GuestAddress(gpa)).is_err() {
                break;
            }
            self.points.hide(gpa, part);
            done += len;
        }
        done
    }

    /// Write `data` to `address`, even to pages that are read-only for the guest.
    pub fn write(&mut self, index: usize, address: u64, data: &[u8]) -> Result<(), Refusal> {
        // All pieces are checked before the first is written.
        let mut pieces = Vec::new();
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let at = address.wrapping_add(done as u64);
            let (gpa, run) = self.translate(index, at).ok_or(Refusal::NotRam)?;
            let len = rest.len().min(usize::try_from(run).unwrap_or(usize::MAX));
            let part = rest.get(..len).unwrap_or_default();
            let there: Result<u8, _> = self.machine.memory.read_obj(GuestAddress(gpa));
            there.map_err(|_| Refusal::NotRam)?;
            pieces.push((gpa, part));
            done += len;
        }
        for (gpa, part) in pieces {
            self.points.write(&self.machine.memory, gpa, part)?;
        }
        Ok(())
    }

    /// Set a software breakpoint.
    pub fn plant(&mut self, address: u64) -> Result<(), Refusal> {
        let instruction = self.powers.trap.bytes();
        let others = (0..self.count()).filter(|index| *index != self.focus);
        let gpas = |index: usize| {
            let addresses = (0..instruction.len() as u64).map(|at| address.wrapping_add(at));
            addresses
                .map(|at| self.translate(index, at).map(|(gpa, _)| gpa))
                .collect::<Option<Vec<u64>>>()
        };
        let mut found = std::iter::once(self.focus).chain(others);
        let gpas = found.find_map(gpas).ok_or(Refusal::NotRam)?;
        let memory = &self.machine.memory;
        self.points.plant(memory, address, &gpas, instruction)
    }

    /// Remove a software breakpoint. Returns whether there was one.
    pub fn pull(&mut self, address: u64) -> bool {
        self.points.pull(&self.machine.memory, address)
    }

    /// Set debug registers for `len` bytes from `address` on.
    pub fn arm(&mut self, address: u64, len: u64, kind: PointKind) -> Result<(), Refusal> {
        self.points.arm(&points(address, len, kind)?)
    }

    /// Free the debug registers for `len` bytes from `address` on. Returns whether there were any.
    pub fn disarm(&mut self, address: u64, len: u64, kind: PointKind) -> bool {
        points(address, len, kind).is_ok_and(|points| self.points.disarm(&points))
    }
}

fn points(address: u64, len: u64, kind: PointKind) -> Result<Vec<Point>, Refusal> {
    if kind == PointKind::Execute {
        let len = 1;
        return Ok(vec![Point { address, len, kind }]);
    }
    let pieces = pieces(address, len).ok_or(Refusal::Full)?;
    let point = |(address, len)| Point { address, len, kind };
    Ok(pieces.into_iter().map(point).collect())
}
