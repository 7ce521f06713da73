//! The host's processor, by its CPUID.

use std::arch::x86_64::__cpuid_count;
use std::path::Path;

use serde::Serialize;

/// EAX, EBX, ECX and EDX of a leaf and subleaf on this thread's processor.
pub(super) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    // Safe in newer Rust: every x86_64 has CPUID.
    #[allow(unused_unsafe)]
    // SAFETY: the instruction is there in 64-bit mode and only writes registers.
    let found = unsafe { __cpuid_count(leaf, subleaf) };
    [found.eax, found.ebx, found.ecx, found.edx]
}

/// What executes the guest's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The processor, with Intel's VT-x.
    VtX,
    /// The processor, with AMD's SVM.
    Svm,
    /// The processor, with an extension that CPUID does not show.
    Hardware,
    /// An emulator in the host's kernel, instruction by instruction.
    Software,
}

/// A processor, by its CPUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processor {
    /// The brand string, or the vendor's name.
    pub name: String,
    /// The virtualization extension that CPUID shows: [`Kind::VtX`] or [`Kind::Svm`].
    pub virtualization: Option<Kind>,
    /// The hypervisor that this host runs under.
    pub hypervisor: Option<String>,
}

impl Processor {
    /// The processor on which this thread runs.
    pub fn of_host() -> Self {
        Self::described_by(|leaf| cpuid(leaf, 0))
    }

    /// The processor whose CPUID gives EAX, EBX, ECX and EDX of a leaf (Intel SDM 2A, CPUID;
    /// AMD APM 3, E.4).
    fn described_by(cpuid: impl Fn(u32) -> [u32; 4]) -> Self {
        let text = |registers: &[u32]| {
            let bytes: Vec<u8> = registers.iter().flat_map(|r| r.to_le_bytes()).collect();
            let text = String::from_utf8_lossy(&bytes);
            let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
            text.replace(|c: char| c.is_control(), "")
        };
        let [_, ebx, ecx, edx] = cpuid(0);
        let [extended, ..] = cpuid(0x8000_0000);
        let name = match extended {
            0x8000_0004.. => text(
                &(0x8000_0002..=0x8000_0004)
                    .flat_map(&cpuid)
                    .collect::<Vec<_>>(),
            ),
            _ => text(&[ebx, edx, ecx]),
        };
        let [.., features, _] = cpuid(1);
        let extended_features = match extended {
            0x8000_0001.. => cpuid(0x8000_0001)[2],
            _ => 0,
        };
        let hypervisor = (features >> 31 & 1 == 1).then(|| {
            let [_, ebx, ecx, edx] = cpuid(0x4000_0000);
            hypervisor_name(&text(&[ebx, ecx, edx]))
        });
        Self {
            name,
            virtualization: virtualization(features, extended_features),
            hypervisor,
        }
    }
}

/// The extension that CPUID.1:ECX and CPUID.8000_0001H:ECX show.
fn virtualization(features: u32, extended_features: u32) -> Option<Kind> {
    match (features >> 5 & 1, extended_features >> 2 & 1) {
        (1, _) => Some(Kind::VtX),
        (_, 1) => Some(Kind::Svm),
        _ => None,
    }
}

/// Whether it is known, without running a guest, that the processor executes the guests' kernels: its
/// extension is there, and so is KVM's module for it, beside which the kernel loads no other
/// (`kvm_x86_vendor_init` in arch/x86/kvm/x86.c).
pub fn executes_guests() -> bool {
    let leaf = |leaf| cpuid(leaf, 0);
    let extended_features = match leaf(0x8000_0000)[0] {
        0x8000_0001.. => leaf(0x8000_0001)[2],
        _ => 0,
    };
    let module = match virtualization(leaf(1)[2], extended_features) {
        Some(Kind::VtX) => "/sys/module/kvm_intel",
        Some(Kind::Svm) => "/sys/module/kvm_amd",
        _ => return false,
    };
    Path::new(module).exists()
}

/// A hypervisor's name from its signature in CPUID leaf 4000_0000H.
fn hypervisor_name(signature: &str) -> String {
    match signature {
        "KVMKVMKVM" => "KVM",
        "TCGTCGTCGTCG" => "QEMU's emulator",
        "Microsoft Hv" => "Hyper-V",
        "VMwareVMware" => "VMware",
        "XenVMMXenVMM" => "Xen",
        "VBoxVBoxVBox" => "VirtualBox",
        "" => "an unnamed hypervisor",
        other => other,
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPUID of a processor with these features in leaves 1 and 8000_0001H.
    fn processor(features: u32, extended: u32, signature: &[u8; 12]) -> Processor {
        let word = |at: usize| u32::from_le_bytes(signature[at..at + 4].try_into().unwrap());
        Processor::described_by(|leaf| match leaf {
            0 => [1, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
            1 => [0, 0, features, 0],
            0x4000_0000 => [0, word(0), word(4), word(8)],
            0x8000_0000 => [0x8000_0001, 0, 0, 0],
            0x8000_0001 => [0, 0, extended, 0],
            _ => [u32::MAX; 4],
        })
    }

    #[test]
    fn a_processor_is_described_by_its_cpuid_bits() {
        let intel = processor(1 << 5, 0, &[0; 12]);
        assert_eq!(intel.name, "GenuineIntel");
        assert_eq!(intel.virtualization, Some(Kind::VtX));
        assert_eq!(intel.hypervisor, None, "no bit 31, no hypervisor");
        let amd = processor(1 << 31, 1 << 2, b"KVMKVMKVM\0\0\0");
        assert_eq!(amd.virtualization, Some(Kind::Svm));
        assert_eq!(amd.hypervisor.as_deref(), Some("KVM"));
        let none = processor(1 << 31, 0, b"\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(none.virtualization, None);
        assert_eq!(none.hypervisor.as_deref(), Some("an unnamed hypervisor"));
    }

    #[test]
    fn control_codes_in_a_name_do_not_reach_the_terminal() {
        let odd = processor(1 << 31, 0, b"\x1b[2Jabc\x07\xff\0\0\0");
        assert_eq!(odd.hypervisor.as_deref(), Some("[2Jabc\u{fffd}"));
    }
}
