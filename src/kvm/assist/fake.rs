//! A vCPU that is a plain struct, for tests, and ways to give it instructions: assembled by the
//! compiler's assembler ([`code!`]), and run beside it on the processor itself ([`on_host!`]).

use kvm_bindings::{kvm_regs, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::area::Area;
use super::cpu::{Cpu, Exception, Stop};
use super::{Outcome, assist};
use crate::kvm::msrs;
use crate::memory::GuestMemory;

pub const MEMORY_SIZE: u64 = 1 << 20;
pub const CODE: u64 = 0x8000;
pub const DATA: u64 = 0x1_0000;
pub const IDT: u64 = 0x2_0000;
/// Mapped, but there is no RAM.
pub const NO_RAM: u64 = 0x18_0000;
/// Not mapped.
pub const UNMAPPED: u64 = 0x20_0000;
pub const NON_CANONICAL: u64 = 0x8000_0000_0000;
const PAGE_TABLE: u64 = 0x4000;

#[derive(Debug)]
pub struct Fake {
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    pub memory: GuestMemory,
    pub xcr0: u64,
    pub xss: u64,
    pub xstate: Area,
    pub tsc_aux: u64,
}

impl Fake {
    /// 64-bit mode, CPL 0; the first 2 MiB mapped in small pages, of which the first is RAM.
    pub fn new() -> Fake {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE as usize)])
            .expect("guest memory");
        let mut fake = Fake {
            regs: kvm_regs {
                rip: CODE,
                rflags: 2,
                ..Default::default()
            },
            sregs: kvm_sregs::default(),
            memory,
            xcr0: 7,
            xss: 0,
            xstate: Area::initial(),
            tsc_aux: 0,
        };
        fake.sregs.cr0 = 0x8001_0033;
        fake.sregs.cr3 = 0x1000;
        // PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE.
        fake.sregs.cr4 = 0x5_0620;
        fake.sregs.efer = 0x500;
        fake.sregs.cs.selector = 8;
        fake.sregs.cs.l = 1;
        for table in [0x1000u64, 0x2000, 0x3000] {
            fake.put(table, &((table + 0x1000) | 7).to_le_bytes());
        }
        let entries: Vec<u8> = (0..512u64)
            .flat_map(|page| (page << 12 | 7).to_le_bytes())
            .collect();
        fake.put(PAGE_TABLE, &entries);
        fake
    }

    /// 32-bit protected mode without paging, CPL 0.
    pub fn protected() -> Fake {
        let mut fake = Fake::new();
        fake.sregs.cr0 = 0x33;
        fake.sregs.efer = 0;
        fake.sregs.cs.l = 0;
        fake.sregs.cs.db = 1;
        fake
    }

    /// Code at this privilege level.
    pub fn at_cpl(mut self, cpl: u16) -> Fake {
        self.sregs.cs.selector = self.sregs.cs.selector & !3 | cpl;
        self
    }

    /// Sets the low 12 bits of the page table entry for an address below 2 MiB.
    pub fn set_page(&mut self, linear: u64, bits: u64) {
        let page = linear >> 12;
        self.put(PAGE_TABLE + page * 8, &(page << 12 | bits).to_le_bytes());
    }

    pub fn put(&mut self, gpa: u64, data: &[u8]) {
        self.memory
            .write_slice(data, GuestAddress(gpa))
            .expect("in RAM");
    }

    pub fn bytes<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut data = [0; N];
        self.memory
            .read_slice(&mut data, GuestAddress(gpa))
            .expect("in RAM");
        data
    }

    pub fn word(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.bytes(gpa))
    }

    /// A gate with this type and these rights in the interrupt descriptor table.
    pub fn set_gate(&mut self, vector: u8, access: u8) {
        self.sregs.idt.base = IDT;
        self.sregs.idt.limit = 0xfff;
        let size = if self.sregs.efer & 0x400 != 0 { 16 } else { 8 };
        self.put(IDT + u64::from(vector) * size + 5, &[access]);
    }

    /// Does the instruction at RIP.
    pub fn run(&mut self, code: &[u8]) -> Outcome {
        assist(code, self)
    }

    /// Does it and expects it to finish with RIP after it.
    #[track_caller]
    pub fn finish(&mut self, code: &[u8]) {
        let rip = self.regs.rip;
        let outcome = self.run(code);
        assert!(matches!(outcome, Outcome::Finished(_)), "{outcome:x?}");
        assert_eq!(self.regs.rip, rip + code.len() as u64);
    }

    /// Does it and expects this exception, with nothing changed.
    #[track_caller]
    pub fn fault(&mut self, code: &[u8], expected: Exception) {
        let (regs, sregs, xstate) = (self.regs, self.sregs, self.xstate.clone());
        let data: [u8; 64] = self.bytes(DATA);
        match self.run(code) {
            Outcome::Fault(_, exception) => assert_eq!(exception, expected),
            outcome => panic!("{outcome:x?} instead of {expected:x?}"),
        }
        assert_eq!((self.regs, self.sregs), (regs, sregs));
        assert!(self.xstate == xstate, "the extended state has changed");
        assert_eq!(self.bytes(DATA), data);
    }
}

impl Cpu for Fake {
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
        &self.memory
    }
    fn xcr0(&mut self) -> Result<u64, Stop> {
        Ok(self.xcr0)
    }
    fn set_xcr0(&mut self, value: u64) -> Result<bool, Stop> {
        let valid = value & 1 != 0 && value & !7 == 0 && value & 6 != 4;
        if valid {
            self.xcr0 = value;
        }
        Ok(valid)
    }
    fn xstate(&mut self) -> Result<Area, Stop> {
        Ok(self.xstate.clone())
    }
    fn set_xstate(&mut self, area: &Area) -> Result<(), Stop> {
        self.xstate = area.clone();
        Ok(())
    }
    fn msr(&mut self, index: u32) -> Result<u64, Stop> {
        Ok(match index {
            msrs::TSC_AUX => self.tsc_aux,
            msrs::XSS => self.xss,
            _ => 0,
        })
    }
}

/// The bytes of an instruction in NASM's (Intel's) syntax, 64-bit code unless it says `.code32`.
macro_rules! code {
    ($assembly:expr) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: only takes the addresses of what the assembler puts into the constant section.
        unsafe {
            std::arch::asm!(
                ".pushsection .rodata.hull_test, \"a\"",
                "200:",
                $assembly,
                ".code64",
                "201:",
                ".popsection",
                "lea {start}, [rip + 200b]",
                "lea {end}, [rip + 201b]",
                start = out(reg) start,
                end = out(reg) end,
                options(nomem, nostack, preserves_flags),
            );
        }
        // SAFETY: both labels are in one constant section, the end after the start.
        unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) }
    }};
}
pub(super) use code;

/// What an instruction in user mode can use: four registers, flags, and memory at RSI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scratch {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rflags: u64,
    pub memory: Block,
}

/// Memory at an alignment that every instruction accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(align(64))]
pub struct Block(pub [u8; 64]);

impl Scratch {
    /// What the fake makes of it; RSI is DATA.
    pub fn on_fake(&self, fake: &mut Fake, code: &[u8]) -> Scratch {
        fake.regs = kvm_regs {
            rax: self.rax,
            rbx: self.rbx,
            rcx: self.rcx,
            rdx: self.rdx,
            rsi: DATA,
            rip: CODE,
            rflags: self.rflags,
            ..Default::default()
        };
        fake.put(DATA, &self.memory.0);
        fake.finish(code);
        Scratch {
            rax: fake.regs.rax,
            rbx: fake.regs.rbx,
            rcx: fake.regs.rcx,
            rdx: fake.regs.rdx,
            rflags: fake.regs.rflags,
            memory: Block(fake.bytes(DATA)),
        }
    }
}

/// What the processor itself makes of a [`Scratch`] by an instruction.
///
/// The instruction may change RAX, RBX, RCX, RDX, the status flags and the block at RSI, and the
/// host has to have it.
macro_rules! on_host {
    ($scratch:expr, $assembly:expr) => {{
        let mut scratch: $crate::kvm::assist::fake::Scratch = $scratch.clone();
        let memory: *mut [u8; 64] = &mut scratch.memory.0;
        // SAFETY: the instruction touches what is named as operands, and RBX is put back.
        unsafe {
            std::arch::asm!(
                "xchg rbx, r9",
                "push r8",
                "popfq",
                $assembly,
                "pushfq",
                "pop r8",
                "xchg rbx, r9",
                in("rsi") memory,
                inout("rax") scratch.rax,
                inout("r9") scratch.rbx,
                inout("rcx") scratch.rcx,
                inout("rdx") scratch.rdx,
                inout("r8") scratch.rflags,
            );
        }
        scratch
    }};
}
pub(super) use on_host;
