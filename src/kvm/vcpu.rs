//! One vCPU: KVM_RUN, and one match over its exit reasons.

mod debug;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::assist::{self, Counts};
use super::debug::{Control, Stop, TRAP_PORT, Trap};
use super::walk::Paging;
use super::{KvmError, refused, regs};
use crate::boot::Entry;
use crate::memory::GuestMemory;
use crate::sync::lock;

/// The port by which hull's own kernel has memory copied or filled (`assist::bulk`).
const BULK_PORT: u16 = 0xb8;

/// Handles the guest's port and MMIO accesses.
///
/// Called on the vCPU's thread between two KVM_RUNs. For a read, `data` comes filled with ones, the
/// value that a bus without a device returns.
pub trait Accesses {
    /// The guest executed IN from `port`.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// The guest executed OUT to `port`.
    fn port_write(&self, port: u16, data: &[u8]);
    /// A load from `gpa`, where no RAM is.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]);
    /// A store to `gpa`, where no RAM is.
    fn mmio_write(&self, gpa: u64, data: &[u8]);
    /// KVM_RUN is about to be called.
    fn entering(&self) {}
    /// KVM_RUN has returned; the call that handles the exit follows.
    fn left(&self) {}
    /// The exit was caused by this instruction, which hull has emulated.
    fn finished(&self, _instruction: &'static str) {}
    /// The exit was a request by the bulk-memory port (`assist::bulk`); hull handles it.
    fn bulk(&self) {}
}

/// The outcome of one [`Vcpu::run`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The exit was handled: run the vCPU again.
    Handled,
    /// A signal or KVM_SET_IMMEDIATE_EXIT interrupted it.
    Interrupted,
    /// The guest shut down: a triple fault.
    Shutdown,
    /// It stopped for a reason set by [`Vcpu::control`].
    Debug(Stop),
    /// KVM cannot run the vCPU any further; the reason as text.
    Failed(String),
}

/// A virtual CPU and its descriptor of KVM.
pub struct Vcpu {
    fd: VcpuFd,
    memory: GuestMemory,
    assisted: Counts,
    kicker: Kicker,
    /// The debugger's settings in force.
    pub(super) control: Control,
}

/// Interrupts a vCPU's KVM_RUN, from any thread.
///
/// `immediate_exit` closes the gap between the vCPU's check of a flag and its next KVM_RUN
/// (Documentation/virt/kvm/api.rst, "immediate_exit"); the signal ends a KVM_RUN under way.
#[derive(Clone)]
pub struct Kicker(Arc<Mutex<Option<ImmediateExit>>>);

/// The `immediate_exit` byte in a vCPU's shared page.
struct ImmediateExit(NonNull<u8>);

// SAFETY: the byte is only reached through an AtomicU8, and `Vcpu::drop` takes the pointer away
// under the mutex before the page is unmapped.
unsafe impl Send for ImmediateExit {}

impl Kicker {
    /// Install a handler that does nothing for the signal of a kick. Once, before any vCPU runs.
    pub fn prepare() -> Result<(), KvmError> {
        extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), nothing).map_err(|error| KvmError::Signal(error.into()))
    }

    /// Make the vCPU, which runs on `thread`, return [`Exit::Interrupted`] once.
    pub fn kick<T>(&self, thread: &JoinHandle<T>) {
        let byte = lock(&self.0);
        if let Some(ImmediateExit(byte)) = *byte {
            // SAFETY: the page is mapped as long as the pointer is here, and only the kernel reads
            // this byte.
            unsafe { AtomicU8::from_ptr(byte.as_ptr()) }.store(1, Ordering::Release);
            // A thread that has ended needs no signal, nor does the caller: it is not in KVM_RUN.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.kill(SIGRTMIN());
            }
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        *lock(&self.kicker.0) = None;
    }
}

impl Vcpu {
    pub(crate) fn new(mut fd: VcpuFd, memory: GuestMemory) -> Self {
        let byte = NonNull::from(&mut fd.get_kvm_run().immediate_exit);
        Self {
            fd,
            memory,
            assisted: Counts::default(),
            control: Control::default(),
            kicker: Kicker(Arc::new(Mutex::new(Some(ImmediateExit(byte))))),
        }
    }

    /// A [`Kicker`] of this vCPU.
    pub fn kicker(&self) -> Kicker {
        self.kicker.clone()
    }

    /// KVM's descriptor, to run the vCPU without [`Vcpu::run`].
    pub(super) fn fd(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }

    /// Counts of the instructions that hull has emulated so far.
    pub fn assisted(&self) -> &Counts {
        &self.assisted
    }

    /// Set the registers for the kernel's entry.
    pub fn enter_at(&self, entry: &Entry) -> Result<(), KvmError> {
        regs::set(&self.fd, entry)
    }

    /// The memory of the guest that it belongs to.
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// General and system registers; `None` if KVM refuses.
    pub(super) fn regs_and_sregs(&self) -> Option<(kvm_regs, kvm_sregs)> {
        self.fd.get_regs().ok().zip(self.fd.get_sregs().ok())
    }

    /// Tell a guest that uses kvm-clock that it was paused, so that its watchdogs do not take the
    /// pause for a lockup (api.rst, KVM_KVMCLOCK_CTRL).
    pub fn tell_of_pause(&self) {
        // Fails if the guest does not use that clock; then there is nothing to do.
        let _ = self.fd.kvmclock_ctrl();
    }

    /// RIP, for messages; `None` if KVM refuses.
    pub fn rip(&self) -> Option<u64> {
        self.fd.get_regs().ok().map(|regs| regs.rip)
    }

    /// What a profile needs: registers, whether it is at CPL 3, the paging, and up to `max` bytes of
    /// the kernel's stack. `None` if KVM refuses.
    pub fn sample(&self, max: usize) -> Option<(kvm_regs, bool, Paging, Vec<u8>)> {
        let regs = self.fd.get_regs().ok()?;
        let sregs = self.fd.get_sregs().ok()?;
        let paging = Paging::new(&sregs);
        let user = sregs.ss.dpl == 3;
        let mut stack = Vec::new();
        if !user {
            stack.resize(max, 0);
            let there = paging.look(&self.memory, regs.rsp, &mut stack);
            stack.truncate(there);
        }
        Some((regs, user, paging, stack))
    }

    /// Run it until the next exit, and handle that.
    pub fn run(&mut self, accesses: &impl Accesses) -> Result<Exit, KvmError> {
        accesses.entering();
        let ran = self.fd.run();
        accesses.left();
        let exit = match ran {
            Ok(exit) => exit,
            // EINTR and EAGAIN: a kick, or a vCPU that waits for INIT.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                // The kicker has set a flag before, which the caller checks before the next KVM_RUN.
                self.fd.set_kvm_immediate_exit(0);
                return Ok(Exit::Interrupted);
            }
            Err(error) => return Err(refused("KVM_RUN")(error)),
        };
        match exit {
            VcpuExit::IoOut(BULK_PORT, _) => {
                accesses.bulk();
                return Ok(self.bulk());
            }
            VcpuExit::IoOut(TRAP_PORT, _) if self.control.trap == Some(Trap::Port) => {
                return self.stopped_by_port();
            }
            VcpuExit::IoOut(port, data) => accesses.port_write(port, data),
            VcpuExit::IoIn(port, data) => {
                data.fill(0xff);
                accesses.port_read(port, data);
            }
            VcpuExit::MmioRead(gpa, data) => {
                data.fill(0xff);
                accesses.mmio_read(gpa, data);
            }
            VcpuExit::MmioWrite(gpa, data) => accesses.mmio_write(gpa, data),
            VcpuExit::Intr => return Ok(Exit::Interrupted),
            VcpuExit::Shutdown => return Ok(Exit::Shutdown),
            // With in-kernel interrupt controllers, KVM waits for the next interrupt itself.
            VcpuExit::Hlt => {
                return Ok(Exit::Failed(
                    "HLT waits for an interrupt, and this machine has no interrupt controller to \
                     send one"
                        .into(),
                ));
            }
            VcpuExit::FailEntry(reason, _) => {
                return Ok(Exit::Failed(format!(
                    "the CPU refused to enter the guest ({reason:#x})"
                )));
            }
            VcpuExit::Debug(exit) => return Ok(Exit::Debug(self.control.stop(&exit))),
            VcpuExit::InternalError => return self.failed(accesses),
            other => return Ok(Exit::Failed(format!("unexpected exit {other:?}"))),
        }
        Ok(Exit::Handled)
    }

    /// KVM cannot emulate the instruction: a breakpoint, or one that hull emulates.
    fn failed(&mut self, accesses: &impl Accesses) -> Result<Exit, KvmError> {
        if self.control.trap == Some(Trap::Failure)
            && assist::vcpu::failed_at(&mut self.fd, Trap::Failure.bytes())
        {
            return self.stopped_by_trap();
        }
        Ok(self.finish(|instruction| accesses.finished(instruction)))
    }

    /// Emulate the instruction at RIP, and pass its name to `told`.
    pub(super) fn finish(&mut self, told: impl FnOnce(&'static str)) -> Exit {
        let finished = assist::vcpu::finish(&mut self.fd, &self.memory, &mut self.assisted);
        handled(finished.map(told))
    }

    fn bulk(&mut self) -> Exit {
        handled(assist::vcpu::bulk_port(
            &mut self.fd,
            &self.memory,
            &mut self.assisted,
        ))
    }
}

fn handled(result: Result<(), assist::vcpu::Error>) -> Exit {
    match result {
        Ok(()) => Exit::Handled,
        Err(error) => Exit::Failed(error.to_string()),
    }
}
