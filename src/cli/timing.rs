//! The table of `--timing`.

use std::io::{self, Write};

use crate::vmm::Report;

/// Print it on standard error; its last line is the boot's cost in short.
pub fn print(report: &Report) {
    // It fails where nobody reads.
    let _ = io::stderr().write_all(table(report).as_bytes());
}

fn table(report: &Report) -> String {
    let mut lines = Vec::new();
    for (name, count) in &report.finished_instructions {
        lines.push(format!("hull: finished for KVM  {name:<12} {count:>8}"));
    }
    if report.bulk_bytes > 0 {
        lines.push(format!(
            "hull: copied for the guest  {:>8} KiB",
            report.bulk_bytes >> 10
        ));
    }
    for word in &report.added_words {
        lines.push(format!("hull: added for this host's KVM  {word}"));
    }
    let wide = report.devices.iter().map(|device| device.name.len()).max();
    for device in &report.devices {
        let (name, traffic) = (&device.name, device.traffic);
        lines.push(format!(
            "hull: device {name:<width$}  {:>6} requests  {:>10} bytes  {:>6} notifications  {:>6} interrupts",
            traffic.requests,
            traffic.bytes,
            traffic.notifications,
            traffic.interrupts,
            width = wide.unwrap_or(0),
        ));
    }
    if let Some(balloon) = &report.balloon {
        lines.push(format!(
            "hull: balloon: {} MiB wanted, {} MiB taken, {} MiB given back so far",
            balloon.target_bytes >> 20,
            balloon.actual_bytes >> 20,
            balloon.released_bytes >> 20,
        ));
        for (name, value) in &balloon.statistics {
            lines.push(format!("hull: balloon: {name:<20} {value:>14}"));
        }
    }
    for (what, time) in [
        ("init calls begin", report.initcalls_ms),
        ("kernel executes init", report.exec_init_ms),
        ("end", Some(report.end_ms)),
    ] {
        if let Some(time) = time {
            lines.push(format!("hull: {what:<21} {time:>10.1} ms"));
        }
    }
    let point = |time: Option<f64>| match time {
        Some(time) => format!("{time:.1} ms"),
        None => "never".to_string(),
    };
    lines.push(format!(
        "hull: boot: exec to first guest instruction {}, to the kernel's first output {}, to init {}",
        point(report.first_instruction_ms),
        point(report.kernel_output_ms),
        point(report.init_ms),
    ));
    lines.join("\n") + "\n"
}
