//! `hull snapshot` and `hull restore` of flat guests, whose output shows exactly whether something was lost.
//! tests/snapshots_linux.rs does the same with Linux.

mod machine;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use machine::saving::{Talk, files, moments, random, text};
use machine::user::{Running, User, wait_until};
use machine::{built, in_lab, kvm, lab};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

fn payload(name: &str) -> String {
    built(&format!("guest/payloads/{name}.bin"))
}

fn start(user: &User, name: &str, of: &str, flags: &[&str]) -> Talk {
    let payload = payload(of);
    let mut all = vec!["run", &payload, "--name", name];
    all.extend(flags);
    Talk::start(user, &all)
}

/// Bytes of a line that counts.S prints.
const LINE: usize = 9;

/// The output of the counting guest from byte `from` on.
fn counted(cpus: usize, from: usize, bytes: usize) -> Vec<u8> {
    let lines = from / LINE..=(from + bytes) / LINE;
    let line = |line| match line {
        0 => format!("{cpus:08x}\n"),
        line => format!("{line:08x}\n"),
    };
    let all: String = lines.map(line).collect();
    all.as_bytes()[from % LINE..][..bytes].to_vec()
}

/// The offset of `said`, which has at least one whole line, in the output of the counting guest.
#[track_caller]
fn place(cpus: usize, said: &[u8]) -> usize {
    let text = String::from_utf8_lossy(said);
    let first = text.find('\n').expect("a line") + 1;
    let line = text.get(first..first + LINE - 1).expect("another one");
    let line = usize::from_str_radix(line, 16).expect("a count");
    let from = line * LINE - first;
    assert_eq!(
        text,
        String::from_utf8_lossy(&counted(cpus, from, said.len()))
    );
    from
}

/// Saves a counting guest at random moments and restores a copy of each snapshot.
fn counts_on(cpus: usize, moments: usize) {
    let user = User::new();
    let dir = user.0.path().join("saved");
    let cpus_flag = cpus.to_string();
    let original = start(
        &user,
        "counts",
        "counts",
        &["--memory", "4M", "--cpus", &cpus_flag],
    );
    original.says(2 * LINE);
    let descriptors = original.descriptors();
    for moment in 0..moments {
        thread::sleep(Duration::from_micros(random(20_000)));
        let before = original.said_bytes();
        user.snapshot("counts", &dir, &[]);
        let copy = user.restore(&dir, &[]);
        let said = copy.says(3 * LINE);
        copy.kill();
        let from = place(cpus, &said);
        assert!(
            from >= before,
            "moment {moment}: it went back, to byte {from} of {before}"
        );
        // Output around the snapshot is neither lost nor repeated.
        let past = original.says(from + 1).len();
        assert!(from <= past, "moment {moment}: it jumped ahead");
    }
    original.says_more();
    assert_eq!(original.descriptors(), descriptors, "descriptors stay open");
    let said = original.said();
    assert_eq!(place(cpus, &said), 0);
    assert_eq!(files(&dir).len(), 2, "{:?}", files(&dir));
    original.kill();
}

#[test]
fn a_counting_guest_is_restored_from_any_moment() {
    if kvm("snapshots at any moment") {
        counts_on(1, moments(if in_lab() { 40 } else { 200 }));
    }
}

#[test]
fn four_counting_cpus_are_restored_from_any_moment() {
    if kvm("snapshots of four CPUs") {
        counts_on(4, moments(if in_lab() { 10 } else { 25 }));
    }
}

#[test]
fn a_paused_machine_can_be_saved_and_a_copy_can_start_paused() {
    if !kvm("snapshot of a paused machine") {
        return;
    }
    let user = User::new();
    let dir = user.0.path().join("saved");
    let original = start(&user, "still", "counts", &["--memory", "4M"]);
    original.says(20 * LINE);
    user.named(&["pause", "still"]);
    let mut said = 0;
    wait_until(|| {
        thread::sleep(Duration::from_millis(100));
        std::mem::replace(&mut said, original.said_bytes()) == original.said_bytes()
    });
    user.snapshot("still", &dir, &[]);
    thread::sleep(Duration::from_millis(200));
    assert_eq!(
        original.said_bytes(),
        said,
        "a snapshot must not resume the original"
    );

    let copy = user.restore(&dir, &["--paused", "--name", "later", "--verify"]);
    wait_until(|| user.run(&["inspect", "later"]).status == Some(0));
    let list: Value = serde_json::from_str(&user.run(&["ps", "--json"]).stdout).expect("JSON");
    assert_eq!(
        (&list[0]["name"], &list[0]["state"]),
        (&"later".into(), &"paused".into())
    );
    thread::sleep(Duration::from_millis(300));
    assert_eq!(copy.said_bytes(), 0, "it stands still");
    user.named(&["resume", "later"]);
    assert_eq!(place(1, &copy.says(3 * LINE)), said, "to the byte");
    user.named(&["resume", "still"]);
    original.says(said + 3 * LINE);
    assert_eq!(place(1, &original.said()), 0);
}

#[test]
fn both_clocks_tick_after_a_restore() {
    if !kvm("clocks after a restore") {
        return;
    }
    let user = User::new();
    let dir = user.0.path().join("saved");
    let original = start(&user, "clock", "clock", &["--memory", "4M"]);
    original.says(20);
    for _ in 0..10 {
        thread::sleep(Duration::from_micros(random(30_000)));
        user.snapshot("clock", &dir, &[]);
        let copy = user.restore(&dir, &[]);
        copy.says(50);
        copy.kill();
        original.says(original.said_bytes() + 50);
    }
}

#[test]
fn the_serial_port_works_both_ways_after_a_restore() {
    if !kvm("serial port after a restore") {
        return;
    }
    let user = User::new();
    let dir = user.0.path().join("saved");
    let mut original = start(&user, "echo", "echo", &["--memory", "4M"]);
    original.says(1);
    original.write(b"before");
    assert_eq!(original.says(7), b">before");
    user.snapshot("echo", &dir, &[]);
    original.write(b" and after");
    assert_eq!(original.says(17), b">before and after");
    let mut first = user.restore(&dir, &["--name", "first"]);
    first.write(b"once more");
    assert_eq!(first.says(9), b"once more");
    // A copy of the copy.
    let again = user.0.path().join("again");
    user.snapshot("first", &again, &[]);
    let mut second = user.restore(&again, &[]);
    second.write(b"and again");
    assert_eq!(second.says(9), b"and again");
    first.write(b"!");
    assert_eq!(first.says(10), b"once more!");
}

/// Sends `commands`, one a byte, to the guest of rounds.S and returns its last answer.
#[track_caller]
fn rounds(talk: &mut Talk, commands: &[u8]) -> char {
    let before = talk.said_bytes();
    talk.write(commands);
    let said = talk.says(before + commands.len());
    char::from(*said.last().expect("an answer"))
}

#[test]
fn changes_on_both_sides_of_the_hole_are_merged() {
    if !kvm("diff snapshots") {
        return;
    }
    let user = User::new();
    let at = |name: &str| user.0.path().join(name);
    let (base, one, two, merged) = (at("base"), at("one"), at("two"), at("merged"));
    let mut original = start(&user, "rounds", "rounds", &["--memory", "5G"]);
    original.says(1);
    assert_eq!(rounds(&mut original, b"wwwww"), '5');
    let refused = "there is no snapshot of this run that it could be a difference to";
    user.refused(&["snapshot", "rounds", text(&one), "--diff"], refused);
    assert!(!one.exists());

    let written = |done: Value| done["memory_bytes"].as_u64().expect("a number") >> 12;
    let whole = written(user.snapshot("rounds", &base, &[]));
    assert!((128..300).contains(&whole), "{whole} pages");
    assert_eq!(rounds(&mut original, b"w"), '6');
    let some = written(user.snapshot("rounds", &one, &["--diff"]));
    assert!((64..100).contains(&some), "{some} pages");
    assert_eq!(rounds(&mut original, b"wwwc"), 'y');
    user.snapshot("rounds", &two, &["--diff"]);
    assert_eq!(rounds(&mut original, b"wwc"), 'y');

    user.refused(&["restore", text(&one)], "is a diff to the snapshot");
    user.refused(
        &["snapshot", "merge", text(&base), text(&two), text(&merged)],
        "in the order in which they were taken",
    );
    assert!(!merged.exists());
    user.silent(&[
        "snapshot",
        "merge",
        text(&base),
        text(&one),
        text(&two),
        text(&merged),
    ]);
    user.silent(&["snapshot", "merge", text(&base), text(&one), text(&one)]);
    let expected = [(&base, '6'), (&one, '7'), (&merged, '2')];
    for (dir, next) in expected {
        let mut copy = user.restore(dir, &["--verify", "--name", "copy"]);
        assert_eq!(rounds(&mut copy, b"c"), 'y', "{}", dir.display());
        assert_eq!(rounds(&mut copy, b"w"), next, "{}", dir.display());
        assert_eq!(rounds(&mut copy, b"wc"), 'y', "{}", dir.display());
        // The restored snapshot is not one of this run.
        user.refused(&["snapshot", "copy", text(&two), "--diff"], refused);
        copy.kill();
    }
    // A copy logs its changes like any machine.
    let mut copy = user.restore(&merged, &["--name", "copy"]);
    assert_eq!(rounds(&mut copy, b"w"), '2');
    user.snapshot("copy", &base, &[]);
    assert_eq!(rounds(&mut copy, b"w"), '3');
    user.snapshot("copy", &one, &["--diff"]);
    user.silent(&["snapshot", "merge", text(&base), text(&one), text(&merged)]);
    let mut copy = user.restore(&merged, &[]);
    assert_eq!(rounds(&mut copy, b"c"), 'y');
    assert_eq!(rounds(&mut copy, b"wc"), 'y');
}

#[test]
fn a_snapshot_holds_only_touched_memory() {
    if !kvm("size of a snapshot") {
        return;
    }
    let user = User::new();
    let dir = user.0.path().join("saved");
    let original = start(&user, "large", "touch", &["--memory", "512M"]);
    original.says(1);
    let done = user.snapshot("large", &dir, &[]);
    let bytes: u64 = fs::read_dir(&dir)
        .expect("a folder")
        .map(|file| file.expect("a file").metadata().expect("a file").blocks() * 512)
        .sum();
    for bytes in [bytes, done["memory_bytes"].as_u64().expect("a number")] {
        assert!((40 << 20..42 << 20).contains(&bytes), "{bytes}");
    }
    let copy = user.restore(&dir, &["--name", "copy", "--verify"]);
    wait_until(|| user.run(&["inspect", "copy"]).status == Some(0));
    copy.kill();
}

/// Restores a copy from `dir`, which must go on counting; its place.
#[track_caller]
fn goes_on(user: &User, dir: &Path) -> usize {
    let copy = user.restore(dir, &["--verify"]);
    let said = copy.says(3 * LINE);
    copy.kill();
    place(1, &said)
}

#[test]
fn on_a_full_disk_the_machine_runs_on_and_the_old_snapshot_is_intact() {
    if !kvm("snapshot without room") {
        return;
    }
    let user = User::new();
    let dir = user.0.path().join("saved");
    let original = start(&user, "counts", "counts", &["--memory", "4M"]);
    original.says(LINE);
    user.snapshot("counts", &dir, &[]);
    let (before, old) = (files(&dir), goes_on(&user, &dir));
    // For the memory, then for the state only, which is smaller.
    for bytes in [2 << 20, 100] {
        let limit = |bytes| Rlimit {
            current: bytes,
            maximum: None,
        };
        let pid = Some(Pid::from_child(&original.hull.0));
        prlimit(pid, Resource::Fsize, limit(Some(bytes))).expect("it runs");
        user.refused(&["snapshot", "counts", text(&dir)], "File too large");
        let other = user.0.path().join("other");
        user.refused(&["snapshot", "counts", text(&other)], "File too large");
        assert!(!other.exists(), "nothing is left behind");
        prlimit(pid, Resource::Fsize, limit(None)).expect("it runs");
        assert_eq!(files(&dir), before);
        assert_eq!(goes_on(&user, &dir), old);
        original.says(original.said_bytes() + 3 * LINE);
    }
    user.refused(
        &["snapshot", "counts", text(&dir), "--diff"],
        "take a whole one first",
    );
    user.snapshot("counts", &dir, &[]);
    assert!(goes_on(&user, &dir) > old);
    assert_eq!(place(1, &original.said()), 0);
}

/// A temporary file system.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_file_system_keeps_the_old_snapshot() {
    if !kvm("full file system") || !lab("full file system", "mounting one takes root") {
        return;
    }
    let user = User::new();
    let full = user.0.path().join("full");
    fs::create_dir(&full).expect("a folder");
    let mount = ["-t", "tmpfs", "-o", "size=60M", "none", text(&full)];
    assert!(
        Command::new("mount")
            .args(mount)
            .status()
            .expect("mount")
            .success()
    );
    let _mounted = Mounted(full.clone());
    let dir = full.join("saved");
    let original = start(&user, "large", "touch", &["--memory", "64M"]);
    original.says(1);
    user.snapshot("large", &dir, &[]);
    let before = files(&dir);
    for _ in 0..3 {
        user.refused(
            &["snapshot", "large", text(&dir)],
            "No space left on device",
        );
        assert_eq!(files(&dir), before);
        let other = full.join("other");
        user.refused(
            &["snapshot", "large", text(&other)],
            "No space left on device",
        );
        assert!(!other.exists(), "nothing is left behind");
    }
    let copy = user.restore(&dir, &["--verify", "--name", "copy"]);
    wait_until(|| user.run(&["inspect", "copy"]).status == Some(0));
    copy.kill();
    assert_eq!(user.run(&["inspect", "large"]).status, Some(0));
    assert_eq!(original.errors(), "");
}

#[test]
fn a_killed_machine_or_command_leaves_an_intact_snapshot() {
    if !kvm("killed during a snapshot") {
        return;
    }
    let user = User::new();
    let dir = user.0.path().join("saved");
    let (mut new, mut old) = (0, None);
    for _ in 0..moments(if in_lab() { 15 } else { 40 }) {
        let original = start(&user, "counts", "counts", &["--memory", "4M"]);
        original.says(LINE);
        if old.is_none() {
            user.snapshot("counts", &dir, &[]);
            old = Some(goes_on(&user, &dir));
        }
        let mut saving = user.hull(&["snapshot", "counts", text(&dir)]);
        let saving = saving.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut saving = Running(saving.expect("hull starts"));
        let began = files(&dir);
        // Some once writing has begun, others at any moment.
        match random(2) {
            0 => thread::sleep(Duration::from_micros(random(60_000))),
            _ => while files(&dir) == began && saving.0.try_wait().expect("hull").is_none() {},
        }
        original.kill();
        saving.0.wait().expect("an end");
        let now = goes_on(&user, &dir);
        new += usize::from(Some(now) != old);
        old = Some(now);
    }
    println!("{new} of them were saved before");
    // The next snapshot removes what killed ones left.
    let original = start(&user, "counts", "counts", &["--memory", "4M"]);
    original.says(LINE);
    user.snapshot("counts", &dir, &[]);
    assert_eq!(files(&dir).len(), 2, "{:?}", files(&dir));
    goes_on(&user, &dir);
}

/// A snapshot of a counting guest, in the user's folder.
fn saved(user: &User, flags: &[&str]) -> PathBuf {
    let dir = user.0.path().join("saved");
    let payload = payload("counts");
    let mut all = vec!["run", &payload, "--name", "counts", "--memory", "2M"];
    all.extend(flags);
    let mut hull = user.hull(&all);
    let original = Talk::of(hull.current_dir(user.0.path()));
    original.says(LINE);
    user.snapshot("counts", &dir, &[]);
    original.kill();
    dir
}

fn memory_file(dir: &Path) -> PathBuf {
    let name = files(dir)
        .into_keys()
        .find(|name| name.starts_with("memory-"));
    dir.join(name.expect("memory"))
}

/// Damage to a snapshot's folder, and hull's message when it is to restore it.
type Harm = (fn(&Path), &'static str);

const HARMS: [Harm; 11] = [
    (
        |dir| edit(dir, |state| state.truncate(state.len() / 2)),
        "state is cut off",
    ),
    (
        |dir| edit(dir, |state| state.truncate(7)),
        "state is cut off",
    ),
    (|dir| edit(dir, |state| state.clear()), "state is cut off"),
    (
        |dir| edit(dir, |state| flip_middle(state)),
        "state is damaged",
    ),
    (|dir| edit(dir, |state| state.push(0)), "state is damaged"),
    (
        |dir| edit(dir, |state| *state = vec![b'x'; 5000]),
        "state is not a snapshot of hull's",
    ),
    (
        |dir| edit(dir, |state| state[8] += 1),
        "has the snapshot format ",
    ),
    (
        |dir| edit(dir, |state| state[8] -= 1),
        "has the snapshot format ",
    ),
    (
        |dir| fs::remove_file(dir.join("state")).expect("removed"),
        "has no file `state`",
    ),
    (
        |dir| fs::remove_file(memory_file(dir)).expect("removed"),
        "is missing, which belongs to the snapshot",
    ),
    (
        |dir| {
            File::options()
                .write(true)
                .open(memory_file(dir))
                .expect("opened")
                .set_len(4096)
                .expect("cut")
        },
        "has 4096 bytes instead of 2097152",
    ),
];

fn edit(dir: &Path, change: fn(&mut Vec<u8>)) {
    let path = dir.join("state");
    let mut state = fs::read(&path).expect("state");
    change(&mut state);
    fs::write(path, state).expect("written");
}

fn flip_middle(state: &mut [u8]) {
    let middle = state.len() / 2;
    state[middle] ^= 4;
}

#[test]
fn a_damaged_snapshot_is_refused_by_name() {
    if !kvm("damaged snapshots") {
        return;
    }
    let user = User::new();
    let dir = saved(&user, &[]);
    let bad = user.0.path().join("bad");
    let copy = || {
        let _ = fs::remove_dir_all(&bad);
        fs::create_dir(&bad).expect("a folder");
        for name in files(&dir).keys() {
            fs::copy(dir.join(name), bad.join(name)).expect("a copy");
        }
    };
    for (harm, words) in HARMS {
        copy();
        goes_on(&user, &bad);
        harm(&bad);
        user.refused(&["restore", text(&bad)], words);
        user.refused(&["restore", text(&bad), "-n", "2"], words);
    }
    user.refused(
        &["restore", text(&user.0.path().join("none"))],
        "has no file `state`",
    );

    copy();
    let memory = File::options()
        .read(true)
        .write(true)
        .open(memory_file(&bad));
    let memory = memory.expect("opened");
    let mut byte = [0];
    // The payload is there.
    memory.read_exact_at(&mut byte, 0x8004).expect("read");
    memory
        .write_all_at(&[byte[0] ^ 1], 0x8004)
        .expect("written");
    user.refused(
        &["restore", text(&bad), "--verify"],
        "is damaged (guest memory)",
    );
    memory.write_all_at(&byte, 0x8004).expect("written");
    goes_on(&user, &bad);
    user.run(&["ps"]);
    assert!(!user.folder().exists(), "nothing is left behind");

    let flags = ["--mac", "02:00:00:00:00:09"];
    let no_net = "--mac: given 1 times, and the machine has 0 networks";
    user.refused(&["restore", text(&dir), flags[0], flags[1]], no_net);
    let flags = ["--vsock", "cid=9,socket=/nonexistent/v"];
    let no_vsock = "--vsock: the machine has no such device";
    user.refused(&["restore", text(&dir), flags[0], flags[1]], no_vsock);
}

#[test]
fn a_changed_disk_is_refused_by_name() {
    if !kvm("changed disks") {
        return;
    }
    let user = User::new();
    let disk = user.0.path().join("disk.img");
    let file = File::create(&disk).expect("a file");
    file.set_len(1 << 20).expect("its size");
    let dir = saved(&user, &["--disk", "disk.img"]);
    goes_on(&user, &dir);
    let then = file.metadata().expect("it").modified().expect("a time");

    file.write_all_at(b"x", 5).expect("written");
    file.set_modified(SystemTime::now()).expect("a time");
    let named = |words: &str| format!("{}: {words}", disk.display());
    user.refused(
        &["restore", text(&dir)],
        &named("written to since the snapshot was taken"),
    );
    file.set_len(2 << 20).expect("its size");
    file.set_modified(then).expect("a time");
    user.refused(
        &["restore", text(&dir)],
        &named("2097152 bytes, and 1048576 when"),
    );
    file.set_len(1 << 20).expect("its size");
    file.set_modified(then).expect("a time");
    goes_on(&user, &dir);
    let away = user.0.path().join("away.img");
    fs::rename(&disk, &away).expect("renamed");
    user.refused(&["restore", text(&dir)], text(&disk));
    // The remedy is true.
    user.refused(&["restore", text(&dir)], "name it: --disk disk=PATH");
    let moved = format!("disk={}", text(&away));
    let mut restored = user.restore(&dir, &["--disk", &moved]);
    restored.says_more();
    drop(restored.stdin.take());
    restored.kill();
    let other = format!("other={}", text(&away));
    user.refused(
        &["restore", text(&dir), "--disk", &other],
        "--disk: the machine has no disk 'other'; it has disk",
    );
    fs::rename(&away, &disk).expect("renamed");
    goes_on(&user, &dir);
}

#[test]
fn copies_are_separate_machines_and_end_with_their_parent() {
    if !kvm("several copies") {
        return;
    }
    let user = User::new();
    let dir = saved(&user, &[]);
    let names = || {
        let done = user.run(&["ps", "--json"]);
        let list: Value = serde_json::from_str(&done.stdout).expect("JSON");
        let list = list.as_array().expect("a list").clone();
        let up = list.iter().filter(|machine| machine["state"] == "running");
        let name = |machine: &Value| machine["name"].as_str().expect("a name").to_string();
        up.map(name).collect::<Vec<_>>()
    };
    let copies = user.restore(&dir, &["-n", "3", "--name", "c"]);
    wait_until(|| names() == ["c-1", "c-2", "c-3"]);
    // One ends, the others run on.
    user.run(&["stop", "--timeout", "0", "c-2"]);
    wait_until(|| names() == ["c-1", "c-3"]);
    assert_ne!(copies.terminate(), Some(0));
    assert_eq!(names(), [""; 0]);
    assert!(!user.folder().exists(), "nothing is left behind");

    // Not even after SIGKILL. The copies log as their parent does.
    let log = dir.with_extension("log");
    let flags = ["-n", "2", "--log-level", "info", "--log-file", text(&log)];
    let copies = user.restore(&dir, &flags);
    wait_until(|| names() == ["saved-1", "saved-2"]);
    let lines = || fs::read_to_string(&log).expect("a log");
    wait_until(|| lines().matches("started: ").count() == 2);
    copies.kill();
    wait_until(|| names().is_empty());
    wait_until(|| !user.folder().exists());
}
