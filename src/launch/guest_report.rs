//! What a guest says of its memory and its processes: for `hull top` and `hull stats`.
//!
//! Its end is a function of init's own (`guest/init/src/report.rs`, which has the format). It may say anything:
//! so much is taken, for so long, and shown without control characters.

use std::io::Read;
use std::time::Duration;

use serde::Serialize;

use super::exec::{ExecError, connect_within};
use crate::agent::Exec;
use crate::fleet::Found;

/// Most bytes of a report.
const MAX_REPORT: u64 = 8 << 20;
/// Longest command line of a process, in characters.
const MAX_COMMAND: usize = 4096;
/// How long the guest may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clock ticks of /proc/PID/stat a second (USER_HZ, which x86 has as 100).
const TICKS: u64 = 100;

/// What the guest says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestReport {
    /// Its memory in bytes, and how much of that is not available to new programs.
    pub memory: Option<(u64, u64)>,
    /// Its processes, without init and the kernel's threads.
    pub processes: Vec<GuestProcess>,
}

/// A process of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GuestProcess {
    /// Its effective user.
    pub uid: u32,
    /// Its number.
    pub pid: u32,
    /// That of its parent.
    pub ppid: u32,
    /// Its state, as ps(1) has it.
    pub state: char,
    /// What it has in memory.
    pub resident_bytes: u64,
    /// CPU time in seconds.
    pub cpu_seconds: u64,
    /// Its arguments.
    pub command: String,
}

/// Ask the guest of `machine`.
///
/// # Errors
/// It runs no agent of hull's, is paused, or takes too long.
pub fn ask(machine: &Found) -> Result<GuestReport, ExecError> {
    let exec = Exec {
        argv: vec!["init".into(), "report".into(), "/".into()],
        cwd: "/".into(),
        own: true,
        ..Exec::default()
    };
    let connection = connect_within(machine, PATIENCE)?;
    let stream = connection.stream(exec)?.within(PATIENCE);
    let mut bytes = Vec::new();
    let read = stream.take(MAX_REPORT).read_to_end(&mut bytes);
    read.map_err(|source| ExecError::System {
        what: "get the guest's report",
        source,
    })?;
    Ok(parse(&bytes))
}

fn parse(bytes: &[u8]) -> GuestReport {
    let mut files = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let memory = files.next().unwrap_or_default();
    let total = kib(&memory, "MemTotal:");
    let available = kib(&memory, "MemAvailable:");
    let mut processes = Vec::new();
    while let (Some(status), Some(stat), Some(command)) = (files.next(), files.next(), files.next())
    {
        processes.extend(process(&status, &stat, &command));
    }
    processes.sort_by_key(|it| it.pid);
    GuestReport {
        memory: total
            .zip(available)
            .map(|(all, free)| (all, all.saturating_sub(free))),
        processes,
    }
}

/// A process, if the guest says at least its number.
fn process(status: &str, stat: &str, command: &str) -> Option<GuestProcess> {
    let (head, rest) = stat.rsplit_once(')')?;
    // The fields from the 3rd, the state, on (proc_pid_stat(5)).
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(14)
        .unwrap_or(0)
        .saturating_add(number(15).unwrap_or(0));
    let uids = field(status, "Uid:").unwrap_or_default();
    let state = fields.first().and_then(|state| state.chars().next());
    let visible = |it: char| if it.is_control() { '?' } else { it };
    let command: String = command.chars().take(MAX_COMMAND).map(visible).collect();
    Some(GuestProcess {
        uid: uids
            .split_whitespace()
            .nth(1)
            .and_then(|uid| uid.parse().ok())
            .unwrap_or(0),
        pid: head.split_whitespace().next()?.parse().ok()?,
        ppid: fields
            .get(1)
            .and_then(|ppid| ppid.parse().ok())
            .unwrap_or(0),
        state: state.filter(char::is_ascii_alphabetic).unwrap_or('?'),
        resident_bytes: kib(status, "VmRSS:").unwrap_or(0),
        cpu_seconds: ticks / TICKS,
        command: command.trim_end().to_string(),
    })
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let kib = field(text, name)?.trim().strip_suffix("kB")?.trim();
    kib.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REPORT: &str = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB\n\0\
        Name:\tsh\nUid:\t0\t5\t0\t0\nVmRSS:\t  12 kB\n\0\
        45 (a) b) S 1 45 45 0 -1 4194560 1 2 3 4 150 70 0 0 20 0 1 0 100\0\
        sh -c x\x1b[2J y \0";

    #[test]
    fn a_report_says_memory_and_processes() {
        let report = parse(REPORT.as_bytes());
        assert_eq!(report.memory, Some((1000 << 10, 600 << 10)));
        let process = GuestProcess {
            uid: 5,
            pid: 45,
            ppid: 1,
            state: 'S',
            resident_bytes: 12 << 10,
            cpu_seconds: 2,
            command: "sh -c x?[2J y".into(),
        };
        assert_eq!(report.processes, [process]);
        assert_eq!(parse(b""), GuestReport::default());
    }

    proptest! {
        #[test]
        fn any_report_is_taken(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..400_usize) {
            let mut text = REPORT.as_bytes().to_vec();
            let at = at.min(text.len());
            text.splice(at..at, bytes);
            for process in parse(&text).processes {
                prop_assert!(!process.command.chars().any(char::is_control));
            }
        }
    }
}
