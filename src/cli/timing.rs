//! The table of `--timing`.

use crate::vmm::Report;

/// Print it on standard error; its last line is the boot's cost in short.
pub fn print(report: &Report) {
    for (name, count) in &report.finished_instructions {
        eprintln!("hull: finished for KVM  {name:<12} {count:>8}");
    }
    if report.bulk_bytes > 0 {
        eprintln!(
            "hull: copied for the guest  {:>8} KiB",
            report.bulk_bytes >> 10
        );
    }
    for word in &report.added_words {
        eprintln!("hull: added for this host's KVM  {word}");
    }
    for (what, time) in [
        ("init calls begin", report.initcalls_ms),
        ("kernel executes init", report.exec_init_ms),
        ("end", Some(report.end_ms)),
    ] {
        if let Some(time) = time {
            eprintln!("hull: {what:<21} {time:>10.1} ms");
        }
    }
    let point = |time: Option<f64>| match time {
        Some(time) => format!("{time:.1} ms"),
        None => "never".to_string(),
    };
    eprintln!(
        "hull: boot: exec to first guest instruction {}, to the kernel's first output {}, to init {}",
        point(report.first_instruction_ms),
        point(report.kernel_output_ms),
        point(report.init_ms),
    );
}
