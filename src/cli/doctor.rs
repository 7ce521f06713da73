//! `hull doctor`: what stands between this machine and a running guest.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal};

use serde::Serialize;

use crate::config::machine::DEFAULT_MEMORY;
use crate::config::size;
use crate::guest;
use crate::kvm::probe::{self, Degree, Measurement, ProbeError};
use crate::kvm::processor::{Kind, Processor};
use crate::kvm::{KvmError, vm};
use crate::memory::layout::MAX_CPUS;

/// Columns of the table.
const WIDTH: usize = 80;
/// Column at which findings and remedies begin.
const INDENT: usize = 20;

/// The flags.
#[derive(clap::Args)]
#[command(after_help = "\
Each line is ok, warn (guests run; something is slower or missing) or fail (none
runs), with a remedy beneath. The exit status is 1 if one fails.")]
pub struct Doctor {
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Fail,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    finding: String,
    /// What to do, or what hull does about it; nothing where all is well.
    remedy: Option<String>,
}

/// What was found of KVM, for scripts.
#[derive(Debug, Serialize)]
struct Kvm {
    max_vcpus: usize,
    missing_capabilities: Vec<&'static str>,
    #[serde(flatten)]
    measurement: Option<Measurement>,
}

#[derive(Debug, Serialize)]
struct Report {
    checks: Vec<Check>,
    /// `None` when /dev/kvm is not there for us.
    kvm: Option<Kvm>,
}

impl Doctor {
    /// Examine this machine; 1 if no guest runs here, else 0.
    pub fn execute(self) -> anyhow::Result<u8> {
        let report = examine();
        let text = match self.json {
            true => serde_json::to_string_pretty(&report)? + "\n",
            false => table(&report.checks, colours_wanted()),
        };
        super::output::print(text.as_bytes())?;
        let failed = |check: &Check| check.status == Status::Fail;
        Ok(report.checks.iter().any(failed).into())
    }
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            finding: finding.into(),
            remedy: None,
        }
    }

    fn warn(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Status::Warn,
            remedy: Some(remedy.into()),
            ..Self::ok(name, finding)
        }
    }

    fn fail(name: &'static str, finding: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status: Status::Fail,
            ..Self::warn(name, finding, remedy)
        }
    }
}

fn examine() -> Report {
    let mut checks = host();
    let kvm = kvm(&mut checks);
    checks.push(memory());
    checks.push(huge_pages());
    checks.push(tun());
    checks.push(inside());
    Report { checks, kvm }
}

fn host() -> Vec<Check> {
    let system = rustix::system::uname();
    let machine = system.machine().to_string_lossy();
    let name = Processor::of_host().name;
    let processor = match machine.as_ref() {
        "x86_64" => Check::ok("processor", format!("{machine}, {name}")),
        _ => Check::fail(
            "processor",
            format!("{machine}, {name}"),
            "hull and its guests need a 64-bit x86 kernel; boot one",
        ),
    };
    let release = system.release().to_string_lossy();
    vec![processor, Check::ok("Linux", release)]
}

fn kvm(checks: &mut Vec<Check>) -> Option<Kvm> {
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
            "not all that kernels use, and hull is not told which",
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
            "hull's own kernel goes on from the page fault that follows; others do not get to \
             user space",
        ),
    }
}

fn memory() -> Check {
    const NAME: &str = "memory";
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(available) = meminfo(&text, "MemAvailable") else {
        let remedy = "mount /proc, or find out by yourself";
        return Check::warn(
            NAME,
            "/proc/meminfo does not tell what is available",
            remedy,
        );
    };
    let default = DEFAULT_MEMORY >> 10;
    let finding = format!(
        "{} MiB available; a guest has {} if not told otherwise",
        available >> 10,
        size::exact(DEFAULT_MEMORY)
    );
    match available < default {
        true => Check::warn(
            NAME,
            finding,
            "end other programs, or give less by --memory",
        ),
        false => Check::ok(NAME, finding),
    }
}

/// A number of /proc/meminfo; in KiB where it is a size.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line?.strip_prefix(':')?.split_whitespace().next()?;
    number.parse().ok()
}

fn huge_pages() -> Check {
    const NAME: &str = "huge pages";
    const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let meminfo_text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = meminfo(&meminfo_text, "HugePages_Free").unwrap_or(0);
    let modes = fs::read_to_string(SWITCH).unwrap_or_default();
    match chosen(&modes) {
        Some(mode) if mode != "never" => Check::ok(
            NAME,
            format!("transparent: {mode}; reserved and free: {free}"),
        ),
        mode => Check::warn(
            NAME,
            format!(
                "transparent: {}; reserved and free: {free}",
                mode.unwrap_or("none")
            ),
            format!("large guests are slower without; echo madvise > {SWITCH}"),
        ),
    }
}

/// The word in brackets, as sysfs shows a choice.
fn chosen(modes: &str) -> Option<&str> {
    let (_, rest) = modes.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

fn tun() -> Check {
    const NAME: &str = "/dev/net/tun";
    let opened = OpenOptions::new().read(true).write(true).open(NAME);
    let Err(error) = opened else {
        return Check::ok(NAME, "opens");
    };
    let remedy = match error.kind() {
        ErrorKind::NotFound => "only a guest's network needs it: load the module tun",
        ErrorKind::PermissionDenied => {
            "only a guest's network needs it: run as root, or let your user in"
        }
        _ => "only a guest's network needs it: load the module tun again",
    };
    Check::warn(NAME, error.to_string(), remedy)
}

fn inside() -> Check {
    let mib = |packed: guest::Packed| packed.len() as f64 / f64::from(1 << 20);
    match guest::embedded() {
        Some(guest) => Check::ok(
            "guest",
            format!(
                "in this program: kernel {:.1} MiB, initramfs {:.1} MiB",
                mib(guest.vmlinux),
                mib(guest.initramfs)
            ),
        ),
        None => Check::warn(
            "guest",
            "none in this program",
            "build it with `make build`, or name a kernel: hull run KERNEL",
        ),
    }
}

/// On a terminal, unless NO_COLOR (https://no-color.org) says otherwise.
fn colours_wanted() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !refused
}

fn table(checks: &[Check], coloured: bool) -> String {
    let mut text = String::new();
    for check in checks {
        let (word, colour) = match check.status {
            Status::Ok => ("ok  ", "32"),
            Status::Warn => ("warn", "33"),
            Status::Fail => ("fail", "31"),
        };
        let word = match coloured {
            true => format!("\x1b[{colour}m{word}\x1b[0m"),
            false => word.to_string(),
        };
        let mut lines = wrapped(&check.finding).into_iter();
        let first = lines.next().unwrap_or_default();
        text += &format!("{word}  {:<12}  {first}\n", check.name);
        let remedy = check.remedy.as_deref().map(|remedy| format!("-> {remedy}"));
        for line in lines.chain(remedy.iter().flat_map(|remedy| wrapped(remedy))) {
            text += &format!("{:INDENT$}{line}\n", "");
        }
    }
    text
}

/// The lines of `text` in the columns from [`INDENT`] on; a longer word has one to itself.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH - INDENT => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_table_is_aligned_and_stays_in_its_columns() {
        let checks = [
            Check::ok("Linux", "6.1"),
            Check::fail("/dev/net/tun", "one two ".repeat(20), "word ".repeat(30)),
        ];
        let text = table(&checks, false);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("ok    Linux         6.1"));
        assert!(
            lines
                .next()
                .is_some_and(|line| line.starts_with("fail  /dev/net/tun  one two"))
        );
        assert!(lines.all(|line| line.starts_with(&" ".repeat(INDENT)) && line.len() <= WIDTH));
        assert_eq!(text.matches("-> ").count(), 1);
        assert!(!text.contains('\x1b'));
        assert!(table(&checks, true).starts_with("\x1b[32mok  \x1b[0m  Linux "));
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

    #[test]
    fn what_the_kernel_shows_as_text_is_read() {
        let text = "MemTotal:  9 kB\nMemAvailable:   23812376 kB\nHugePages_Free:   7\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(23_812_376));
        assert_eq!(meminfo(text, "HugePages_Free"), Some(7));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(chosen("always [madvise] never\n"), Some("madvise"));
        assert_eq!(chosen(""), None);
    }
}
