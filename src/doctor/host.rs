//! Processor, kernel, memory, devices of the host, and the guest inside hull.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;

use super::check::Check;
use crate::config::machine::DEFAULT_MEMORY;
use crate::config::size;
use crate::guest;
use crate::kvm::processor::Processor;

/// The processor's name, which must be of 64 bits.
pub fn processor() -> Check {
    let system = rustix::system::uname();
    let machine = system.machine().to_string_lossy();
    let name = Processor::of_host().name;
    match machine.as_ref() {
        "x86_64" => Check::ok("processor", format!("{machine}, {name}")),
        _ => Check::fail(
            "processor",
            format!("{machine}, {name}"),
            "hull and its guests need a 64-bit x86 kernel; boot one",
        ),
    }
}

/// The release of the host's kernel.
pub fn linux() -> Check {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    Check::ok("Linux", release)
}

/// Whether a guest of the default size fits.
pub fn memory() -> Check {
    const NAME: &str = "memory";
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(available) = meminfo(&text, "MemAvailable") else {
        let remedy = "mount /proc";
        return Check::warn(
            NAME,
            "/proc/meminfo does not tell what is available",
            remedy,
        );
    };
    let default = DEFAULT_MEMORY >> 10;
    let finding = format!(
        "{} MiB available; a guest has {} by default",
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

/// Whether guests get huge pages.
pub fn huge_pages() -> Check {
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

/// Whether tap devices can be opened.
pub fn tun() -> Check {
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

/// The kernel and initramfs inside this program.
pub fn embedded_guest() -> Check {
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

#[cfg(test)]
mod tests {
    use super::*;

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
