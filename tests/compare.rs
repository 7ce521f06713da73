//! `hull compare`, with scripts instead of runtimes, whose times are known.
//!
//! Upper bounds of times are limits that only a hang reaches.

mod machine;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use machine::terminal::Session;
use machine::user::wait_until;
use machine::{Finished, LIMIT, kvm};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A command of the guest that ends at once; scripts ignore it.
const ECHO: [&str; 4] = ["--", "/bin/busybox", "echo", "hi"];

/// A folder with scripts that stand for runtimes, and another for hull's temporary files.
struct Place {
    scripts: tempfile::TempDir,
    tmp: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            scripts: tempfile::tempdir().expect("a folder"),
            tmp: tempfile::tempdir().expect("a folder"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scripts.path().join(name)
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.path(name)).ok()
    }

    /// A script, in the form of `--subjects`.
    fn subject(&self, name: &str, script: &str) -> String {
        let path = self.path(name);
        fs::write(
            &path,
            format!(
                "#!/bin/sh\ncd '{}'\n{script}\n",
                self.scripts.path().display()
            ),
        )
        .expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        format!("{name}={}", path.display())
    }

    fn hull(&self, arguments: &[&str]) -> Command {
        let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
        hull.arg("compare").args(arguments);
        hull.env("TMPDIR", self.tmp.path()).stdin(Stdio::null());
        hull
    }

    fn run(&self, arguments: &[&str]) -> Finished {
        let output = assert_cmd::Command::from_std(self.hull(arguments))
            .timeout(LIMIT)
            .output();
        let output = output.expect("hull starts");
        Finished {
            status: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The report of a comparison that succeeds, and its output.
    #[track_caller]
    fn report(&self, arguments: &[&str]) -> (Value, Finished) {
        let json = self.path("report.json");
        let flag = format!("--json={}", json.display());
        let finished = self.run(&[&[&*flag], arguments].concat());
        assert_eq!(finished.status, Some(0), "{}", finished.stderr);
        let report = fs::read(json).expect("a report");
        self.assert_clean();
        (serde_json::from_slice(&report).expect("JSON"), finished)
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], message: &str) {
        let finished = self.run(arguments);
        assert!(finished.stderr.contains(message), "{}", finished.stderr);
        assert_eq!((finished.status, &*finished.stdout_text()), (Some(125), ""));
        self.assert_clean();
    }

    /// hull has left no files.
    #[track_caller]
    fn assert_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.tmp.path()).expect("a folder").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// The cell of a subject; `row` and `figure` are beginnings of names.
#[track_caller]
fn cell<'a>(report: &'a Value, row: &str, figure: &str, subject: &str) -> &'a Value {
    let named = |list: &'a Value, key: &str, name: &str| {
        let list = list.as_array().expect("a list").iter();
        let mut fitting =
            list.filter(|one| one[key].as_str().is_some_and(|it| it.starts_with(name)));
        fitting.next().unwrap_or_else(|| panic!("no {name}"))
    };
    let row = named(&report["rows"], "name", row);
    let figure = named(&row["figures"], "name", figure);
    named(&figure["cells"], "subject", subject)
}

#[track_caller]
fn samples(cell: &Value) -> Vec<f64> {
    let samples = cell["samples"]
        .as_array()
        .unwrap_or_else(|| panic!("no samples: {cell}"));
    samples
        .iter()
        .map(|sample| sample.as_f64().expect("a number"))
        .collect()
}

/// Why a subject has no column.
#[track_caller]
fn left_out<'a>(report: &'a Value, name: &str) -> &'a str {
    let subjects = report["subjects"].as_array().expect("a list");
    let subject = subjects.iter().find(|subject| subject["name"] == name);
    let reason = subject.unwrap_or_else(|| panic!("no {name}"))["left_out"].as_str();
    reason.unwrap_or_else(|| panic!("{name} takes part"))
}

fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

/// Processes with `words` on their command line.
fn processes(words: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let with_words = |pid: &String| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line)
            .replace('\0', " ")
            .contains(words)
    };
    pids.filter(with_words).collect()
}

#[test]
fn known_delays_are_measured() {
    let place = Place::new();
    let slow = place.subject("slow", "sleep 0.3; echo hi; sleep 0.2");
    let subjects = format!("process,{slow}");
    let (report, finished) = place.report(
        &[
            &["--runs", "3", "--rows", "startup", "--subjects", &subjects],
            &ECHO[..],
        ]
        .concat(),
    );
    let times = |figure: &str, subject: &str| samples(cell(&report, "startup", figure, subject));
    let first = times("the command, exec to first byte", "slow");
    let exit = times("the command, exec to exit", "slow");
    assert_eq!((first.len(), exit.len()), (3, 3));
    for (first, exit) in first.iter().zip(&exit) {
        assert!(
            *first >= 300.0 && *exit >= first + 200.0 && *exit < 20_000.0,
            "{first} {exit}"
        );
    }
    assert_eq!(times("the command, exec to exit", "process").len(), 3);
    let ratio = &cell(&report, "startup", "the command, exec to exit", "slow")["ratio"];
    assert!(ratio["ratio"].as_f64().expect("a ratio") > 1.0);
    assert_eq!(
        report["workloads"][0]["words"],
        serde_json::json!(&ECHO[1..])
    );
    assert_eq!(report["runs"], 3);
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("3 runs are few"), "{warnings}");
    // Standard error is not a terminal: a line for each row.
    assert_eq!(
        finished.stderr,
        "hull: measuring: warm-up\nhull: measuring: startup time\n"
    );
    let text = finished.stdout_text();
    assert!(
        text.contains("slow") && text.contains("3 runs are few"),
        "{text}"
    );
}

#[test]
fn a_subject_that_fails_is_left_out_with_the_reason() {
    let place = Place::new();
    let hang = "sleep 1000 & echo $! > child; echo $$ > hang.pid; wait";
    let subjects = [
        "process".to_owned(),
        place.subject("hang", hang),
        place.subject("flood", "exec yes"),
        place.subject("fails", "echo no >&2; exit 3"),
        place.subject("killed", "kill -9 $$"),
        "missing=/none/missing".to_owned(),
    ];
    let flags = [
        "--runs",
        "1",
        "--timeout",
        "2",
        "--rows",
        "startup",
        "--subjects",
    ];
    let subjects = subjects.join(",");
    let (report, finished) = place.report(&[&flags[..], &[&*subjects], &ECHO[..]].concat());
    for (name, reason) in [
        ("hang", "it did not end within 2 s and was killed"),
        ("flood", "it printed more than 1048576 bytes and was killed"),
        ("fails", "it ended with status 3: no"),
        ("killed", "it ended with signal 9"),
        ("missing", "/none/missing is not on PATH"),
    ] {
        assert_eq!(left_out(&report, name), reason);
        assert!(finished.stdout_text().contains(name));
    }
    let first = cell(&report, "startup", "the command", "process");
    assert_eq!(samples(first).len(), 1);
    for pid in ["child", "hang.pid"] {
        let pid = place.read(pid).expect("it ran");
        wait_until(|| !runs(&pid));
    }
}

#[test]
fn a_run_that_fails_later_is_noted() {
    let place = Place::new();
    // Two warm-up runs, and the second of three.
    let script = "n=$(($(cat n 2> /dev/null) + 1)); echo $n > n; echo hi; [ $n != 4 ]";
    let subject = place.subject("fails-once", script);
    let flags = ["--runs", "3", "--rows", "startup", "--subjects", &subject];
    let (report, _) = place.report(&[&flags[..], &ECHO[..]].concat());
    let cell = cell(
        &report,
        "startup",
        "the command, exec to exit",
        "fails-once",
    );
    assert_eq!(samples(cell).len(), 2);
    assert_eq!(cell["note"], "1 of 3 runs failed: it ended with status 1");
    assert_eq!(place.read("n").as_deref(), Some("5\n"));
}

#[test]
fn no_subjects_at_all_is_an_error_with_the_reason() {
    let place = Place::new();
    let subject = place.subject("fails", "exit 3");
    let flags = ["--rows", "startup", "--subjects", &subject];
    let message = "no subject takes part: fails: it ended with status 3; see";
    place.refused(&[&flags[..], &ECHO[..]].concat(), message);
}

#[test]
fn wrong_flags_are_refused_before_anything_starts() {
    let place = Place::new();
    let started = place.subject("started", "touch started.mark; echo hi");
    let folder = place.scripts.path().display().to_string();
    for (flags, message) in [
        (&["--runs", "0"][..], "0 is not in 1..=1000"),
        (&["--runs", "1001"], "1001 is not in 1..=1000"),
        (&["--timeout", "0"], "0 is not in 1..=3600"),
        (
            &["--subjects", "nobody"],
            "--subjects nobody: unknown; the known subjects are process,",
        ),
        (
            &["--subjects", "process=/bin/sh"],
            "--subjects process=: it has no program of its own",
        ),
        (
            &["--subjects", "process,process"],
            "--subjects process: given twice",
        ),
        (
            &["--subjects", "mine="],
            "--subjects mine=: no path after the =",
        ),
        (
            &["--rows", "speed"],
            "--rows \"speed\": not the beginning of exactly one row's name; the rows are",
        ),
        (
            &["--bzimage", "/none"],
            "--bzimage /none: No such file or directory",
        ),
        (&["--json", "/none/report"], "--json /none/report: "),
        (&["--html", &folder], "a folder; name a file in it"),
        (
            &["--json", "same", "--html", "same"],
            "--json same: another report goes there",
        ),
        (
            &["--", "no-such-command"],
            "no-such-command is not in hull's initial RAM disk",
        ),
    ] {
        let subjects = ["--subjects", &started];
        let with_subject = !flags.contains(&"--subjects");
        let flags = [if with_subject { &subjects[..] } else { &[] }, flags].concat();
        place.refused(&flags, message);
    }
    assert_eq!(place.read("started.mark"), None);
    assert!(!Path::new("same").exists());
}

#[test]
fn hostile_names_are_refused() {
    let place = Place::new();
    let program = place.subject("mine", "echo hi");
    let program = program.split_once('=').expect("a path").1;
    let long = "x".repeat(25);
    for name in [
        "\x1b[31mred",
        "<script>",
        "a b",
        "",
        "../up",
        "a\nb",
        "\u{202e}",
        &long,
    ] {
        let subject = format!("{name}={program}");
        let finished = place.run(&["--subjects", &subject]);
        assert_eq!(finished.status, Some(125), "{name:?}");
        assert!(
            finished.stderr.contains("1 to 24 letters"),
            "{}",
            finished.stderr
        );
        assert!(!finished.stderr.contains('\x1b') && !finished.stderr.contains('\u{202e}'));
    }
}

#[test]
fn hostile_output_stays_text() {
    let place = Place::new();
    let subject = place.subject(
        "mine",
        "printf '\\033[2J<script>alert(1)</script>' >&2; echo hi",
    );
    let fails = place.subject(
        "fails",
        "printf '\\033[2J<script>alert(1)</script>' >&2; exit 1",
    );
    let subjects = format!("{subject},{fails}");
    let (html, markdown) = (place.path("r.html"), place.path("r.md"));
    let files = [
        format!("--html={}", html.display()),
        format!("--markdown={}", markdown.display()),
    ];
    let command = [
        "--",
        "/bin/busybox",
        "echo",
        "\x1b[2J<script>alert(1)</script>",
    ];
    let flags = [
        "--runs",
        "1",
        "--rows",
        "startup",
        "--subjects",
        &subjects,
        &files[0],
        &files[1],
    ];
    let (report, finished) = place.report(&[&flags[..], &command].concat());
    assert_eq!(report["workloads"][0]["words"][2], command[3]);
    assert!(left_out(&report, "fails").ends_with("status 1: [2J<script>alert(1)</script>"));
    let html = fs::read_to_string(html).expect("a page");
    let markdown = fs::read_to_string(markdown).expect("a text");
    for text in [&html, &markdown, &finished.stdout_text()] {
        assert!(!text.contains('\x1b'), "{text}");
    }
    assert!(!html.contains("<script>alert"), "{html}");
}

#[test]
fn reports_are_written_whole_or_not_at_all() {
    let place = Place::new();
    let subject = place.subject("fails", "exit 3");
    let (old, link) = (place.path("old.json"), place.path("link.json"));
    fs::write(&old, "old").expect("written");
    fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).expect("set");
    std::os::unix::fs::symlink(&old, &link).expect("linked");
    let flag = format!("--json={}", link.display());
    let flags = ["--runs", "1", "--rows", "startup", "--subjects"];
    place.refused(
        &[&flags[..], &[&*subject, &*flag], &ECHO].concat(),
        "no subject takes part",
    );
    assert_eq!(place.read("old.json").as_deref(), Some("old"));
    let names = || {
        let entries = fs::read_dir(place.scripts.path())
            .expect("a folder")
            .flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    assert!(
        !names().iter().any(|name| name.starts_with(".hull")),
        "{:?}",
        names()
    );
    let finished = place.run(&[&flags[..], &["process", &*flag], &ECHO].concat());
    assert_eq!(finished.status, Some(0), "{}", finished.stderr);
    assert!(
        place
            .read("old.json")
            .is_some_and(|text| text.starts_with('{'))
    );
    assert!(link.is_symlink());
    let mode = fs::metadata(&old).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(
        !names().iter().any(|name| name.starts_with(".hull")),
        "{:?}",
        names()
    );
}

#[test]
fn a_signal_ends_it_and_leaves_nothing_behind() {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let place = Place::new();
        let script = "sleep 1000 & echo $! > child; echo $$ > parent; wait";
        let subject = place.subject("stuck", script);
        let json = format!("--json={}", place.path("report.json").display());
        let mut hull = place.hull(&["--rows", "startup", "--subjects", &subject, &json]);
        let hull = hull.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let hull = hull.expect("hull starts");
        wait_until(|| place.read("parent").is_some_and(|text| !text.is_empty()));
        kill_process(Pid::from_child(&hull), signal).expect("it runs");
        let output = hull.wait_with_output().expect("an end");
        assert_eq!(output.status.code(), Some(status));
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "hull: measuring: warm-up\nhull: stopped before its end: nothing is reported\n"
        );
        assert!(output.stdout.is_empty());
        for pid in ["child", "parent"] {
            let pid = place.read(pid).expect("it ran");
            wait_until(|| !runs(&pid));
        }
        assert_eq!(place.read("report.json"), None);
        place.assert_clean();
    }
}

#[test]
fn idle_instances_end_with_a_signal() {
    let place = Place::new();
    // Each becomes a sleep with a unique argument; the sixth does not print "up".
    let script = format!(
        "[ \"$3\" = hi ] && exec echo hi; n=$(($(cat n 2> /dev/null) + 1)); echo $n > n; \
         [ $n -gt 5 ] || echo up; exec sleep 1000.{}",
        std::process::id()
    );
    let subject = place.subject("idle", &script);
    let flags = ["--rows", "density", "--subjects", &subject];
    let mut hull = place.hull(&[&flags[..], &ECHO].concat());
    let hull = hull.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let hull = hull.expect("hull starts");
    let words = format!("sleep 1000.{}", std::process::id());
    wait_until(|| processes(&words).len() == 6);
    kill_process(Pid::from_child(&hull), Signal::TERM).expect("it runs");
    let output = hull.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(143));
    wait_until(|| processes(&words).is_empty());
    place.assert_clean();
}

#[test]
fn a_terminal_has_a_bar_and_a_key_that_ends_it() {
    let place = Place::new();
    let subject = place.subject("stuck", "touch started; exec sleep 1000");
    // The bar is drawn when a step begins some time after the first: the second one does.
    let subjects = format!("{},{subject}", place.subject("slow", "sleep 0.3"));
    let mut session = Session::of(place.hull(&["--rows", "startup", "--subjects", &subjects]));
    session
        .wait_for("\rhull: comparing [#####---------------]  25 % warm-up: prepared, stuck\x1b[K");
    wait_until(|| place.path("started").exists());
    session.key("\x03");
    session.wait_for("\r\x1b[K");
    session.wait_for("hull: stopped before its end: nothing is reported");
    assert_eq!(session.end(), Some(130));
    place.assert_clean();
}

#[test]
fn a_process_is_measured_in_every_way() {
    let place = Place::new();
    let flags = [
        "--runs",
        "2",
        "--rows",
        "resource,density",
        "--subjects",
        "process",
    ];
    let (report, _) = place.report(&flags);
    let one = |row: &str, figure: &str| samples(cell(&report, row, figure, "process"));
    let of_resources = |figure: &str| one("resource usage", figure);
    let (proportional, resident) = (
        of_resources("idle, proportional"),
        of_resources("idle, resident"),
    );
    assert!(
        proportional[0] > 0.0 && proportional <= resident,
        "{proportional:?} {resident:?}"
    );
    assert_eq!(of_resources("idle, processes"), [1.0]);
    let idle = of_resources("idle CPU over 10 s")[0];
    assert!((0.0..0.5).contains(&idle), "a sleep takes {idle} of a CPU");
    assert!(of_resources("echo, CPU time")[0] > 0.0);
    for figure in ["CPU loop, an iteration", "system calls, a call"] {
        let micros = of_resources(figure);
        assert!(
            micros.len() == 2 && micros.iter().all(|one| *one > 0.0),
            "{micros:?}"
        );
    }
    let each = |number| one("density", &format!("{number} up at once"))[0];
    assert!(each(10) > 0.0 && each(50) > 0.0);
    assert!(each(50) <= resident[0], "shared pages count once");
    let fitting = cell(&report, "density", "idle instances in 1 GiB", "process");
    assert_eq!(fitting["extrapolated"], true);
    assert!(samples(fitting)[0] > 50.0);
    let verdict = &report["rows"][0]["verdict"];
    let text = "This run cannot tell: neither a container nor a virtual machine was measured.";
    assert_eq!(
        (&verdict["text"], &verdict["contradicts"]),
        (&text.into(), &false.into())
    );
}

#[test]
fn a_subject_that_does_not_run_the_command_has_notes() {
    let place = Place::new();
    let subject = place.subject("deaf", "echo hi");
    let flags = [
        "--runs",
        "1",
        "--rows",
        "resource,density",
        "--subjects",
        &subject,
    ];
    let (report, _) = place.report(&flags);
    let note = |row, figure| {
        let cell = cell(&report, row, figure, "deaf");
        assert_eq!(cell["samples"], Value::Null);
        cell["note"].as_str().unwrap_or_default().to_owned()
    };
    let memory = note("resource usage", "idle, proportional");
    assert_eq!(memory, "it did not print the expected text, but \"hi\\n\"");
    let turn = note("resource usage", "CPU loop");
    assert_eq!(turn, "more iterations take no more time");
    let up = note("density", "10 up at once");
    assert!(up.starts_with("at the next one, it did not print"), "{up}");
}

#[test]
fn an_engine_keeps_neither_image_nor_container() {
    let place = Place::new();
    // It logs its arguments, and prints what the container would.
    let script = "echo $* >> words; [ $1 != run ] || echo hi";
    let subject = place.subject("docker", script);
    let flags = ["--runs", "1", "--rows", "startup", "--subjects", &subject];
    let (report, _) = place.report(&[&flags[..], &ECHO[..]].concat());
    let cell = cell(&report, "startup", "the command", "docker");
    assert_eq!(samples(cell).len(), 1);
    let words = place.read("words").expect("it was asked");
    let lines: Vec<&str> = words.lines().collect();
    let image = lines[1].rsplit_once(' ').expect("import ARCHIVE IMAGE").1;
    assert!(lines[0] == "info" && lines[1].starts_with("import "));
    for run in lines.iter().filter(|line| line.starts_with("run ")) {
        let end = format!(" {image} /bin/busybox echo hi");
        assert!(run.ends_with(&end), "{run}");
        let name = run.strip_suffix(&end).and_then(|run| run.rsplit_once(' '));
        let removal = format!("rm --force {}", name.expect("a name").1);
        assert!(lines.contains(&&*removal), "{removal} in {lines:?}");
    }
    assert_eq!(lines.last().copied(), Some(&*format!("rmi {image}")));
}

#[test]
fn an_engine_without_a_daemon_is_left_out_with_its_message() {
    let place = Place::new();
    let docker = place.subject("docker", "echo 'Is the daemon running?' >&2; exit 1");
    let subjects = format!("process,{docker}");
    let flags = ["--runs", "1", "--rows", "startup", "--subjects", &subjects];
    let (report, _) = place.report(&[&flags[..], &ECHO[..]].concat());
    let reason = "`docker info` ended with status 1: Is the daemon running?";
    assert_eq!(left_out(&report, "docker"), reason);
}

#[test]
fn times_are_those_of_hyperfine() {
    let place = Place::new();
    let busybox = busybox(place.scripts.path());
    let counting = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done";
    let command = ["--", "/bin/busybox", "sh", "-c", counting];
    let flags = ["--runs", "7", "--rows", "startup", "--subjects", "process"];
    let (report, _) = place.report(&[&flags[..], &command].concat());
    let ours = cell(&report, "startup", "the command, exec to exit", "process");
    let ours = ours["summary"]["median"].as_f64().expect("a median") / 1e3;
    let json = place.path("hyperfine.json");
    let line = format!("'{}' sh -c '{counting}'", busybox.display());
    let hyperfine = Command::new("hyperfine")
        .args([
            "-N",
            "--warmup",
            "2",
            "--runs",
            "7",
            "--style",
            "none",
            "--export-json",
        ])
        .arg(&json)
        .arg(&line)
        .output()
        .expect("hyperfine is installed: make test-deps");
    assert!(
        hyperfine.status.success(),
        "{}",
        String::from_utf8_lossy(&hyperfine.stderr)
    );
    let text = fs::read(json).expect("a report");
    let theirs: Value = serde_json::from_slice(&text).expect("JSON");
    let theirs = theirs["results"][0]["median"].as_f64().expect("a median");
    assert!(
        ours < theirs * 3.0 && theirs < ours * 3.0,
        "{ours} s, hyperfine {theirs} s"
    );
}

/// The guest's busybox, in `folder`.
fn busybox(folder: &Path) -> PathBuf {
    let mut export = Command::new(env!("CARGO_BIN_EXE_hull"));
    let exported = export.args(["guest", "export"]).arg(folder).output();
    assert!(exported.expect("hull starts").status.success());
    let archive = fs::read(folder.join("initramfs.cpio")).expect("an archive");
    let mut rest = &archive[..];
    loop {
        let mut entry = cpio::newc::Reader::new(rest).expect("an entry");
        assert!(!entry.entry().is_trailer(), "no busybox");
        let name = entry.entry().name().to_owned();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).expect("its content");
        if name == "bin/busybox" {
            let path = folder.join("busybox");
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
            return path;
        }
        rest = entry.finish().expect("the next");
    }
}

#[test]
fn a_machine_and_a_container_side_by_side() {
    if !kvm("a_machine_and_a_container_side_by_side") {
        return;
    }
    let place = Place::new();
    let flags = ["--runs", "2", "--timeout", "120", "--rows", "startup"];
    let subjects = ["--subjects", "process,runc,hull-warm"];
    let (report, finished) = place.report(&[&flags[..], &subjects, &ECHO].concat());
    for subject in ["process", "runc", "hull-warm"] {
        let cell = cell(&report, "startup", "the command, exec to exit", subject);
        assert_eq!(samples(cell).len(), 2, "{subject}: {cell}");
    }
    let verdict = report["rows"][0]["verdict"]["text"]
        .as_str()
        .expect("a text");
    assert!(
        verdict.contains("hull-warm") && verdict.contains("runc"),
        "{verdict}"
    );
    assert!(finished.stdout_text().contains("hull-warm"));
    let parts = report["subjects"][2]["parts"].to_string();
    assert!(parts.contains("template"), "{parts}");
}
