//! The filters of system calls that hull's threads have while a guest runs.

mod machine;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use machine::user::{Running, User, wait_until};
use machine::{in_lab, kvm};
use rustix::process::{Pid, Signal, kill_process};

/// The value of a line of /proc/PID/task/TID/status.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.map_or("", |rest| rest.trim_start_matches(':').trim())
}

/// The threads of a process, by name: Seccomp and NoNewPrivs of each.
fn threads(process: u32) -> BTreeMap<String, (String, String)> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let statuses = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    let of = |status: String| {
        let read = |name| field(&status, name).to_string();
        (read("Name"), (read("Seccomp"), read("NoNewPrivs")))
    };
    // A thread of KVM's own, which begins with the first vCPU (virt/kvm and arch/x86/kvm/mmu).
    let kernel = |name: &str| name.starts_with("kvm-");
    statuses.map(of).filter(|(name, _)| !kernel(name)).collect()
}

/// The processes that a process has started, by name.
fn children(process: u32) -> BTreeMap<String, u32> {
    let path = format!("/proc/{process}/task/{process}/children");
    let all = fs::read_to_string(path).expect("it runs");
    let all = all.split_whitespace().map(|id| id.parse().expect("an id"));
    let named = |id: u32| {
        let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
        Some((name.trim().to_string(), id))
    };
    all.filter_map(named).collect()
}

/// A machine with every device, whose command has begun; it ends with its standard input.
fn machine(user: &User, folder: &std::path::Path, more: &[&str]) -> Running {
    let path = |name: &str| folder.join(name).display().to_string();
    fs::create_dir_all(folder.join("share")).expect("a folder");
    fs::write(folder.join("disk"), vec![0; 1 << 20]).expect("a disk");
    let devices = [
        format!("--share={}:/src", path("share")),
        format!("--disk={}", path("disk")),
        format!("--vsock=cid=9,socket={}", path("v")),
        format!("--gdb={}", path("gdb")),
        format!("--trace={}", path("trace")),
        format!("--profile={}", path("profile.svg")),
    ];
    let script = "echo up; cat > /dev/null; cat /dev/vda > /dev/null; ls /src";
    let mut hull = user.hull(&["run", "--name", "all"]);
    hull.args(devices).args(more);
    // The lab's kernel gives passt no user namespace.
    hull.args((!in_lab()).then_some("--net=user"));
    hull.args(["--", "/bin/sh", "-c", script]);
    hull.stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut hull = Running(hull.spawn().expect("hull starts"));
    let mut line = String::new();
    let stdout = hull.0.stdout.as_mut().expect("a pipe");
    let _ = BufReader::new(stdout).read_line(&mut line);
    if line != "up\n" {
        let mut text = String::new();
        let _ = hull
            .0
            .stderr
            .take()
            .expect("a pipe")
            .read_to_string(&mut text);
        panic!("{line:?}: {text}");
    }
    hull
}

/// Waits for the end of the machine, with status 0. Returns what hull told.
#[track_caller]
fn ends(mut hull: Running) -> String {
    let status = hull.0.wait().expect("it ends");
    let mut said = String::new();
    let mut stderr = hull.0.stderr.take().expect("a pipe");
    stderr.read_to_string(&mut said).expect("text");
    assert_eq!(status.code(), Some(0), "{said}");
    said
}

#[test]
fn every_thread_of_a_machine_is_filtered() {
    if !kvm("filters") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let user = User::new();
    let mut hull = machine(&user, folder.path(), &[]);
    let process = hull.0.id();
    wait_until(|| user.folder().join("all").join("socket").exists());
    let found = threads(process);
    let names: Vec<&str> = found.keys().map(String::as_str).collect();
    let mut expected = vec![
        "control", "disk", "gdb", "hull", "net", "profile", "share", "trace", "vcpu0", "vsock",
    ];
    expected.retain(|name| *name != "net" || !in_lab());
    assert_eq!(names, expected);
    for (name, (seccomp, privileges)) in &found {
        assert_eq!(
            (seccomp.as_str(), privileges.as_str()),
            ("2", "1"),
            "{name}"
        );
    }
    let beside = children(process);
    for name in ["share-server", "connector"] {
        let (status, _) = threads(beside[name])[name].clone();
        assert_eq!(status, "2", "{name}");
    }
    hull.0.stdin.take().expect("a pipe").flush().expect("open");
    ends(hull);
}

#[test]
fn the_end_of_a_shares_server_is_told() {
    if !kvm("filters") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let user = User::new();
    let mut hull = machine(&user, folder.path(), &[]);
    let process = hull.0.id();
    let server = Pid::from_raw(children(process)["share-server"] as i32).expect("an id");
    kill_process(server, Signal::KILL).expect("it runs");
    // The guest waits for the share, and for a signal's end no longer than without one.
    drop(hull.0.stdin.take());
    let mut said = String::new();
    let mut stderr = BufReader::new(hull.0.stderr.take().expect("a pipe"));
    while !said.contains("has ended") {
        assert_ne!(stderr.read_line(&mut said).expect("text"), 0, "{said}");
    }
    assert!(
        said.contains("share src: the process that serves it has ended"),
        "{said}"
    );
    let main = Pid::from_raw(process as i32).expect("an id");
    kill_process(main, Signal::TERM).expect("it runs");
    assert!(!hull.0.wait().expect("it ends").success());
}

#[test]
fn filters_can_be_left_out_with_a_warning() {
    if !kvm("filters") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let user = User::new();
    let mut hull = machine(&user, folder.path(), &["--seccomp", "off"]);
    for (name, (seccomp, _)) in threads(hull.0.id()) {
        assert_eq!(seccomp, "0", "{name}");
    }
    drop(hull.0.stdin.take());
    let said = ends(hull);
    assert!(said.contains("--seccomp off: a guest"), "{said}");
}
