//! What hull gives up before a guest runs, as the host's kernel reports it.

mod machine;

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use machine::user::{Running, User, wait_until};
use machine::{built, kvm};
use rustix::process::geteuid;
use serde_json::Value;

/// A user who is not root.
const NOBODY: u32 = 65534;

/// Starts a payload that never ends, with a descriptor 9 that is open and of no use, as `uid`.
fn spin(user: &User, uid: u32, flags: &str) -> Running {
    let payload = built("guest/payloads/spin.bin");
    let hull = env!("CARGO_BIN_EXE_hull");
    let run = format!("exec 9</etc/passwd; exec {hull} run --name m {flags} {payload}");
    let mut shell = Command::new("sh");
    if uid == geteuid().as_raw() {
        shell.args(["-c", &run]);
    } else {
        chown(user.0.path(), Some(uid), Some(uid)).expect("its folder");
        let node = user.0.path().join("kvm").display().to_string();
        let script = format!(
            "set -e; mount --make-rprivate /; mknod {node} c 10 232; chmod 666 {node}
             touch {node}.mounted; mount --bind {node} /dev/kvm
             exec setpriv --reuid {uid} --regid {uid} --clear-groups sh -c '{run}'"
        );
        shell = Command::new("unshare");
        shell.args(["-m", "sh", "-c", &script]);
    }
    shell.env("XDG_RUNTIME_DIR", user.0.path());
    let hull = shell.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let running = Running(hull.expect("a shell"));
    wait_until(|| listed(user, uid)[0]["state"] == "running");
    running
}

/// The output of hull with these arguments, run by `uid`.
fn output(user: &User, uid: u32, arguments: &[&str]) -> String {
    let mut hull = user.hull(arguments);
    if uid != geteuid().as_raw() {
        hull.uid(uid).gid(uid);
    }
    let output = hull.output().expect("hull starts");
    String::from_utf8(output.stdout).expect("text")
}

fn inspected(user: &User, uid: u32, arguments: &[&str]) -> String {
    output(
        user,
        uid,
        &[&["inspect", "m", "lockdown"], arguments].concat(),
    )
}

/// What `hull ps` lists.
fn listed(user: &User, uid: u32) -> Value {
    serde_json::from_str(&output(user, uid, &["ps", "--json"])).expect("JSON")
}

/// The values of a key in the status of each thread (proc_pid_status(5)); a thread of the kernel's in
/// this process has no executable of its own, and is as its parent was.
fn of_threads(pid: u32, key: &str) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let texts = tasks.map(|task| fs::read_to_string(task.expect("a thread").path().join("status")));
    let value = |text: &str, key: &str| {
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.expect("a line").trim().to_string()
    };
    let texts = texts.map(|text| text.expect("a status"));
    texts
        .map(|text| (value(&text, "Name"), value(&text, key)))
        .collect()
}

#[test]
fn every_thread_has_given_up_its_rights_and_the_process_its_dumps() {
    if !kvm("rights of threads") {
        return;
    }
    let root = geteuid().is_root();
    for uid in if root {
        vec![0, NOBODY]
    } else {
        vec![geteuid().as_raw()]
    } {
        let user = User::new();
        let hull = spin(
            &user,
            uid,
            "--scratch 4M --vsock cid=3,socket=$XDG_RUNTIME_DIR/v",
        );
        let pid = hull.0.id();
        for (key, wanted) in [
            ("NoNewPrivs", "1"),
            ("CapEff", "0000000000000000"),
            ("CapPrm", "0000000000000000"),
            ("CapInh", "0000000000000000"),
            ("CapAmb", "0000000000000000"),
        ] {
            let found = of_threads(pid, key);
            assert!(found.len() >= 4, "{found:?}");
            for (thread, value) in found {
                assert_eq!(value, wanted, "{key} of {thread}, user {uid}");
            }
        }
        if uid == 0 {
            for (thread, value) in of_threads(pid, "CapBnd") {
                assert_eq!(value, "0000000000000000", "{thread}");
            }
        }
        let folder = format!("/proc/{pid}");
        let open = fs::read_dir(format!("{folder}/fd"))
            .expect("it runs")
            .flatten();
        let open: Vec<_> = open.flat_map(|fd| fs::read_link(fd.path())).collect();
        assert!(!open.contains(&Path::new("/etc/passwd").into()), "{open:?}");
        let limits = fs::read_to_string(format!("{folder}/limits")).expect("it runs");
        let core = limits.lines().find(|line| line.starts_with("Max core"));
        let core: Vec<&str> = core.expect("a limit").split_whitespace().collect();
        assert_eq!(core[4..6], ["0", "0"], "{core:?}");
        // The files of a process that is not dumpable belong to root (proc(5)).
        let owner = fs::metadata(format!("{folder}/environ")).expect("it runs");
        assert_eq!(owner.uid(), 0);
        // What the guest knows is in no core dump either.
        let smaps = fs::read_to_string(format!("{folder}/smaps")).unwrap_or_default();
        let mappings: Vec<&str> = smaps.split("\nSize:").collect();
        let guest = mappings
            .iter()
            .find(|one| one.trim_start().starts_with("131072 kB"));
        assert_eq!(guest.is_some(), root, "only root may read it");
        if let Some(mapping) = guest {
            let flags = mapping.lines().find(|line| line.starts_with("VmFlags:"));
            assert!(flags.expect("flags").contains(" dd"), "{mapping}");
        }
        // The machine tells the same of itself.
        let seen = inspected(&user, uid, &["--json"]);
        let seen: Value = serde_json::from_str(&seen).expect("JSON");
        let seen = &seen["lockdown"];
        assert_eq!(
            (&seen["dumpable"], &seen["core_bytes"][1]),
            (&false.into(), &0.into())
        );
        let threads = seen["threads"].as_array().expect("threads");
        assert_eq!(threads.len(), of_threads(pid, "Name").len());
        for thread in threads {
            assert_eq!(thread["no_new_privileges"], true, "{thread}");
            assert_eq!(thread["capabilities"], "0x0", "{thread}");
        }
        let drawn = inspected(&user, uid, &[]);
        assert!(
            drawn.contains("core dumps                   none\n"),
            "{drawn}"
        );
        assert!(drawn.contains("vcpu0"), "{drawn}");
        // Its user still sees it.
        let resident = listed(&user, uid)[0]["resident_bytes"].as_u64();
        assert!(resident > Some(1 << 20), "{resident:?}");
        assert_eq!(hull.terminate(), Some(143));
    }
}

#[test]
fn descriptors_that_an_argument_names_stay_open_and_off_gives_nothing_up() {
    if !kvm("descriptors") {
        return;
    }
    let user = User::new();
    let report = user.0.path().join("report");
    let payload = built("guest/payloads/hello.bin");
    let hull = env!("CARGO_BIN_EXE_hull");
    let script = format!(
        "exec 9>{}; {hull} run {payload} --json /dev/fd/9",
        report.display()
    );
    let status = Command::new("sh").args(["-c", &script]).status();
    assert!(status.expect("a shell").success());
    let report = fs::read(&report).expect("a report");
    assert!(serde_json::from_slice::<Value>(&report).is_ok());

    let hull = spin(&user, geteuid().as_raw(), "--lockdown off");
    let privileges = of_threads(hull.0.id(), "NoNewPrivs");
    assert!(
        privileges.iter().all(|(_, value)| value == "0"),
        "{privileges:?}"
    );
    let had = fs::read_to_string("/proc/self/status").expect("a status");
    let had = had.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let has = of_threads(hull.0.id(), "CapEff");
    assert_eq!(Some(has[0].1.as_str()), had.map(str::trim));
    drop(hull);
}

#[test]
fn the_doctor_tells_how_well_the_host_keeps_guests_apart() {
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
    let report = hull
        .args(["doctor", "--json"])
        .output()
        .expect("hull starts");
    let report: Value = serde_json::from_slice(&report.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    for name in [
        "mitigations",
        "SMT",
        "KSM",
        "NX huge",
        "swap",
        "userns",
        "Landlock",
        "seccomp",
    ] {
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(
            check["status"] == "warn",
            check["remedy"].is_string(),
            "{check}"
        );
    }
}
