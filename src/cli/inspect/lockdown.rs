//! What hull has given up.

use crate::cli::table::Table;
use crate::config::size;
use crate::inspect::lockdown::{Lockdown, TRIED};

/// A row for each part of the lock-down, and one for each thread and for each process beside them.
pub fn draw(seen: &Lockdown) -> String {
    let mut parts = Table::default();
    let [core, core_most] = seen.core_bytes;
    let core = match core.max(core_most) {
        0 => "none".into(),
        u64::MAX => "of any size".into(),
        most => format!("up to {}", size::show(most)),
    };
    let traced = if seen.dumpable {
        "by its user's other processes, too"
    } else {
        "by root alone"
    };
    let [soft, hard] = seen.descriptors;
    parts.row(["core dumps", &core]);
    parts.row(["traced, and its memory read", traced]);
    parts.row(["descriptors", &format!("{soft} at most, {hard} if it asks")]);
    let files = match &seen.opened[..] {
        [] => format!("{} could not be opened", TRIED.join(", ")),
        opened => format!("{} could be opened", opened.join(", ")),
    };
    parts.row(["other files, tried", &files]);
    let mut threads = Table::default();
    threads.row([
        "THREAD",
        "NEW PRIVILEGES",
        "CAPABILITIES",
        "BOUNDING SET",
        "SECCOMP",
    ]);
    let names = seen.threads.iter().map(|it| (it.name.clone(), it));
    let beside = seen.processes.iter();
    let beside = beside.map(|it| (format!("{} (a process)", it.name), it));
    for (name, thread) in names.chain(beside) {
        let gains = if thread.no_new_privileges {
            "no"
        } else {
            "yes"
        };
        let set = |bits: &str| match bits {
            "0x0" => "none".to_string(),
            bits => bits.into(),
        };
        let filter = match thread.seccomp {
            0 => "none",
            1 => "strict",
            _ => "filter",
        };
        threads.row([
            name.as_str(),
            gains,
            &set(&thread.capabilities),
            &set(&thread.bounding),
            filter,
        ]);
    }
    format!("{}\n{}", parts.draw(), threads.draw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::lockdown::Thread;

    #[test]
    fn every_part_and_thread_has_a_row() {
        let named = |name: &str| Thread {
            name: name.into(),
            no_new_privileges: true,
            capabilities: "0x0".into(),
            bounding: "0x3".into(),
            seccomp: 2,
        };
        let seen = Lockdown {
            threads: vec![named("vcpu0")],
            processes: vec![named("connector")],
            dumpable: false,
            core_bytes: [0, 0],
            descriptors: [1024, 4096],
            opened: Vec::new(),
        };
        assert_eq!(
            draw(&seen),
            "core dumps                   none\n\
             traced, and its memory read  by root alone\n\
             descriptors                  1024 at most, 4096 if it asks\n\
             other files, tried           /etc/passwd, /dev/null, / could not be opened\n\n\
             THREAD                 NEW PRIVILEGES  CAPABILITIES  BOUNDING SET  SECCOMP\n\
             vcpu0                  no              none          0x3           filter\n\
             connector (a process)  no              none          0x3           filter\n"
        );
    }
}
