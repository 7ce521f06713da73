//! What hull has given up, as the host's kernel reports it at this moment.

use std::fs;
use std::io;

use nix::sys::resource::{Resource, getrlimit};
use rustix::process::{DumpableBehavior, dumpable_behavior};
use serde::{Deserialize, Serialize};

/// What the process and its threads have given up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lockdown {
    /// Each thread of the process.
    pub threads: Vec<Thread>,
    /// Whether it leaves core dumps, and other processes of its user may trace it (PR_GET_DUMPABLE).
    pub dumpable: bool,
    /// The most bytes of a core dump, and what the process could raise that to.
    pub core_bytes: [u64; 2],
    /// The most open descriptors, and what the process could raise that to.
    pub descriptors: [u64; 2],
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
    /// Read it for this process.
    ///
    /// # Errors
    /// There is no /proc, or the kernel does not say.
    pub fn of_process() -> io::Result<Self> {
        let mut threads = Vec::new();
        for task in fs::read_dir("/proc/self/task")? {
            // A thread may end meanwhile.
            if let Ok(status) = fs::read_to_string(task?.path().join("status")) {
                threads.push(Thread::of(&status).ok_or(io::ErrorKind::InvalidData)?);
            }
        }
        let limits = |resource| getrlimit(resource).map(|(soft, hard)| [soft, hard]);
        Ok(Self {
            threads,
            dumpable: dumpable_behavior()? != DumpableBehavior::NotDumpable,
            core_bytes: limits(Resource::RLIMIT_CORE)?,
            descriptors: limits(Resource::RLIMIT_NOFILE)?,
        })
    }
}

impl Thread {
    fn of(status: &str) -> Option<Self> {
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
        let own = Lockdown::of_process().expect("/proc");
        assert!(!own.threads.is_empty() && own.descriptors[0] > 0);
    }
}
