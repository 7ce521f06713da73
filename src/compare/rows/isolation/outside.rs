//! What the host's kernel knows of the process that a workload is for it.

use std::fs;
use std::path::PathBuf;

use super::{Outcome, Probe};
use crate::compare::subject::{Kind, MEMORY_MIB};
use crate::compare::turns::{IDLE, Turns, UP, words};

/// The namespaces of namespaces(7) that hide something.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// Start an idle instance of subject `index` and look at it.
pub fn probe(turns: &mut Turns, index: usize) -> Vec<Probe> {
    let names = [
        "capabilities on the host",
        "namespaces of its own",
        "seccomp filter",
        "limit of memory, kernel's included",
        "limit of processes",
    ];
    let outcomes = match turns.start(index, &words(&IDLE), UP) {
        Ok(instance) => {
            // The last one: a runtime or a shim is an ancestor of what it runs.
            let process = turns.processes(&instance).last().copied();
            let outcomes = process.map(look);
            turns.end(instance);
            let mut outcomes = outcomes.unwrap_or_else(|| untried("it has no process"));
            if turns.kind(index) == Kind::Machine {
                // What the workload and its kernel take is the guest's memory, whatever the monitor may.
                outcomes[3] = Outcome::Told(format!("{MEMORY_MIB} MiB: the machine's"));
                outcomes[4] = Outcome::Told("its own kernel's".into());
            }
            outcomes
        }
        Err(error) => untried(&format!("it {error}")),
    };
    names.into_iter().zip(outcomes).collect()
}

fn untried(why: &str) -> [Outcome; 5] {
    std::array::from_fn(|_| Outcome::Untried(why.into()))
}

fn look(pid: u32) -> [Outcome; 5] {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
    };
    let limit = |number: Option<String>| match number {
        Some(number) => Outcome::Told(number),
        None => Outcome::Told("none".into()),
    };
    [
        match field("CapEff:").and_then(|bits| u64::from_str_radix(bits, 16).ok()) {
            Some(bits) => Outcome::Told(format!("{}", bits.count_ones())),
            None => Outcome::Untried("its status cannot be read".into()),
        },
        namespaces(pid),
        match field("Seccomp:") {
            Some("0") => Outcome::Told("none".into()),
            Some(_) => Outcome::Told("yes".into()),
            None => Outcome::Untried("its status cannot be read".into()),
        },
        limit(cgroup(
            pid,
            "memory",
            ["memory.limit_in_bytes", "memory.max"],
        )),
        limit(cgroup(pid, "pids", ["pids.max", "pids.max"])),
    ]
}

fn namespaces(pid: u32) -> Outcome {
    let of = |who: &str, name: &str| fs::read_link(format!("/proc/{who}/ns/{name}")).ok();
    let pid = pid.to_string();
    let own = NAMESPACES.into_iter().filter(|name| {
        let (theirs, ours) = (of(&pid, name), of("self", name));
        theirs.is_some() && theirs != ours
    });
    let own: Vec<&str> = own.collect();
    Outcome::Told(match own.is_empty() {
        true => "none".into(),
        false => format!("{}: {}", own.len(), own.join(" ")),
    })
}

/// A limit of its control group (cgroups(7)), of version 1 or 2; `None` if it has none.
fn cgroup(pid: u32, controller: &str, files: [&str; 2]) -> Option<String> {
    /// A page less than what a signed number holds: version 1's word for no limit.
    const NO_LIMIT: u64 = 0x7fff_ffff_ffff_f000;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let place = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let path = path.trim_start_matches('/');
        let (root, file) = match controllers.split(',').any(|its| its == controller) {
            true => (PathBuf::from("/sys/fs/cgroup").join(controller), files[0]),
            false if controllers.is_empty() => (PathBuf::from("/sys/fs/cgroup"), files[1]),
            false => return None,
        };
        let file = root.join(path).join(file);
        file.exists().then_some(file)
    })?;
    let text = fs::read_to_string(place).ok()?;
    let limit: u64 = text.trim().parse().ok()?;
    (limit < NO_LIMIT).then(|| limit.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_this_process_everything_is_known_and_nothing_its_own() {
        let [capabilities, namespaces, seccomp, ..] = look(std::process::id());
        assert!(matches!(capabilities, Outcome::Told(_)));
        assert_eq!(namespaces, Outcome::Told("none".into()));
        assert!(matches!(seccomp, Outcome::Told(_)));
        assert!(matches!(look(u32::MAX)[0], Outcome::Untried(_)));
    }
}
