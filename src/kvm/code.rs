//! Finds and disassembles the instruction that caused an exit.
//!
//! RIP at an exit depends on KVM: its emulator has already advanced it after an OUT or a store, an exit
//! of the processor for IN or OUT may not have, and a load completes only in the next KVM_RUN. So the
//! instruction is the one at RIP if it makes this access, otherwise the one that ends there.

use iced_x86::{
    Decoder, DecoderOptions, Formatter, Instruction, Mnemonic, NasmFormatter, OpKind, Register,
};
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::vcpu::Vcpu;
use super::walk::{EFER_LMA, LOOK, Paging};
use crate::memory::GuestMemory;

/// Longest x86 instruction, in bytes.
const LONGEST: usize = 15;

/// The access that the instruction makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// An access to a port, by IN or OUT.
    Port {
        /// Number of the port.
        port: u16,
        /// Whether it is an OUT.
        write: bool,
    },
    /// A load from memory or a store.
    Memory {
        /// Guest-physical address of the access.
        gpa: u64,
        /// Whether it is a store.
        write: bool,
    },
}

/// An instruction that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// RIP of its first byte.
    pub rip: u64,
    /// Its text in NASM's syntax.
    pub text: String,
}

/// The registers and code of a vCPU, in which the instruction is searched.
struct Code<'a> {
    memory: &'a GuestMemory,
    regs: kvm_regs,
    sregs: kvm_sregs,
    /// Bytes before RIP and from RIP on, as far as they are readable.
    before: Vec<u8>,
    from: Vec<u8>,
}

impl Vcpu {
    /// RIP, and the instruction that made the access of the last exit; `None` if none is found.
    pub fn instruction(&self, what: What) -> (u64, Option<Found>) {
        match self.regs_and_sregs() {
            Some((regs, sregs)) => {
                let code = Code::new(self.memory(), regs, sregs);
                (regs.rip, code.find(what))
            }
            None => (0, None),
        }
    }
}

impl<'a> Code<'a> {
    fn new(memory: &'a GuestMemory, regs: kvm_regs, sregs: kvm_sregs) -> Self {
        let mut code = Self {
            memory,
            regs,
            sregs,
            before: Vec::new(),
            from: Vec::new(),
        };
        code.from = (0..LONGEST as u64)
            .map_while(|at| code.byte(regs.rip.wrapping_add(at)))
            .collect();
        code.before = (1..=LONGEST as u64)
            .map_while(|at| code.byte(regs.rip.wrapping_sub(at)))
            .collect();
        code.before.reverse();
        code
    }

    fn find(&self, what: What) -> Option<Found> {
        let here = self.decode(&self.from, self.regs.rip);
        let exact = here.filter(|found| self.makes(found, what));
        exact
            .or_else(|| self.before_rip(what))
            .or_else(|| here.filter(|found| is_kind(found, what)))
            .map(|instruction| {
                let mut text = String::new();
                NasmFormatter::new().format(&instruction, &mut text);
                Found {
                    rip: instruction.ip(),
                    text,
                }
            })
    }

    /// The longest instruction that ends at RIP, because prefixes belong to it.
    fn before_rip(&self, what: What) -> Option<Instruction> {
        (0..self.before.len()).find_map(|start| {
            let bytes = self.before.get(start..)?;
            let rip = self.regs.rip.wrapping_sub(bytes.len() as u64);
            let found = self.decode(bytes, rip)?;
            (found.len() == bytes.len() && self.makes(&found, what)).then_some(found)
        })
    }

    fn decode(&self, bytes: &[u8], rip: u64) -> Option<Instruction> {
        let mut decoder = Decoder::with_ip(self.bitness(), bytes, rip, DecoderOptions::NONE);
        Some(decoder.decode()).filter(|instruction| !instruction.is_invalid())
    }

    /// Whether the instruction, with these registers, makes this access.
    fn makes(&self, instruction: &Instruction, what: What) -> bool {
        if !is_kind(instruction, what) {
            return false;
        }
        match what {
            What::Port { port, .. } => {
                let kinds = (0..instruction.op_count()).map(|n| instruction.op_kind(n));
                let named = kinds.into_iter().any(|kind| kind == OpKind::Immediate8);
                let given = if named {
                    u16::from(instruction.immediate8())
                } else {
                    self.regs.rdx as u16
                };
                given == port
            }
            What::Memory { gpa, .. } => {
                let size = instruction.memory_size().size().max(1) as u64;
                (0..instruction.op_count()).any(|operand| {
                    let linear = instruction
                        .virtual_address(operand, 0, |register, _, _| self.register(register));
                    let found = linear.and_then(|linear| self.translate(linear));
                    // A larger access is split into 8 bytes, each with an exit.
                    found.is_some_and(|found| gpa.wrapping_sub(found) < size)
                })
            }
        }
    }

    fn byte(&self, rip: u64) -> Option<u8> {
        let linear = match self.bitness() {
            64 => rip,
            _ => self.sregs.cs.base.wrapping_add(rip) & 0xffff_ffff,
        };
        let gpa = self.translate(linear)?;
        self.memory.read_obj(GuestAddress(gpa)).ok()
    }

    fn translate(&self, linear: u64) -> Option<u64> {
        let found = Paging::new(&self.sregs).translate(self.memory, linear, LOOK);
        found.ok().map(|found| found.gpa)
    }

    fn bitness(&self) -> u32 {
        match (self.sregs.efer & EFER_LMA != 0, self.sregs.cs) {
            (true, kvm_segment { l: 1, .. }) => 64,
            (_, kvm_segment { db: 1, .. }) => 32,
            _ => 16,
        }
    }

    /// A register's value, or a segment's base, for the address of an operand.
    fn register(&self, register: Register) -> Option<u64> {
        let (regs, sregs) = (&self.regs, &self.sregs);
        let long = self.bitness() == 64;
        let full = match register {
            Register::CS if !long => sregs.cs.base,
            Register::DS if !long => sregs.ds.base,
            Register::ES if !long => sregs.es.base,
            Register::SS if !long => sregs.ss.base,
            Register::CS | Register::DS | Register::ES | Register::SS => 0,
            Register::FS => sregs.fs.base,
            Register::GS => sregs.gs.base,
            other => match other.full_register() {
                Register::RAX => regs.rax,
                Register::RBX => regs.rbx,
                Register::RCX => regs.rcx,
                Register::RDX => regs.rdx,
                Register::RSI => regs.rsi,
                Register::RDI => regs.rdi,
                Register::RSP => regs.rsp,
                Register::RBP => regs.rbp,
                Register::R8 => regs.r8,
                Register::R9 => regs.r9,
                Register::R10 => regs.r10,
                Register::R11 => regs.r11,
                Register::R12 => regs.r12,
                Register::R13 => regs.r13,
                Register::R14 => regs.r14,
                Register::R15 => regs.r15,
                _ => return None,
            },
        };
        Some(match register.size() {
            2 if !register.is_segment_register() => full & 0xffff,
            4 => full & 0xffff_ffff,
            _ => full,
        })
    }
}

/// Whether the instruction is one that makes such accesses.
fn is_kind(instruction: &Instruction, what: What) -> bool {
    match what {
        What::Port { write, .. } => match instruction.mnemonic() {
            Mnemonic::In | Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => !write,
            Mnemonic::Out | Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => write,
            _ => false,
        },
        // By the operands' places, the first of which is where the result goes: iced's own tables
        // of accesses are as large as its decoder, and the address says the rest.
        What::Memory { write: true, .. } => is_memory(instruction, 0),
        What::Memory { write: false, .. } => {
            let operands = 0..instruction.op_count();
            let stores = matches!(
                instruction.mnemonic(),
                Mnemonic::Mov
                    | Mnemonic::Stosb
                    | Mnemonic::Stosw
                    | Mnemonic::Stosd
                    | Mnemonic::Stosq
            );
            let mut read = operands.skip(usize::from(stores));
            read.any(|operand| is_memory(instruction, operand))
        }
    }
}

fn is_memory(instruction: &Instruction, operand: u32) -> bool {
    let known = operand < instruction.op_count();
    known
        && !matches!(
            instruction.op_kind(operand),
            OpKind::Register
                | OpKind::NearBranch16
                | OpKind::NearBranch32
                | OpKind::NearBranch64
                | OpKind::FarBranch16
                | OpKind::FarBranch32
                | OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    const AT: u64 = 0x1000;

    /// The instruction found in these bytes, flat 32-bit code, with RIP this many bytes after their start.
    fn find(
        bytes: &[u8],
        rip: u64,
        what: What,
        change: fn(&mut kvm_regs),
    ) -> Option<(u64, String)> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).expect("memory");
        memory
            .write_slice(&[0x90; 64], GuestAddress(AT - 32))
            .expect("room");
        memory.write_slice(bytes, GuestAddress(AT)).expect("room");
        let mut regs = kvm_regs {
            rip: AT + rip,
            ..Default::default()
        };
        change(&mut regs);
        let mut sregs = kvm_sregs::default();
        sregs.cs.db = 1;
        let found = Code::new(&memory, regs, sregs).find(what);
        found.map(|found| (found.rip - AT, found.text))
    }

    const COM1: What = What::Port {
        port: 0x3f8,
        write: true,
    };

    #[test]
    fn an_out_is_found_at_rip_and_before_it() {
        let rdx = |regs: &mut kvm_regs| regs.rdx = 0xf0003f8;
        for rip in [0, 2] {
            let found = find(&[0x66, 0xef], rip, COM1, rdx);
            assert_eq!(found, Some((0, "out dx,ax".into())), "{rip}");
        }
        let loop_of_two = find(&[0xee, 0xee], 1, COM1, rdx);
        assert_eq!(loop_of_two, Some((1, "out dx,al".into())));
        assert_eq!(
            find(&[0xee], 0, COM1, |_| {}),
            Some((0, "out dx,al".into()))
        );
        assert_eq!(find(&[0xec], 1, COM1, rdx), None, "an IN is no OUT");
        let debug = What::Port {
            port: 0x80,
            write: true,
        };
        assert_eq!(
            find(&[0xe6, 0x80], 2, debug, |_| {}),
            Some((0, "out 80h,al".into()))
        );
        assert_eq!(find(&[0xe6, 0x81], 2, debug, |_| {}), None);
    }

    #[test]
    fn a_store_is_found_by_its_address() {
        let store = What::Memory {
            gpa: 0xc000_0004,
            write: true,
        };
        let at = |regs: &mut kvm_regs| regs.rbx = 0xc000_0000;
        let bytes = [0x89, 0x43, 0x04, 0x89, 0x03]; // mov [ebx+4],eax; mov [ebx],eax
        let text = "mov [ebx+4],eax".to_string();
        assert_eq!(find(&bytes, 3, store, at), Some((0, text.clone())));
        assert_eq!(find(&bytes, 0, store, at), Some((0, text)));
        let load = What::Memory {
            gpa: 0xc000_0004,
            write: false,
        };
        assert_eq!(find(&bytes, 3, load, at), None, "it is no load");
    }

    #[test]
    fn unmapped_code_has_no_instruction() {
        let far = |regs: &mut kvm_regs| regs.rip = u64::MAX;
        assert_eq!(find(&[], 0, COM1, far), None);
    }
}
