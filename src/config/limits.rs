//! What the host gives a machine's hull at most: `memory=SIZE,cpu=N,pids=N,io=SIZE`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::size;
use super::table::{Separators, Table};

/// Limits in a file as a table.
pub const TABLE: Table = Table::new(
    "limit",
    &[],
    &["memory", "cpu", "pids", "io"],
    Separators::Commas,
);

/// What hull itself may need beside the guest's memory, in bytes: its code and data, the page tables of the
/// guest's memory and the pages of files that are just read or written.
pub const OWN_MEMORY: u64 = 64 << 20;
/// Processes and threads that hull itself may need, beside one for each vCPU and two for each device.
const OWN_PIDS: u32 = 8;
/// Hundredths of a processor: the kernel takes no quota below a millisecond in 100 ms.
const CPUS: std::ops::RangeInclusive<u32> = 1..=102_400;
/// Most processes: the kernel's own limit (PID_MAX_LIMIT).
const MAX_PIDS: u32 = 4 << 20;

/// Limits of a machine's control group; there is none of what is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory, the guest's and hull's.
    pub memory_bytes: Option<u64>,
    /// Processors, in hundredths, 1 to 102400.
    pub cpu_hundredths: Option<u32>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Bytes a second that are read, and as many that are written, on each of the host's disks that the
    /// machine uses.
    pub io_bytes: Option<u64>,
}

impl Limits {
    /// Whether there is no limit.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Refuse what is less than a machine needs, which has so much memory, so many vCPUs and devices.
    ///
    /// # Errors
    /// Which limit is too low, and the least that would do.
    pub fn check(&self, memory_bytes: u64, cpus: u8, devices: usize) -> Result<(), String> {
        let least = memory_bytes.saturating_add(OWN_MEMORY);
        if let Some(bytes) = self.memory_bytes.filter(|bytes| *bytes < least) {
            return Err(format!(
                "memory={}: the machine may need {}, its own {} and {} for hull; allow that, or give the \
                 machine less (--memory)",
                size::exact(bytes),
                size::exact(least),
                size::exact(memory_bytes),
                size::exact(OWN_MEMORY)
            ));
        }
        let devices = u32::try_from(devices).unwrap_or(u32::MAX);
        let least = devices.saturating_mul(2) + u32::from(cpus) + OWN_PIDS;
        if let Some(pids) = self.pids.filter(|pids| *pids < least) {
            return Err(format!(
                "pids={pids}: hull may start {least} threads and processes for this machine; allow that"
            ));
        }
        Ok(())
    }
}

impl FromStr for Limits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut limits = Self::default();
        for option in text.split(',') {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            let wrong = |form: &str| format!("{key}={value}: {form}");
            let bytes = || {
                let bytes = size::parse(value).filter(|bytes| *bytes > 0);
                bytes.ok_or_else(|| wrong(&format!("it is more than 0; {}", size::FORM)))
            };
            match key {
                "memory" => limits.memory_bytes = Some(bytes()?),
                "io" => limits.io_bytes = Some(bytes()?),
                "cpu" => {
                    let hundredths = hundredths(value).filter(|n| CPUS.contains(n));
                    let form = "it is a number of processors from 0.01 to 1024, such as 2 or 0.5";
                    limits.cpu_hundredths = Some(hundredths.ok_or_else(|| wrong(form))?);
                }
                "pids" => {
                    let pids = value.parse().ok().filter(|n| (1..=MAX_PIDS).contains(n));
                    let form = format!("it is a number of processes from 1 to {MAX_PIDS}");
                    limits.pids = Some(pids.ok_or_else(|| wrong(&form))?);
                }
                _ => {
                    return Err(format!(
                        "'{option}' is no limit; there are memory=SIZE, cpu=N, pids=N and io=SIZE"
                    ));
                }
            }
        }
        Ok(limits)
    }
}

/// A number with at most two decimals, in hundredths.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 2 {
        return None;
    }
    let whole: u32 = whole.parse().ok()?;
    let part: u32 = format!("{part:0<2}").parse().ok()?;
    whole.checked_mul(100)?.checked_add(part)
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = |n: u32| match n % 100 {
            0 => format!("cpu={}", n / 100),
            part => format!("cpu={}.{part:02}", n / 100),
        };
        let all = [
            self.memory_bytes
                .map(|n| format!("memory={}", size::exact(n))),
            self.cpu_hundredths.map(cpu),
            self.pids.map(|n| format!("pids={n}")),
            self.io_bytes.map(|n| format!("io={}", size::exact(n))),
        ];
        f.write_str(&all.into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_written_and_have_bounds() {
        let parse = |text: &str| text.parse::<Limits>();
        let all = Limits {
            memory_bytes: Some(192 << 20),
            cpu_hundredths: Some(150),
            pids: Some(64),
            io_bytes: Some(10 << 20),
        };
        assert_eq!(parse("memory=192M,cpu=1.5,pids=64,io=10M"), Ok(all));
        assert_eq!(parse(&all.to_string()), Ok(all));
        assert_eq!(parse("cpu=2").map(|it| it.to_string()), Ok("cpu=2".into()));
        for (wrong, part) in [
            ("", "is no limit"),
            ("memory", "more than 0"),
            ("memory=0", "more than 0"),
            ("memory=12Q", "memory=12Q"),
            ("cpu=0", "from 0.01 to 1024"),
            ("cpu=0.001", "from 0.01"),
            ("cpu=-1", "from 0.01"),
            ("cpu=9999", "from 0.01"),
            ("pids=0", "from 1 to"),
            ("io=0", "more than 0"),
            ("swap=1G", "'swap=1G' is no limit; there are memory=SIZE"),
        ] {
            let refusal = parse(wrong).unwrap_err();
            assert!(refusal.contains(part), "{wrong}: {refusal}");
        }
    }

    #[test]
    fn a_limit_below_what_a_machine_needs_is_refused() {
        let check = |text: &str| text.parse::<Limits>().unwrap().check(128 << 20, 2, 1);
        assert_eq!(check("memory=192M,pids=12"), Ok(()));
        let refusal = check("memory=191M").unwrap_err();
        assert!(refusal.contains("may need 192M, its own 128M"), "{refusal}");
        let refusal = check("pids=11").unwrap_err();
        assert!(refusal.contains("may start 12"), "{refusal}");
    }
}
