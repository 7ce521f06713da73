//! The machine on which figures were measured.

use std::fs;
use std::time::SystemTime;

use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};

use super::tree::bytes;
use crate::kvm::probe;
use crate::kvm::processor::{Kind, Processor};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// UTC, in the format of RFC 3339.
    pub date: String,
    pub hull: String,
    pub processor: String,
    pub cpus: usize,
    /// MemTotal of proc_meminfo(5), in bytes.
    pub memory: u64,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// Kind of KVM; `None` if /dev/kvm cannot be used.
    pub kvm: Option<String>,
    pub software_kvm: bool,
    pub hypervisor: Option<String>,
    pub emulated: bool,
    /// Whether its kernel mitigates a flaw of the processor.
    #[serde(default)]
    pub mitigates: bool,
}

impl Host {
    /// Describes this machine. Takes as long as [`probe::measure`].
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
            mitigates: mitigates(),
        }
    }
}

/// Whether the kernel mitigates a flaw (Documentation/ABI/testing/sysfs-devices-system-cpu).
fn mitigates() -> bool {
    let flaws = fs::read_dir("/sys/devices/system/cpu/vulnerabilities");
    flaws
        .into_iter()
        .flatten()
        .flatten()
        .any(|flaw| fs::read_to_string(flaw.path()).is_ok_and(|state| state.contains("Mitigation")))
}

/// MemAvailable of proc_meminfo(5), in bytes.
pub fn memory_available() -> Option<u64> {
    meminfo("MemAvailable:")
}

fn meminfo(name: &str) -> Option<u64> {
    bytes(&fs::read_to_string("/proc/meminfo").ok()?, name)
}
