//! What a machine uses of the host, and its guest.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::compare::measure::tree;
use crate::control::{self, Action, Answer};
use crate::fleet::Found;
use crate::inspect::Topic;
use crate::launch::guest_report;
use crate::sandbox::{Role, spawn_scoped};

/// For how long CPU time is measured.
const SPAN: Duration = Duration::from_secs(1);
/// How long a machine's hull may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Clock ticks a second (USER_HZ).
const TICKS: f64 = 100.0;

/// What a machine uses.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    pub name: String,
    pub cpu_percent: f64,
    pub host_memory_bytes: Option<u64>,
    pub guest_memory_used_bytes: Option<u64>,
    pub guest_memory_bytes: Option<u64>,
    pub network_bytes: Option<u64>,
    pub disk_bytes: Option<u64>,
    pub processes: Option<usize>,
}

/// What they use, all measured at once.
pub fn measure(found: &[Found]) -> Vec<Usage> {
    thread::scope(|scope| {
        let each: Vec<_> = found
            .iter()
            .map(|machine| spawn_scoped(scope, Role::Client, || usage(machine)))
            .collect();
        let lines = each.into_iter().filter_map(|one| one.ok()?.join().ok());
        lines.collect()
    })
}

fn usage(machine: &Found) -> Usage {
    let start = Instant::now();
    let processes = tree::descendants(machine.record.pid);
    let before = tree::ticks(&processes);
    let guest = guest_report::ask(machine).ok();
    let traffic = traffic(machine);
    thread::sleep(SPAN.saturating_sub(start.elapsed()));
    let ticks = tree::ticks(&processes).saturating_sub(before);
    let memory = guest.as_ref().and_then(|guest| guest.memory);
    Usage {
        name: machine.record.name.clone(),
        cpu_percent: 100.0 * ticks as f64 / TICKS / start.elapsed().as_secs_f64(),
        host_memory_bytes: memory_of(machine, &processes),
        guest_memory_used_bytes: memory.map(|(_, used)| used),
        guest_memory_bytes: memory.map(|(all, _)| all),
        network_bytes: traffic.map(|(network, _)| network),
        disk_bytes: traffic.map(|(_, disks)| disks),
        processes: guest.map(|guest| guest.processes.len()),
    }
}

/// Memory of the processes on the host.
fn memory_of(machine: &Found, processes: &[u32]) -> Option<u64> {
    if let Ok(usage) = tree::usage(processes)
        && usage.processes > 0
    {
        return Some(usage.proportional);
    }
    match control::ask_within(machine, Action::Status, ANSWER_TIMEOUT) {
        Ok(Answer::Status(status)) => status.resident_bytes,
        _ => None,
    }
}

/// Bytes through networks, and through disks.
fn traffic(machine: &Found) -> Option<(u64, u64)> {
    let action = Action::Inspect {
        topic: Topic::Devices,
        vcpu: None,
    };
    let answer = control::ask_within(machine, action, ANSWER_TIMEOUT).ok()?;
    let Answer::Inspection(seen) = answer else {
        return None;
    };
    let bytes = |kind: &str| {
        let devices = seen.devices.iter().filter(|it| it.name.starts_with(kind));
        devices.filter_map(|it| it.traffic).map(|it| it.bytes).sum()
    };
    Some((bytes("net "), bytes("disk ")))
}
