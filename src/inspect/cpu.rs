//! A vCPU's registers, decoded.

use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, kvm_regs, kvm_segment, kvm_sregs,
};
use serde::{Deserialize, Serialize};

use super::symbol::symbol;
use super::tables::{self, Table};
use crate::devices::register::{Hex, Register, flags};
use crate::kvm::msrs;
use crate::kvm::state::CpuState;
use crate::kvm::walk::{CR0_PE, EFER_LMA, Paging};
use crate::memory::GuestMemory;
use crate::symbols::Symbols;

/// Number of instructions shown.
const INSTRUCTIONS: usize = 6;
/// Longest instruction in bytes (Intel SDM 2A, 2.3.11).
const MAX_INSTRUCTION: usize = 15;
/// RFLAGS.VM: the vCPU is in virtual-8086 mode.
const RFLAGS_VM: u64 = 1 << 17;

/// The MSRs that are shown, with their names in Intel SDM 4.
pub const MSRS: &[(u32, &str)] = &[
    (msrs::TSC, "TSC"),
    (msrs::APIC_BASE, "APIC_BASE"),
    (msrs::PAT, "PAT"),
    (msrs::STAR, "STAR"),
    (msrs::LSTAR, "LSTAR"),
    (msrs::FMASK, "FMASK"),
    (msrs::FS_BASE, "FS_BASE"),
    (msrs::GS_BASE, "GS_BASE"),
    (msrs::KERNEL_GS_BASE, "KERNEL_GS_BASE"),
];

/// Intel SDM 1, 3.4.3.
const RFLAGS: &[(u32, &str)] = &[
    (0, "CF"),
    (2, "PF"),
    (4, "AF"),
    (6, "ZF"),
    (7, "SF"),
    (8, "TF"),
    (9, "IF"),
    (10, "DF"),
    (11, "OF"),
    (14, "NT"),
    (16, "RF"),
    (17, "VM"),
    (18, "AC"),
    (21, "ID"),
];
/// Intel SDM 3A, 2.5.
const CR0: &[(u32, &str)] = &[
    (0, "PE"),
    (1, "MP"),
    (2, "EM"),
    (3, "TS"),
    (4, "ET"),
    (5, "NE"),
    (16, "WP"),
    (18, "AM"),
    (29, "NW"),
    (30, "CD"),
    (31, "PG"),
];
const CR4: &[(u32, &str)] = &[
    (0, "VME"),
    (1, "PVI"),
    (2, "TSD"),
    (3, "DE"),
    (4, "PSE"),
    (5, "PAE"),
    (6, "MCE"),
    (7, "PGE"),
    (8, "PCE"),
    (9, "OSFXSR"),
    (10, "OSXMMEXCPT"),
    (11, "UMIP"),
    (12, "LA57"),
    (16, "FSGSBASE"),
    (17, "PCIDE"),
    (18, "OSXSAVE"),
    (20, "SMEP"),
    (21, "SMAP"),
    (22, "PKE"),
];
/// Intel SDM 3A, 2.2.1; AMD APM 2, 3.1.7.
const EFER: &[(u32, &str)] = &[
    (0, "SCE"),
    (8, "LME"),
    (10, "LMA"),
    (11, "NXE"),
    (12, "SVME"),
];

/// The decoded state of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Index of the vCPU, from 0.
    pub index: usize,
    /// Whether it runs, halts or waits to be started.
    pub state: String,
    /// The mode of the processor.
    pub mode: String,
    /// The symbol at or below RIP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The instructions at RIP, if they can be read.
    pub code: Vec<Instruction>,
    /// General registers, RIP and RFLAGS.
    pub general: Vec<Register>,
    /// CS to SS, TR and LDTR, with their hidden parts.
    pub segments: Vec<Segment>,
    /// CR0 to CR8, EFER.
    pub control: Vec<Register>,
    /// DR0 to DR3, DR6 and DR7.
    pub debug: Vec<Register>,
    /// The model-specific registers of [`MSRS`].
    pub msrs: Vec<Register>,
    /// The global descriptor table.
    pub gdt: Table<tables::Descriptor>,
    /// The interrupt descriptor table, runs of equal gates folded.
    pub idt: Table<tables::Gates>,
    /// Exceptions and interrupts that are about to be delivered.
    pub pending: Vec<String>,
}

/// A segment register with its hidden part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The register's name, such as `CS`.
    pub name: String,
    /// Index and privilege: the visible part.
    pub selector: Hex,
    /// Linear address of offset 0.
    pub base: Hex,
    /// The highest valid offset in bytes.
    pub limit: Hex,
    /// Type, size, privilege and presence in words.
    pub kind: String,
}

/// One disassembled instruction of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// Offset in the code segment.
    pub address: Hex,
    /// The encoding in hexadecimal.
    pub bytes: String,
    /// In the syntax of NASM.
    pub text: String,
}

impl Cpu {
    /// Decode the state of vCPU `index`.
    pub fn new(index: usize, state: &CpuState, memory: &GuestMemory, symbols: &Symbols) -> Self {
        let (regs, sregs) = (&state.regs, &state.sregs);
        let paging = Paging::new(sregs);
        let address = sregs.cs.base.wrapping_add(regs.rip);
        let msr_name = |index| MSRS.iter().find(|(known, _)| *known == index);
        let msrs = state.msrs.iter().filter_map(|(index, value)| {
            let (index, name) = msr_name(*index)?;
            let words = match *name {
                "APIC_BASE" => flags(*value, &[(8, "BSP"), (10, "x2APIC"), (11, "enabled")]),
                "LSTAR" => symbol(symbols, *value).unwrap_or_default(),
                _ => String::new(),
            };
            Some(Register::at((*index).into(), name, 64, *value).meaning(words))
        });
        let debug = &state.debug;
        let debug = debug.db.into_iter().chain([debug.dr6, debug.dr7]);
        let debug_names = ["DR0", "DR1", "DR2", "DR3", "DR6", "DR7"];
        let registers = debug_names.into_iter().zip(debug);
        Self {
            index,
            state: run_state(state.mp_state).into(),
            mode: mode(regs, sregs),
            place: symbol(symbols, address),
            code: code(&paging, memory, regs.rip, &sregs.cs, bitness(regs, sregs)),
            general: general(regs),
            segments: segments(sregs),
            control: control(sregs),
            debug: registers
                .map(|(name, value)| Register::new(name, 64, value))
                .collect(),
            msrs: msrs.collect(),
            gdt: tables::gdt(sregs, &paging, memory),
            idt: tables::idt(sregs, &paging, memory, symbols),
            pending: super::chips::pending(&state.events),
        }
    }
}

fn run_state(mp_state: u32) -> &'static str {
    match mp_state {
        KVM_MP_STATE_RUNNABLE => "running",
        KVM_MP_STATE_UNINITIALIZED => "waits for its INIT",
        KVM_MP_STATE_INIT_RECEIVED => "waits for its SIPI",
        KVM_MP_STATE_SIPI_RECEIVED => "starting",
        KVM_MP_STATE_HALTED => "halted",
        _ => "in an unknown state",
    }
}

/// Intel SDM 3A, 2.2.
fn mode(regs: &kvm_regs, sregs: &kvm_sregs) -> String {
    if sregs.cr0 & CR0_PE == 0 {
        return "real mode".into();
    }
    if regs.rflags & RFLAGS_VM != 0 {
        return "virtual-8086 mode".into();
    }
    let kind = match (sregs.efer & EFER_LMA != 0, bitness(regs, sregs)) {
        (true, 64) => "64-bit mode",
        (true, _) => "compatibility mode",
        (false, 32) => "32-bit protected mode",
        (false, _) => "16-bit protected mode",
    };
    format!("{kind}, CPL {}", sregs.ss.dpl)
}

fn bitness(regs: &kvm_regs, sregs: &kvm_sregs) -> u32 {
    let real = sregs.cr0 & CR0_PE == 0 || regs.rflags & RFLAGS_VM != 0;
    match (sregs.efer & EFER_LMA != 0 && sregs.cs.l == 1, sregs.cs.db) {
        _ if real => 16,
        (true, _) => 64,
        (false, 1) => 32,
        (false, _) => 16,
    }
}

fn general(regs: &kvm_regs) -> Vec<Register> {
    let named = [
        ("RAX", regs.rax),
        ("RBX", regs.rbx),
        ("RCX", regs.rcx),
        ("RDX", regs.rdx),
        ("RSI", regs.rsi),
        ("RDI", regs.rdi),
        ("RBP", regs.rbp),
        ("RSP", regs.rsp),
        ("R8", regs.r8),
        ("R9", regs.r9),
        ("R10", regs.r10),
        ("R11", regs.r11),
        ("R12", regs.r12),
        ("R13", regs.r13),
        ("R14", regs.r14),
        ("R15", regs.r15),
        ("RIP", regs.rip),
    ];
    let mut all: Vec<_> = named
        .map(|(name, value)| Register::new(name, 64, value))
        .into();
    let words = match regs.rflags >> 12 & 3 {
        0 => flags(regs.rflags, RFLAGS),
        iopl => format!("{} IOPL {iopl}", flags(regs.rflags, RFLAGS)),
    };
    all.push(Register::new("RFLAGS", 64, regs.rflags).meaning(words));
    all
}

fn segments(sregs: &kvm_sregs) -> Vec<Segment> {
    let named = [
        ("CS", sregs.cs),
        ("DS", sregs.ds),
        ("ES", sregs.es),
        ("FS", sregs.fs),
        ("GS", sregs.gs),
        ("SS", sregs.ss),
        ("TR", sregs.tr),
        ("LDTR", sregs.ldt),
    ];
    let segment = |(name, segment): (&str, kvm_segment)| Segment {
        name: name.into(),
        selector: Hex(segment.selector.into()),
        base: Hex(segment.base),
        limit: Hex(segment.limit.into()),
        kind: match segment.unusable {
            0 => tables::kind(&tables::Attributes {
                kind: segment.type_,
                code_or_data: segment.s == 1,
                dpl: segment.dpl,
                present: segment.present == 1,
                long: segment.l == 1,
                default_32: segment.db == 1,
            }),
            _ => "unusable".into(),
        },
    };
    named.map(segment).into()
}

fn control(sregs: &kvm_sregs) -> Vec<Register> {
    let named = |name, value, names| Register::new(name, 64, value).meaning(flags(value, names));
    let paging = Paging::new(sregs);
    vec![
        named("CR0", sregs.cr0, CR0),
        Register::new("CR2", 64, sregs.cr2),
        Register::new("CR3", 64, sregs.cr3).meaning(super::pages::mode(&paging)),
        named("CR4", sregs.cr4, CR4),
        Register::new("CR8", 64, sregs.cr8),
        named("EFER", sregs.efer, EFER),
    ]
}

/// The instructions from RIP on.
fn code(
    paging: &Paging,
    memory: &GuestMemory,
    rip: u64,
    cs: &kvm_segment,
    bitness: u32,
) -> Vec<Instruction> {
    let mut bytes = [0; INSTRUCTIONS * MAX_INSTRUCTION];
    let read = paging.look(memory, cs.base.wrapping_add(rip), &mut bytes);
    let bytes = bytes.get(..read).unwrap_or_default();
    let mut decoder = Decoder::with_ip(bitness, bytes, rip, DecoderOptions::NONE);
    let mut formatter = NasmFormatter::new();
    formatter.options_mut().set_hex_prefix("0x");
    formatter.options_mut().set_hex_suffix("");
    formatter.options_mut().set_branch_leading_zeros(false);
    let mut code = Vec::new();
    for instruction in decoder.iter().take(INSTRUCTIONS) {
        let start = instruction.ip().wrapping_sub(rip) as usize;
        let own = bytes.get(start..start + instruction.len());
        let hex = own.unwrap_or_default().iter();
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        code.push(Instruction {
            address: Hex(instruction.ip()),
            bytes: hex
                .map(|byte| format!("{byte:02x}"))
                .collect::<Vec<_>>()
                .join(" "),
            text,
        });
        if instruction.is_invalid() {
            break;
        }
    }
    code
}
