//! What hull has given up, as the host's kernel reports it at this moment.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::retry_on_intr;
use rustix::process::{DumpableBehavior, dumpable_behavior};
use serde::{Deserialize, Serialize};

use crate::sandbox::is_kernels;

/// Files that no machine needs once it runs, and that any user may open otherwise.
pub const TRIED: [&str; 3] = ["/etc/passwd", "/dev/null", "/"];
/// Bytes that are read of a file of /proc at once, and of a folder.
const PART: usize = 4096;

/// What the process and its threads have given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lockdown {
    /// Each thread of the process, without those that the kernel has in it for itself.
    pub threads: Vec<Thread>,
    /// Each process that works for it, by its first thread.
    pub processes: Vec<Thread>,
    /// Whether it leaves core dumps, and other processes of its user may trace it (PR_GET_DUMPABLE).
    pub dumpable: bool,
    /// The most bytes of a core dump, and what the process could raise that to.
    pub core_bytes: [u64; 2],
    /// The most open descriptors, and what the process could raise that to.
    pub descriptors: [u64; 2],
    /// Those of [`TRIED`] that the thread could open which tells this.
    pub opened: Vec<String>,
    /// The user as whom it runs, by the number outside.
    pub uid: u32,
    /// Its namespaces; empty where the kernel does not say (before Linux 5.14).
    pub namespaces: Vec<Namespace>,
    /// Entries of its root folder; `None` if that is out of its reach.
    pub root_entries: Option<usize>,
    /// Mounts that it has.
    pub mounts: usize,
    /// Its control groups, without the roots of their hierarchies.
    pub control_groups: Vec<String>,
}

/// A namespace (namespaces(7)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Its kind: `mnt`, `pid`, `net`, `ipc`, `uts` or `user`.
    pub kind: String,
    /// Its number on this host.
    pub id: u64,
}

/// The kinds of namespaces of a jail.
pub const NAMESPACES: [&str; 6] = ["mnt", "pid", "net", "ipc", "uts", "user"];

/// /proc/self, for a process that loses /proc.
static PROC: OnceLock<OwnedFd> = OnceLock::new();

/// Keep /proc/self open, to read it where there is no /proc.
pub fn keep_proc() {
    if let Ok(own) = open(CWD, "/proc/self", OFlags::DIRECTORY | OFlags::PATH) {
        let _ = PROC.set(own);
    }
}

/// A thread's rights (proc_pid_status(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Thread {
    /// Its name.
    pub name: String,
    /// Whether executing a program gives it no more rights.
    pub no_new_privileges: bool,
    /// Its capabilities, permitted and effective, a bit each; in hexadecimal.
    pub capabilities: String,
    /// Capabilities that it could gain by executing a program, a bit each; in hexadecimal.
    pub bounding: String,
    /// What filters its system calls: 0 nothing, 1 strict mode, 2 a filter.
    pub seccomp: u8,
}

impl Lockdown {
    /// Read it for this process, without others.
    ///
    /// # Errors
    /// There is no /proc, or the kernel does not say.
    pub fn of_process() -> io::Result<Self> {
        let own = match PROC.get() {
            Some(own) => open(own, ".", OFlags::DIRECTORY | OFlags::PATH)?,
            None => open(CWD, "/proc/self", OFlags::DIRECTORY | OFlags::PATH)?,
        };
        let tasks = open(&own, "task", OFlags::DIRECTORY)?;
        let mut threads = Vec::new();
        let mut part = [MaybeUninit::uninit(); PART];
        let mut entries = RawDir::new(&tasks, &mut part);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let id = entry.file_name().to_string_lossy();
            // A thread may end meanwhile.
            let kernels =
                || text(&tasks, &format!("{id}/stat")).is_ok_and(|stat| is_kernels(&stat));
            if !id.starts_with('.')
                && !kernels()
                && let Ok(status) = text(&tasks, &format!("{id}/status"))
            {
                threads.push(Thread::of(&status).ok_or(io::ErrorKind::InvalidData)?);
            }
        }
        let opens = |path: &&str| open(CWD, path, OFlags::NONBLOCK).is_ok();
        let opened = TRIED.into_iter().filter(opens).map(String::from).collect();
        let status = text(&own, "status")?;
        let mounts = text(&own, "mountinfo")?;
        let limits = text(&own, "limits")?;
        let limits = |name| limits_of(&limits, name).ok_or(io::ErrorKind::InvalidData);
        Ok(Self {
            threads,
            processes: Vec::new(),
            dumpable: dumpable_behavior()? != DumpableBehavior::NotDumpable,
            core_bytes: limits("Max core file size")?,
            descriptors: limits("Max open files")?,
            opened,
            uid: uid(&status).ok_or(io::ErrorKind::InvalidData)?,
            namespaces: namespaces(&own),
            root_entries: root_entries().ok(),
            mounts: mounts.lines().count(),
            control_groups: control_groups(&text(&own, "cgroup").unwrap_or_default()),
        })
    }
}

fn open(below: impl AsFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(openat(below, path, flags, Mode::empty())?)
}

/// The text of a file of /proc, by no system calls but openat(2), read(2) and close(2): a thread that serves
/// the control socket has few.
fn text(below: &OwnedFd, path: &str) -> io::Result<String> {
    let file = open(below, path, OFlags::empty())?;
    let mut bytes = Vec::new();
    let mut part = [0; PART];
    loop {
        match retry_on_intr(|| rustix::io::read(&file, &mut part))? {
            0 => return String::from_utf8(bytes).map_err(io::Error::other),
            len => bytes.extend_from_slice(&part[..len]),
        }
    }
}

/// The effective user.
fn uid(status: &str) -> Option<u32> {
    let mut lines = status.lines();
    let ids = lines.find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

/// The namespaces of the process in the folder `own` of /proc, whose numbers are those of their files
/// (proc_pid_fdinfo(5)): a thread that serves the control socket cannot ask for a file's number.
fn namespaces(own: &OwnedFd) -> Vec<Namespace> {
    let id = |kind: &str| {
        let file = open(own, &format!("ns/{kind}"), OFlags::PATH).ok()?;
        let about = text(own, &format!("fdinfo/{}", file.as_raw_fd())).ok()?;
        let number = about.lines().find_map(|line| line.strip_prefix("ino:"));
        number?.trim().parse().ok()
    };
    let each = NAMESPACES.into_iter().filter_map(|kind| {
        Some(Namespace {
            kind: kind.into(),
            id: id(kind)?,
        })
    });
    each.collect()
}

/// How many files the root folder has.
fn root_entries() -> io::Result<usize> {
    let root = open(CWD, "/", OFlags::DIRECTORY)?;
    let mut part = [MaybeUninit::uninit(); PART];
    let mut entries = RawDir::new(&root, &mut part);
    let mut count = 0;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        count += usize::from(![c".", c".."].contains(&entry.file_name()));
    }
    Ok(count)
}

/// The paths in the text of /proc/self/cgroup, each once.
fn control_groups(text: &str) -> Vec<String> {
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let paths: BTreeSet<_> = paths.filter(|path| *path != "/").collect();
    paths.into_iter().map(String::from).collect()
}

/// A limit and what it can be raised to, of those in /proc/self/limits (proc_pid_limits(5)).
fn limits_of(text: &str, name: &str) -> Option<[u64; 2]> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let mut words = line.split_whitespace();
    let mut value = || match words.next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    Some([value()?, value()?])
}

impl Thread {
    /// What its status says (proc_pid_status(5)); `None` if that lacks something.
    pub fn of(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = status.lines();
            let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            Some(value.trim())
        };
        let bits = |name| u64::from_str_radix(field(name)?, 16).ok();
        let capabilities = bits("CapPrm")? | bits("CapEff")?;
        Some(Self {
            name: field("Name")?.into(),
            no_new_privileges: field("NoNewPrivs")? == "1",
            capabilities: format!("{capabilities:#x}"),
            bounding: format!("{:#x}", bits("CapBnd")?),
            // Without it the kernel has no seccomp.
            seccomp: field("Seccomp").map_or(Some(0), |mode| mode.parse().ok())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_thread_is_read() {
        let status = "Name:\tvcpu0\nCapInh:\t0\nCapPrm:\t0000000000000001\nCapEff:\t0000000000000000\n\
                      CapBnd:\t000001ffffffffff\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let thread = Thread::of(status).expect("a status");
        assert_eq!(thread.name, "vcpu0");
        assert_eq!((thread.no_new_privileges, thread.seccomp), (true, 2));
        assert_eq!(thread.capabilities, "0x1");
        assert_eq!(thread.bounding, "0x1ffffffffff");
        assert_eq!(Thread::of("Name:\tx\n"), None);
        let limits = "Limit  Soft  Hard\nMax core file size  0  unlimited  bytes\n";
        assert_eq!(limits_of(limits, "Max core file size"), Some([0, u64::MAX]));
        assert_eq!(limits_of(limits, "Max open files"), None);
        let own = Lockdown::of_process().expect("/proc");
        assert!(!own.threads.is_empty() && own.descriptors[0] > 0);
        assert!(own.root_entries > Some(0) && own.mounts > 0);
        let pid = std::fs::metadata("/proc/self/ns/pid").expect("a namespace");
        let seen = own.namespaces.iter().find(|it| it.kind == "pid");
        assert_eq!(
            seen.map(|it| it.id),
            Some(std::os::unix::fs::MetadataExt::ino(&pid))
        );
        assert_eq!(control_groups("3:pids:/a/b\n2:cpu:/\n0::/a/b\n"), ["/a/b"]);
        assert_eq!(uid("Name:\tx\nUid:\t5\t6\t7\t8\n"), Some(6));
    }
}
