//! vCPUs.

use crate::cli::table::Table;
use crate::inspect::Register;
use crate::inspect::cpu::Cpu;
use crate::inspect::tables::Gates;

pub fn draw(vcpus: &[Cpu]) -> String {
    let each: Vec<String> = vcpus.iter().map(vcpu).collect();
    each.join("\n")
}

/// A row a register: name, value, what it means.
pub fn table(registers: &[Register]) -> String {
    let mut rows = Table::indented(2);
    for register in registers {
        rows.row([
            register.name.to_string(),
            value(register),
            register.words.clone(),
        ]);
    }
    rows.draw()
}

/// A value as wide as its register.
pub fn value(register: &Register) -> String {
    let digits = usize::from(register.bits / 4).max(1);
    format!("{:0digits$x}", register.value.0)
}

fn vcpu(cpu: &Cpu) -> String {
    let place = cpu.place.as_deref().map(|place| format!(", at {place}"));
    let mut text = format!(
        "vCPU {}: {}, {}{}\n",
        cpu.index,
        cpu.state,
        cpu.mode,
        place.unwrap_or_default()
    );
    if !cpu.pending.is_empty() {
        text += &format!("  about to be delivered: {}\n", cpu.pending.join(", "));
    }
    for instruction in &cpu.code {
        text += &format!(
            "  {:>16x}  {:<30} {}\n",
            instruction.address.0, instruction.bytes, instruction.text
        );
    }
    text += "\n";
    text += &general(&cpu.general);
    text += "\n";
    let mut segments = Table::indented(2);
    segments.row(["", "selector", "base", "limit", "type"]);
    for segment in &cpu.segments {
        segments.row([
            segment.name.clone(),
            format!("{:04x}", segment.selector.0),
            format!("{:016x}", segment.base.0),
            format!("{:08x}", segment.limit.0),
            segment.kind.clone(),
        ]);
    }
    text += &segments.draw();
    text += "\n";
    for registers in [&cpu.control, &cpu.debug, &cpu.msrs] {
        text += &table(registers);
        text += "\n";
    }
    text += &descriptors(cpu);
    text += &gates(cpu);
    text
}

/// Three to a line, the last alone with its flags.
fn general(registers: &[Register]) -> String {
    let mut text = String::new();
    let (last, others) = match registers.split_last() {
        Some(split) => split,
        None => return text,
    };
    for row in others.chunks(3) {
        let cells = row
            .iter()
            .map(|register| format!("{:<6} {}", register.name, value(register)));
        text += &format!("  {}\n", cells.collect::<Vec<_>>().join("   "));
    }
    text += &format!("  {:<6} {}   {}\n", last.name, value(last), last.words);
    text
}

fn descriptors(cpu: &Cpu) -> String {
    let mut text = format!(
        "  GDT at {:016x}, limit {}\n",
        cpu.gdt.base.0, cpu.gdt.limit
    );
    let mut rows = Table::indented(4);
    for entry in &cpu.gdt.entries {
        rows.row([
            format!("{:04x}", entry.selector.0),
            format!("base {:016x}", entry.base.0),
            format!("limit {:08x}", entry.limit.0),
            entry.kind.clone(),
        ]);
    }
    text += &rows.draw();
    text
}

fn gates(cpu: &Cpu) -> String {
    let mut text = format!(
        "  IDT at {:016x}, limit {}\n",
        cpu.idt.base.0, cpu.idt.limit
    );
    let mut rows = Table::indented(4);
    for run in &cpu.idt.entries {
        let Gates {
            first, last, step, ..
        } = run;
        let vectors = match first == last {
            true => format!("{first:02x}"),
            false => format!("{first:02x}-{last:02x}"),
        };
        let mut kind = format!("{} gate, DPL {}", run.kind, run.dpl);
        if run.ist > 0 {
            kind += &format!(", IST {}", run.ist);
        }
        let mut place = run.symbol.clone().unwrap_or_default();
        if *step > 0 {
            place += &format!(" and each {step:#x} further");
        }
        rows.row([
            vectors,
            format!("{:04x}:{:016x}", run.selector.0, run.offset.0),
            kind,
            place,
        ]);
    }
    text += &rows.draw();
    text
}
