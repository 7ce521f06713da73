//! Interrupt controllers and timer, decoded.
//!
//! Sources: Intel 8259A and 8254 data sheets; 82093AA (IOAPIC) data sheet, 3.2.4; Intel SDM 3A,
//! chapter 11 (local APIC).

use kvm_bindings::{kvm_pic_state, kvm_pit_channel_state, kvm_vcpu_events};
use serde::{Deserialize, Serialize};

use crate::devices::register::{Hex, Register};
use crate::kvm::state::{ChipState, CpuState};

/// Names of interrupt lines by number (GSI).
pub type Lines<'a> = &'a [(u32, String)];

/// The state of all interrupt controllers and of the timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupts {
    /// The two 8259s' registers.
    pub pics: Vec<Vec<Register>>,
    /// The IOAPIC's pins, by number.
    pub ioapic: Vec<Pin>,
    /// The local APICs, one a vCPU.
    pub lapics: Vec<Lapic>,
    /// The three channels of the 8254 timer.
    pub pit: Vec<Register>,
    /// For each vCPU, the exceptions and interrupts that are about to be delivered.
    pub pending: Vec<Vec<String>>,
}

/// A pin of the IOAPIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Number of the pin, 0 to 23.
    pub pin: u32,
    /// The device that is connected to the pin, if it has a name.
    pub device: String,
    /// The raw entry of the redirection table.
    pub entry: Hex,
    /// The vector that the pin raises.
    pub vector: u8,
    /// The delivery mode, such as `fixed` or `NMI`.
    pub delivery: String,
    /// The local APICs that receive it, physical or logical.
    pub destination: String,
    /// How the line triggers: `edge` or `level`.
    pub trigger: String,
    /// Whether it is masked.
    pub masked: bool,
    /// Whether its line is raised.
    pub raised: bool,
    /// Whether a level-triggered interrupt is being handled (remote IRR).
    pub in_service: bool,
}

/// The local APIC of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lapic {
    /// Index of the vCPU.
    pub vcpu: usize,
    /// All registers but ISR, IRR and TMR.
    pub registers: Vec<Register>,
    /// Vectors in service (ISR).
    pub isr: Vec<u8>,
    /// Vectors that are requested (IRR).
    pub irr: Vec<u8>,
    /// Vectors of level-triggered interrupts (TMR).
    pub tmr: Vec<u8>,
}

impl Interrupts {
    /// Decode the state of the chips and of the vCPUs' local APICs.
    pub fn new(chips: &ChipState, vcpus: &[CpuState], lines: Lines) -> Self {
        let [first, second] = &chips.pics;
        Self {
            pics: vec![pic(first, 0, lines), pic(second, 8, lines)],
            ioapic: (0..)
                .zip(chips.redirections)
                .map(|(pin, entry)| Pin {
                    raised: chips.ioapic_irr >> pin & 1 == 1,
                    ..redirection(pin, entry, lines)
                })
                .collect(),
            lapics: vcpus.iter().enumerate().map(lapic).collect(),
            pit: (0..).zip(&chips.pit).map(channel).collect(),
            pending: vcpus.iter().map(|state| pending(&state.events)).collect(),
        }
    }
}

fn name(lines: Lines, gsi: u32) -> String {
    let line = lines.iter().find(|(line, _)| *line == gsi);
    line.map_or_else(String::new, |(_, name)| name.clone())
}

fn pic(state: &kvm_pic_state, first: u32, lines: Lines) -> Vec<Register> {
    let set = |bits: u8| {
        let set = (0..8).filter(|line| bits >> line & 1 == 1);
        let words = set.map(|line| match name(lines, first + line) {
            name if name.is_empty() => format!("{}", first + line),
            name => format!("{} {name}", first + line),
        });
        words.collect::<Vec<_>>().join(", ")
    };
    let byte = |name, value: u8| Register::new(name, 8, value.into());
    let base = u32::from(state.irq_base);
    vec![
        byte("IRR", state.irr).meaning(set(state.irr)),
        byte("IMR", state.imr).meaning(match state.imr {
            0xff => "all masked".into(),
            0 => "none masked".into(),
            mask => format!("not masked: {}", set(!mask)),
        }),
        byte("ISR", state.isr).meaning(set(state.isr)),
        byte("ICW2", state.irq_base).meaning(format!("vectors {base:#x} to {:#x}", base + 7)),
        byte("ELCR", state.elcr).meaning(set(state.elcr)),
    ]
}

fn redirection(pin: u32, entry: u64, lines: Lines) -> Pin {
    let bit = |bit: u32| entry >> bit & 1 == 1;
    let destination = entry >> 56;
    Pin {
        pin,
        // KVM's PIT is on pin 2, as the MP and ACPI tables say.
        device: match pin {
            0 => "8259".into(),
            2 => name(lines, 0),
            pin => name(lines, pin),
        },
        entry: Hex(entry),
        vector: entry as u8,
        delivery: delivery(entry).into(),
        destination: if bit(11) {
            format!("logical {destination:#x}")
        } else {
            format!("APIC {destination}")
        },
        trigger: if bit(15) { "level" } else { "edge" }.into(),
        masked: bit(16),
        raised: false,
        in_service: bit(14),
    }
}

/// Bits 8 to 10 of a redirection entry or an LVT.
fn delivery(entry: u64) -> &'static str {
    match entry >> 8 & 7 {
        0 => "fixed",
        1 => "lowest priority",
        2 => "SMI",
        4 => "NMI",
        5 => "INIT",
        7 => "ExtINT",
        _ => "reserved",
    }
}

fn lapic((vcpu, state): (usize, &CpuState)) -> Lapic {
    let word = |at: usize| {
        let bytes = state.lapic.get(at..at + 4).unwrap_or_default();
        bytes
            .iter()
            .rev()
            .fold(0u32, |word, byte| word << 8 | u32::from(*byte))
    };
    let vectors = |base: usize| {
        let set =
            |vector: &u8| word(base + usize::from(vector / 32) * 16) >> (vector % 32) & 1 == 1;
        (0..=u8::MAX).filter(set).collect::<Vec<_>>()
    };
    let register = |offset: u64, name: &'static str| {
        Register::at(offset, name, 32, word(offset as usize).into())
    };
    let lvt = |offset: u64, name| {
        let value = word(offset as usize);
        register(offset, name).meaning(local_vector(offset, value))
    };
    let spurious = word(0xf0);
    let enabled = match spurious >> 8 & 1 {
        1 => "enabled",
        _ => "disabled",
    };
    Lapic {
        vcpu,
        registers: vec![
            register(0x20, "ID").meaning(format!("APIC {}", word(0x20) >> 24)),
            register(0x30, "Version"),
            register(0x80, "TPR"),
            register(0xa0, "PPR"),
            register(0xd0, "LDR"),
            register(0xe0, "DFR"),
            register(0xf0, "SVR")
                .meaning(format!("{enabled}, spurious vector {:#x}", spurious & 0xff)),
            register(0x280, "ESR"),
            lvt(0x320, "LVT timer"),
            lvt(0x330, "LVT thermal"),
            lvt(0x340, "LVT performance"),
            lvt(0x350, "LVT LINT0"),
            lvt(0x360, "LVT LINT1"),
            lvt(0x370, "LVT error"),
            register(0x380, "initial count"),
            register(0x390, "current count"),
            register(0x3e0, "divide configuration").meaning(divisor(word(0x3e0))),
        ],
        isr: vectors(0x100),
        tmr: vectors(0x180),
        irr: vectors(0x200),
    }
}

/// A local vector table's entry (Intel SDM 3A, figure 11-8).
fn local_vector(offset: u64, value: u32) -> String {
    let mut words = match delivery(value.into()) {
        "fixed" => format!("vector {:#x}", value & 0xff),
        mode => mode.into(),
    };
    if offset == 0x320 {
        words += match value >> 17 & 3 {
            0 => ", one-shot",
            1 => ", periodic",
            2 => ", TSC deadline",
            _ => ", reserved mode",
        };
    }
    if value >> 16 & 1 == 1 {
        words += ", masked";
    }
    words
}

/// Intel SDM 3A, figure 11-10.
fn divisor(value: u32) -> String {
    let code = value & 3 | value >> 1 & 4;
    format!("by {}", 1 << ((code + 1) % 8))
}

fn channel((number, state): (u32, &kvm_pit_channel_state)) -> Register {
    const NAMES: [&str; 3] = ["channel 0", "channel 1", "channel 2"];
    let name = NAMES.get(number as usize).copied().unwrap_or_default();
    let mode = match state.mode {
        0 => "interrupt on terminal count",
        1 => "one-shot",
        2 => "rate generator",
        3 => "square wave",
        4 => "software strobe",
        5 => "hardware strobe",
        _ => "not set",
    };
    let gate = if state.gate != 0 { "on" } else { "off" };
    Register::new(name, 32, state.count.into())
        .meaning(format!("count {}, mode {mode}, gate {gate}", state.count))
}

/// The exceptions and interrupts that are about to be delivered to a vCPU.
pub fn pending(events: &kvm_vcpu_events) -> Vec<String> {
    let mut words = Vec::new();
    let exception = &events.exception;
    if exception.injected != 0 || exception.pending != 0 {
        let code = match exception.has_error_code {
            0 => String::new(),
            _ => format!(", error code {:#x}", exception.error_code),
        };
        words.push(format!("exception {}{code}", exception.nr));
    }
    if events.interrupt.injected != 0 {
        words.push(format!("interrupt {:#x}", events.interrupt.nr));
    }
    if events.interrupt.shadow != 0 {
        words.push("interrupts held off by STI or MOV SS".into());
    }
    for (set, what) in [
        (events.nmi.injected, "NMI being delivered"),
        (events.nmi.pending, "NMI pending"),
        (events.nmi.masked, "NMIs masked"),
        (events.smi.pending, "SMI pending"),
        (events.smi.smm, "in system management mode"),
        (events.triple_fault.pending, "triple fault"),
    ] {
        if set != 0 {
            words.push(what.into());
        }
    }
    words
}
