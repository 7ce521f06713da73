//! `hull run` restores a template where a cold run boots. Only the time differs, whatever happens to the
//! template.

mod machine;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hull::agent::VERSION;
use hull_agent::FromGuest;
use machine::{Finished, LIMIT, built, kvm, lab, lab_also};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// The start of hull's message about a template that does not restore.
const DROPPED: &str = "hull: the template is dropped, and the guest boots: ";

/// The start of hull's message about a start that leaves no template.
const BOOTS: &str = "hull: the guest boots, and the next one will: ";

/// A temporary cache of templates.
struct Cache(tempfile::TempDir);

impl Cache {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn hull(&self) -> Command {
        let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
        hull.env("HULL_CACHE", self.0.path());
        hull
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> Finished {
        finish(self.hull().arg("run").args(arguments), input)
    }

    /// The same, and whether the machine was restored from a template.
    fn report(&self, arguments: &[&str]) -> (Finished, bool) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let flag = ["--json", text(file.path())];
        let finished = self.run(&[&flag[..], arguments].concat(), b"");
        let report = fs::read(file.path()).expect("a report");
        let report: Value = serde_json::from_slice(&report).expect("JSON");
        let phases = report["phases"].as_array().expect("a list");
        let warm = phases.iter().any(|phase| phase["name"] == "saved state");
        (finished, warm)
    }

    fn templates(&self) -> Vec<Value> {
        let finished = finish(self.hull().args(["templates", "--json"]), b"");
        assert_eq!((finished.status, &*finished.stderr), (Some(0), ""));
        serde_json::from_slice(&finished.stdout).expect("a list")
    }

    /// The folder of the only template.
    #[track_caller]
    fn template(&self) -> PathBuf {
        let templates = self.templates();
        assert_eq!(templates.len(), 1, "{templates:?}");
        self.0
            .path()
            .join(templates[0]["key"].as_str().expect("a key"))
    }

    /// Another cache with the same template.
    fn copy(&self) -> Self {
        let (template, copy) = (self.template(), Self::new());
        let of = |path: &Path| copy.0.path().join(path.file_name().expect("a name"));
        // `cp -a` keeps the holes of its memory file.
        let status = Command::new("cp")
            .arg("-a")
            .args([&template, &of(&template)])
            .status();
        assert!(status.expect("cp starts").success());
        copy
    }
}

fn finish(hull: &mut Command, input: &[u8]) -> Finished {
    let mut hull = assert_cmd::Command::from_std(std::mem::replace(hull, Command::new("")));
    let output = hull.write_stdin(input).timeout(LIMIT).output();
    let output = output.expect("hull starts");
    Finished {
        status: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// The file in `folder` whose name starts with `begin`.
fn file(folder: &Path, begin: &str) -> Option<PathBuf> {
    let mut files = fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    files.find(|path| {
        path.file_name()
            .is_some_and(|name| text(Path::new(name)).starts_with(begin))
    })
}

/// One command and its expected result.
struct Case {
    flags: &'static [&'static str],
    script: &'static str,
    input: usize,
    /// Status, standard output and standard error; `None` if warm and cold only have to agree.
    gives: Option<(i32, &'static str, &'static str)>,
    /// It needs passt, which does not work in the lab.
    passt: bool,
    /// Compared with a cold boot even where that takes long.
    everywhere: bool,
}

const CASE: Case = Case {
    flags: &[],
    script: "",
    input: 0,
    gives: None,
    passt: false,
    everywhere: false,
};

/// DIR is a folder with a file `share/f`, a disk of 1 MiB that begins with "disk!", and a place for a
/// socket.
const CASES: &[Case] = &[
    Case {
        script: "echo out; echo err >&2; exit 7",
        gives: Some((7, "out\n", "err\n")),
        ..CASE
    },
    Case {
        script: "kill -TERM $$",
        gives: Some((143, "", "")),
        ..CASE
    },
    Case {
        script: "exec /no/such/program",
        gives: Some((
            127,
            "",
            "/bin/sh: exec: line 0: /no/such/program: not found\n",
        )),
        ..CASE
    },
    Case {
        script: "sha256sum",
        input: 1 << 20,
        gives: Some((
            0,
            "973b47ceee416c5034f4e5abf025ebe209e74a702728a0930f5c227b14235bc6  -\n",
            "",
        )),
        ..CASE
    },
    Case {
        script: "id; pwd; umask; env | sort; tr '\\0' ' ' < /proc/self/cmdline; ls /proc/self/fd | wc -l; \
                 grep -E '^(Sig|Cap|Shd|NoNew|Seccomp:|Threads)' /proc/self/status; cat /proc/mounts; \
                 hostname; ulimit -a; ls /; ls -l /dev | awk '{ print $1, $3, $4, $NF }'; ip addr",
        everywhere: true,
        ..CASE
    },
    Case {
        flags: &[
            "--share=DIR/share:/mnt/ro:ro",
            "--share=DIR/share:/mnt/deep/rw",
            "--disk=DIR/disk",
            "--vsock=cid=9,socket=DIR/v",
            "--balloon=16M",
        ],
        script: "cat /mnt/ro/f /mnt/deep/rw/f; echo guest > /mnt/deep/rw/g; cat /mnt/ro/g; \
                 head -c 5 /dev/vda; echo; cat /sys/block/vda/size; ls /dev/vsock; \
                 ls -d /sys/bus/virtio/drivers/virtio_balloon/virtio* | wc -l; \
                 cat /sys/class/misc/hw_random/rng_current",
        gives: Some((
            0,
            "host\nhost\nguest\ndisk!\n2048\n/dev/vsock\n1\nvirtio_rng.0\n",
            "",
        )),
        everywhere: true,
        ..CASE
    },
    Case {
        flags: &["--net=user,mac=02:00:00:00:00:07"],
        script: "ls /sys/class/net; cat /sys/class/net/eth0/address; ip addr show eth0 | grep -c 'inet '",
        gives: Some((0, "eth0\nlo\n02:00:00:00:00:07\n1\n", "")),
        passt: true,
        ..CASE
    },
    Case {
        flags: &["--rng", "off", "--memory", "64M"],
        script: "cat /sys/class/misc/hw_random/rng_current; \
                 awk '/MemTotal/ { print $2 < 65536 }' /proc/meminfo",
        gives: Some((0, "none\n1\n", "")),
        ..CASE
    },
    Case {
        flags: &["--cmdline", "of.mine=1"],
        script: "grep -o of.mine=1 /proc/cmdline",
        gives: Some((0, "of.mine=1\n", "")),
        ..CASE
    },
];

#[test]
fn a_warm_run_gives_the_same_as_a_cold_one() {
    if !kvm("warm and cold") {
        return;
    }
    for case in CASES {
        if case.passt && machine::in_lab() {
            println!(
                "left out: {}: not in the lab (its kernel gives passt no user namespace)",
                case.script
            );
            continue;
        }
        let input: Vec<u8> = (0..case.input).map(|n| (n >> 3) as u8).collect();
        let way = |cold: bool| {
            let host = host();
            let flag = |flag: &&str| flag.replace("DIR", text(host.path()));
            let mut arguments: Vec<String> = vec!["run".into()];
            arguments.extend(cold.then(|| "--cold".into()));
            arguments.extend(case.flags.iter().map(flag));
            arguments.extend(["--", "/bin/sh", "-c", case.script].map(String::from));
            machine::run_with(&arguments, &input)
        };
        // The first run may make the template.
        let mut ways = vec![way(false), way(false)];
        if case.everywhere || machine::in_lab() {
            ways.push(way(true));
        }
        let (first, others) = ways.split_first().expect("some");
        if let Some((status, stdout, stderr)) = case.gives {
            first.assert(status, stdout, stderr);
        }
        assert_eq!(
            first.status,
            Some(case.gives.map_or(0, |gives| gives.0)),
            "{}",
            case.script
        );
        for other in others {
            other.assert(
                first.status.expect("a status"),
                &first.stdout_text(),
                &first.stderr,
            );
        }
    }
}

fn host() -> tempfile::TempDir {
    let host = tempfile::tempdir().expect("a folder");
    fs::create_dir(host.path().join("share")).expect("a folder");
    fs::write(host.path().join("share/f"), "host\n").expect("a file");
    let disk = File::create(host.path().join("disk")).expect("a disk");
    disk.set_len(MIB).expect("its size");
    disk.write_all_at(b"disk!", 0).expect("its head");
    host
}

#[test]
fn large_machines_are_warm_too() {
    if !kvm("large machines") || !lab("large machines", "several processors") {
        return;
    }
    let cache = Cache::new();
    let script = "nproc; awk '/MemTotal/ { print int($2 / 1000000) }' /proc/meminfo; echo hi > /dev/vda; \
                  head -c 2 /dev/vda";
    for warm in [false, true] {
        let host = host();
        let disk = format!("--disk={}/disk", host.path().display());
        let flags = [
            "--cpus", "4", "--memory", "6G", &disk, "--", "/bin/sh", "-c", script,
        ];
        let (finished, was_warm) = cache.report(&flags);
        finished.assert(0, "4\n6\nhi", "");
        assert_eq!(was_warm, warm);
    }
}

#[test]
fn another_projects_kernel_is_warm_too() {
    if !kvm("another kernel") || !lab("another kernel", "a boot takes minutes") {
        return;
    }
    // Its drivers are modules, which hull's init loads from a list; it finds devices through ACPI.
    let (kernel, initrd) = (built("foreign/debian-vmlinuz"), with_modules());
    let initrd = text(initrd.path());
    let cache = Cache::new();
    for warm in [false, true] {
        let host = host();
        let disk = format!("--disk={}/disk", host.path().display());
        let flags = [&kernel, "--initrd", initrd, "--memory", "256M", &disk];
        let command = ["--", "/bin/busybox", "head", "-c", "5", "/dev/vda"];
        let (finished, was_warm) = cache.report(&[&flags[..], &command].concat());
        finished.assert(0, "disk!", "");
        assert_eq!(was_warm, warm);
    }
}

/// Debian's modules for virtio, with the list of them that hull's init reads.
fn with_modules() -> tempfile::NamedTempFile {
    let initrd = fs::read(built("foreign/debian-initrd")).expect("Debian's");
    let mut rest = initrd.as_slice();
    let order = loop {
        let mut entry = cpio::newc::Reader::new(rest).expect("an archive");
        assert!(!entry.entry().is_trailer(), "no list of modules");
        if entry.entry().name().trim_start_matches("./") == "modules/order" {
            let mut order = String::new();
            entry.read_to_string(&mut order).expect("text");
            break order;
        }
        rest = entry.finish().expect("the next");
    };
    let order: String = order
        .lines()
        .map(|name| format!("/modules/{name}\n"))
        .collect();
    let files: [(&str, u32, &[u8]); 3] = [
        ("lib", 0o040_755, b""),
        ("lib/modules-hull", 0o040_755, b""),
        ("lib/modules-hull/order", 0o100_644, order.as_bytes()),
    ];
    with_files(initrd, &files)
}

#[test]
fn the_first_run_makes_a_template_without_traces_of_its_command() {
    if !kvm("a template") {
        return;
    }
    const SECRET: &str = "kAJ3bvT9xQ";
    let cache = Cache::new();
    let host = tempfile::tempdir().expect("a folder");
    let shared = host.path().join(SECRET);
    fs::create_dir(&shared).expect("a folder");
    fs::write(shared.join(SECRET), SECRET).expect("a file");
    let share = format!("--share={}:/{SECRET}", shared.display());
    let script = format!("export A={SECRET}; echo $A; cat; cat /{SECRET}/*");
    let told = format!("{SECRET}\n{SECRET}{SECRET}");
    let mut hull = cache.hull();
    hull.args(["run", &share, "--", "/bin/sh", "-c", &script])
        .env("TERM", SECRET);
    finish(&mut hull, SECRET.as_bytes()).assert(0, &told, "");

    let template = cache.template();
    let mut names = Vec::new();
    for entry in fs::read_dir(&template).expect("a folder").flatten() {
        names.push(entry.file_name().into_string().expect("text"));
        assert!(
            !has(&entry.path(), SECRET.as_bytes()),
            "{:?} has it",
            entry.path()
        );
    }
    names.sort();
    let memory = names.remove(2);
    assert!(memory.starts_with("memory-"), "{memory}");
    assert_eq!(names, ["about", "lock", "state", "written"]);
    // The search works: this is found.
    assert!(has(
        &file(&template, "memory-").expect("memory"),
        b"Linux version 6."
    ));

    let (finished, warm) = cache.report(&["--", "echo", "hi"]);
    finished.assert(0, "hi\n", "");
    assert!(warm);
    let (_, warm) = cache.report(&["--cold", "--", "true"]);
    assert!(!warm, "--cold boots");
    assert_eq!(cache.template(), template);
    let key = template.file_name().expect("a key").to_str().expect("text");
    finish(cache.hull().args(["templates", "--rm", &key[..6]]), b"").assert(0, "", "");
    assert_eq!(cache.templates().len(), 0);
}

/// Whether a file contains `bytes`.
fn has(path: &Path, bytes: &[u8]) -> bool {
    let mut file = File::open(path).expect("a file");
    let mut window: Vec<u8> = Vec::new();
    let mut piece = vec![0; MIB as usize];
    loop {
        let n = file.read(&mut piece).expect("read");
        window.extend(&piece[..n]);
        if window.windows(bytes.len()).any(|part| part == bytes) {
            return true;
        }
        if n == 0 {
            return false;
        }
        let keep = window.len().min(bytes.len());
        window.drain(..window.len() - keep);
    }
}

#[test]
fn other_machine_shapes_have_other_templates() {
    if !kvm("shapes") || !lab("shapes", "five boots") {
        return;
    }
    let cache = Cache::new();
    let shapes: [&[&str]; 5] = [
        &[],
        &["--memory", "112M"],
        &["--cpus", "2"],
        &["--rng", "off"],
        &["--cmdline", "a.b=1"],
    ];
    for (index, shape) in shapes.iter().enumerate() {
        let command = ["--", "true"];
        let (_, warm) = cache.report(&[shape, &command[..]].concat());
        assert!(!warm, "{shape:?}");
        let (_, warm) = cache.report(&[shape, &command[..]].concat());
        assert!(warm, "{shape:?}");
        assert_eq!(cache.templates().len(), index + 1);
    }
    // A device that init mounts or names makes no other shape.
    let host = host();
    let disk = format!("--disk={}/disk", host.path().display());
    assert!(cache.report(&[&disk, "--", "true"]).1);
}

#[test]
fn first_runs_at_the_same_time_make_one_template() {
    if !kvm("first runs") {
        return;
    }
    let runs = if machine::in_lab() { 6 } else { 2 };
    let cache = Cache::new();
    let start = |n: usize| {
        let mut hull = cache.hull();
        hull.args(["run", "--", "echo", &n.to_string()])
            .stdin(Stdio::null());
        hull.stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("hull starts")
    };
    let all: Vec<_> = (0..runs).map(start).collect();
    for (n, hull) in all.into_iter().enumerate() {
        let output = hull.wait_with_output().expect("an end");
        let said =
            [output.stdout, output.stderr].map(|said| String::from_utf8(said).expect("text"));
        assert_eq!(
            (output.status.code(), said),
            (Some(0), [format!("{n}\n"), String::new()])
        );
    }
    cache.template();
    assert!(cache.report(&["--", "true"]).1);
}

/// Bytes of the file `of`, as mapped by `process`, that other processes map as well, and all that it has of
/// them in its memory.
fn mapped(process: u32, of: &Path) -> (u64, u64) {
    let maps = fs::read_to_string(format!("/proc/{process}/smaps")).expect("it runs");
    let (mut shared, mut resident, mut is_of) = (0, 0, false);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            is_of = line.ends_with(text(of));
        } else if is_of {
            let mut number = || words.next().and_then(|kib| kib.parse::<u64>().ok());
            match first {
                "Shared_Clean:" | "Shared_Dirty:" => shared += number().unwrap_or(0) << 10,
                "Rss:" => resident += number().unwrap_or(0) << 10,
                _ => {}
            }
        }
    }
    (shared, resident)
}

#[test]
fn machines_that_boot_share_the_unpacked_kernel() {
    if !kvm("boots") || !lab_also("the unpacked kernel", "four boots") {
        return;
    }
    let cache = Cache::new();
    let kept = || file(cache.0.path(), "guest-").expect("the unpacked guest");
    let start = || {
        let mut hull = cache.hull();
        hull.args(["run", "--cold", "--", "sh", "-c", "echo up; cat"]);
        let mut hull = hull
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("hull starts");
        let mut up = [0; 3];
        let out = hull.stdout.as_mut().expect("a pipe");
        std::io::Read::read_exact(out, &mut up).expect("it runs");
        hull
    };
    let machines = [start(), start()];
    for machine in &machines {
        let path = fs::canonicalize(cache.0.path().join(kept().file_stem().expect("a name")));
        let (shared, resident) = mapped(machine.id(), &path.expect("it is there"));
        assert!(shared > 1 << 20, "{shared} bytes are shared");
        // What is written is the machine's own.
        assert!(resident > shared, "{resident} of {shared}");
    }
    for mut machine in machines {
        drop(machine.stdin.take());
        assert_eq!(machine.wait().expect("an end").code(), Some(0));
    }
    // What was changed is told and unpacked again.
    let path = cache.0.path().join(kept().file_stem().expect("a name"));
    flip(&path);
    let spoilt = cache.run(&["--cold", "--", "echo", "hi"], b"");
    assert_eq!((spoilt.status, &*spoilt.stdout_text()), (Some(0), "hi\n"));
    let told = format!(
        "hull: {} was changed: the guest is unpacked again\n",
        path.display()
    );
    assert_eq!(spoilt.stderr, told);
    let again = cache.run(&["--cold", "--", "echo", "hi"], b"");
    again.assert(0, "hi\n", "");
}

#[test]
fn a_template_that_does_not_restore_is_made_again() {
    if !kvm("damage") {
        return;
    }
    let whole = Cache::new();
    whole.run(&["--", "true"], b"").assert(0, "", "");
    for (what, damage, everywhere) in DAMAGES {
        if !everywhere && !lab_also(what, "one more boot") {
            continue;
        }
        let cache = whole.copy();
        let template = cache.template();
        let memory = file(&template, "memory-").expect("memory");
        damage(&template.join("state"), &memory);
        let host = host();
        let path = |name: &str| host.path().join(name).display().to_string();
        let flags = [
            format!("--share={}:/src", path("share")),
            format!("--disk={}", path("disk")),
            format!("--vsock=cid=9,socket={}", path("v")),
        ];
        let mut arguments: Vec<&str> = flags.iter().map(String::as_str).collect();
        // The lab's kernel gives passt no user namespace.
        arguments.extend((!machine::in_lab()).then_some("--net=user"));
        arguments.extend(["--", "/bin/sh", "-c", "cat - /src/f; head -c 5 /dev/vda"]);
        let finished = cache.run(&arguments, b"kept\n");
        assert_eq!(
            (finished.status, finished.stdout_text().as_str()),
            (Some(0), "kept\nhost\ndisk!"),
            "{what}: {}",
            finished.stderr
        );
        // Damaged memory may break devices first, which print messages, too.
        let told = |line: &str| line.starts_with(DROPPED);
        let told = finished.stderr.lines().filter(|line| told(line)).count();
        assert_eq!(told, 1, "{what}: {}", finished.stderr);
        println!("{what}: {}", finished.stderr.trim_end());
        assert_ne!(file(&cache.template(), "memory-"), Some(memory), "{what}");
        let (finished, warm) = cache.report(&["--", "echo", "hi"]);
        finished.assert(0, "hi\n", "");
        assert!(warm, "{what}: the new one");
    }
}

#[test]
fn what_the_host_lacks_costs_no_template_and_is_told_once() {
    if !kvm("the host's faults") {
        return;
    }
    let cache = Cache::new();
    cache.run(&["--", "true"], b"").assert(0, "", "");
    let memory = file(&cache.template(), "memory-");
    // hull raises a soft limit, and as root the hard one, too.
    for (fault, works) in [
        ("ulimit -v 100000", false),
        ("ulimit -n 7", false),
        ("ulimit -S -n 16", true),
        ("mount -t tmpfs none /dev", false),
    ] {
        let script = format!("{fault} && exec \"$0\" run -- true");
        let mut hull = Command::new("unshare");
        hull.args(["-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_hull")]);
        let finished = finish(hull.env("HULL_CACHE", cache.0.path()), b"");
        let told: Vec<&str> = finished.stderr.lines().collect();
        if told
            .first()
            .is_some_and(|line| line.starts_with("unshare:"))
        {
            println!("left out: {fault}: this user makes no mount namespaces");
            continue;
        }
        println!("{fault}: {told:?}");
        let root_can = fault == "ulimit -n 7" && finished.status == Some(0);
        if works || root_can {
            finished.assert(0, "", "");
        } else {
            assert_eq!((finished.status, told.len()), (Some(125), 1), "{told:?}");
            assert!(told[0].starts_with("error: "), "{told:?}");
        }
        assert_eq!(file(&cache.template(), "memory-"), memory, "{fault}");
    }
    let (finished, warm) = cache.report(&["--", "true"]);
    finished.assert(0, "", "");
    assert!(warm);
}

#[test]
fn a_template_that_a_power_cut_may_have_spoilt_is_made_again() {
    if !kvm("a power cut") {
        return;
    }
    let cache = Cache::new();
    cache.run(&["--", "true"], b"").assert(0, "", "");
    let template = cache.template();
    let memory = file(&template, "memory-");
    // What there is until all is on the disk: the boot of the host, here another one.
    fs::write(template.join("unsynced"), "another boot\n").expect("written");
    let (finished, warm) = cache.report(&["--", "true"]);
    finished.assert(0, "", "");
    assert!(!warm);
    assert_ne!(file(&cache.template(), "memory-"), memory);
    assert!(!cache.template().join("unsynced").exists());
}

#[test]
fn a_template_names_the_pages_that_runs_write() {
    if !kvm("a template") {
        return;
    }
    let cache = Cache::new();
    cache.run(&["--", "true"], b"").assert(0, "", "");
    let written = cache.template().join("written");
    let pages = fs::read(&written).expect("the pages");
    assert!(!pages.is_empty() && pages.len().is_multiple_of(8));
    // It is a hint: none of this is told.
    let damages: [fn(&Path); 3] = [
        |file| fs::write(file, noise()).expect("written"),
        |file| fs::remove_file(file).expect("removed"),
        |file| fs::create_dir(file).expect("made"),
    ];
    for damage in damages {
        let (finished, warm) = cache.report(&["--", "echo", "hi"]);
        finished.assert(0, "hi\n", "");
        assert!(warm);
        damage(&written);
    }
    let (finished, warm) = cache.report(&["--", "echo", "hi"]);
    finished.assert(0, "hi\n", "");
    assert!(warm);
}

/// A damage: its name, the change of `state` and memory, and whether it is tried where a boot takes long.
type Damage = (&'static str, fn(&Path, &Path), bool);

const DAMAGES: [Damage; 8] = [
    ("a bit of the state", |state, _| flip(state), true),
    ("the state's end", |state, _| halve(state), false),
    (
        "no state",
        |state, _| fs::write(state, "").expect("emptied"),
        false,
    ),
    (
        "no memory",
        |_, memory| fs::remove_file(memory).expect("removed"),
        false,
    ),
    ("the memory's end", |_, memory| halve(memory), false),
    (
        "memory of zeros",
        |_, memory| fill(memory, 0..u64::MAX, &[0]),
        true,
    ),
    (
        "memory of noise",
        |_, memory| fill(memory, 0..64 * MIB, &noise()),
        false,
    ),
    // JMP to itself: the guest hangs, and hull waits for its answer.
    (
        "a kernel that loops",
        |_, memory| fill(memory, kernel_text(), &[0xeb, 0xfe]),
        false,
    ),
];

fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path, bytes).expect("written");
}

fn halve(path: &Path) {
    let file = File::options().write(true).open(path).expect("opened");
    let bytes = file.metadata().expect("a file").len();
    file.set_len(bytes / 2).expect("cut");
}

/// Fills a part of a file with copies of `pattern`.
fn fill(path: &Path, part: std::ops::Range<u64>, pattern: &[u8]) {
    let file = File::options().write(true).open(path).expect("opened");
    let bytes = file.metadata().expect("a file").len();
    let end = part.end.min(bytes);
    if pattern == [0] {
        file.set_len(0).expect("emptied");
        file.set_len(bytes).expect("a hole");
        return;
    }
    let piece = pattern.repeat(64 * 1024 / pattern.len());
    let mut at = part.start;
    while at < end {
        let len = (end - at).min(piece.len() as u64) as usize;
        file.write_all_at(&piece[..len], at).expect("written");
        at += len as u64;
    }
}

fn noise() -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as u8
    };
    (0..64 * 1024).map(|_| next()).collect()
}

/// The guest memory range of the code of hull's kernel.
fn kernel_text() -> std::ops::Range<u64> {
    const MAP: u64 = 0xffff_ffff_8000_0000; // Documentation/arch/x86/x86_64/mm.rst
    let symbols = fs::read_to_string(built("guest/System.map")).expect("symbols");
    let of = |name: &str| {
        let mut lines = symbols
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let line = lines.find(|line| line[2] == name).expect("a symbol");
        u64::from_str_radix(line[0], 16).expect("an address") - MAP
    };
    of("_text")..of("_etext")
}

#[test]
fn without_a_usable_cache_machines_boot() {
    if !kvm("no cache") {
        return;
    }
    let places: [(&[(&str, &str)], bool); 7] = [
        (&[("HOME", "/proc")], true),
        (&[("HOME", "/no/such/home")], false),
        (&[], false),
        (&[("XDG_CACHE_HOME", "/proc/1")], false),
        (&[("HULL_CACHE", "off")], false),
        (&[("HULL_CACHE", "/dev/null/cache")], false),
        (&[("HULL_CACHE_SIZE", "0"), ("HULL_CACHE", "/tmp")], false),
    ];
    for (variables, everywhere) in places {
        if !everywhere && !lab_also(&format!("{variables:?}"), "one more boot") {
            continue;
        }
        let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
        for name in ["HOME", "XDG_CACHE_HOME", "HULL_CACHE", "HULL_CACHE_SIZE"] {
            hull.env_remove(name);
        }
        hull.envs(variables.iter().copied());
        let finished = finish(hull.args(["run", "--", "cat"]), b"hi\n");
        let told: Vec<&str> = finished.stderr.lines().collect();
        assert_eq!(
            (finished.status, &*finished.stdout_text()),
            (Some(0), "hi\n"),
            "{told:?}"
        );
        // What the user wants needs no message.
        let off = [("HULL_CACHE", "off"), ("HULL_CACHE_SIZE", "0")];
        if off.iter().any(|off| variables.contains(off)) {
            assert_eq!(told, [""; 0]);
        } else {
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].starts_with(BOOTS), "{told:?}");
        }
    }
    assert!(!Path::new("/no").exists());
}

#[test]
fn without_room_no_template_is_kept() {
    if !kvm("no room") {
        return;
    }
    let cache = Cache::new();
    let mut limited = Command::new("/bin/sh");
    let hull = env!("CARGO_BIN_EXE_hull");
    limited.args(["-c", "ulimit -f 2048; exec \"$0\" run -- cat", hull]);
    let finished = finish(limited.env("HULL_CACHE", cache.0.path()), b"hi\n");
    assert_eq!(
        (finished.status, &*finished.stdout_text()),
        (Some(0), "hi\n")
    );
    let warning = "hull: this machine is not kept as a template, so the next run boots again: ";
    assert!(finished.stderr.starts_with(warning), "{}", finished.stderr);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert_eq!(cache.templates().len(), 0);
    let left: Vec<_> = fs::read_dir(cache.0.path())
        .expect("a folder")
        .flatten()
        .collect();
    assert_eq!(left.len(), 1, "only the lock: {left:?}");
}

#[test]
fn a_killed_template_builder_does_not_block_later_runs() {
    if !kvm("killed") {
        return;
    }
    let moments: [(&str, bool); 2] = [("about", false), ("memory-", true)];
    for (moment, everywhere) in moments {
        if !everywhere && !lab_also(moment, "one more boot") {
            continue;
        }
        let cache = Cache::new();
        let mut hull = cache.hull();
        hull.args(["run", "--", "sleep", "1000"])
            .stdin(Stdio::null());
        let mut hull = hull.spawn().expect("hull starts");
        let started = Instant::now();
        let folders = || fs::read_dir(cache.0.path()).expect("a folder").flatten();
        while !folders().any(|folder| file(&folder.path(), moment).is_some()) {
            assert!(started.elapsed() < LIMIT, "no {moment}");
            std::thread::sleep(Duration::from_micros(200));
        }
        hull.kill().expect("killed");
        hull.wait().expect("reaped");
        cache.run(&["--", "echo", "hi"], b"").assert(0, "hi\n", "");
        let template = cache.template();
        assert_eq!(fs::read_dir(template).expect("a folder").count(), 5);
        assert!(cache.report(&["--", "true"]).1);
    }
}

/// An initial RAM disk whose /evil greets hull as init does, waits for an answer, and then sends garbage.
fn evil_initrd() -> tempfile::NamedTempFile {
    let mut greeting = Vec::new();
    let hello = FromGuest::Hello { version: VERSION };
    for message in [hello, FromGuest::Ready] {
        let mut bytes = [0; 64];
        let len = message.encode(&mut bytes).expect("room");
        greeting.extend(&bytes[..len]);
    }
    let evil = "#!/bin/busybox sh\n\
                busybox mount -t devtmpfs dev /dev\n\
                exec < /dev/ttyS1 > /dev/ttyS1\n\
                busybox stty raw -echo\n\
                busybox cat /greeting\n\
                busybox head -c 1 > /answer\n\
                busybox cat /nonsense\n\
                exec busybox sleep 1000\n";
    let greeting = greeting.as_slice();
    let own = fs::read(built("guest/initramfs.cpio")).expect("hull's own");
    let files = [
        ("evil", 0o100_755, evil.as_bytes()),
        ("greeting", 0o100_644, greeting),
        ("nonsense", 0o100_644, &[0xff; 100]),
    ];
    with_files(own, &files)
}

/// An initial RAM disk with further files.
fn with_files(mut initrd: Vec<u8>, files: &[(&str, u32, &[u8])]) -> tempfile::NamedTempFile {
    // Each archive starts at a multiple of 4 bytes (Documentation/driver-api/early-userspace/buffer-format.rst).
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    for (name, mode, bytes) in files {
        let builder = cpio::newc::Builder::new(name).mode(*mode);
        let mut writer = builder.write(Vec::new(), bytes.len() as u32);
        std::io::Write::write_all(&mut writer, bytes).expect("in memory");
        initrd.extend(writer.finish().expect("in memory"));
    }
    initrd.extend(cpio::newc::trailer(Vec::new()).expect("in memory"));
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), initrd).expect("written");
    // A file that has just changed gets no template.
    std::thread::sleep(Duration::from_millis(200));
    file
}

#[test]
fn an_init_that_sends_garbage_fails_only_its_own_run() {
    if !kvm("nonsense") {
        return;
    }
    let (cache, initrd) = (Cache::new(), evil_initrd());
    let evil = [
        "--initrd",
        text(initrd.path()),
        "--cmdline",
        "rdinit=/evil",
        "--",
        "true",
    ];
    let finished = cache.run(&evil, b"");
    assert_eq!((finished.status, &*finished.stdout), (Some(125), &b""[..]));
    assert!(
        finished.stderr.starts_with("error: "),
        "{}",
        finished.stderr
    );
    // It waited for hull's answer, so there is a template, which fails in the same way.
    let template = cache.template();
    let memory = file(&template, "memory-");
    let finished = cache.run(&evil, b"");
    assert_eq!((finished.status, &*finished.stdout), (Some(125), &b""[..]));
    let lines: Vec<&str> = finished.stderr.lines().collect();
    assert!(lines[0].starts_with(DROPPED), "{}", finished.stderr);
    assert!(lines[1].starts_with("error: "), "{}", finished.stderr);
    assert_ne!(file(&cache.template(), "memory-"), memory);
    machine::script(&[], "echo hi").assert(0, "hi\n", "");
}

#[test]
fn a_command_that_writes_to_the_agents_port_spoils_no_template() {
    if !kvm("a command's nonsense") {
        return;
    }
    // Init has its port for itself, and the port of the terminal is unused.
    let script = "for at in /dev/ttyS1 /dev/vport* /proc/1/fd/*; do \
                  head -c 20000 /dev/urandom 2>/dev/null 1>$at & done 2>/dev/null; \
                  sleep 1; kill -9 1; echo still; exit 3";
    let finished = machine::script(&[], script);
    assert!(finished.status.is_some(), "hull must end by itself");
    machine::script(&[], "echo hi").assert(0, "hi\n", "");
}
