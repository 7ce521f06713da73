//! Memory and CPU time of a process and all its descendants.

use std::collections::BTreeMap;
use std::fs;
use std::io;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub processes: usize,
    /// RSS, in bytes: a shared page counts in each process.
    pub resident: u64,
    /// PSS, in bytes: a shared page is divided among the processes that map it.
    pub proportional: u64,
}

/// `root` and its descendants, as far as they are running.
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

pub fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.first()?.parse().ok()
}

/// The memory of `processes` that are running.
///
/// # Errors
/// The kernel does not tell: of a process that is not dumpable, as hull is while a guest runs, only root
/// may know (ptrace(2), "Ptrace access mode checking").
pub fn usage(processes: &[u32]) -> io::Result<Usage> {
    let mut all = Usage::default();
    for pid in processes {
        let Some(rollup) = about(*pid, "smaps_rollup")? else {
            continue;
        };
        all.processes += 1;
        all.resident += bytes(&rollup, "Rss:").unwrap_or(0);
        all.proportional += bytes(&rollup, "Pss:").unwrap_or(0);
    }
    Ok(all)
}

/// What /proc/PID/`file` says; `None` if there is no such process any more.
///
/// # Errors
/// As [`usage`].
pub fn about(pid: u32, file: &str) -> io::Result<Option<String>> {
    let path = format!("/proc/{pid}/{file}");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(io::Error::other(
            format!("{path}: {error}; measure as root, who may read it"),
        )),
        Err(_) => Ok(None),
    }
}

/// CPU time of `processes`, user and system, in clock ticks of 10 ms (proc_pid_stat(5)).
pub fn ticks(processes: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let fields = stat(*pid).unwrap_or_default();
        // utime and stime are fields 14 and 15; `fields` starts with the 4th.
        let times = fields.iter().skip(14 - 4).take(2);
        times
            .filter_map(|ticks| ticks.parse::<u64>().ok())
            .sum::<u64>()
    };
    processes.iter().map(of).sum()
}

/// The bytes in a line "NAME 12 kB" of a file of proc(5).
pub fn bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The fields of /proc/PID/stat from the 4th, the parent. The name before them may contain anything.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().skip(1).map(Into::into).collect())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_grandchild_counts() {
        let mut command = Command::new("sh");
        command.args(["-c", "(sleep 1000; :) & sleep 0.2; echo up; wait"]);
        let command = command.process_group(0).stdout(Stdio::piped());
        let mut child = command.spawn().expect("sh starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let tree = descendants(child.id());
        let usage = usage(&tree).expect("readable");
        let group = rustix::process::Pid::from_raw(child.id() as i32).expect("a process");
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = child.wait();
        assert_eq!(
            (tree.len(), usage.processes),
            (3, 3),
            "sh, its subshell, sleep"
        );
        assert!(usage.resident >= usage.proportional && usage.proportional > 0);
    }

    #[test]
    fn no_processes_use_nothing() {
        assert_eq!(usage(&[]).expect("nothing"), Usage::default());
        assert_eq!(descendants(u32::MAX), [u32::MAX]);
    }
}
