//! A control group of a machine's own, with limits: cgroup v2 where it has the controllers, else v1.
//!
//! ```text
//!   v2, as root    TOP/hull/PID             the top may have processes and groups, others not
//!   v2, as a user  GROUP/hull-PID           GROUP is hull's own, which a user must be given
//!   v1             GROUP/hull-PID           in the hierarchy of each controller
//! ```
//! PID is the supervisor's. It removes the group at the machine's end; after a `kill -9` of the supervisor
//! that is left to the next hull that looks at the machines, which has the folders from the machine's
//! record, or that makes a group there. Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use serde::Serialize;
use thiserror::Error;

use crate::config::Limits;

/// The period of a processor's quota, in microseconds: the kernel's default.
const PERIOD: u64 = 100_000;
/// How long the last processes of a group may take to end.
const END: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(2);

/// Why there is no control group.
#[derive(Debug, Error)]
pub enum GroupError {
    /// The host has no such controller.
    #[error(
        "{key}=: this host has no control groups with the controller {controller}; mount them (cgroup2 at \
         /sys/fs/cgroup), or leave {key}= out"
    )]
    NoController {
        /// The limit.
        key: &'static str,
        /// The controller's name.
        controller: &'static str,
    },
    /// The kernel refuses.
    #[error("cannot {what} {} ({error}){}", path.display(), hint(error))]
    Refused {
        /// What was being done.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the kernel answered.
        error: io::Error,
    },
    /// None of the machine's files is on a disk.
    #[error(
        "io=: no image and no shared folder of this machine lies on a disk of the host's, so there is \
         nothing to limit; leave io= out"
    )]
    NoDisk,
}

/// What an administrator or the user can do about `error`.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ResourceBusy => {
            "; run hull as root, or alone in a control group of yours: systemd-run --user --scope -p \
             Delegate=yes hull run .."
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "; /sys is read-only, as in most containers: give this one a writable /sys/fs/cgroup, or \
             limit the container itself and leave --limit out"
        }
        _ => "",
    }
}

/// What is limited.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    Cpu,
    Pids,
    Io,
}

impl Kind {
    /// The key of `--limit`, and the controller's name in v2 and in v1.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Memory => ("memory", "memory", "memory"),
            Self::Cpu => ("cpu", "cpu", "cpu"),
            Self::Pids => ("pids", "pids", "pids"),
            Self::Io => ("io", "io", "blkio"),
        }
    }
}

/// A group, which is removed when this is dropped.
#[derive(Debug)]
pub struct ControlGroup {
    /// One in v2, and one in each hierarchy of v1.
    folders: BTreeSet<PathBuf>,
}

/// Where groups with a controller are made.
struct Place {
    /// The group of this process.
    current: PathBuf,
    /// Where the hierarchy is mounted.
    top: PathBuf,
    is_v2: bool,
}

impl ControlGroup {
    /// Make it, with `limits`; that of bytes is for these `devices`.
    ///
    /// # Errors
    /// [`GroupError`]; nothing stays then.
    pub fn make(limits: &Limits, devices: BTreeSet<u64>) -> Result<Self, GroupError> {
        let wanted = [
            (Kind::Memory, limits.memory_bytes.is_some()),
            (Kind::Cpu, limits.cpu_hundredths.is_some()),
            (Kind::Pids, limits.pids.is_some()),
            (Kind::Io, limits.io_bytes.is_some()),
        ];
        let wanted = wanted
            .into_iter()
            .filter_map(|(kind, wanted)| wanted.then_some(kind));
        let mounts = read(Path::new("/proc/self/mountinfo"))?;
        let groups = read(Path::new("/proc/self/cgroup"))?;
        let mut group = Self {
            folders: BTreeSet::new(),
        };
        for kind in wanted {
            let (key, v2, v1) = kind.names();
            let place = find(&mounts, &groups, v2, v1);
            let place = place.ok_or(GroupError::NoController {
                key,
                controller: if kind == Kind::Io { "io" } else { v2 },
            })?;
            let folder = place.folder(v2)?;
            if !group.folders.contains(&folder) {
                make_fresh(&folder)?;
                group.folders.insert(folder.clone());
            }
            for (file, value) in settings(kind, limits, place.is_v2, &devices)? {
                write(&folder.join(file), &value)?;
            }
            if kind == Kind::Memory {
                // Where swap is not counted there is no such file.
                let (file, value) = match place.is_v2 {
                    true => ("memory.swap.max", "0".into()),
                    false => (
                        "memory.memsw.limit_in_bytes",
                        limits.memory_bytes.unwrap_or_default().to_string(),
                    ),
                };
                let _ = fs::write(folder.join(file), value);
            }
        }
        Ok(group)
    }

    /// Its folders.
    pub fn folders(&self) -> Vec<PathBuf> {
        self.folders.iter().cloned().collect()
    }

    /// Have this process in it, and those that it starts.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn enter(&self) -> Result<(), GroupError> {
        let mut folders = self.folders.iter();
        folders.try_for_each(|folder| write(&folder.join("cgroup.procs"), "0"))
    }

    /// Whether the kernel has ended a process in it for want of memory.
    pub fn out_of_memory(&self) -> bool {
        let mut files = self.folders.iter().flat_map(|folder| {
            ["memory.events", "memory.oom_control"].map(|file| folder.join(file))
        });
        files.any(|file| number_after(&file, "oom_kill").is_some_and(|ended| ended > 0))
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let until = Instant::now() + END;
        for folder in &self.folders {
            // The machine's memory may still be on its way back to the host.
            while fs::remove_dir(folder)
                .is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
                && Instant::now() < until
            {
                thread::sleep(PAUSE);
            }
            if let Some(above) = folder.parent().filter(|above| above.ends_with("hull")) {
                let _ = fs::remove_dir(above); // unless another machine is in it
            }
        }
    }
}

impl Place {
    /// The folder of a group of this process's in it, with the `controller`.
    fn folder(&self, controller: &str) -> Result<PathBuf, GroupError> {
        let pid = std::process::id();
        if !self.is_v2 {
            sweep(&self.current);
            return Ok(self.current.join(format!("hull-{pid}")));
        }
        if geteuid().is_root() || self.current == self.top {
            let above = self.top.join("hull");
            enable(&self.top, controller)?;
            if let Err(error) = fs::create_dir(&above)
                && error.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(refused("make", &above)(error));
            }
            enable(&above, controller)?;
            sweep(&above);
            return Ok(above.join(pid.to_string()));
        }
        let mut enabled = enable(&self.current, controller);
        if let Err(GroupError::Refused { error, .. }) = &enabled
            && error.kind() == io::ErrorKind::ResourceBusy
        {
            // A group with groups below that have controllers has no processes itself.
            let leaf = self.current.join("hull-supervisor");
            let _ = fs::create_dir(&leaf);
            write(&leaf.join("cgroup.procs"), "0")?;
            enabled = enable(&self.current, controller);
        }
        enabled?;
        sweep(&self.current);
        Ok(self.current.join(format!("hull-{pid}")))
    }
}

/// Where the groups with a controller are, v2 first, by the texts of /proc/self/mountinfo and
/// /proc/self/cgroup (proc_pid_mountinfo(5), cgroups(7)).
fn find(mounts: &str, groups: &str, v2: &str, v1: &str) -> Option<Place> {
    let has = |list: &str, separator: char, name: &str| list.split(separator).any(|it| it == name);
    let mut found = None;
    for line in mounts.lines() {
        let Some((mount, system)) = line.split_once(" - ") else {
            continue;
        };
        let mut mount = mount.split(' ').skip(3);
        let (Some(root), Some(top)) = (mount.next(), mount.next()) else {
            continue;
        };
        let mut system = system.split(' ');
        let (kind, options) = (system.next(), system.nth(1).unwrap_or_default());
        let is_v2 = match kind {
            Some("cgroup2") => {
                let all = fs::read_to_string(Path::new(top).join("cgroup.controllers"));
                if !all.is_ok_and(|all| all.split_whitespace().any(|it| it == v2)) {
                    continue;
                }
                true
            }
            Some("cgroup") if has(options, ',', v1) => false,
            _ => continue,
        };
        let own = groups.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let named = if is_v2 {
                controllers.is_empty()
            } else {
                has(controllers, ',', v1)
            };
            named.then_some(path)
        });
        // What is mounted may be a part of the hierarchy.
        let below = Path::new(own?).strip_prefix(root).unwrap_or(Path::new(""));
        found = Some(Place {
            current: Path::new(top).join(below),
            top: top.into(),
            is_v2,
        });
        if is_v2 {
            break;
        }
    }
    found
}

/// Files of a group with what is written to them.
fn settings(
    kind: Kind,
    limits: &Limits,
    is_v2: bool,
    devices: &BTreeSet<u64>,
) -> Result<Vec<(&'static str, String)>, GroupError> {
    let memory = limits.memory_bytes.unwrap_or_default().to_string();
    let quota = u64::from(limits.cpu_hundredths.unwrap_or_default()) * PERIOD / 100;
    let pids = limits.pids.unwrap_or_default().to_string();
    let rate = limits.io_bytes.unwrap_or_default();
    Ok(match (kind, is_v2) {
        // All of the machine's hull ends, and not one thread's process of it.
        (Kind::Memory, true) => vec![("memory.max", memory), ("memory.oom.group", "1".into())],
        (Kind::Memory, false) => vec![("memory.limit_in_bytes", memory)],
        (Kind::Cpu, true) => vec![("cpu.max", format!("{quota} {PERIOD}"))],
        (Kind::Cpu, false) => vec![
            ("cpu.cfs_period_us", PERIOD.to_string()),
            ("cpu.cfs_quota_us", quota.to_string()),
        ],
        (Kind::Pids, _) => vec![("pids.max", pids)],
        (Kind::Io, _) => {
            let disks: BTreeSet<String> = devices.iter().filter_map(|it| disk_of(*it)).collect();
            if disks.is_empty() {
                return Err(GroupError::NoDisk);
            }
            let each = disks.iter().flat_map(|disk| match is_v2 {
                true => vec![("io.max", format!("{disk} rbps={rate} wbps={rate}"))],
                false => vec![
                    ("blkio.throttle.read_bps_device", format!("{disk} {rate}")),
                    ("blkio.throttle.write_bps_device", format!("{disk} {rate}")),
                ],
            });
            each.collect()
        }
    })
}

/// The whole disk of a block device, as MAJOR:MINOR; `None` for a file system without one.
fn disk_of(device: u64) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let found = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
    let found = found.canonicalize().ok()?;
    let disk = match found.join("partition").exists() {
        true => found.parent()?,
        false => &found,
    };
    let number = fs::read_to_string(disk.join("dev")).ok()?;
    Some(number.trim().into())
}

/// Let groups below `folder` have the `controller`.
fn enable(folder: &Path, controller: &str) -> Result<(), GroupError> {
    let file = folder.join("cgroup.subtree_control");
    let has = read(&file)?.split_whitespace().any(|it| it == controller);
    if has {
        Ok(())
    } else {
        write(&file, &format!("+{controller}"))
    }
}

/// Make the folder of a new group; one of that name is left from a process of the same id.
fn make_fresh(folder: &Path) -> Result<(), GroupError> {
    let _ = fs::remove_dir(folder);
    fs::create_dir(folder).map_err(refused("make", folder))
}

/// Remove the groups of supervisors that were killed. A group whose supervisor is in another PID namespace has
/// processes, and stays.
fn sweep(above: &Path) {
    let Ok(entries) = fs::read_dir(above) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = match above.ends_with("hull") {
            true => Some(name.as_str()),
            false => name.strip_prefix("hull-"),
        };
        let pid = pid.and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn refused(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GroupError {
    let path = path.into();
    move |error| GroupError::Refused { what, path, error }
}

fn read(path: &Path) -> Result<String, GroupError> {
    fs::read_to_string(path).map_err(refused("read", path))
}

fn write(path: &Path, value: &str) -> Result<(), GroupError> {
    fs::write(path, value).map_err(refused("write", path))
}

/// The number behind `key` in a file of lines with a key and a number each.
fn number_after(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(name, _)| *name == key)?.1.trim().parse().ok()
}

/// What a group uses and may use. `None` where there is no limit, or the host does not say.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Most bytes of memory.
    pub memory_limit_bytes: Option<u64>,
    /// Processor time, in microseconds.
    pub cpu_us: Option<u64>,
    /// Processors.
    pub cpu_limit: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Most processes and threads.
    pub pids_limit: Option<u64>,
    /// Bytes a second read, and as many written, on each disk that is limited.
    pub io_limit_bytes: Option<u64>,
}

impl Usage {
    /// That of the group in `folders`; `None` if there is no group.
    pub fn of(folders: &[PathBuf]) -> Option<Self> {
        let text = |file: &str| {
            let mut each = folders
                .iter()
                .map(|folder| fs::read_to_string(folder.join(file)));
            each.find_map(Result::ok)
        };
        let number = |file: &str| text(file)?.trim().parse().ok();
        let first = |v2: &str, v1: &str| number(v2).or_else(|| number(v1));
        let quota = |text: String| {
            let mut words = text.split_whitespace().map(|word| word.parse::<f64>().ok());
            Some(words.next()?? / words.next()??)
        };
        let of_v1 = || {
            let quota: u64 = number("cpu.cfs_quota_us")?;
            Some(quota as f64 / PERIOD as f64)
        };
        let mut files = folders.iter().map(|folder| folder.join("cpu.stat"));
        let io = text("io.max").and_then(|text| {
            let rate = text
                .split_whitespace()
                .find_map(|it| it.strip_prefix("rbps="))?;
            rate.parse().ok()
        });
        let io_v1 = || {
            text("blkio.throttle.read_bps_device")?
                .split_whitespace()
                .nth(1)?
                .parse()
                .ok()
        };
        (!folders.is_empty()).then(|| Self {
            memory_bytes: first("memory.current", "memory.usage_in_bytes"),
            memory_limit_bytes: first("memory.max", "memory.limit_in_bytes"),
            cpu_us: files.find_map(|file| number_after(&file, "usage_usec")),
            cpu_limit: text("cpu.max").and_then(quota).or_else(of_v1),
            pids: number("pids.current"),
            pids_limit: number("pids.max"),
            io_limit_bytes: io.or_else(io_v1),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_where_they_are_mounted() {
        let mounts = "30 29 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      31 29 0:27 /docker/x /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n";
        let groups = "5:memory:/docker/x/sub\n3:cpu,cpuacct:/user\n0::/\n";
        let place = |name| find(mounts, groups, name, name).expect("it is mounted");
        assert_eq!(
            place("cpu").current,
            Path::new("/sys/fs/cgroup/cpu,cpuacct/user")
        );
        assert_eq!(
            place("memory").current,
            Path::new("/sys/fs/cgroup/memory/sub")
        );
        assert!(!place("memory").is_v2);
        assert!(find(mounts, groups, "pids", "pids").is_none());
    }

    #[test]
    fn what_a_group_uses_is_read_of_either_version() {
        let folder = tempfile::tempdir().expect("a folder");
        let put =
            |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
        put("memory.current", "1048576\n");
        put("memory.max", "max\n");
        put("cpu.max", "50000 100000\n");
        put("cpu.stat", "usage_usec 77\nuser_usec 70\n");
        put("io.max", "254:0 rbps=1000 wbps=1000 riops=max wiops=max\n");
        let seen = Usage::of(&[folder.path().into()]).expect("a group");
        assert_eq!(
            (seen.memory_bytes, seen.memory_limit_bytes),
            (Some(1 << 20), None)
        );
        assert_eq!((seen.cpu_us, seen.cpu_limit), (Some(77), Some(0.5)));
        assert_eq!(seen.io_limit_bytes, Some(1000));
        assert_eq!(Usage::of(&[]), None);
    }
}
