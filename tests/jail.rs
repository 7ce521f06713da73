//! `--jail` and `--limit`, by what the host's kernel says of the processes.

mod machine;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use machine::user::{NOBODY, User, wait_until};
use machine::{built, kvm};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

/// A supervisor whose machine runs a payload that never ends.
struct Supervised {
    user: User,
    uid: u32,
    child: Child,
}

impl Supervised {
    /// Start it as `uid`, with the name m.
    fn start(uid: u32, flags: &str) -> Self {
        Self::run(uid, flags, "spin")
    }

    /// As [`Supervised::start`], with another payload.
    fn run(uid: u32, flags: &str, payload: &str) -> Self {
        let user = User::new();
        let hull = env!("CARGO_BIN_EXE_hull");
        let payload = built(&format!("guest/payloads/{payload}.bin"));
        // In a session of its own no shell continues it after a stop.
        let run = format!("exec setsid {hull} run --name m {flags} {payload}");
        let mut shell = user.shell_of(uid, &run);
        shell
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = shell.spawn().expect("a shell");
        let mut started = Self { user, uid, child };
        wait_until(|| {
            if let Some(status) = started.child.try_wait().expect("a child") {
                panic!("{status}: {}", started.told());
            }
            started.listed()[0]["state"] == "running"
        });
        started
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The processes that the supervisor has started, by name.
    fn children(&self) -> BTreeMap<String, u32> {
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = processes.filter_map(|it| it.file_name().to_str()?.parse().ok());
        let all = pids.filter(|pid| status(*pid, "PPid") == Some(self.pid().to_string()));
        all.filter_map(|pid| Some((status(pid, "Name")?, pid)))
            .collect()
    }

    /// The machine's hull.
    fn hull(&self) -> u32 {
        self.children()["hull"]
    }

    fn output(&self, arguments: &[&str]) -> String {
        let mut hull = self.user.hull(arguments);
        if self.uid != geteuid().as_raw() {
            hull.uid(self.uid).gid(self.uid);
        }
        let output = hull.output().expect("hull starts");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {told}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn listed(&self) -> Value {
        serde_json::from_str(&self.output(&["ps", "--json"])).expect("JSON")
    }

    fn lockdown(&self) -> Value {
        let seen = self.output(&["inspect", "m", "lockdown", "--json"]);
        let mut seen: Value = serde_json::from_str(&seen).expect("JSON");
        seen["lockdown"].take()
    }

    /// The folders of its control group, as its record has them.
    fn groups(&self) -> Vec<PathBuf> {
        let record = fs::read(self.user.folder().join("m/record")).expect("a record");
        let record: Value = serde_json::from_slice(&record).expect("JSON");
        serde_json::from_value(record["groups"].clone()).unwrap_or_default()
    }

    fn told(&mut self) -> String {
        let stderr = self.child.stderr.take().expect("a pipe");
        std::io::read_to_string(stderr).expect("text")
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of a process's status (proc_pid_status(5)).
fn status(pid: u32, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid as i32).expect("a process");
    kill_process(pid, signal).expect("it runs");
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).read_link().is_ok()
}

/// Whether `uid` can make user namespaces, which it needs for a jail.
fn has_namespaces(uid: u32) -> bool {
    let mut try_it = Command::new("unshare");
    try_it.args(["-U", "true"]).uid(uid).stderr(Stdio::null());
    try_it.status().is_ok_and(|status| status.success())
}

#[test]
fn a_jailed_hull_has_an_empty_root_and_namespaces_and_a_user_of_its_own() {
    if !kvm("a jail") {
        return;
    }
    let root = geteuid().is_root();
    let (own, other) = (geteuid().as_raw(), root.then_some(NOBODY));
    for uid in [Some(own), other].into_iter().flatten() {
        if uid != 0 && !has_namespaces(uid) {
            println!("skipped: a jail without root: this host forbids user namespaces");
            continue;
        }
        let mut run = Supervised::start(uid, "--jail --scratch 4M");
        let (supervisor, hull) = (run.pid(), run.hull());
        assert_eq!(run.listed()[0]["pid"], supervisor);
        assert_eq!(run.children().len(), 2, "{:?}", run.children());
        if root {
            for kind in ["mnt", "pid", "net", "ipc", "uts", "user"] {
                let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect(kind);
                // As root the users are the host's.
                let same = kind == "user" && uid == 0;
                assert_eq!(of(hull) == of(std::process::id()), same, "{kind}");
            }
            let inside = fs::read_dir(format!("/proc/{hull}/root/")).expect("a root folder");
            assert_eq!(inside.count(), 0);
            let mounts = fs::read_to_string(format!("/proc/{hull}/mountinfo")).expect("mounts");
            assert!(
                mounts.lines().count() == 1 && mounts.contains(" / ro,"),
                "{mounts}"
            );
            let file = format!("/proc/{hull}/root/file");
            assert!(fs::write(file, "x").is_err());
        }
        // The second process of its namespace: PID 1 is another one.
        let pids = status(hull, "NSpid").expect("a line");
        assert!(pids.ends_with(" 2"), "{pids}");
        let ids = status(hull, "Uid").expect("a line");
        let wanted = if uid == 0 {
            0x7000_0000 + supervisor
        } else {
            uid
        };
        assert_eq!(ids, [wanted.to_string().as_str(); 4].join(" "));
        let map = fs::read_to_string(format!("/proc/{hull}/uid_map")).expect("a map");
        let map = map.split_whitespace().nth(2);
        assert_eq!(map, Some(if uid == 0 { "4294967295" } else { "1" }));
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            let bits = status(hull, set).expect("a line");
            assert!(bits.bytes().all(|digit| digit == b'0'), "{set}: {bits}");
        }
        // The machine tells the same of itself, and does what it is asked to.
        let seen = run.lockdown();
        assert_eq!((&seen["uid"], &seen["mounts"]), (&wanted.into(), &1.into()));
        assert!(
            seen["root_entries"] == 0 || seen["root_entries"].is_null(),
            "{seen}"
        );
        assert_eq!(seen["namespaces"].as_array().map(Vec::len), Some(6));
        let drawn = run.output(&["inspect", "m", "lockdown"]);
        assert!(drawn.contains("mnt, pid, net, ipc, uts"), "{drawn}");
        let snapshot = run.user.0.path().join("snapshot");
        let snapshot = snapshot.to_str().expect("UTF-8");
        run.output(&["snapshot", "m", snapshot]);
        let owner = fs::metadata(format!("{snapshot}/state"))
            .expect("a state")
            .uid();
        assert_eq!(owner, uid);
        run.output(&["pause", "m"]);
        assert_eq!(run.listed()[0]["state"], "paused");
        run.output(&["resume", "m"]);
        run.output(&["stop", "m", "--timeout", "0"]);
        assert_eq!(
            run.child.wait().expect("an end").code(),
            Some(137),
            "{}",
            run.told()
        );
        assert!(!is_alive(hull));
        assert!(!run.user.folder().exists(), "the machine's folder stays");
    }
}

#[test]
fn a_jailed_hull_ends_and_stops_as_another_one_does() {
    if !kvm("the end of a jail") {
        return;
    }
    if !geteuid().is_root() && !has_namespaces(geteuid().as_raw()) {
        println!("skipped: the end of a jail: this host forbids user namespaces");
        return;
    }
    let own = geteuid().as_raw();
    // A signal to the process that was started reaches the machine.
    let mut run = Supervised::start(own, "--jail");
    kill(run.pid(), Signal::TERM);
    assert_eq!(run.child.wait().expect("an end").code(), Some(143));
    assert!(!run.user.folder().exists());

    // The machine's hull is killed.
    let mut run = Supervised::start(own, "--jail");
    let all = run.children();
    kill(run.hull(), Signal::KILL);
    assert_eq!(run.child.wait().expect("an end").signal(), Some(9));
    assert!(!run.user.folder().exists());
    assert!(!all.into_values().any(is_alive), "the jail stays");

    // The supervisor is killed: nothing of it runs on, and the next hull finds nothing.
    let mut run = Supervised::start(own, "--jail");
    let all = run.children();
    kill(run.pid(), Signal::KILL);
    run.child.wait().expect("an end");
    wait_until(|| !all.values().copied().any(is_alive));
    // The lock of a process that ends is free some time after its memory.
    wait_until(|| run.listed() == Value::Array(Vec::new()) && !run.user.folder().exists());

    // One that is stopped stops all, where there is a shell; here there is none, so it goes on.
    let run = Supervised::start(own, "--jail");
    kill(run.hull(), Signal::STOP);
    wait_until(|| status(run.hull(), "State").is_some_and(|state| !state.starts_with('T')));
    assert_eq!(run.listed()[0]["state"], "running");

    // A status is passed on.
    let done = run
        .user
        .run(&["run", "--jail", &built("guest/payloads/hello.bin")]);
    let all = (done.status, done.stdout.as_str(), done.stderr.as_str());
    assert_eq!(all, (Some(0), "Hello from a virtual machine\n", ""));
}

#[test]
fn root_may_choose_the_user_of_a_jail() {
    if !kvm("the user of a jail") {
        return;
    }
    let user = User::new();
    if !geteuid().is_root() {
        user.refused(&["run", "--jail=uid=5000"], "--jail: only root may choose");
        return;
    }
    let run = Supervised::start(0, "--jail=uid=5000,gid=5001");
    let hull = run.hull();
    assert_eq!(status(hull, "Uid").as_deref(), Some("5000 5000 5000 5000"));
    assert_eq!(status(hull, "Gid").as_deref(), Some("5001 5001 5001 5001"));
    assert_eq!(status(hull, "Groups").as_deref(), Some(""));
}

#[test]
fn limits_are_the_kernels_and_go_with_the_machine() {
    if !kvm("limits") {
        return;
    }
    let user = User::new();
    let own = geteuid().as_raw();
    if own != 0 {
        println!("skipped: limits: only root has control groups in the tests");
        return;
    }
    let flags = "--limit memory=256M,cpu=0.5,pids=40 --jail";
    let mut run = Supervised::run(own, flags, "touch-memory");
    let (groups, hull) = (run.groups(), run.hull());
    assert!(!groups.is_empty());
    for group in &groups {
        let inside = fs::read_to_string(group.join("cgroup.procs")).expect("a group");
        let inside: Vec<u32> = inside.lines().filter_map(|pid| pid.parse().ok()).collect();
        assert!(
            inside.contains(&hull) && !inside.contains(&run.pid()),
            "{inside:?}"
        );
    }
    let limits = &run.listed()[0]["limits"];
    assert_eq!(limits["memory_limit_bytes"], 256 << 20);
    assert_eq!(
        (&limits["cpu_limit"], &limits["pids_limit"]),
        (&0.5.into(), &40.into())
    );
    let used = limits["memory_bytes"].as_u64().expect("a use");
    assert!((1..256 << 20).contains(&used), "{used}");
    assert!(limits["pids"].as_u64() > Some(2), "{limits}");
    let seen = run.lockdown();
    let own_group = groups[0].file_name().expect("a name").to_str();
    let paths = seen["control_groups"].as_array().expect("groups");
    let named = |path: &Value| {
        path.as_str()
            .is_some_and(|it| it.ends_with(own_group.expect("UTF-8")))
    };
    assert!(paths.iter().any(named), "{seen}");
    let text = run.output(&["inspect", "m"]);
    assert!(
        text.contains("control group: memory") && text.contains(" of 256 MiB"),
        "{text}"
    );

    // The kernel ends it for want of memory: the administrator lowers the limit, and the guest needs more.
    for group in &groups {
        let files = [
            "memory.max",
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
        ];
        for file in files
            .map(|file| group.join(file))
            .iter()
            .filter(|it| it.exists())
        {
            fs::write(file, (used + (16 << 20)).to_string()).expect("a lower limit");
        }
    }
    let mut keys = run.child.stdin.take().expect("a pipe");
    keys.write_all(b"x").expect("the machine reads");
    assert_eq!(run.child.wait().expect("an end").signal(), Some(9));
    let told = run.told();
    assert!(
        told.contains("its control group has (--limit memory=256M"),
        "{told}"
    );
    assert!(!groups.iter().any(|group| group.exists()));
    drop(run);

    // A killed supervisor leaves its group to the next hull.
    let mut run = Supervised::start(own, "--limit pids=40");
    let (groups, hull) = (run.groups(), run.hull());
    kill(run.pid(), Signal::KILL);
    run.child.wait().expect("an end");
    wait_until(|| !is_alive(hull));
    assert!(groups[0].exists());
    wait_until(|| run.listed() == Value::Array(Vec::new()) && !groups[0].exists());

    // Nothing stays after an end, either.
    let done = user.run(&["run", "--limit=pids=40", &built("guest/payloads/hello.bin")]);
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
    let above = groups[0].parent().expect("a folder");
    let left = fs::read_dir(above).map(|all| {
        let names = all.flatten().map(|it| it.file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with("hull-"))
            .count()
    });
    assert_eq!(left.unwrap_or(0), 0);
}

#[test]
fn a_rate_of_bytes_is_the_kernels_for_the_disk_of_an_image() {
    if !kvm("a rate of bytes") {
        return;
    }
    if !geteuid().is_root() {
        println!("skipped: a rate of bytes: only root has control groups in the tests");
        return;
    }
    let images = tempfile::tempdir().expect("a folder");
    let image = images.path().join("image");
    fs::write(&image, vec![0; 1 << 20]).expect("an image");
    let image = image.display().to_string();
    // A file system without a disk has no device of its own (makedev(3)).
    let device = fs::metadata(&image).expect("there").dev();
    if rustix::fs::major(device) == 0 {
        let payload = built("guest/payloads/hello.bin");
        User::new().refused(
            &["run", "--limit=io=4M", "--disk", &image, &payload],
            "--limit: io=: no image and no shared folder of this machine lies on a disk",
        );
        return;
    }
    let run = Supervised::start(0, &format!("--limit io=4M --disk {image}"));
    let files = [
        "io.max",
        "blkio.throttle.read_bps_device",
        "blkio.throttle.write_bps_device",
    ];
    let groups = run.groups();
    let all = files.map(|file| groups.iter().map(move |group| group.join(file)));
    let all = all.into_iter().flatten();
    let said: Vec<String> = all.flat_map(fs::read_to_string).collect();
    assert!([1, 2].contains(&said.len()), "{groups:?}: {said:?}");
    for text in &said {
        assert!(text.contains("4194304"), "{said:?}");
    }
    assert_eq!(run.listed()[0]["limits"]["io_limit_bytes"], 4 << 20);
}

#[test]
fn a_user_in_a_jail_who_may_not_use_kvm_is_told_of_its_mode() {
    let open_to_all = fs::metadata("/dev/kvm").is_ok_and(|node| node.mode() & 0o006 != 0);
    if !kvm("the mode of /dev/kvm")
        || open_to_all
        || !geteuid().is_root()
        || !has_namespaces(NOBODY)
    {
        println!("skipped: the mode of /dev/kvm: no user here whom it refuses, with namespaces");
        return;
    }
    let user = User::new();
    chown(user.0.path(), Some(NOBODY), Some(NOBODY)).expect("root may");
    let mut hull = user.hull(&["run", "--jail", &built("guest/payloads/hello.bin")]);
    let output = hull.uid(NOBODY).gid(NOBODY).output().expect("hull starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(
        told.contains("admits only its owner or its group"),
        "{told}"
    );
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let user = User::new();
    for (flag, message) in [
        ("--jail=uid=0", "uid=0 is root's"),
        ("--jail=uid=me", "uid=me: it is a number"),
        ("--jail=root=/srv", "no option of a jail"),
        ("--limit=cpu=0", "cpu=0: it is a number of processors"),
        (
            "--limit=memory=100M",
            "--limit memory=100M: the machine may need 192M",
        ),
        ("--limit=pids=3", "--limit pids=3: hull may start 11"),
        ("--limit=swap=1G", "'swap=1G' is no limit"),
    ] {
        let done = user.run(&["run", flag, &built("guest/payloads/hello.bin")]);
        assert!(done.stderr.contains(message), "{flag}: {}", done.stderr);
        assert!(
            matches!(done.status, Some(125 | 2)),
            "{flag}: {:?}",
            done.status
        );
    }
    if !geteuid().is_root() {
        return;
    }
    // A host where a user has neither namespaces nor control groups.
    let none = "echo 0 > /proc/sys/user/max_user_namespaces";
    let hull = env!("CARGO_BIN_EXE_hull");
    let payload = built("guest/payloads/hello.bin");
    let run = |script: &str| {
        let mut shell = Command::new("unshare");
        let output = shell
            .args(["-Um", "--map-root-user", "sh", "-c", script])
            .output();
        let output = output.expect("unshare");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    if run("true").0 != Some(0) {
        println!("skipped: refusals of a host: no user namespaces");
        return;
    }
    let (status, told) = run(&format!("{none} 2>&1; exec {hull} run --jail {payload}"));
    assert_eq!(status, Some(125), "{told}");
    assert!(told.contains("--jail: "), "{told}");
    let (status, told) = run(&format!(
        "mount -t tmpfs -o ro none /sys; exec {hull} run --limit pids=40 {payload}"
    ));
    assert_eq!(status, Some(125), "{told}");
    assert!(told.contains("--limit: "), "{told}");
}
