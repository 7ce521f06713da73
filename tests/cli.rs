//! The command line: help and refusals (tests/cli/*.trycmd; `TRYCMD=overwrite cargo test --test cli` updates
//! them after an intended change), and the output of the small verbs.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const HULL: &str = env!("CARGO_BIN_EXE_hull");

fn hull(arguments: &[&str]) -> Output {
    let output = Command::new(HULL).args(arguments).output();
    output.expect("hull starts")
}

/// hull's output; it must succeed and print nothing on standard error.
fn printed(arguments: &[&str]) -> String {
    let output = hull(arguments);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn help_and_refusals_match_the_files() {
    trycmd::TestCases::new()
        .register_bin("hull", Path::new(HULL))
        .case(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/*.trycmd"));
}

#[test]
fn hull_alone_is_hull_run() {
    // Without an embedded guest both fail with the same message. With one, both try to boot it, and fail with
    // the same message again, as they may not allocate its memory.
    let limited = |arguments: &str| {
        let script = format!("ulimit -v 65536; exec \"$0\" {arguments}");
        let mut hull = Command::new("sh");
        let hull = hull.args(["-c", &script, HULL]).env("HULL_CACHE", "off");
        hull.output().expect("sh starts")
    };
    let (alone, run) = (limited(""), limited("run"));
    assert_eq!(alone.status.code(), Some(125), "{alone:?}");
    assert_eq!((alone.stdout, alone.stderr), (run.stdout, run.stderr));
}

#[test]
fn help_fits_a_terminal_of_80_columns() {
    for verb in [
        "",
        "run",
        "doctor",
        "trace",
        "templates",
        "guest",
        "completions",
        "man",
        "version",
    ] {
        let arguments = [verb, "--help"];
        let arguments = &arguments[usize::from(verb.is_empty())..];
        for line in printed(arguments).lines() {
            assert!(line.chars().count() <= 80, "{verb}: {line}");
        }
    }
}

#[test]
fn completions_name_every_verb_and_flag() {
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(&["completions", shell]);
        for word in ["run", "doctor", "completions", "memory", "kernel-log"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn();
    let Ok(mut bash) = bash else {
        println!("skipped: completions_name_every_verb_and_flag: no bash that checks the syntax");
        return;
    };
    let mut stdin = bash.stdin.take().expect("piped");
    let script = printed(&["completions", "bash"]);
    std::io::Write::write_all(&mut stdin, script.as_bytes()).expect("bash reads");
    drop(stdin);
    assert!(bash.wait().expect("bash ends").success());
}

#[test]
fn the_manual_has_a_page_for_each_verb() {
    let page = printed(&["man"]);
    for part in [
        ".TH hull 1",
        ".SH EXAMPLES\n.TP\n\\fBhull\\fR\n",
        ".SH \"EXIT STATUS\"",
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let folder = scratch.path().join("share/man1");
    printed(&["man", &folder.display().to_string()]);
    for page in [
        "hull",
        "hull-run",
        "hull-doctor",
        "hull-guest",
        "hull-guest-export",
        "hull-completions",
        "hull-man",
    ] {
        let text = fs::read_to_string(folder.join(format!("{page}.1"))).expect("a page");
        assert!(text.contains(&format!(".TH {page} 1")), "{page}: {text}");
    }
    let output = hull(&["man", "/proc/none"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write to /proc/none"));
}

#[test]
fn a_reader_that_closes_early_is_no_failure() {
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["completions", "bash"],
        &["man"],
        &["doctor"],
        &["doctor", "--json"],
    ] {
        let mut hull = Command::new(HULL)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("hull starts");
        drop(hull.stdout.take());
        let output = hull.wait_with_output().expect("hull ends");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn an_error_keeps_its_status_without_a_reader() {
    let mut hull = Command::new(HULL)
        .args(["run", "/no/such/kernel"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("hull starts");
    drop(hull.stderr.take());
    assert_eq!(hull.wait().expect("hull ends").code(), Some(125));
}

#[test]
fn the_doctors_table_and_json_agree() {
    let mut table = Command::new(HULL);
    table.arg("doctor").stdout(Stdio::piped());
    let mut table = table.spawn().expect("hull starts");
    let lines = BufReader::new(table.stdout.take().expect("piped")).lines();
    let lines: Vec<String> = lines.map_while(Result::ok).collect();
    let status = table.wait().expect("hull ends").code();
    assert!(!lines.iter().any(|line| line.contains('\x1b')), "{lines:?}");
    assert!(
        lines.iter().all(|line| line.chars().count() <= 80),
        "{lines:#?}"
    );

    let output = hull(&["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    let failed = checks.iter().any(|check| check["status"] == "fail");
    assert_eq!(output.status.code(), Some(failed.into()));
    assert_eq!(status, output.status.code());
    let heads: Vec<&String> = lines.iter().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(heads.len(), checks.len(), "{lines:#?}");
    for (head, check) in heads.iter().zip(checks) {
        let (status, name) = (&check["status"], check["name"].as_str().expect("a name"));
        assert!(
            head.starts_with(status.as_str().expect("a word")),
            "{head}: {check}"
        );
        assert!(head[6..].starts_with(name), "{head}: {check}");
        assert!(!check["finding"].as_str().expect("a text").is_empty());
        assert_eq!(check["remedy"].is_null(), status == "ok", "{check}");
    }
    let opened = fs::File::options().read(true).write(true).open("/dev/kvm");
    assert_eq!(report["kvm"].is_null(), opened.is_err());
}

#[test]
fn the_doctor_measures_kvm_whatever_its_name() {
    let report: Value = serde_json::from_slice(&hull(&["doctor", "--json"]).stdout).expect("JSON");
    let kvm = &report["kvm"];
    if kvm.is_null() {
        println!("skipped: the_doctor_measures_kvm: no access to KVM");
        return;
    }
    let software = kvm["kind"] == "software";
    assert_eq!(
        kvm["instruction_ns"].as_f64() > Some(50.0),
        software,
        "{kvm}"
    );
    assert_eq!(
        kvm["finishes_instructions"].as_bool(),
        Some(!software),
        "{kvm}"
    );
    if std::env::var("HULL_TEST_HOST").as_deref() == Ok("lab") {
        assert_eq!(kvm["kind"], "svm");
        assert_eq!(kvm["nested_in"], "QEMU's emulator");
        assert_eq!(kvm["honours_cpuid"], true);
        assert_eq!(kvm["enters_kernel_by_syscall"], true);
    }
}
