//! What hull has given up.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::cli::table::Table;
use crate::config::size;
use crate::inspect::lockdown::{Lockdown, NAMESPACES, Namespace, TRIED};

/// The namespaces of this process.
pub fn here() -> Vec<Namespace> {
    let id = |kind: &str| Some(fs::metadata(format!("/proc/self/ns/{kind}")).ok()?.ino());
    let each = NAMESPACES.into_iter().filter_map(|kind| {
        Some(Namespace {
            kind: kind.into(),
            id: id(kind)?,
        })
    });
    each.collect()
}

fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A row for each part of the lock-down, one for each thread and for each process beside them. `here` has the viewer's own namespaces.
pub fn draw(seen: &Lockdown, here: &[Namespace]) -> String {
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
    jail(&mut parts, seen, here);
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

/// Rows for what a jail and a control group change.
fn jail(parts: &mut Table, seen: &Lockdown, here: &[Namespace]) {
    parts.row(["user", &format!("uid {}", seen.uid)]);
    let own = seen.namespaces.iter().filter(|it| !here.contains(it));
    let own: Vec<&str> = own.map(|it| it.kind.as_str()).collect();
    let own = if own.is_empty() {
        "none".into()
    } else {
        own.join(", ")
    };
    parts.row(["namespaces of its own", &own]);
    let root = match seen.root_entries {
        Some(0) => "empty".into(),
        Some(entries) => count(entries as u64, "entry", "entries"),
        None => "out of reach".into(),
    };
    let mounts = count(seen.mounts as u64, "mount", "mounts");
    parts.row(["root folder", &format!("{root}; {mounts}")]);
    let groups = match &seen.control_groups[..] {
        [] => "none of its own".into(),
        groups => groups.join(", "),
    };
    parts.row(["control group", &groups]);
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
            uid: 5000,
            namespaces: [("mnt", 1), ("net", 2), ("user", 3)]
                .map(|(kind, id)| Namespace {
                    kind: kind.into(),
                    id,
                })
                .into(),
            root_entries: Some(0),
            mounts: 1,
            control_groups: vec!["/hull/7".into()],
        };
        let here = Namespace {
            kind: "user".into(),
            id: 3,
        };
        assert_eq!(
            draw(&seen, &[here]),
            "core dumps                   none\n\
             traced, and its memory read  by root alone\n\
             descriptors                  1024 at most, 4096 if it asks\n\
             other files, tried           /etc/passwd, /dev/null, / could not be opened\n\
             user                         uid 5000\n\
             namespaces of its own        mnt, net\n\
             root folder                  empty; 1 mount\n\
             control group                /hull/7\n\n\
             THREAD                 NEW PRIVILEGES  CAPABILITIES  BOUNDING SET  SECCOMP\n\
             vcpu0                  no              none          0x3           filter\n\
             connector (a process)  no              none          0x3           filter\n"
        );
    }
}
