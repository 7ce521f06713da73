//! Interrupt controllers.

use super::registers::table;
use crate::cli::table::Table;
use crate::inspect::chips::{Interrupts, Lapic, Pin};

/// All of them, from the lines to the vCPUs.
pub fn draw(interrupts: &Interrupts) -> String {
    let mut text = String::new();
    for (pic, title) in interrupts.pics.iter().zip([
        "8259, lines 0 to 7",
        "8259, lines 8 to 15, cascaded into line 2",
    ]) {
        text += &format!("{title}\n{}\n", table(pic));
    }
    text += &format!("8254 timer\n{}\n", table(&interrupts.pit));
    text += &ioapic(&interrupts.ioapic);
    for lapic in &interrupts.lapics {
        text += &format!("\n{}", self::lapic(lapic));
        let pending = interrupts.pending.get(lapic.vcpu);
        let pending = pending.map(|words| words.join(", "));
        let pending = pending.filter(|words| !words.is_empty());
        text += &format!(
            "  about to be delivered: {}\n",
            pending.as_deref().unwrap_or("nothing")
        );
    }
    text
}

fn ioapic(pins: &[Pin]) -> String {
    let mut rows = Table::indented(2);
    rows.row([
        "pin",
        "vector",
        "delivery",
        "to",
        "trigger",
        "",
        "connected to",
    ]);
    for pin in pins {
        let mut state = vec![if pin.masked { "masked" } else { "open" }];
        if pin.raised {
            state.push("raised");
        }
        if pin.in_service {
            state.push("in service");
        }
        rows.row([
            format!("{}", pin.pin),
            format!("{:02x}", pin.vector),
            pin.delivery.clone(),
            pin.destination.clone(),
            pin.trigger.clone(),
            state.join(", "),
            pin.device.clone(),
        ]);
    }
    format!("IOAPIC\n{}", rows.draw())
}

fn lapic(lapic: &Lapic) -> String {
    let vectors = |vectors: &[u8]| match vectors {
        [] => "none".to_string(),
        some => {
            let some = some.iter().map(|vector| format!("{vector:02x}"));
            some.collect::<Vec<_>>().join(" ")
        }
    };
    let mut rows = Table::indented(2);
    for (name, list) in [
        ("requested (IRR)", &lapic.irr),
        ("in service (ISR)", &lapic.isr),
        ("by level (TMR)", &lapic.tmr),
    ] {
        rows.row([name.to_string(), vectors(list)]);
    }
    format!(
        "local APIC of vCPU {}\n{}{}",
        lapic.vcpu,
        table(&lapic.registers),
        rows.draw()
    )
}
