//! What hull gives up before a guest runs, as the host's kernel reports it.

mod machine;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use machine::user::{NOBODY, Running, User, wait_until};
use machine::{built, kvm};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::geteuid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use serde_json::{Value, json};

/// Starts a payload that never ends, with a descriptor 9 that is open and of no use, as `uid`.
fn spin(user: &User, uid: u32, flags: &str) -> Running {
    let payload = built("guest/payloads/spin.bin");
    let hull = env!("CARGO_BIN_EXE_hull");
    let run = format!("exec 9</etc/passwd; exec {hull} run --name m {flags} {payload}");
    let mut shell = user.shell_of(uid, &run);
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

/// The value of a key in a status (proc_pid_status(5)).
fn value(status: &str, key: &str) -> String {
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.expect("a line").trim().to_string()
}

/// The status of the process with this name that `parent` has started.
fn child(parent: u32, name: &str) -> String {
    let all = fs::read_dir("/proc").expect("it is mounted").flatten();
    let mut all = all.flat_map(|process| fs::read_to_string(process.path().join("status")));
    let is_it = |status: &String| {
        value(status, "PPid") == parent.to_string() && value(status, "Name") == name
    };
    all.find(is_it).unwrap_or_else(|| panic!("no {name}"))
}

/// The values of a key in the status of each thread (proc_pid_status(5)), by the threads' names. A thread
/// of KVM's own begins with the first vCPU (arch/x86/kvm/mmu) and is none of hull's.
fn of_threads(pid: u32, key: &str) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let texts = tasks.map(|task| fs::read_to_string(task.expect("a thread").path().join("status")));
    let texts = texts.map(|text| text.expect("a status"));
    let values = texts.map(|text| (value(&text, "Name"), value(&text, key)));
    values
        .filter(|(name, _)| !name.starts_with("kvm-"))
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
            "--lockdown required --scratch 4M --vsock cid=3,socket=$XDG_RUNTIME_DIR/v \
             --gdb $XDG_RUNTIME_DIR/g --trace $XDG_RUNTIME_DIR/t --profile $XDG_RUNTIME_DIR/p.svg",
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
            assert!(found.len() >= 7, "{found:?}");
            for (thread, value) in found {
                assert_eq!(value, wanted, "{key} of {thread}, user {uid}");
            }
        }
        if uid == 0 {
            for (thread, value) in of_threads(pid, "CapBnd") {
                assert_eq!(value, "0000000000000000", "{thread}");
            }
        }
        for beside in ["connector", "at-end"] {
            let status = child(pid, beside);
            for (key, wanted) in [
                ("NoNewPrivs", "1"),
                ("Seccomp", "2"),
                ("CapEff", "0000000000000000"),
            ] {
                assert_eq!(value(&status, key), wanted, "{key} of {beside}, user {uid}");
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
            let name = thread["name"].as_str().expect("a name");
            assert!(!name.starts_with("kvm-"), "{threads:?}");
            assert_eq!(thread["no_new_privileges"], true, "{thread}");
            assert_eq!(thread["capabilities"], "0x0", "{thread}");
        }
        let beside = seen["processes"].as_array().expect("processes");
        let mut names: Vec<&str> = beside.iter().flat_map(|it| it["name"].as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["at-end", "connector"]);
        for process in beside {
            assert_eq!(process["capabilities"], "0x0", "{process}");
            assert_eq!(process["seccomp"], 2, "{process}");
        }
        // Tried: by a thread that may open other files than these.
        assert_eq!(seen["opened"], Value::Array(Vec::new()));
        let drawn = inspected(&user, uid, &[]);
        assert!(
            drawn.contains("core dumps                   none\n"),
            "{drawn}"
        );
        assert!(drawn.contains("vcpu0"), "{drawn}");
        assert!(
            drawn.contains("other files, tried           /etc/passwd, /dev/null, / could not be"),
            "{drawn}"
        );
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
    let seen = inspected(&user, geteuid().as_raw(), &["--json"]);
    let seen: Value = serde_json::from_str(&seen).expect("JSON");
    let all = json!(["/etc/passwd", "/dev/null", "/"]);
    assert_eq!(seen["lockdown"]["opened"], all);
    let had = fs::read_to_string("/proc/self/status").expect("a status");
    let had = had.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let has = of_threads(hull.0.id(), "CapEff");
    assert_eq!(Some(has[0].1.as_str()), had.map(str::trim));
    drop(hull);
}

/// The output of `hull` on a host whose kernel has no Landlock.
fn without_landlock(mut hull: Command) -> Output {
    let number = libc::SYS_landlock_create_ruleset;
    let none = SeccompAction::Errno(libc::ENOSYS as u32);
    let rules = BTreeMap::from([(number, Vec::new())]);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, none, TargetArch::x86_64);
    let filter = BpfProgram::try_from(filter.expect("a filter")).expect("a filter");
    // This thread's programs inherit it.
    let run = move || {
        apply_filter(&filter).expect("seccomp");
        hull.output().expect("hull starts")
    };
    thread::spawn(run).join().expect("no panic")
}

#[test]
fn a_host_without_landlock_is_told_of_once_or_refused() {
    if !kvm("a host without Landlock") {
        return;
    }
    let user = User::new();
    let payload = built("guest/payloads/hello.bin");
    for (how, status, said) in [
        (
            "best-effort",
            0,
            "hull: this host's kernel has no Landlock: a guest that breaks into hull finds less in its way\n",
        ),
        (
            "required",
            125,
            "error: --lockdown required: this host's kernel has no Landlock; hull doctor says what helps\n",
        ),
        ("off", 0, ""),
    ] {
        let output = without_landlock(user.hull(&["run", "--lockdown", how, &payload]));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), &*stderr),
            (Some(status), said),
            "{how}"
        );
    }
}

/// What machine `m` answers to the request, with which `files` come.
fn asked(user: &User, request: &Value, files: &[BorrowedFd<'_>]) -> Value {
    let socket = user.folder().join("m").join("socket");
    let mut stream = UnixStream::connect(socket).expect("it runs");
    let line = json!({"version": 1, "request": request}).to_string() + "\n";
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(files));
    }
    let line = [IoSlice::new(line.as_bytes())];
    sendmsg(&stream, &line, &mut control, SendFlags::empty()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    serde_json::from_str(&answer).expect("JSON")
}

#[test]
fn a_machine_is_saved_to_regular_files_that_come_with_the_request() {
    if !kvm("files of a snapshot") {
        return;
    }
    let user = User::new();
    let mut hull = spin(&user, geteuid().as_raw(), "");
    let id = [7; 16];
    let request = json!({"snapshot": {"dir": "/nowhere", "id": id, "diff": false}});
    let file = || tempfile::tempfile().expect("a file");
    let (file, other, third) = (file(), file(), file());
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .expect("there");
    let (_, pipe) = std::io::pipe().expect("a pipe");
    for files in [
        vec![],
        vec![file.as_fd()],
        vec![file.as_fd(), null.as_fd()],
        vec![pipe.as_fd(), file.as_fd()],
    ] {
        let answer = asked(&user, &request, &files);
        let refused = answer["refused"].as_str().expect("refused");
        assert!(refused.contains("without two regular files"), "{refused}");
    }
    // One more than belong to it is closed at once.
    let answer = asked(
        &user,
        &request,
        &[file.as_fd(), other.as_fd(), third.as_fd()],
    );
    assert!(answer["saved"].is_object(), "{answer}");
    assert!(file.metadata().expect("a file").len() >= 128 << 20);
    assert_eq!(third.metadata().expect("a file").len(), 0);
    // Only complete ones count: nothing is known to which this one could be a difference.
    let folder = user.0.path().join("saved");
    let saved = folder.display().to_string();
    let none = "there is no snapshot of this run";
    user.refused(&["snapshot", "--diff", "m", &saved], none);
    assert!(!folder.exists());
    let later = saved.clone() + "-later";
    for arguments in [&[saved.as_str()][..], &[&later, "--diff"]] {
        let done = user.run(&[&["snapshot", "m"], arguments].concat());
        assert_eq!((done.status, &*done.stderr), (Some(0), ""), "{arguments:?}");
    }
    // The machine outlives a snapshot that is not complete, and ends with one that is.
    let request = json!({"snapshot": {"dir": "/nowhere", "id": id, "diff": false, "stop": true}});
    let answer = asked(&user, &request, &[file.as_fd(), other.as_fd()]);
    assert!(answer["saved"].is_object(), "{answer}");
    assert_eq!(listed(&user, geteuid().as_raw())[0]["state"], "paused");
    assert_eq!(user.run(&["resume", "m"]).status, Some(0));
    let done = user.run(&["snapshot", "m", &saved, "--stop"]);
    assert_eq!((done.status, &*done.stderr), (Some(0), ""));
    hull.0.wait().expect("it ends");
    let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&folder.join("state")), 0o600);
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
