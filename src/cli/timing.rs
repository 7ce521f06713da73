//! The table of `--timing`.

use std::io::{self, Write};

use crate::vmm::{Report, SAVED_STATE};

/// Print it on standard error; its last line is the boot's cost in short.
pub fn print(report: &Report) {
    // A closed standard error is no failure.
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
    lines.extend(where_it_went(report));
    let point = |time: Option<f64>| match time {
        Some(time) => format!("{time:.1} ms"),
        None => "never".to_string(),
    };
    let went_on = report.phases.iter().any(|phase| phase.name == SAVED_STATE);
    lines.push(match went_on {
        true => format!(
            "hull: no boot: exec to first guest instruction {}",
            point(report.first_instruction_ms)
        ),
        false => format!(
            "hull: boot: exec to first guest instruction {}, to the kernel's first output {}, to init {}",
            point(report.first_instruction_ms),
            point(report.kernel_output_ms),
            point(report.init_ms),
        ),
    });
    lines.join("\n") + "\n"
}

/// "Where did the time go": hull's own work, then the guest's stages, each from the one before.
fn where_it_went(report: &Report) -> Vec<String> {
    let mut lines = vec![format!(
        "hull: {:<40} {:>10} {:>10} {:>7}",
        "where the time went", "from ms", "took ms", "share"
    )];
    let whole = report.end_ms.max(f64::MIN_POSITIVE);
    let mut line = |name: &str, start: f64, end: f64, aside: bool| {
        let took = (end - start).max(0.0);
        // What runs in parallel is no part of the whole.
        let share = match aside {
            true => "beside".into(),
            false => format!("{:.1} %", 100.0 * took / whole),
        };
        lines.push(format!(
            "hull:   {name:<38} {start:>10.1} {took:>10.1} {share:>7}"
        ));
    };
    for phase in &report.phases {
        line(phase.name, phase.start_ms, phase.end_ms, phase.aside);
    }
    let hulls = report.initcalls_ms.is_some() && report.exec_init_ms.is_some();
    let mut stages: Vec<(String, f64)> = Vec::new();
    if hulls {
        let named = [
            ("guest: to start_kernel", report.kernel_output_ms),
            ("guest: kernel, to its init calls", report.initcalls_ms),
            ("guest: init calls, initial RAM disk", report.exec_init_ms),
            ("guest: exec of init", report.init_ms),
        ];
        let there = named.into_iter();
        stages.extend(there.filter_map(|(name, at)| Some((name.to_string(), at?))));
    } else {
        if let Some(at) = report.kernel_output_ms {
            stages.push(("guest: to the kernel's first output".into(), at));
        }
        stages.extend(report.marks.iter().map(|mark| {
            let name = match mark.source {
                "boot timer" => "guest: to the boot timer".into(),
                source => format!("guest: to {:#04x} at {source} ({})", mark.code, mark.stage),
            };
            (name, mark.at_ms)
        }));
    }
    for (name, at) in [
        ("guest: init, to the command", report.command_ms),
        ("guest: the command", report.command_end_ms),
    ] {
        stages.extend(at.map(|at| (name.to_string(), at)));
    }
    stages.push(("end".into(), report.end_ms));
    stages.sort_by(|(_, a), (_, b)| a.total_cmp(b));
    let mut before = report.first_instruction_ms;
    for (name, at) in stages {
        line(&name, before.unwrap_or(at), at, false);
        before = Some(at);
    }
    lines
}
