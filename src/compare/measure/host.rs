//! The machine on which figures were taken.

use std::fs;
use std::time::SystemTime;

use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};

use crate::kvm::probe;
use crate::kvm::processor::Kind;
use crate::kvm::processor::Processor;

/// A machine, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// UTC, RFC 3339.
    pub date: String,
    /// hull's version.
    pub hull: String,
    /// The processor's name.
    pub processor: String,
    /// Processors that run.
    pub cpus: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Release of its kernel.
    pub kernel: String,
    /// What its KVM is, in a few words; `None` if there is none for us.
    pub kvm: Option<String>,
    /// Whether its KVM emulates kernels of guests.
    pub software_kvm: bool,
    /// The hypervisor under it.
    pub hypervisor: Option<String>,
    /// Whether that emulates its instructions.
    pub emulated: bool,
}

impl Host {
    /// This machine, now. Takes what [`probe::measure`] takes.
    pub fn examine() -> Self {
        let processor = Processor::of_host();
        let measured = Kvm::new().ok().and_then(|kvm| probe::measure(kvm).ok());
        let kind = measured.as_ref().map(|measured| measured.kind);
        let system = rustix::system::uname();
        Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            hull: env!("CARGO_PKG_VERSION").into(),
            processor: processor.name,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: meminfo("MemTotal:").unwrap_or(0),
            kernel: system.release().to_string_lossy().into_owned(),
            kvm: kind.map(|kind| {
                match kind {
                    Kind::VtX => "hardware, VT-x",
                    Kind::Svm => "hardware, SVM",
                    Kind::Hardware => "hardware",
                    Kind::Software => "software: guests' kernels are emulated",
                }
                .into()
            }),
            software_kvm: kind == Some(Kind::Software),
            emulated: processor.hypervisor.as_deref() == Some("QEMU's emulator"),
            hypervisor: processor.hypervisor,
        }
    }
}

/// Bytes that new programs could have without swapping: MemAvailable of proc_meminfo(5).
pub fn memory_available() -> Option<u64> {
    meminfo("MemAvailable:")
}

/// A line of proc_meminfo(5), in bytes.
fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
