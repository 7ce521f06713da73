//! `hull run --profile`, and `--timing` of guests that set marks.

mod machine;

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use machine::{LIMIT, built, kvm, run};
use rustix::process::{Pid, Signal, kill_process};

fn payload(name: &str) -> String {
    built(&format!("guest/payloads/{name}.bin"))
}

/// CPU time of a process in ticks of 10 ms (proc(5), /proc/pid/stat).
fn cpu_ticks(pid: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let times = fields.split(' ').skip(12).take(2);
    times
        .map(|ticks| ticks.parse::<u64>().expect("ticks"))
        .sum()
}

/// Samples of all stacks with `function` in them.
fn samples(folded: &str, function: &str) -> u64 {
    let lines = folded.lines().filter_map(|line| line.rsplit_once(' '));
    lines
        .filter(|(stack, _)| stack.split(';').any(|frame| frame == function))
        .map(|(_, count)| count.parse::<u64>().expect("a number"))
        .sum()
}

#[test]
fn samples_of_a_spinning_guest_name_its_loop() {
    if !kvm("a profile of a payload") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("spin.folded");
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"))
        .args(["run", &payload("spin"), "--profile"])
        .arg(&file)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("hull starts");
    let pid = Pid::from_child(&hull);
    let start = Instant::now();
    while cpu_ticks(pid) < 200 {
        assert!(start.elapsed() < LIMIT, "the guest does not run");
        thread::sleep(Duration::from_millis(20));
    }
    kill_process(pid, Signal::TERM).expect("it runs");
    let until = Instant::now() + LIMIT;
    while hull.try_wait().expect("a child").is_none() {
        assert!(Instant::now() < until, "it does not end");
        thread::sleep(Duration::from_millis(20));
    }
    let output = hull.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(143));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("hull: profile: "), "{said}");
    let folded = fs::read_to_string(&file).expect("a profile");
    // Nearly all samples are in the loop; their number depends on the host's load.
    let (all, spinning) = (
        folded
            .lines()
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum::<u64>(),
        samples(&folded, "0x8010"),
    );
    assert!(spinning > 0 && spinning * 10 >= all * 9, "{folded}");
}

#[test]
fn the_profile_of_a_boot_names_functions_of_linux() {
    if !kvm("a profile of Linux") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for form in ["folded", "svg"] {
        let file = folder.path().join(format!("boot.{form}"));
        let path = file.to_str().expect("text");
        let finished = run(&["run", "--profile", path, "--", "/bin/sh", "-c", "exit 7"]);
        assert_eq!(finished.status, Some(7), "{}", finished.stderr);
        let text = fs::read_to_string(&file).expect("a profile");
        if form == "svg" {
            assert!(text.contains("<svg") && text.contains("start_kernel"));
            continue;
        }
        for function in ["start_kernel", "kernel_init", "do_one_initcall"] {
            assert!(samples(&text, function) > 0, "{function} is not in\n{text}");
        }
        // Callers are found: functions that start_kernel calls are below it.
        assert!(text.contains("start_kernel;"), "{text}");
    }
}

#[test]
fn an_unwritable_profile_is_refused_before_the_boot() {
    for (file, part) in [
        ("/nonexistent/boot.svg", "--profile /nonexistent/boot.svg"),
        ("boot.png", "FILE.svg for a flame graph"),
    ] {
        let finished = run(&["run", "--profile", file]);
        assert_eq!(finished.status, Some(125));
        assert!(finished.stderr.contains(part), "{}", finished.stderr);
        assert_eq!(finished.stdout_text(), "");
    }
}

#[test]
fn marks_of_foreign_guests_are_rows_of_the_timing() {
    if !kvm("marks in the timing") {
        return;
    }
    for (name, row) in [
        ("port-write", "guest: to 0x60 at port 0x80 (user space)"),
        ("mmio", "guest: to the boot timer"),
    ] {
        let finished = run(&["run", &payload(name), "--timing"]);
        assert_eq!(finished.status, Some(0), "{}", finished.stderr);
        for part in [row, "process start", "virtual machine", "load the kernel"] {
            assert!(
                finished.stderr.contains(part),
                "{part} is not in\n{}",
                finished.stderr
            );
        }
    }
}
