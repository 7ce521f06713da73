//! All of a machine in short.

use super::devices;
use crate::cli::jail::describe;
use crate::cli::table::Table;
use crate::cli::table::count;
use crate::config::size;
use crate::fleet::Record;
use crate::inspect::map::{Kind, Memory};
use crate::inspect::{Device, Inspection, Queues};
use crate::supervisor::control_group::Usage;

/// A page of it.
pub fn draw(record: &Record, seen: &Inspection) -> String {
    let mut text = format!(
        "{}: process {}, hull {}, started {} ago, {}, {} of memory\n\n",
        record.name,
        record.pid,
        record.version,
        count(record.age(), "second"),
        count(record.cpus.into(), "vCPU"),
        size::show(record.memory_bytes)
    );
    if let Some(usage) = Usage::of(&record.groups) {
        text.pop();
        text += &format!("control group: {}\n\n", describe(&usage));
    }
    let mut rows = Table::default();
    for cpu in &seen.vcpus {
        let rip = cpu.general.iter().find(|register| register.name == "RIP");
        let rip = rip.map(|rip| format!("RIP {}", rip.value));
        let place = cpu.place.as_deref().map(|place| format!(" ({place})"));
        rows.row([
            format!("vCPU {}", cpu.index),
            cpu.state.clone(),
            cpu.mode.clone(),
            rip.unwrap_or_default() + &place.unwrap_or_default(),
        ]);
    }
    text += &rows.draw();
    text += "\n";
    text += &seen.memory.as_ref().map(memory).unwrap_or_default();
    text += "\n";
    text += &all_devices(&seen.devices);
    text += "\n";
    text += &queues(&seen.queues);
    let Some(interrupts) = &seen.interrupts else {
        return text;
    };
    let open = interrupts
        .ioapic
        .iter()
        .filter(|pin| !pin.masked)
        .map(|pin| match pin.device.as_str() {
            "" => format!("{} (vector {:02x})", pin.pin, pin.vector),
            device => format!("{} {device} (vector {:02x})", pin.pin, pin.vector),
        });
    let open = match open.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "none".into(),
        some => some,
    };
    let mut rows = Table::default();
    rows.row(["open IOAPIC pins".into(), open]);
    for (vcpu, pending) in interrupts.pending.iter().enumerate() {
        if !pending.is_empty() {
            rows.row([format!("vCPU {vcpu}"), pending.join(", ")]);
        }
    }
    text + "\n" + &rows.draw()
}

fn memory(memory: &Memory) -> String {
    let mut rows = Table::default();
    rows.row([
        "RAM".to_string(),
        format!(
            "{}, {} resident",
            size::show(memory.bytes),
            size::show(memory.resident)
        ),
    ]);
    for area in &memory.areas {
        if area.kind == Kind::Loaded {
            let (start, last) = (area.start.0, area.end.0 - 1);
            rows.row([area.what.clone(), format!("{start:#x} to {last:#x}")]);
        }
    }
    rows.draw()
}

fn all_devices(all: &[Device]) -> String {
    let mut rows = Table::default();
    for device in all {
        let mut registers = device.registers.iter();
        let status = registers.find(|register| register.name == "Status");
        let status = status.map(|status| status.words.rsplit(' ').next().unwrap_or_default());
        rows.row([
            device.name.clone(),
            devices::place(device),
            status.unwrap_or_default().into(),
        ]);
    }
    rows.draw()
}

fn queues(all: &[Queues]) -> String {
    let mut rows = Table::default();
    for device in all {
        for queue in &device.queues {
            if let Some(rings) = &queue.rings {
                rows.row([
                    format!("{} queue {}", device.device, queue.index),
                    count(queue.traffic.requests, "chain"),
                    format!("{} in flight, {} waiting", rings.in_flight, rings.waiting),
                ]);
            }
        }
    }
    rows.draw()
}
