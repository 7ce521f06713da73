//! Memory and processor time of a process and of all its descendants.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

/// What some processes hold at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// How many processes.
    pub processes: usize,
    /// Bytes resident; shared ones count in each.
    pub resident: u64,
    /// Bytes resident, shared ones divided among those that share them (PSS).
    pub proportional: u64,
    /// CPU time so far, user and system, in clock ticks of 10 ms (proc_pid_stat(5)).
    pub ticks: u64,
}

/// A process and its descendants. One that ends meanwhile is not there.
pub fn descendants(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while let Some(pid) = found.get(at) {
        found.extend(children.remove(pid).unwrap_or_default());
        at += 1;
    }
    found
}

/// The parent of a process.
pub fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.first()?.parse().ok()
}

/// What `processes` hold (proc_pid_smaps(5), smaps_rollup).
pub fn held(processes: &[u32]) -> Held {
    let mut all = Held::default();
    for pid in processes {
        let Ok(rollup) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
            continue;
        };
        let kib = |name: &str| -> u64 {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.trim().strip_suffix("kB"));
            number
                .and_then(|number| number.trim().parse().ok())
                .unwrap_or(0)
        };
        all.processes += 1;
        all.resident += kib("Rss:") * 1024;
        all.proportional += kib("Pss:") * 1024;
        let fields = stat(*pid).unwrap_or_default();
        // utime and stime, fields 14 and 15; the parent is the 4th.
        let ticks = |at: usize| {
            fields
                .get(at - 4)
                .and_then(|field| field.parse::<u64>().ok())
        };
        all.ticks += ticks(14).unwrap_or(0) + ticks(15).unwrap_or(0);
    }
    all
}

/// The fields of /proc/PID/stat from the parent on: what is before has the name in it, which may hold
/// anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().skip(1).map(Into::into).collect())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_child_of_a_child_counts() {
        let mut child = Command::new("sh")
            .args(["-c", "(sleep 1000; :) & sleep 0.2; echo up; wait"])
            .process_group_and_pipe();
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let tree = descendants(child.id());
        let held = held(&tree);
        let group = rustix::process::Pid::from_raw(child.id() as i32).expect("a process");
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = child.wait();
        assert_eq!(
            (tree.len(), held.processes),
            (3, 3),
            "sh, its subshell, sleep"
        );
        assert!(held.resident >= held.proportional && held.proportional > 0);
    }

    trait Piped {
        fn process_group_and_pipe(&mut self) -> std::process::Child;
    }

    impl Piped for Command {
        fn process_group_and_pipe(&mut self) -> std::process::Child {
            use std::os::unix::process::CommandExt;
            let child = self.process_group(0).stdout(Stdio::piped()).spawn();
            child.expect("sh starts")
        }
    }

    #[test]
    fn nobody_holds_nothing() {
        assert_eq!(held(&[]), Held::default());
        assert_eq!(descendants(u32::MAX), [u32::MAX]);
    }
}
