//! `hull bench`: figures, programs that are left out, and changes between two reports.

mod machine;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use machine::{Finished, kvm, run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Runs `hull bench WORDS --json FILE`, and reads the file.
fn bench(words: &[&str]) -> (Finished, Value) {
    let folder = folder();
    let file = folder.path().join("report.json");
    let file_name = text(&file);
    let done = run(&[&["bench"], words, &["--json", &file_name]].concat());
    let report = fs::read(file).map(|text| serde_json::from_slice(&text).expect("JSON"));
    (done, report.unwrap_or_default())
}

/// A program for `--vs`.
fn script(folder: &TempDir, name: &str, script: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

#[test]
fn figures_have_all_samples_a_host_and_warnings() {
    if !kvm("figures_have_all_samples_a_host_and_warnings") {
        return;
    }
    let (done, report) = bench(&["exit", "--runs", "2"]);
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
    assert_eq!(report["format"], 1);
    assert_eq!(report["topic"], "exit");
    for figure in report["figures"].as_array().expect("figures") {
        let cell = &figure["cells"][0];
        assert_eq!(cell["subject"], "hull");
        let samples = cell["samples"].as_array().expect("samples");
        assert_eq!(samples.len(), 2);
        assert!(samples.iter().all(|sample| sample.as_f64() > Some(0.0)));
        let name = figure["name"].as_str().expect("a name");
        assert!(done.stdout_text().contains(name), "{name}");
    }
    assert!(report["host"]["kernel"].is_string());
    let few = "2 runs are few; use --runs 10 or more";
    assert!(
        report["warnings"]
            .as_array()
            .expect("warnings")
            .contains(&json!(few))
    );
    assert!(done.stdout_text().contains(&format!("warning: {few}\n")));
}

#[test]
fn memory_beyond_the_guests_is_a_part_of_a_process() {
    if !kvm("memory_beyond_the_guests_is_a_part_of_a_process") {
        return;
    }
    let (done, report) = bench(&["memory", "--runs", "1", "--timeout", "150"]);
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
    let bytes = |figure: usize| {
        let cell = &report["figures"][figure]["cells"][0];
        cell["samples"][0].as_f64().expect("a sample")
    };
    // More than a page, less than the guest has.
    for figure in 0..4 {
        let bytes = bytes(figure);
        assert!((4096.0..(64 << 20) as f64).contains(&bytes), "{bytes}");
    }
    assert!(bytes(1) < bytes(0) && bytes(3) < bytes(2));
    let program = fs::metadata(env!("CARGO_BIN_EXE_hull")).expect("hull");
    assert_eq!(bytes(4), program.len() as f64);
}

#[test]
fn a_program_that_hangs_fails_or_is_missing_is_left_out() {
    if !kvm("a_program_that_hangs_fails_or_is_missing_is_left_out") {
        return;
    }
    let folder = folder();
    let hangs = script(&folder, "hangs", "echo asleep >&2; sleep 1000");
    let fails = script(&folder, "fails", "echo no such thing >&2; exit 3");
    for (program, reason) in [
        (
            text(&hangs),
            "it did not end within 8 s and was killed: asleep",
        ),
        (text(&fails), "it ended with status 3: no such thing"),
        (
            "/none/hull".into(),
            "it cannot be started: No such file or directory (os error 2)",
        ),
    ] {
        let vs = format!("hull={program}");
        let (done, report) = bench(&["exit", "--runs", "1", "--timeout", "8", "--vs", &vs]);
        assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
        assert_eq!(report["subjects"][0]["left_out"], Value::Null, "{report}");
        assert_eq!(report["subjects"][1]["name"], "other hull");
        assert_eq!(report["subjects"][1]["left_out"], reason);
        assert_eq!(
            report["figures"][0]["cells"].as_array().map(Vec::len),
            Some(1)
        );
        let wrapped = done.stdout_text().replace("\n  ", " ");
        assert!(
            wrapped.contains(&format!("other hull is left out: {reason}")),
            "{wrapped}"
        );
    }
}

#[test]
fn another_hull_takes_turns_and_a_program_without_figures_is_left_out() {
    if !kvm("another_hull_takes_turns_and_a_program_without_figures_is_left_out") {
        return;
    }
    let vs = format!("hull={}", env!("CARGO_BIN_EXE_hull"));
    let words = [
        "exit",
        "--runs",
        "2",
        "--vs",
        &vs,
        "--vs",
        "firecracker=/none",
    ];
    let (done, report) = bench(&words);
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
    let cell = &report["figures"][0]["cells"][1];
    assert_eq!(cell["subject"], "other hull");
    assert!(cell["ratio"]["low"].as_f64() <= cell["ratio"]["high"].as_f64());
    assert_eq!(report["subjects"][2]["left_out"], "it runs no flat guests");
}

#[test]
fn wrong_flags_are_refused() {
    for (words, message) in [
        (
            &["exit", "--runs", "0"][..],
            "invalid value '0' for '--runs <N>'",
        ),
        (
            &["exit", "--timeout", "0"],
            "invalid value '0' for '--timeout <S>'",
        ),
        (
            &["exit", "--vs", "firecracker"],
            "give NAME=PATH, with one of the names firecracker, ",
        ),
        (&["exit", "--vs", "firecracker="], "give NAME=PATH"),
        (&["exit", "--vs", "nobody=/bin/true"], "give NAME=PATH"),
        (
            &["exit", "--vs", "kvmtool=/a", "--vs", "kvmtool=/b"],
            "--vs kvmtool: given twice",
        ),
        (&["speed"], "invalid value 'speed'"),
        (&[], "<TOPIC>"),
        (&["exit", "--fail-if-worse"], "--compare"),
        (
            &["--compare", "a", "b", "--runs", "3"],
            "cannot be used with",
        ),
        (
            &["exit", "--json", "/none/report.json"],
            "--json /none/report.json",
        ),
    ] {
        let done = run(&[&["bench"], words].concat());
        assert_eq!(
            (done.status, done.stdout.len()),
            (Some(125), 0),
            "{words:?}"
        );
        assert!(done.stderr.contains(message), "{words:?}: {}", done.stderr);
    }
}

/// A report as `--json` writes it, with one figure of hull.
fn report(samples: &[f64]) -> Value {
    json!({
        "format": 1,
        "topic": "exit",
        "command": ["hull", "bench", "exit"],
        "host": {
            "date": "2026-01-01T00:00:00Z", "hull": "0.1.0", "processor": "a processor",
            "cpus": 2, "memory": 8_u64 << 30, "kernel": "6.12", "kvm": "hardware, SVM",
            "software_kvm": false, "hypervisor": null, "emulated": false,
        },
        "settings": {"runs": samples.len(), "timeout": 60, "rivals": [], "bzimage": null},
        "method": "made up",
        "subjects": [],
        "warnings": [],
        "figures": [{
            "name": "round trip", "unit": "microseconds", "better": "less",
            "cells": [{
                "subject": "hull",
                "samples": samples,
                "summary": {
                    "runs": samples.len(), "least": samples[0], "quartile_1": samples[0],
                    "median": samples[0], "quartile_3": samples[0], "p99": samples[0],
                    "most": samples[0], "mean": samples[0], "deviation": 0.0, "outliers": 0,
                },
            }],
        }],
    })
}

/// `hull bench --compare` of these two.
fn compare(old: &Value, new: &Value, flags: &[&str]) -> Finished {
    let folder = folder();
    let [old_file, new_file] = ["old", "new"].map(|name| folder.path().join(name));
    fs::write(&old_file, old.to_string()).expect("written");
    fs::write(&new_file, new.to_string()).expect("written");
    let (old, new) = (text(&old_file), text(&new_file));
    run(&[&["bench", "--compare", &old, &new], flags].concat())
}

#[test]
fn a_change_is_called_real_worse_or_improved_by_its_range() {
    let (fast, slow) = (report(&[10.0; 6]), report(&[15.0; 6]));
    for (old, new, verdict, status) in [
        (&fast, &slow, "1.50 (1.50 to 1.50)  worse\n", 1),
        (&slow, &fast, "0.67 (0.67 to 0.67)  improved\n", 0),
        (&fast, &fast, "1.00 (1.00 to 1.00)  not real\n", 0),
        (&report(&[10.0; 4]), &slow, "unknown\n", 0),
    ] {
        let done = compare(old, new, &["--fail-if-worse"]);
        assert_eq!((done.status, done.stderr.as_str()), (Some(status), ""));
        assert!(
            done.stdout_text().contains(verdict),
            "{}",
            done.stdout_text()
        );
        assert_eq!(compare(old, new, &[]).status, Some(0));
    }
}

#[test]
fn nothing_is_real_between_two_machines() {
    let mut other = report(&[15.0; 6]);
    other["host"]["kernel"] = json!("6.18");
    let done = compare(&report(&[10.0; 6]), &other, &["--fail-if-worse"]);
    assert_eq!(done.status, Some(0));
    let stdout = done.stdout_text();
    assert!(stdout.contains("unknown\n"), "{stdout}");
    let warning = "differ in kernel (6.12, then 6.18)";
    assert!(stdout.replace("\n  ", " ").contains(warning), "{stdout}");
}

#[test]
fn reports_that_cannot_be_compared_are_refused() {
    let good = report(&[1.0; 6]);
    let mut newer = good.clone();
    newer["format"] = json!(2);
    let mut boot = good.clone();
    boot["topic"] = json!("boot");
    for (old, message) in [
        (&newer, "its format is 2, and this hull ("),
        (
            &boot,
            "the old report is about `boot` and the new one about `exit`",
        ),
        (
            &json!({"format": 1}),
            "it is not a report of `hull bench --json`",
        ),
        (
            &json!({"format": 1, "figures": []}),
            "it is damaged: missing field",
        ),
    ] {
        let done = compare(old, &good, &[]);
        assert_eq!((done.status, done.stdout.len()), (Some(125), 0));
        assert!(done.stderr.contains(message), "{}", done.stderr);
    }
    let done = run(&["bench", "--compare", "/none/old.json"]);
    assert_eq!(done.status, Some(125));
    assert!(
        done.stderr
            .contains("--compare /none/old.json: No such file"),
        "{}",
        done.stderr
    );
}

#[test]
fn a_report_is_measured_again_as_it_was() {
    if !kvm("a_report_is_measured_again_as_it_was") {
        return;
    }
    let folder = folder();
    let file = text(&folder.path().join("old.json"));
    let done = run(&["bench", "exit", "--runs", "1", "--json", &file]);
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
    let (done, changes) = bench(&["--compare", &file]);
    assert_eq!((done.status, done.stderr.as_str()), (Some(0), ""));
    assert_eq!(changes["old"]["settings"], changes["new"]["settings"]);
    assert_eq!(changes["changes"].as_array().map(Vec::len), Some(3));
    for change in changes["changes"].as_array().expect("changes") {
        assert_eq!(change["verdict"], "unknown", "one run tells nothing");
    }
}

#[test]
fn a_signal_leaves_nothing_behind() {
    if !kvm("a_signal_leaves_nothing_behind") {
        return;
    }
    let folder = folder();
    let note = folder.path().join("note");
    let told = format!(
        "echo $$ $XDG_RUNTIME_DIR > {0}.new; mv {0}.new {0}",
        note.display()
    );
    let hangs = script(&folder, "hangs", &format!("{told}; sleep 1000"));
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
    hull.args([
        "bench",
        "exit",
        "--vs",
        &format!("hull={}", hangs.display()),
    ]);
    let hull = hull.stdout(Stdio::piped()).stderr(Stdio::piped());
    let hull = hull.spawn().expect("hull starts");
    let deadline = Instant::now() + machine::LIMIT;
    while !note.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    kill_process(Pid::from_child(&hull), Signal::TERM).expect("it runs");
    let output = hull.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(128 + 15));
    assert!(output.stdout.is_empty());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        stderr,
        "hull: stopped; nothing is left behind, and no figure is kept\n"
    );
    let note = fs::read_to_string(note).expect("it was started");
    let (pid, run) = note.trim().split_once(' ').expect("two words");
    assert!(!Path::new(run).exists(), "its folder is gone");
    assert!(
        !Path::new("/proc").join(pid).exists(),
        "its process is gone"
    );
}
