//! `hull run -- CMD`: the command's streams and status are hull's own, as under a container engine.

mod machine;

use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

use machine::{kvm, lab, lab_also, run, run_with, script};

#[test]
fn streams_and_status_are_separate_and_nothing_is_added() {
    if !kvm("streams") {
        return;
    }
    script(&[], "echo out; echo err >&2; exit 7").assert(7, "out\n", "err\n");
}

#[test]
fn arguments_arrive_unchanged() {
    if !kvm("arguments") {
        return;
    }
    let arguments = ["", "a b", "'\"$HOME", "new\nline", "grüße", "*", "--", "-x"];
    let mut words = vec!["run", "--", "/bin/busybox", "printf", "<%s>"];
    words.extend(arguments);
    let expected: String = arguments.iter().map(|word| format!("<{word}>")).collect();
    run(&words).assert(0, &expected, "");
}

#[test]
fn input_arrives_unchanged() {
    if !kvm("input") {
        return;
    }
    let input = noise(300_000);
    let finished = run_with(&["run", "--", "cat"], &input);
    assert_eq!((finished.status, finished.stderr.as_str()), (Some(0), ""));
    assert!(
        finished.stdout == input,
        "{} bytes came back",
        finished.stdout.len()
    );
}

#[test]
fn fifty_megabytes_of_input_arrive() {
    if !kvm("much input") || !lab("much input", "megabytes through an emulated kernel") {
        return;
    }
    let input = noise(50_000_000);
    let finished = run_with(&["run", "--", "sha256sum"], &input);
    let sum: String = Sha256::digest(&input)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    finished.assert(0, &format!("{sum}  -\n"), "");
}

/// Bytes without a pattern.
fn noise(len: u32) -> Vec<u8> {
    (0..len)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

#[test]
fn nothing_is_left_of_a_machine_that_has_ended() {
    if !kvm("the end") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    File::create(&image)
        .and_then(|file| file.set_len(1 << 20))
        .expect("an image");
    let mark = format!("MARK={}", folder.path().display());
    let (name, value) = mark.split_once('=').expect("both");
    let disk = format!("{},format=raw", image.display());
    // The second machine finds the disk unlocked, whatever the first one's end still takes.
    for _ in 0..2 {
        let status = Command::new(env!("CARGO_BIN_EXE_hull"))
            .args(["run", "--disk", &disk, "--", "true"])
            .env(name, value)
            .stdin(Stdio::null())
            .status();
        assert!(status.expect("hull starts").success());
    }
    let left = || {
        let processes = fs::read_dir("/proc").expect("a folder").flatten();
        let mut environments = processes.map(|process| fs::read(process.path().join("environ")));
        environments.any(|environment| {
            let variables = environment.unwrap_or_default();
            variables
                .split(|byte| *byte == 0)
                .any(|variable| variable == mark.as_bytes())
        })
    };
    while left() {
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_signal_gives_status_128_and_its_number() {
    if !kvm("signal") {
        return;
    }
    script(&[], "kill -KILL $$").assert(137, "", "");
}

#[test]
fn signals_end_a_machine_whose_output_is_not_read() {
    if !kvm("a stuck reader") {
        return;
    }
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"))
        .args(["run", "--", "/bin/sh", "-c"])
        .arg("trap '' TERM; while echo more; do :; done")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("hull starts");
    let mut output = hull.stdout.take().expect("piped");
    let mut first = [0; 5];
    output.read_exact(&mut first).expect("the command runs");
    let pid = Pid::from_child(&hull);
    let started = Instant::now();
    let status = loop {
        kill_process(pid, Signal::TERM).expect("sent");
        sleep(Duration::from_millis(100));
        if let Some(status) = hull.try_wait().expect("a child") {
            break status;
        }
        if started.elapsed() > machine::LIMIT {
            hull.kill().expect("killed");
            panic!("hull still runs");
        }
    };
    assert_eq!(status.code(), Some(128 + 15));
}

#[test]
fn a_missing_command_gives_127_and_one_that_cannot_run_126() {
    if !kvm("missing") || !lab("missing", "three boots") {
        return;
    }
    for (command, status) in [
        ("no-such-program", 127),
        ("/no/such/program", 127),
        ("/etc/passwd", 126),
    ] {
        let finished = run(&["run", "--", command]);
        assert_eq!(
            finished.status,
            Some(status),
            "{command}: {}",
            finished.stderr
        );
        assert!(finished.stderr.contains(command), "{}", finished.stderr);
        assert!(finished.stdout.is_empty());
    }
}

#[test]
fn all_output_arrives_before_the_exit() {
    if !kvm("output") || !lab("output", "megabytes through an emulated kernel") {
        return;
    }
    let finished = script(
        &[],
        "head -c 8000000 /dev/zero; head -c 60000 /dev/zero >&2; exit 3",
    );
    assert_eq!(
        (
            finished.status,
            finished.stdout.len(),
            finished.stderr.len()
        ),
        (Some(3), 8_000_000, 60_000)
    );
}

#[test]
fn a_guest_that_powers_off_or_reboots_ends_hull() {
    if !kvm("power-off") {
        return;
    }
    // Through init, which first forwards what was written.
    let error = |how| {
        format!(
            "error: the guest {how} before its command ended, so there is no status of the command\n"
        )
    };
    let off = script(&[], "echo bye; poweroff; sleep 1000");
    off.assert(125, "bye\n", &error("powered off"));
    if lab_also("reboot", "two more boots") {
        let reset = script(&[], "echo bye; reboot; sleep 1000");
        reset.assert(125, "bye\n", &error("restarted"));
        script(&[], "reboot -f").assert(125, "", &error("restarted"));
    }
}

#[test]
fn an_applet_of_busybox_needs_no_file() {
    if !kvm("applet") {
        return;
    }
    run(&["run", "--", "nproc"]).assert(0, "1\n", "");
    if lab_also("applet by its path", "one more boot") {
        run(&["run", "--", "/usr/bin/nproc"]).assert(0, "1\n", "");
    }
}

#[test]
fn the_machine_has_the_requested_processors_and_memory() {
    if !kvm("shape") || !lab("shape", "several processors") {
        return;
    }
    let total = "nproc; awk '/MemTotal/ { print int($2 / 1000000) }' /proc/meminfo";
    script(&["--cpus", "4", "--memory", "6G"], total).assert(0, "4\n6\n", "");
}

#[test]
fn two_processors_come_up_on_any_kvm() {
    if !kvm("two processors") {
        return;
    }
    script(&["--cpus", "2"], "nproc").assert(0, "2\n", "");
}

#[test]
fn the_costs_of_a_boot_are_printed_and_saved() {
    if !kvm("costs") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cost.json");
    let json = file.display().to_string();
    let flags = ["run", "--cold", "--timing", "--json", &json];
    let finished = run(&[&flags[..], &["--", "/bin/true"]].concat());
    assert_eq!(finished.status, Some(0), "{}", finished.stderr);
    let last = finished.stderr.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("hull: boot: exec to first guest instruction "),
        "{last}"
    );
    assert!(!last.contains("never"), "{last}");
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file).expect("the report")).expect("JSON");
    let at = |key: &str| {
        report[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key}: {report}"))
    };
    let points = [
        "first_instruction_ms",
        "kernel_output_ms",
        "initcalls_ms",
        "exec_init_ms",
        "init_ms",
        "end_ms",
    ];
    assert!(
        points.windows(2).all(|pair| at(pair[0]) <= at(pair[1])),
        "{report}"
    );
    assert!(
        report["cmdline"]
            .as_str()
            .is_some_and(|line| line.contains("console=ttyS0"))
    );
}

#[test]
fn the_kernel_log_is_on_standard_error_on_request() {
    if !kvm("kernel log") || !lab("kernel log", "printing is slow on an emulated kernel") {
        return;
    }
    let finished = run(&["run", "--kernel-log", "--", "echo", "hi"]);
    assert_eq!(
        (finished.status, finished.stdout_text().as_str()),
        (Some(0), "hi\n")
    );
    assert!(
        finished.stderr.contains("Linux version 6.12"),
        "{}",
        finished.stderr
    );
}

#[test]
fn a_kernel_panic_is_an_error_with_its_reason() {
    if !kvm("panic") {
        return;
    }
    let finished = run(&[
        "run",
        "--cmdline",
        "rdinit=/nothing root=/dev/none",
        "--",
        "true",
    ]);
    assert_eq!(finished.status, Some(125), "{}", finished.stderr);
    for part in [
        "error: the guest kernel panicked: ",
        "VFS: Unable to mount root",
        "RIP 0x",
    ] {
        assert!(
            finished.stderr.contains(part),
            "{part}: {}",
            finished.stderr
        );
    }
    assert!(finished.stdout.is_empty());
}

#[test]
fn a_command_has_the_environment_folder_and_user_that_it_was_given() {
    if !kvm("environment and user") {
        return;
    }
    // One boot: the users are those of the guest's files, which the share replaces.
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).expect("written");
    };
    file(
        "passwd",
        "root:x:0:0::/root:/bin/sh\nann:x:1000:100::/home/ann:/bin/sh\n",
    );
    file("group", "root:x:0:\nusers:x:100:\nwheel:x:7:bob,ann\n");
    let share = format!("{}:/etc:ro", folder.path().display());
    let show = "id; pwd; echo $HOME $A $B $HERE; echo ${GONE-unset} > /dev/stdout";
    let shown = |flags: &[&str], rest: &str| {
        let mut all = vec!["run", "--share", &share];
        all.extend(flags);
        all.extend(["--", "sh", "-c", show]);
        let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_hull"))
            .args(&all)
            .env("HERE", "host")
            .env_remove("GONE")
            .timeout(machine::LIMIT)
            .output()
            .expect("hull starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        assert_eq!(
            (text(output.stdout).as_str(), text(output.stderr)),
            (rest, String::new())
        );
    };
    shown(
        &[
            "-e", "A=1", "-e", "A=2 3", "-e", "B=", "-e", "HERE", "-e", "GONE", "-w", "/tmp", "-u",
            "ann",
        ],
        "uid=1000(ann) gid=100(users) groups=7(wheel),100(users)\n/tmp\n/home/ann 2 3 host\nunset\n",
    );
    shown(
        &["--user", "5:wheel", "--env", "HOME=/x"],
        "uid=5 gid=7(wheel) groups=7(wheel)\n/\n/x\nunset\n",
    );
    let nobody = machine::run(&["run", "-u", "nosuch", "--", "true"]);
    assert_eq!((nobody.status, nobody.stdout.len()), (Some(125), 0));
    assert_eq!(
        nobody.stderr,
        "hull: guest: unable to find user nosuch: no matching entries in passwd file\n"
    );
}
