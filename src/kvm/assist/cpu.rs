//! The machine as an instruction sees it: registers, and memory by linear address.
//!
//! [`Cpu`] is the interface to a vCPU; the functions on `dyn Cpu` implement operands, modes and
//! checked memory accesses with it. This module does not use KVM's ioctls, so every instruction is
//! tested on a plain struct.

use iced_x86::Register;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::area::Area;
use crate::kvm::walk::{Access, CR0_PE, EFER_LMA, Fault, Kind, Paging};
use crate::memory::GuestMemory;

/// RFLAGS.CF: carry.
pub const CF: u64 = 1;
/// RFLAGS.PF: parity of the low byte.
pub const PF: u64 = 1 << 2;
/// RFLAGS.AF: carry out of bit 3.
pub const AF: u64 = 1 << 4;
/// RFLAGS.ZF: the result is zero.
pub const ZF: u64 = 1 << 6;
/// RFLAGS.SF: sign of the result.
pub const SF: u64 = 1 << 7;
/// RFLAGS.OF: signed overflow.
pub const OF: u64 = 1 << 11;
/// RFLAGS.IOPL: the privilege that I/O needs.
pub const IOPL: u64 = 3 << 12;
/// RFLAGS.RF, cleared by every instruction that finishes.
pub const RF: u64 = 1 << 16;
/// RFLAGS.VM: virtual-8086 mode is on.
pub const VM: u64 = 1 << 17;
/// RFLAGS.AC: alignment check, and access to user pages under SMAP.
pub const AC: u64 = 1 << 18;

/// An exception to raise before the instruction, as the processor would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The vector, 0 to 31.
    pub vector: u8,
    /// The error code, for vectors that push one.
    pub error_code: Option<u32>,
    /// The value of CR2, for #PF.
    pub cr2: Option<u64>,
}

impl Exception {
    /// #UD: the opcode is invalid.
    pub const UD: Exception = Exception {
        vector: 6,
        error_code: None,
        cr2: None,
    };
    /// #NM, device not available.
    pub const NM: Exception = Exception {
        vector: 7,
        error_code: None,
        cr2: None,
    };
    /// #SS with error code 0: an address in the stack segment is not canonical.
    pub const SS: Exception = Exception {
        vector: 12,
        error_code: Some(0),
        cr2: None,
    };
    /// #MF, pending x87 exception.
    pub const MF: Exception = Exception {
        vector: 16,
        error_code: None,
        cr2: None,
    };

    /// #GP with an error code.
    pub const fn gp(error_code: u32) -> Exception {
        Exception {
            vector: 13,
            error_code: Some(error_code),
            cr2: None,
        }
    }

    /// #PF at a linear address.
    pub const fn pf(error_code: u32, linear: u64) -> Exception {
        Exception {
            vector: 14,
            error_code: Some(error_code),
            cr2: Some(linear),
        }
    }
}

/// Why an instruction did not finish.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// The guest gets an exception.
    #[error("exception {0:?}")]
    Exception(Exception),
    /// An operand is at a guest-physical address without RAM.
    #[error("its operand or a page table is at {gpa:#x}, where there is no RAM")]
    NotRam {
        /// Guest-physical address of the operand.
        gpa: u64,
    },
    /// A form of the instruction that is not implemented.
    #[error("{0}")]
    Unsupported(&'static str),
    /// KVM refused a request.
    #[error("{call} failed with errno {errno}")]
    Kvm {
        /// Name of the ioctl.
        call: &'static str,
        /// The error it returned.
        errno: i32,
    },
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Stop {
        Stop::Exception(exception)
    }
}

/// A vCPU that is stopped at an instruction.
pub trait Cpu {
    /// General registers, RIP and RFLAGS.
    fn regs(&self) -> &kvm_regs;
    /// The same, to change; written back once when the instruction is finished.
    fn regs_mut(&mut self) -> &mut kvm_regs;
    /// Control registers and segments.
    fn sregs(&self) -> &kvm_sregs;
    /// The same, to change; written back with the registers.
    fn sregs_mut(&mut self) -> &mut kvm_sregs;
    /// The guest's RAM, by guest-physical address.
    fn memory(&self) -> &GuestMemory;
    /// XCR0, the state components that the guest has enabled.
    fn xcr0(&mut self) -> Result<u64, Stop>;
    /// Sets XCR0; false if KVM says the value is not one a processor takes.
    fn set_xcr0(&mut self, value: u64) -> Result<bool, Stop>;
    /// x87, SSE and extended state, in the standard format with XSTATE_BV saying what is in use.
    fn xstate(&mut self) -> Result<Area, Stop>;
    /// Sets all of that state.
    fn set_xstate(&mut self, area: &Area) -> Result<(), Stop>;
    /// Reads a model-specific register.
    fn msr(&mut self, index: u32) -> Result<u64, Stop>;
}

impl dyn Cpu + '_ {
    /// 16, 32 or 64: the width code runs at (CS.L, CS.D).
    pub fn bitness(&self) -> u32 {
        let sregs = self.sregs();
        if sregs.efer & EFER_LMA != 0 && sregs.cs.l != 0 {
            64
        } else if sregs.cs.db != 0 {
            32
        } else {
            16
        }
    }

    /// Current privilege level, 0 to 3.
    pub fn cpl(&self) -> u8 {
        if self.sregs().cr0 & CR0_PE == 0 {
            0
        } else if self.regs().rflags & VM != 0 {
            3
        } else {
            (self.sregs().cs.selector & 3) as u8
        }
    }

    /// Sets the flags in `mask` to those in `value`.
    pub fn set_flags(&mut self, mask: u64, value: u64) {
        let regs = self.regs_mut();
        regs.rflags = regs.rflags & !mask | value & mask;
    }

    /// A general register of any width, zero-extended.
    pub fn register(&mut self, register: Register) -> Result<u64, Stop> {
        let high = is_high_byte(register);
        let value = *slot(self.regs_mut(), register)?;
        Ok(match register.size() {
            1 if high => value >> 8 & 0xff,
            size => truncate(value, size),
        })
    }

    /// Writes a general register: 32 bits clear the upper half, 16 and 8 leave the rest alone.
    pub fn set_register(&mut self, register: Register, value: u64) -> Result<(), Stop> {
        let high = is_high_byte(register);
        let slot = slot(self.regs_mut(), register)?;
        *slot = match register.size() {
            1 if high => *slot & !0xff00 | (value & 0xff) << 8,
            1 => *slot & !0xff | value & 0xff,
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
        Ok(())
    }

    /// The base of a segment register, or the value of a general one: what an address is made of.
    pub fn address_part(&self, register: Register) -> Option<u64> {
        let long = self.bitness() == 64;
        let sregs = self.sregs();
        let segment = |segment: &kvm_segment| if long { 0 } else { segment.base };
        Some(match register {
            Register::CS => segment(&sregs.cs),
            Register::DS => segment(&sregs.ds),
            Register::ES => segment(&sregs.es),
            Register::SS => segment(&sregs.ss),
            Register::FS => sregs.fs.base,
            Register::GS => sregs.gs.base,
            _ => {
                let mut regs = *self.regs();
                truncate(*slot(&mut regs, register).ok()?, register.size())
            }
        })
    }

    /// Reads guest memory with the rights of the current privilege level.
    pub fn read(&self, linear: u64, data: &mut [u8]) -> Result<(), Stop> {
        self.read_as(linear, data, self.access(Kind::Read)).1
    }

    /// Reads with the rights of a supervisor, as the processor reads its descriptor tables:
    /// user pages are out of bounds with SMAP, whatever RFLAGS.AC says (Intel SDM 3A, 4.6.1).
    pub fn read_system(&self, linear: u64, data: &mut [u8]) -> Result<(), Stop> {
        let access = Access {
            kind: Kind::Read,
            user: false,
            alignment_check: false,
        };
        self.read_as(linear, data, access).1
    }

    /// Reads `data.len()` bytes of code; how many there are, and why not all of them.
    pub fn fetch(&self, linear: u64, data: &mut [u8]) -> (usize, Result<(), Stop>) {
        self.read_as(linear, data, self.access(Kind::Fetch))
    }

    fn read_as(&self, linear: u64, data: &mut [u8], access: Access) -> (usize, Result<(), Stop>) {
        let mut done = 0;
        while let Some(rest) = data.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let (gpa, run) = match self.walk(linear.wrapping_add(done as u64), access) {
                Ok(found) => found,
                Err(stop) => return (done, Err(stop)),
            };
            let take = rest.len().min(run);
            let now = rest.get_mut(..take).unwrap_or_default();
            if self.memory().read_slice(now, GuestAddress(gpa)).is_err() {
                return (done, Err(Stop::NotRam { gpa }));
            }
            done += take;
        }
        (done, Ok(()))
    }

    /// Writes guest memory; nothing is written unless all of it can be.
    pub fn write(&self, linear: u64, data: &[u8]) -> Result<(), Stop> {
        self.check_write(linear, data.len())?;
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let at = linear.wrapping_add(done as u64);
            let (gpa, run) = self.translate(at, Kind::Write)?;
            let now = rest.get(..rest.len().min(run)).unwrap_or_default();
            self.memory()
                .write_slice(now, GuestAddress(gpa))
                .map_err(|_| Stop::NotRam { gpa })?;
            done += now.len();
        }
        Ok(())
    }

    /// Faults as a write of `len` bytes would.
    pub fn check_write(&self, linear: u64, len: usize) -> Result<(), Stop> {
        let mut done = 0;
        while done < len {
            let at = linear.wrapping_add(done as u64);
            let (gpa, run) = self.translate(at, Kind::Write)?;
            let take = run.min(len - done);
            if !self.memory().check_range(GuestAddress(gpa), take) {
                return Err(Stop::NotRam { gpa });
            }
            done += take;
        }
        Ok(())
    }

    /// Whether a linear address is one that the paging mode translates.
    pub fn is_canonical(&self, linear: u64) -> bool {
        Paging::new(self.sregs()).is_canonical(linear)
    }

    /// An access by the instruction itself.
    pub fn access(&self, kind: Kind) -> Access {
        Access {
            kind,
            user: self.cpl() == 3,
            alignment_check: self.regs().rflags & AC != 0,
        }
    }

    /// The GPA of a linear address, and how many bytes from there are on the same page.
    pub fn translate(&self, linear: u64, kind: Kind) -> Result<(u64, usize), Stop> {
        self.walk(linear, self.access(kind))
    }

    fn walk(&self, linear: u64, access: Access) -> Result<(u64, usize), Stop> {
        match Paging::new(self.sregs()).translate(self.memory(), linear, access) {
            Ok(found) => Ok((found.gpa, usize::try_from(found.run).unwrap_or(usize::MAX))),
            Err(Fault::NonCanonical) => Err(Exception::gp(0).into()),
            Err(Fault::Page { error_code }) => Err(Exception::pf(error_code, linear).into()),
            Err(Fault::TableNotRam { gpa }) => Err(Stop::NotRam { gpa }),
        }
    }
}

/// The low `size` bytes of a value.
pub fn truncate(value: u64, size: usize) -> u64 {
    match size {
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

fn slot(regs: &mut kvm_regs, register: Register) -> Result<&mut u64, Stop> {
    Ok(match register.full_register() {
        Register::RAX => &mut regs.rax,
        Register::RBX => &mut regs.rbx,
        Register::RCX => &mut regs.rcx,
        Register::RDX => &mut regs.rdx,
        Register::RSI => &mut regs.rsi,
        Register::RDI => &mut regs.rdi,
        Register::RSP => &mut regs.rsp,
        Register::RBP => &mut regs.rbp,
        Register::R8 => &mut regs.r8,
        Register::R9 => &mut regs.r9,
        Register::R10 => &mut regs.r10,
        Register::R11 => &mut regs.r11,
        Register::R12 => &mut regs.r12,
        Register::R13 => &mut regs.r13,
        Register::R14 => &mut regs.r14,
        Register::R15 => &mut regs.r15,
        Register::RIP => &mut regs.rip,
        _ => return Err(Stop::Unsupported("its operand is no general register")),
    })
}
