//! What the host's kernel knows of the workload's process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::compare::figure::Cell;
use crate::compare::rows::session::Session;
use crate::compare::subject::{Kind, MEMORY_MIB, Subject};
use crate::sandbox::{allowed_calls, is_kernels};

/// The namespaces of namespaces(7) that isolate something.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

const PROBES: [&str; 7] = [
    "capabilities on the host",
    "namespaces of its own",
    "seccomp filter",
    "more rights by exec",
    "root folder",
    "limit of memory, kernel's included",
    "limit of processes",
];

pub fn probe(subject: &mut dyn Subject, session: &mut Session) -> Vec<(&'static str, Cell)> {
    let outcomes = look_at_idle(subject, session)
        .unwrap_or_else(|error| std::array::from_fn(|_| Cell::missing(error.clone())));
    PROBES.into_iter().zip(outcomes).collect()
}

fn look_at_idle(subject: &mut dyn Subject, session: &mut Session) -> Result<[Cell; 7], String> {
    let instance = session.idle(subject)?;
    // The last process: a runtime or a shim is an ancestor of what it runs.
    let outcomes = instance.processes(subject).last().map(|pid| look_at(*pid));
    instance.end(subject);
    let mut outcomes = outcomes.ok_or("it has no process")?;
    if subject.about().kind == Kind::Machine {
        // Whatever the monitor's limits are, the workload and its kernel have only the guest's memory.
        outcomes[5] = Cell::text(format!("{MEMORY_MIB} MiB: the machine's"));
        outcomes[6] = Cell::text("its own kernel's");
    }
    Ok(outcomes)
}

fn look_at(pid: u32) -> [Cell; 7] {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim)
    };
    let unread = || Cell::missing("its status cannot be read");
    let told = |text: Option<String>| text.map_or_else(unread, Cell::text);
    let bits = field("CapEff:").and_then(|bits| u64::from_str_radix(bits, 16).ok());
    let seccomp = field("Seccomp:").map(|mode| match mode {
        "0" => "none".into(),
        _ => system_calls(pid).unwrap_or_else(|| "yes".into()),
    });
    let root = root_folder(pid);
    let limit = |controller, files| {
        Cell::text(cgroup_limit(pid, controller, files).unwrap_or_else(|| "none".into()))
    };
    [
        told(bits.map(|bits| bits.count_ones().to_string())),
        namespaces(pid).map_or_else(|| Cell::missing("only root can read them"), Cell::text),
        told(seccomp),
        told(field("NoNewPrivs:").map(|set| {
            if set == "1" {
                "none"
            } else {
                "by setuid programs"
            }
            .into()
        })),
        root.map_or_else(|| Cell::missing("only root can read it"), Cell::text),
        limit("memory", ["memory.limit_in_bytes", "memory.max"]),
        limit("pids", ["pids.max", "pids.max"]),
    ]
}

/// How many system calls the filters of the threads of `pid` allow: the fewest and the most of a thread.
/// `None` if this user may not read them.
fn system_calls(pid: u32) -> Option<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let threads = threads
        .flatten()
        .filter(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat"));
            !stat.is_ok_and(|stat| is_kernels(&stat))
        })
        .filter_map(|entry| entry.file_name().into_string().ok());
    let mut counts = Vec::new();
    for thread in threads {
        match allowed_calls(thread.parse().ok()?) {
            Ok(Some(count)) => counts.push(count),
            Ok(None) => return Some("not of all threads".into()),
            Err(_) => return None,
        }
    }
    let (least, most) = (counts.iter().min()?, counts.iter().max()?);
    Some(match counts.len() {
        1 => format!("allows {most} calls"),
        threads => format!("allows {least} to {most} calls, {threads} threads"),
    })
}

/// What of the host's files the process can name: by its root and its mount namespace. `None` if the kernel
/// does not tell this user.
fn root_folder(pid: u32) -> Option<String> {
    let of = |process: &str| {
        fs::metadata(format!("/proc/{process}/root/")).map(|it| (it.dev(), it.ino()))
    };
    let theirs = of(&pid.to_string()).ok()?;
    let same = of("self").is_ok_and(|ours| ours == theirs);
    Some(if same {
        "the host's".into()
    } else {
        "its own".into()
    })
}

/// `None` if the kernel does not tell this user.
fn namespaces(pid: u32) -> Option<String> {
    let link = |process: &str, name: &str| fs::read_link(format!("/proc/{process}/ns/{name}")).ok();
    let pid = pid.to_string();
    link(&pid, "mnt")?;
    let differs = |name: &&str| {
        let theirs = link(&pid, name);
        theirs.is_some() && theirs != link("self", name)
    };
    let own: Vec<&str> = NAMESPACES.into_iter().filter(differs).collect();
    if own.is_empty() {
        return Some("none".into());
    }
    Some(format!("{}: {}", own.len(), own.join(" ")))
}

/// The limit in a file of its control group (cgroups(7)), with the file's name in version 1 and version 2.
fn cgroup_limit(pid: u32, controller: &str, [file_v1, file_v2]: [&str; 2]) -> Option<String> {
    /// How version 1 writes "no limit": the largest signed number, rounded down to a page.
    const NO_LIMIT: u64 = 0x7fff_ffff_ffff_f000;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let file = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        let root = Path::new("/sys/fs/cgroup");
        let file = if controllers.split(',').any(|its| its == controller) {
            root.join(controller).join(group).join(file_v1)
        } else if controllers.is_empty() {
            root.join(group).join(file_v2)
        } else {
            return None;
        };
        file.exists().then_some(file)
    })?;
    let limit: u64 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    (limit < NO_LIMIT).then(|| limit.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_no_namespaces_of_its_own() {
        let [capabilities, namespaces, seccomp, ..] = look_at(std::process::id());
        assert!(capabilities.text.is_some());
        assert_eq!(namespaces, Cell::text("none"));
        assert!(seccomp.text.is_some());
        assert!(look_at(u32::MAX)[0].note.is_some());
    }
}
