//! The subjects of a comparison that this machine has; scripts stand for monitors that it does not have.

mod machine;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hull::compare::measure::error::RunError;
use hull::compare::measure::timed::Timed;
use hull::compare::subject::{self, Stage, Subject, by_name, guest};
use machine::{built, kvm, lab};

const TIMEOUT: Duration = Duration::from_secs(100);

fn run(subject: &mut dyn Subject, words: &[&str]) -> Result<Timed, RunError> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    subject::run(subject, &words, "once", TIMEOUT)
}

/// A stage with hull's kernel as a bzImage; `None` if this hull was built without a guest.
fn stage(test: &str) -> Option<Stage> {
    if hull::guest::embedded().is_none() {
        println!("skipped: {test}: built without a guest");
        return None;
    }
    Some(Stage::new(Some(built("guest/bzImage").into())).expect("a stage"))
}

/// A program that is this script.
fn monitor_script(folder: &Path, script: &str) -> PathBuf {
    let path = folder.join("monitor");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

/// Why a subject cannot take part.
#[track_caller]
fn left_out(name: &str, program: &Path, stage: &Stage) -> String {
    let mut subject = by_name(name, Some(program), stage).expect("a name");
    subject.prepare().expect_err("it cannot").to_string()
}

#[test]
fn a_missing_program_is_named() {
    let Some(stage) = stage("a_missing_program_is_named") else {
        return;
    };
    for name in ["firecracker", "cloud-hypervisor", "qemu-microvm", "kvmtool"] {
        let said = left_out(name, Path::new("/none/monitor"), &stage);
        assert_eq!(said, "/none/monitor is not on PATH");
    }
    let bare = Stage::new(None).expect("a stage");
    let said = left_out("kvmtool", Path::new("/bin/true"), &bare);
    assert_eq!(
        said,
        "it boots only bzImages: give hull's kernel as one with --bzimage"
    );
}

#[test]
fn podman_asks_for_no_more_open_files_than_there_may_be() {
    let Some(stage) = stage("podman_asks_for_no_more_open_files") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    // As crun says it where the limit cannot be raised.
    let script = r#"[ "$1" = run ] || exit 0
        grep -q '^default_ulimits = ."nofile=[0-9]*:[0-9]*".$' "$CONTAINERS_CONF" 2>/dev/null && exec echo ran
        echo 'crun: setrlimit `RLIMIT_NOFILE`: Operation not permitted' >&2; exit 126"#;
    let program = monitor_script(folder.path(), script);
    let mut subject = by_name("podman", Some(&program), &stage).expect("a name");
    subject.prepare().expect("it takes part");
    let ran = run(&mut *subject, &["/bin/busybox", "true"]).expect("ends well");
    assert_eq!(ran.output, b"ran\n");
    let caveats = subject.caveats().join("\n");
    assert!(caveats.contains("containers.conf"), "{caveats}");
}

#[test]
fn a_monitor_is_judged_by_its_console() {
    let Some(stage) = stage("a_monitor_is_judged_by_its_console") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("monitor");
    let play = |script: &str| monitor_script(folder.path(), script);
    play(r"printf 'hi\r\n\006'");
    let mut subject = by_name("cloud-hypervisor", Some(&program), &stage).expect("a name");
    subject.prepare().expect("its machine ends well");
    let hi = run(&mut *subject, &["/bin/busybox", "echo", "hi"]).expect("ends well");
    assert_eq!(hi.output, b"hi\n");

    play(r"printf '\006'");
    let silent = run(&mut *subject, &["/bin/busybox", "true"]).expect("ends well");
    assert_eq!((silent.output.len(), silent.first_byte), (0, None));

    let refused = |subject: &mut dyn Subject| {
        let error = run(subject, &["/bin/busybox", "echo", "hi"]).expect_err("no figure");
        error.to_string()
    };
    play(r"printf 'hi\n\025'");
    let said = refused(&mut *subject);
    assert_eq!(said, "ended with status 0, but the command in it failed");
    play("echo hi; echo '[ 0.1] Kernel panic'");
    let said = refused(&mut *subject);
    assert_eq!(
        said,
        "ended before the command in it; the last line on its console: [ 0.1] Kernel panic"
    );
    play("exit 0");
    assert_eq!(
        refused(&mut *subject),
        "ended before the command in it, without console output"
    );
    play("echo no machine >&2; exit 1");
    assert_eq!(refused(&mut *subject), "ended with status 1: no machine");
    let said = left_out("cloud-hypervisor", &program, &stage);
    assert_eq!(said, "it ended with status 1: no machine");
}

#[test]
fn firecracker_runs_without_its_filters_only_if_they_kill_it() {
    let Some(stage) = stage("firecracker_runs_without_its_filters_only_if_they_kill_it") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let caveats = |script: &str| {
        let program = monitor_script(folder.path(), script);
        let mut subject = by_name("firecracker", Some(&program), &stage).expect("a name");
        subject.prepare().expect("its machine ends well");
        subject.caveats().concat()
    };
    let filtered = r#"case "$*" in *--no-seccomp*) printf '\006';; *) exit 148;; esac"#;
    assert!(caveats(filtered).contains("without them (--no-seccomp)"));
    let fits = r#"case "$*" in *--no-seccomp*) exit 1;; *) printf '\006';; esac"#;
    assert!(caveats(fits).contains("with its own seccomp filters"));
}

/// Runs the guest of the monitors in hull: what its init reports of `words`, and their output.
fn in_hull(stage: &Stage, words: &[&str]) -> (Result<(), String>, String) {
    let initrd = stage.path("initrd");
    let initramfs = stage.initramfs().expect("unpacks");
    let init = guest::runs(words[0], words);
    fs::write(&initrd, guest::initrd(&initramfs, &init).expect("packed")).expect("written");
    let kernel = stage.vmlinux().expect("written");
    let cmdline = format!("console=ttyS0 quiet loglevel=0 rdinit=/{}", guest::INIT);
    let [kernel, initrd] = [kernel, initrd].map(|path| path.display().to_string());
    let finished = machine::run(&["run", &kernel, "--initrd", &initrd, "--cmdline", &cmdline]);
    assert_eq!(finished.status, Some(0), "{}", finished.stderr);
    let mut output = finished.stdout;
    output.retain(|byte| *byte != b'\r');
    let judged = guest::judge(&mut output);
    (judged, String::from_utf8_lossy(&output).into())
}

#[test]
fn the_guest_reports_how_its_command_ended() {
    let test = "the_guest_reports_how_its_command_ended";
    if !kvm(test) {
        return;
    }
    let Some(stage) = stage(test) else {
        return;
    };
    // No input, the file systems that programs expect, unchanged words.
    let script = "cat; [ -c /dev/null ] && [ -d /proc/1 ] && [ -d /sys/kernel ] && echo \"$0\"";
    let words = ["/bin/busybox", "sh", "-c", script, "two  \"words\""];
    let (judged, output) = in_hull(&stage, &words);
    assert_eq!((judged, output.as_str()), (Ok(()), "two  \"words\"\n"));
    let failed = "ended with status 0, but the command in it failed";
    for words in [&["/bin/busybox", "false"][..], &["/none"]] {
        let (judged, output) = in_hull(&stage, words);
        assert_eq!((judged, output.as_str()), (Err(failed.into()), ""));
    }
}

#[test]
fn qemu_runs_commands() {
    let test = "qemu_runs_commands";
    if !lab(
        test,
        "QEMU's guests get nowhere where the kernel is emulated",
    ) {
        return;
    }
    let Some(stage) = stage(test) else {
        return;
    };
    let mut qemu = by_name("qemu-microvm", None, &stage).expect("a name");
    qemu.prepare().expect("it is installed");
    let hi = run(&mut *qemu, &["/bin/busybox", "echo", "hi"]).expect("ends well");
    assert_eq!(hi.output, b"hi\n");
    let failed = run(&mut *qemu, &["/bin/busybox", "false"]);
    assert!(matches!(failed, Err(RunError::Judged(_))), "{failed:?}");
}
