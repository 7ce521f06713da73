//! Devices on the buses.

use super::registers::value;
use crate::cli::table::Table;
use crate::cli::table::count;
use crate::inspect::Device;

/// All of them, one after the other.
pub fn draw(devices: &[Device]) -> String {
    let each: Vec<String> = devices.iter().map(device).collect();
    each.join("\n")
}

/// Where a device is, in words.
pub fn place(device: &Device) -> String {
    let (first, last) = (device.base.0, device.base.0 + device.len.saturating_sub(1));
    let line = device.gsi.map(|gsi| format!(", interrupt line {gsi}"));
    let line = line.unwrap_or_default();
    match (device.bus.as_str(), device.len) {
        ("ports", 1) => format!("port {first:#x}{line}"),
        ("ports", _) => format!("ports {first:#x} to {last:#x}{line}"),
        _ => format!("memory {first:#x} to {last:#x}{line}"),
    }
}

fn device(device: &Device) -> String {
    let mut text = format!("{}: {}\n", device.name, place(device));
    if let Some(traffic) = &device.traffic {
        text += &format!(
            "  {}, {}, {}, {}\n",
            count(traffic.requests, "request"),
            count(traffic.bytes, "byte"),
            count(traffic.notifications, "notification"),
            count(traffic.interrupts, "interrupt")
        );
    }
    let mut rows = Table::indented(2);
    for register in &device.registers {
        let offset = register.offset.map(|offset| format!("{offset:#05x}"));
        rows.row([
            offset.unwrap_or_default(),
            register.name.to_string(),
            value(register),
            register.words.clone(),
        ]);
    }
    text += &rows.draw();
    text
}
