//! KVM: what it offers, how fast it is, and what it leaves to hull.

use serde::Serialize;

use super::check::Check;
use crate::kvm::probe::{self, Degree, Measurement, ProbeError};
use crate::kvm::processor::Kind;
use crate::kvm::{KvmError, vm};
use crate::memory::layout::MAX_CPUS;

/// What was found of KVM, for scripts.
#[derive(Debug, Serialize)]
pub struct Kvm {
    max_vcpus: usize,
    missing_capabilities: Vec<&'static str>,
    #[serde(flatten)]
    measurement: Option<Measurement>,
}

/// Add what is found of KVM; nothing if it cannot be opened.
pub fn check(checks: &mut Vec<Check>) -> Option<Kvm> {
    const DEVICE: &str = "/dev/kvm";
    let kvm = match vm::open() {
        Ok(kvm) => kvm,
        Err(KvmError::Open {
            source_text,
            remedy,
        }) => {
            checks.push(Check::fail(DEVICE, source_text.to_string(), remedy));
            return None;
        }
        Err(error) => {
            let remedy = "remove what is there and load KVM's modules again";
            checks.push(Check::fail(DEVICE, error.to_string(), remedy));
            return None;
        }
    };
    checks.push(Check::ok(DEVICE, "opens; API version 12"));
    let missing = probe::missing(&kvm);
    checks.push(capabilities(&missing));
    let max_vcpus = kvm.get_max_vcpus();
    checks.push(vcpus(max_vcpus));
    let reports_instructions = probe::reports_instructions(&kvm);
    let measurement = match probe::measure(kvm) {
        Ok(found) => {
            checks.push(kind(&found));
            checks.push(cpuid(&found));
            checks.push(instructions(&found, reports_instructions));
            checks.push(system_calls(&found));
            Some(found)
        }
        Err(error) => {
            let remedy = remedy_of(&error);
            checks.push(Check::fail("a guest", error.to_string(), remedy));
            None
        }
    };
    Some(Kvm {
        max_vcpus,
        missing_capabilities: missing.iter().map(|need| need.name).collect(),
        measurement,
    })
}

fn remedy_of(error: &ProbeError) -> &'static str {
    match error {
        ProbeError::Kvm(KvmError::Ioctl { error, .. }) if error.errno() == libc::EBUSY => {
            "another hypervisor (VirtualBox, VMware) holds the processor: end its machines"
        }
        _ => "see what the kernel says about it: dmesg | grep kvm",
    }
}

fn capabilities(missing: &[probe::Need]) -> Check {
    const NAME: &str = "capabilities";
    let names: Vec<&str> = missing.iter().map(|need| need.name).collect();
    let finding = format!("missing: {}", names.join(", "));
    let lost: Vec<&str> = missing
        .iter()
        .filter_map(|need| match need.degree {
            Degree::Required => None,
            Degree::Wanted(lost) => Some(lost),
        })
        .collect();
    if missing.is_empty() {
        Check::ok(NAME, format!("all {} that hull uses", probe::NEEDS.len()))
    } else if lost.len() < missing.len() {
        Check::fail(NAME, finding, "a newer kernel on this host has them")
    } else {
        let remedy = format!("{}; a newer kernel has them", lost.join("; "));
        Check::warn(NAME, finding, remedy)
    }
}

fn vcpus(most: usize) -> Check {
    let finding = format!("{most} at most in a machine; hull gives up to {MAX_CPUS}");
    match most < MAX_CPUS.into() {
        true => Check::warn("vCPUs", finding, format!("no more than --cpus {most}")),
        false => Check::ok("vCPUs", finding),
    }
}

fn kind(found: &Measurement) -> Check {
    const NAME: &str = "kind of KVM";
    let times = format!(
        "{} ns an instruction of a guest's kernel, {} us a port exit",
        rounded(found.instruction_ns),
        rounded(found.port_exit_us)
    );
    let name = match found.kind {
        Kind::VtX => "VT-x",
        Kind::Svm => "SVM",
        Kind::Hardware => "by the processor",
        Kind::Software => "software",
    };
    match (&found.nested_in, found.kind) {
        (_, Kind::Software) => Check::warn(
            NAME,
            format!("{name}: {times}"),
            "guests take seconds to boot; hull's own kernel is made to do so with few instructions",
        ),
        (Some(outer), _) => Check::ok(NAME, format!("{name}, nested in {outer}: {times}")),
        (None, _) => Check::ok(NAME, format!("{name}: {times}")),
    }
}

/// With two digits that count.
fn rounded(value: f64) -> String {
    match value {
        ..10.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn cpuid(found: &Measurement) -> Check {
    let seen = match (found.honours_cpuid, found.honours_user_cpuid) {
        (true, true) => return Check::ok("CPUID", "guests see what hull sets"),
        (true, false) => "user space in guests sees the host's",
        (false, _) => "what the host has cannot be hidden from guests",
    };
    let remedy = "hull leaves it so; --cmdline clearcpuid=NAME hides a feature from a kernel";
    Check::warn("CPUID", seen, remedy)
}

fn instructions(found: &Measurement, reported: bool) -> Check {
    const NAME: &str = "instructions";
    match (found.finishes_instructions, reported) {
        (true, _) => Check::ok(NAME, "all that kernels use"),
        (false, true) => Check::warn(
            NAME,
            "not all that kernels use",
            format!(
                "hull finishes those itself (hull run --timing counts them), and adds {} to the \
                 kernel command line",
                probe::SOFTWARE_KVM_WORDS.join(" ")
            ),
        ),
        (false, false) => Check::fail(
            NAME,
            "not all that kernels use, and KVM does not report which",
            "a KVM of Linux 5.14 or newer has KVM_CAP_EXIT_ON_EMULATION_FAILURE",
        ),
    }
}

fn system_calls(found: &Measurement) -> Check {
    const NAME: &str = "system calls";
    match found.enters_kernel_by_syscall {
        true => Check::ok(NAME, "SYSCALL enters the guest's kernel"),
        false => Check::warn(
            NAME,
            "SYSCALL stays in ring 3",
            "hull's own kernel continues from the page fault that follows; others do not reach \
             user space",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Status;

    fn measurement() -> Measurement {
        Measurement {
            kind: Kind::VtX,
            nested_in: None,
            instruction_ns: 0.31,
            port_exit_us: 1.5,
            honours_cpuid: true,
            honours_user_cpuid: true,
            finishes_instructions: true,
            enters_kernel_by_syscall: true,
        }
    }

    #[test]
    fn a_processors_kvm_is_ok_and_a_software_one_a_warning_with_hulls_answer() {
        let found = measurement();
        for check in [
            kind(&found),
            cpuid(&found),
            instructions(&found, false),
            system_calls(&found),
        ] {
            assert_eq!(
                (check.status, &check.remedy),
                (Status::Ok, &None),
                "{check:?}"
            );
        }
        let nested = Measurement {
            nested_in: Some("KVM".into()),
            ..measurement()
        };
        assert!(
            kind(&nested)
                .finding
                .starts_with("VT-x, nested in KVM: 0.3 ns")
        );
        let software = Measurement {
            kind: Kind::Software,
            instruction_ns: 612.3,
            honours_cpuid: false,
            finishes_instructions: false,
            enters_kernel_by_syscall: false,
            ..nested
        };
        assert!(kind(&software).finding.starts_with("software: 612 ns"));
        for check in [kind(&software), cpuid(&software), system_calls(&software)] {
            assert_eq!(check.status, Status::Warn);
            assert!(check.remedy.is_some());
        }
        let finished = instructions(&software, true);
        assert_eq!(finished.status, Status::Warn);
        assert!(
            finished
                .remedy
                .is_some_and(|remedy| remedy.contains("clearcpuid="))
        );
        assert_eq!(instructions(&software, false).status, Status::Fail);
    }

    #[test]
    fn a_missing_capability_fails_or_warns_by_how_much_hull_needs_it() {
        assert_eq!(capabilities(&[]).status, Status::Ok);
        let need = |degree| {
            *probe::NEEDS
                .iter()
                .find(|need| degree == (need.degree == Degree::Required))
                .unwrap()
        };
        let (required, wanted) = (need(true), need(false));
        let check = capabilities(&[wanted]);
        assert_eq!(check.status, Status::Warn);
        assert!(check.finding.contains(wanted.name));
        let check = capabilities(&[wanted, required]);
        assert_eq!(check.status, Status::Fail);
        assert!(check.finding.contains(required.name));
        assert_eq!(vcpus(4).status, Status::Warn);
        assert_eq!(vcpus(MAX_CPUS.into()).status, Status::Ok);
    }
}
