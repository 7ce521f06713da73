//! `hull run --trace` and `--explain=exits`, and `hull trace summary`.

mod machine;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use machine::{Finished, LIMIT, built, kvm, run};

fn payload(name: &str) -> String {
    built(&format!("guest/payloads/{name}.bin"))
}

/// Runs `arguments` with `--trace` and returns the result and the trace.
fn traced(arguments: &[&str]) -> (Finished, Trace) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("trace.json");
    let mut all = vec!["run", "--trace", file.to_str().expect("text")];
    all.extend(arguments);
    let finished = run(&all);
    let trace = Trace::read(&file);
    (finished, trace)
}

/// A file in the Trace Event Format, as far as hull uses it.
struct Trace {
    events: Vec<Value>,
    dropped: u64,
    summary: Value,
}

impl Trace {
    /// Reads a file that hull no longer writes.
    #[track_caller]
    fn read(path: &Path) -> Self {
        Self::check(&fs::read_to_string(path).expect("the trace is there"))
    }

    /// Checks a file's text strictly.
    #[track_caller]
    fn check(text: &str) -> Self {
        let file: Value = serde_json::from_str(text).expect("JSON");
        let events = file["traceEvents"].as_array().expect("events").clone();
        let mut slices: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        for event in &events {
            let whole = |member: &str| event[member].as_u64();
            let (Some(_), Some(tid)) = (whole("pid"), whole("tid")) else {
                panic!("no process or thread: {event}");
            };
            assert!(event["name"].is_string(), "{event}");
            assert!(event["args"].is_object(), "{event}");
            match event["ph"].as_str().expect("a phase") {
                "M" => continue,
                "i" => assert_eq!(event["s"], "t", "{event}"),
                "X" => {
                    let end = ns(&event["ts"]) + ns(&event["dur"]);
                    slices.entry(tid).or_default().push((ns(&event["ts"]), end));
                }
                other => panic!("phase {other}: {event}"),
            }
            assert!(event["cat"].is_string(), "{event}");
            ns(&event["ts"]);
        }
        // Slices of a track follow each other; hull nests none.
        for (track, slices) in &mut slices {
            slices.sort_unstable();
            for pair in slices.windows(2) {
                assert!(pair[0].1 <= pair[1].0, "track {track}: {pair:?} overlap");
            }
        }
        // A copy of what was read, as hull may write the trace again meanwhile.
        let copy = tempfile::NamedTempFile::new().expect("a file");
        fs::write(&copy, text).expect("room");
        let copy = copy.path().to_str().expect("text");
        let summary = run(&["trace", "summary", "--json", copy]);
        assert_eq!((summary.status, summary.stderr.as_str()), (Some(0), ""));
        let trace = Self {
            events,
            dropped: file["otherData"]["dropped"].as_u64().expect("a number"),
            summary: serde_json::from_slice(&summary.stdout).expect("JSON"),
        };
        trace.check_summary();
        trace
    }

    fn of(&self, category: &str) -> impl Iterator<Item = &Value> {
        let of = |event: &&Value| event["cat"] == category;
        let found: Vec<_> = self.events.iter().filter(of).collect();
        found.into_iter()
    }

    fn names(&self, category: &str) -> Vec<&str> {
        let names = self.of(category).map(|event| event["name"].as_str());
        names.map(|name| name.expect("text")).collect()
    }

    /// The number of exits of each kind, and hull's nanoseconds in them.
    fn exits(&self) -> BTreeMap<(&str, &str), (u64, u64)> {
        let mut exits = BTreeMap::new();
        for exit in self.of("exit") {
            let reason = exit["args"]["reason"].as_str().expect("a reason");
            let name = exit["name"].as_str().expect("a name");
            let (count, total) = exits.entry((reason, name)).or_default();
            *count += 1;
            *total += ns(&exit["dur"]);
        }
        exits
    }

    /// Checks that `hull trace summary` agrees with the file.
    fn check_summary(&self) {
        let exits = self.exits();
        let rows = self.summary["exits"].as_array().expect("rows");
        assert_eq!(rows.len(), exits.len());
        for row in rows {
            let text = |member: &str| row[member].as_str().expect("text");
            let (count, total) = exits[&(text("reason"), text("device"))];
            assert_eq!(row["count"], count, "{row}");
            assert_eq!(ns(&row["total_us"]), total, "{row}");
            assert!(row["p50_us"].as_f64() <= row["max_us"].as_f64(), "{row}");
        }
        let sum = |category: &str| {
            self.of(category)
                .map(|event| ns(&event["dur"]))
                .sum::<u64>()
        };
        let vcpus = self.summary["vcpus"].as_array().expect("rows");
        let of = |member: &str| vcpus.iter().map(|vcpu| ns(&vcpu[member])).sum::<u64>();
        assert!(of("guest_us").abs_diff(sum("guest")) <= vcpus.len() as u64);
        assert!(of("hull_us").abs_diff(sum("exit")) <= vcpus.len() as u64);
        assert_eq!(self.summary["dropped"], self.dropped);
        assert_eq!(self.summary["console_lines"], self.of("console").count());
    }
}

/// Microseconds with a fraction, as nanoseconds.
#[track_caller]
fn ns(us: &Value) -> u64 {
    let us = us.as_f64().expect("a number");
    assert!(us >= 0.0);
    (us * 1e3).round() as u64
}

#[test]
fn the_trace_of_a_flat_guest_has_its_exits() {
    if !kvm("a flat guest's trace") {
        return;
    }
    let (finished, trace) = traced(&[&payload("hello")]);
    finished.assert(0, "Hello from a virtual machine\n", "");
    let exits = trace.exits();
    assert_eq!(exits[&("port write", "COM1")].0, 29);
    assert_eq!(exits[&("port write", "ACPI power")].0, 1);
    let others = exits.keys().filter(|(reason, _)| *reason != "kick");
    assert_eq!(others.count(), 2, "{exits:?}");
    let first = trace.of("exit").next().expect("an exit");
    let access = &first["args"];
    assert_eq!(
        (&access["port"], &access["value"]),
        (&"0x3f8".into(), &"0x48".into())
    );
    assert_eq!(access["register"], "THR");
    assert_eq!(trace.names("console"), ["Hello from a virtual machine"]);
    for phase in ["open KVM", "virtual machine", "load the kernel"] {
        assert!(trace.names("phase").contains(&phase), "{phase}");
    }

    let (finished, trace) = traced(&[&payload("mmio")]);
    finished.assert(0, "ok\n", "");
    let exits = trace.exits();
    assert_eq!(exits[&("MMIO read", "no device")].0, 1);
    assert_eq!(exits[&("MMIO write", "boot timer")].0, 1);
    assert_eq!(trace.names("stage"), ["boot timer"]);
}

#[test]
fn the_trace_of_a_linux_boot_has_console_queues_and_stages() {
    if !kvm("a Linux boot's trace") {
        return;
    }
    let (finished, trace) = traced(&["--kernel-log", "--", "/bin/echo", "up"]);
    assert_eq!(
        (finished.status, finished.stdout_text().as_str()),
        (Some(0), "up\n")
    );
    let console = trace.names("console");
    assert!(
        console.iter().any(|line| line.contains("Linux version")),
        "{console:?}"
    );
    let stages = ["start_kernel", "init calls", "exec of init", "init"];
    assert_eq!(trace.names("stage"), stages);
    let exits = trace.exits();
    assert!(exits[&("port write", "COM1")].0 > 100);
    assert!(exits[&("MMIO write", "virtio console")].0 > 10);
    assert!(trace.names("completion").contains(&"virtio console"));
    assert!(trace.names("interrupt").contains(&"virtio console"));
    let queues = trace.summary["queues"].as_array().expect("queues");
    assert!(
        queues
            .iter()
            .any(|queue| queue["chains"].as_u64() > Some(0))
    );
    assert_eq!(trace.dropped, 0);
    let table = &trace.summary["exits"][0];
    assert!(table["share"].as_f64() > Some(0.0), "{table}");
}

#[test]
fn a_failed_guest_leaves_its_trace() {
    if !kvm("a failing guest's trace") {
        return;
    }
    let (finished, trace) = traced(&[&payload("triple-fault")]);
    assert_eq!(finished.status, Some(125));
    assert_eq!(trace.names("exit").last(), Some(&"shutdown"));
}

/// A running hull, killed when a test fails.
struct Hull(Child);

impl Drop for Hull {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "never: {what}");
        sleep(Duration::from_millis(10));
    }
}

fn has_vcpu(process: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let mut names = tasks
        .flatten()
        .flat_map(|task| fs::read(task.path().join("comm")));
    names.any(|name| name == b"vcpu0\n")
}

#[test]
fn a_trace_is_written_on_a_signal_and_again_at_the_end() {
    if !kvm("a trace on a signal") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (real, link) = (folder.path().join("real"), folder.path().join("link"));
    symlink(&real, &link).expect("a link");
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
    hull.args(["run", &payload("spin"), "--trace"]).arg(&link);
    hull.stdin(Stdio::null()).stderr(Stdio::piped());
    let mut hull = Hull(hull.spawn().expect("hull starts"));
    let process = Pid::from_child(&hull.0);
    wait_until("the vCPU runs", || has_vcpu(hull.0.id()));
    // hull writes in place, and each signal lets it write again: a text may be a part of a trace.
    let mut text = String::new();
    wait_until("a whole trace has the guest", || {
        kill_process(process, Signal::USR1).expect("hull is there");
        text = fs::read_to_string(&real).unwrap_or_default();
        text.contains(r#""cat":"guest""#) && serde_json::from_str::<Value>(&text).is_ok()
    });
    let trace = Trace::check(&text);
    assert_eq!(trace.names("guest"), ["guest"], "it has never left");
    assert!(trace.exits().is_empty());

    kill_process(process, Signal::TERM).expect("hull is there");
    let status = hull.0.wait().expect("hull ends");
    assert_eq!(status.code(), Some(143));
    let trace = Trace::read(&real);
    assert_eq!(trace.exits()[&("kick", "kick")].0, 1);
    let left: Vec<PathBuf> = fs::read_dir(folder.path())
        .expect("the folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(link.is_symlink());
}

#[test]
fn an_unwritable_trace_is_refused_before_the_boot() {
    for (path, why) in [
        ("/nonexistent/trace", "there is no folder /nonexistent"),
        ("/", "a folder; name a file in it"),
    ] {
        let finished = run(&["run", &payload("hello"), "--trace", path]);
        assert_eq!(finished.status, Some(125));
        let start = format!("error: --trace {path}: {why}");
        assert!(finished.stderr.starts_with(&start), "{}", finished.stderr);
        assert!(finished.stdout.is_empty());
    }
}

#[test]
fn a_trace_that_a_full_disk_spoils_is_told_and_is_empty() {
    if !kvm("a full disk") {
        return;
    }
    let finished = run(&["run", &payload("hello"), "--trace", "/dev/full"]);
    let told =
        "hull: --trace /dev/full: cannot be written (No space left on device (os error 28))\n";
    finished.assert(125, "Hello from a virtual machine\n", told);

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("trace");
    // Files may have 512 bytes at most.
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 1; exec \"$0\" run \"$1\" --trace \"$2\""])
        .args([env!("CARGO_BIN_EXE_hull"), &payload("hello")])
        .arg(&file)
        .output()
        .expect("sh starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(
        stderr.contains("cannot be written (File too large"),
        "{stderr}"
    );
    // By then hull may remove no file.
    assert_eq!(fs::read(&file).expect("it was made"), b"");
}

#[test]
fn a_refused_run_leaves_no_trace() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, kernel) = (folder.path().join("trace"), folder.path().join("kernel"));
    fs::write(&kernel, [0; 4096]).expect("a file");
    let [file_name, kernel] = [&file, &kernel].map(|path| path.to_str().expect("text"));
    let finished = run(&["run", kernel, "--trace", file_name]);
    assert_eq!(finished.status, Some(125));
    assert!(!file.exists());
}

#[test]
fn in_a_folder_without_write_access_a_trace_is_written_in_place() {
    if !kvm("a trace in place") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("trace");
    fs::write(&file, "old").expect("a file");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).expect("it is ours");
    let finished = run(&[
        "run",
        &payload("hello"),
        "--trace",
        file.to_str().expect("text"),
    ]);
    finished.assert(0, "Hello from a virtual machine\n", "");
    assert_eq!(Trace::read(&file).exits()[&("port write", "COM1")].0, 29);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
}

#[test]
fn a_file_that_is_no_trace_is_an_error_with_line_and_column() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    let name = file.to_str().expect("text");
    let refusal = |content: &str| {
        fs::write(&file, content).expect("a file");
        let finished = run(&["trace", "summary", name]);
        assert_eq!(
            (finished.status, finished.stdout.as_slice()),
            (Some(125), &b""[..])
        );
        finished.stderr
    };
    assert!(refusal("").contains("EOF while parsing a value at line 1 column 0"));
    assert!(refusal("{\"traceEvents\":[\n{\"tid\":[]}]}").contains("at line 2 column"));
    assert!(refusal("{\"traceEvents\":[]}").contains("not a trace of hull's"));
    let missing = run(&["trace", "summary", "/nonexistent"]);
    assert!(
        missing.stderr.contains("/nonexistent: No such file"),
        "{}",
        missing.stderr
    );
}

#[test]
fn exits_are_explained_with_their_instruction() {
    if !kvm("exits, told") {
        return;
    }
    let finished = run(&["run", &payload("mmio"), "--explain=exits"]);
    assert_eq!(
        (finished.status, finished.stdout_text().as_str()),
        (Some(0), "ok\n")
    );
    // The boot's steps come first.
    let lines = finished.stderr.lines();
    let told: Vec<&str> = lines
        .skip_while(|line| !line.starts_with("hull: vCPU 0: "))
        .collect();
    let expected = [
        "hull: vCPU 0: load from 0xd0000000, where no device is: 4 bytes -> 0xffffffff",
        "      mov eax,[0D0000000h]  at RIP 0x8014;",
        "hull: vCPU 0: store to 0xc0000000, boot timer's mark: 1 byte <- 0x7b '{'",
        "      mov byte [0C0000000h],7Bh  at RIP 0x801e;",
        "hull: vCPU 0: OUT to port 0x3f8, COM1's THR: 1 byte <- 0x6f 'o'",
        "      out dx,al  at RIP 0x8027;",
        "hull: vCPU 0: OUT to port 0x604, ACPI power's PM1_CNT: 2 bytes <- 0x3400",
        "      out dx,ax  at RIP 0x8036;",
    ];
    assert_eq!(told.len(), expected.len(), "{}", finished.stderr);
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "{told}\nis not\n{expected}");
    }

    let finished = run(&["run", &payload("hello"), "--explain=exits,3"]);
    let told = finished
        .stderr
        .lines()
        .filter(|line| line.contains("COM1's THR"));
    assert_eq!(told.count(), 3, "{}", finished.stderr);
}

#[test]
fn a_boot_is_explained_step_by_step() {
    if !kvm("a boot, told") {
        return;
    }
    let finished = run(&["run", &payload("hello"), "--explain", "--memory", "64M"]);
    assert_eq!(finished.status, Some(0), "{}", finished.stderr);
    let mut steps = finished
        .stderr
        .lines()
        .filter_map(|line| line.strip_prefix("hull: "));
    for (number, title) in [
        "open /dev/kvm, KVM_GET_API_VERSION",
        "PR_SET_NO_NEW_PRIVS, capset, PR_SET_DUMPABLE: what hull gives up",
        "mmap: the guest's RAM",
        "KVM_CREATE_VM",
        "KVM_SET_USER_MEMORY_REGION: memory slots",
        "KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR",
        "KVM_CREATE_IRQCHIP, KVM_CREATE_PIT2",
        "KVM_CREATE_VCPU, KVM_SET_CPUID2, KVM_SET_MSRS, KVM_SET_LAPIC",
        "the port bus",
        "virtio-mmio windows, KVM_IOEVENTFD",
        "the kernel, copied into guest memory",
        "KVM_SET_SREGS, KVM_SET_REGS: the first vCPU at the entry",
        "KVM_RUN",
        "landlock_restrict_self, SECCOMP_SET_MODE_FILTER: what a thread may still do",
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(
            steps.next(),
            Some(format!("{}. {title}", number + 1).as_str())
        );
    }
    assert_eq!(steps.next(), None);
    let text = finished
        .stderr
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    for value in [
        "(64 MiB)",
        "COM1 at 0x3f8",
        "RIP 0x8000",
        "Without it: ",
        "capabilities gone",
    ] {
        assert!(text.contains(value), "{value} is not in\n{text}");
    }
}
