//! From a KVM exit to a [`Cpu`] and back.
//!
//! Call [`finish`] after KVM_EXIT_INTERNAL_ERROR and [`bulk_port`] after a byte written to
//! [`bulk::PORT`]; both read the registers they need, change them and inject what is to be
//! injected, so that the next KVM_RUN continues the guest. KVM_CAP_EXIT_ON_EMULATION_FAILURE has to be
//! enabled on the VM ([`enable`]), else KVM hides failures at CPL 3 behind a #UD.

use kvm_bindings::{
    KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, kvm_enable_cap, kvm_regs, kvm_sregs,
    kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};

use super::area::{AREA_SIZE, Area};
use super::cpu::{Cpu, Exception, Stop};
use super::{Counts, Outcome, Unsupported, assist, bulk};
use crate::kvm::msrs;
use crate::memory::GuestMemory;

/// Why the guest cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An instruction that cannot be finished.
    #[error(transparent)]
    Instruction(#[from] Unsupported),
    /// The exit is not about an instruction.
    #[error("KVM stopped the guest with an internal error (suberror {suberror}, data {data:x?})")]
    NotEmulation {
        /// One of KVM_INTERNAL_ERROR_*.
        suberror: u32,
        /// KVM's data about the error.
        data: Vec<u64>,
    },
    /// An ioctl on the vCPU failed.
    #[error("{call} failed while finishing an instruction for KVM")]
    Kvm {
        /// Name of the ioctl.
        call: &'static str,
        /// The error it returned.
        source: kvm_ioctls::Error,
    },
}

/// Asks KVM to report the instructions it cannot emulate; an error means it cannot report them.
pub fn enable(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let mut capability = kvm_enable_cap {
        cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
        ..Default::default()
    };
    capability.args[0] = 1;
    vm.enable_cap(&capability)
}

/// Finishes the instruction of the exit KVM_EXIT_INTERNAL_ERROR that just happened; its name.
pub fn finish(
    fd: &mut VcpuFd,
    memory: &GuestMemory,
    counts: &mut Counts,
) -> Result<&'static str, Error> {
    let bytes = failed_bytes(fd)?;
    let mut vcpu = Vcpu::load(fd, memory)?;
    let outcome = assist(bytes.known(), &mut vcpu);
    if let Outcome::Fault(
        _,
        Exception {
            cr2: Some(address), ..
        },
    ) = outcome
    {
        vcpu.sregs.cr2 = address;
    }
    // KVM_SET_REGS drops a pending exception: registers first, then the event.
    vcpu.store()?;
    let mnemonic = match outcome {
        Outcome::Finished(mnemonic) => mnemonic,
        Outcome::Fault(mnemonic, exception) => {
            vcpu.inject_exception(exception.vector, exception.error_code)?;
            mnemonic
        }
        Outcome::Trap(mnemonic, vector) => {
            vcpu.inject_exception(vector, None)?;
            mnemonic
        }
        Outcome::Interrupt(mnemonic, vector) => {
            vcpu.inject_interrupt(vector)?;
            mnemonic
        }
        Outcome::Unsupported(unsupported) => return Err(unsupported.into()),
    };
    Ok(counts.add(mnemonic).unwrap_or("fault"))
}

/// Whether the exit KVM_EXIT_INTERNAL_ERROR that just happened is of an instruction that begins
/// with these bytes.
pub fn failed_at(fd: &mut VcpuFd, bytes: &[u8]) -> bool {
    failed_bytes(fd).is_ok_and(|failed| failed.known().starts_with(bytes))
}

/// Does what the guest asked for at the bulk-memory port.
pub fn bulk_port(fd: &mut VcpuFd, memory: &GuestMemory, counts: &mut Counts) -> Result<(), Error> {
    let mut vcpu = Vcpu::load(fd, memory)?;
    counts.bulk_requests += 1;
    counts.bulk_bytes += bulk::bulk(&mut vcpu);
    vcpu.store()
}

/// The bytes KVM fetched of the instruction.
struct Failed {
    bytes: [u8; 15],
    len: usize,
}

impl Failed {
    fn known(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

fn failed_bytes(fd: &mut VcpuFd) -> Result<Failed, Error> {
    let run = fd.get_kvm_run();
    // SAFETY: all members of the union are plain integers, valid for any bits; that the exit
    // is an internal error only decides what they mean.
    let (failure, internal) = unsafe {
        (
            run.__bindgen_anon_1.emulation_failure,
            run.__bindgen_anon_1.internal,
        )
    };
    if failure.suberror != KVM_INTERNAL_ERROR_EMULATION {
        let known = (internal.ndata as usize).min(internal.data.len());
        let data = internal.data.get(..known).unwrap_or_default().to_vec();
        return Err(Error::NotEmulation {
            suberror: internal.suberror,
            data,
        });
    }
    let flag = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
    if failure.ndata < 3 || failure.flags & flag == 0 {
        return Ok(Failed {
            bytes: [0; 15],
            len: 0,
        });
    }
    // SAFETY: the union has one member.
    let code = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    Ok(Failed {
        bytes: code.insn_bytes,
        len: usize::from(code.insn_size),
    })
}

/// A vCPU between two KVM_RUNs.
struct Vcpu<'a> {
    fd: &'a mut VcpuFd,
    memory: &'a GuestMemory,
    regs: kvm_regs,
    sregs: kvm_sregs,
    loaded_regs: kvm_regs,
    loaded_sregs: kvm_sregs,
}

impl<'a> Vcpu<'a> {
    fn load(fd: &'a mut VcpuFd, memory: &'a GuestMemory) -> Result<Self, Error> {
        let regs = fd.get_regs().map_err(|source| Error::Kvm {
            call: "KVM_GET_REGS",
            source,
        })?;
        let sregs = fd.get_sregs().map_err(|source| Error::Kvm {
            call: "KVM_GET_SREGS",
            source,
        })?;
        Ok(Vcpu {
            fd,
            memory,
            regs,
            sregs,
            loaded_regs: regs,
            loaded_sregs: sregs,
        })
    }

    fn store(&mut self) -> Result<(), Error> {
        if self.regs != self.loaded_regs {
            self.fd.set_regs(&self.regs).map_err(|source| Error::Kvm {
                call: "KVM_SET_REGS",
                source,
            })?;
        }
        if self.sregs != self.loaded_sregs {
            self.fd
                .set_sregs(&self.sregs)
                .map_err(|source| Error::Kvm {
                    call: "KVM_SET_SREGS",
                    source,
                })?;
        }
        Ok(())
    }

    fn inject_exception(&mut self, vector: u8, error_code: Option<u32>) -> Result<(), Error> {
        self.change_events(|events| {
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = u8::from(error_code.is_some());
            events.exception.error_code = error_code.unwrap_or(0);
        })
    }

    /// Injects the event of INT n. Its gate was checked, so it can go in as an external
    /// interrupt, which every KVM knows how to deliver; RIP is already after the instruction.
    fn inject_interrupt(&mut self, vector: u8) -> Result<(), Error> {
        self.change_events(|events| {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
            events.interrupt.soft = 0;
        })
    }

    fn change_events(
        &mut self,
        change: impl FnOnce(&mut kvm_bindings::kvm_vcpu_events),
    ) -> Result<(), Error> {
        let mut events = self.fd.get_vcpu_events().map_err(|source| Error::Kvm {
            call: "KVM_GET_VCPU_EVENTS",
            source,
        })?;
        change(&mut events);
        self.fd
            .set_vcpu_events(&events)
            .map_err(|source| Error::Kvm {
                call: "KVM_SET_VCPU_EVENTS",
                source,
            })
    }
}

fn stop(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> Stop {
    move |error| Stop::Kvm {
        call,
        errno: error.errno(),
    }
}

impl Cpu for Vcpu<'_> {
    fn regs(&self) -> &kvm_regs {
        &self.regs
    }

    fn regs_mut(&mut self) -> &mut kvm_regs {
        &mut self.regs
    }

    fn sregs(&self) -> &kvm_sregs {
        &self.sregs
    }

    fn sregs_mut(&mut self) -> &mut kvm_sregs {
        &mut self.sregs
    }

    fn memory(&self) -> &GuestMemory {
        self.memory
    }

    fn xcr0(&mut self) -> Result<u64, Stop> {
        let xcrs = self.fd.get_xcrs().map_err(stop("KVM_GET_XCRS"))?;
        Ok(xcrs
            .xcrs
            .iter()
            .find(|xcr| xcr.xcr == 0)
            .map_or(1, |xcr| xcr.value))
    }

    fn set_xcr0(&mut self, value: u64) -> Result<bool, Stop> {
        let mut xcrs = self.fd.get_xcrs().map_err(stop("KVM_GET_XCRS"))?;
        xcrs.nr_xcrs = 1;
        xcrs.xcrs[0].xcr = 0;
        xcrs.xcrs[0].value = value;
        match self.fd.set_xcrs(&xcrs) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == rustix::io::Errno::INVAL.raw_os_error() => Ok(false),
            Err(error) => Err(stop("KVM_SET_XCRS")(error)),
        }
    }

    fn xstate(&mut self) -> Result<Area, Stop> {
        let xsave = self.fd.get_xsave().map_err(stop("KVM_GET_XSAVE"))?;
        let mut area = Area(Box::new([0; AREA_SIZE]));
        for (to, from) in area.0.chunks_exact_mut(4).zip(xsave.region) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        Ok(area)
    }

    fn set_xstate(&mut self, area: &Area) -> Result<(), Stop> {
        let mut xsave = kvm_xsave::default();
        for (to, from) in xsave.region.iter_mut().zip(area.0.chunks_exact(4)) {
            *to = from
                .iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        // SAFETY: KVM reads more than these 4096 bytes only for state that a process has to ask
        // for (arch_prctl ARCH_REQ_XCOMP_GUEST_PERM), which hull does not.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(stop("KVM_SET_XSAVE"))
    }

    fn msr(&mut self, index: u32) -> Result<u64, Stop> {
        let mut msrs = msrs::one(index, 0)
            .map_err(|_| Stop::Unsupported("no memory for a list of one MSR"))?;
        match self.fd.get_msrs(&mut msrs).map_err(stop("KVM_GET_MSRS"))? {
            1 => Ok(msrs.as_slice().first().map_or(0, |entry| entry.data)),
            // The guest cannot have set a register that KVM does not know.
            _ => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests;
