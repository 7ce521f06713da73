use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::*;

/// Timeout to connect to a machine.
const SOON: Duration = Duration::from_secs(10);

fn record(name: &str) -> Record {
    Record {
        pid: 4242,
        name: name.into(),
        started: 1,
        cpus: 2,
        memory_bytes: 3,
        version: "4".into(),
        ready_with: None,
        stop_seconds: None,
        groups: Vec::new(),
    }
}

/// A folder of records below a temporary one.
fn runtime() -> (tempfile::TempDir, Runtime) {
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = Runtime::inside(folder.path(), true).expect("a runtime folder");
    (folder, runtime)
}

fn names(runtime: &Runtime) -> Vec<String> {
    let found = runtime.list().into_iter();
    found.map(|found| found.record.name).collect()
}

fn inside(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries
        .map(|entry| entry.expect("an entry").path())
        .collect()
}

#[test]
fn names_are_safe_file_names_and_not_numbers() {
    for good in ["a", "web-1", "A.b_c-9", "1a", &"x".repeat(MAX_NAME)] {
        assert_eq!(check_name(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        ".",
        "..",
        ".a",
        "-a",
        "_a",
        "a/b",
        "../a",
        "a b",
        "ä",
        "1",
        "123",
        "a\n",
        "a\0",
        &"x".repeat(MAX_NAME + 1),
    ] {
        assert!(check_name(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_machine_is_found_while_it_runs_and_leaves_nothing() {
    let (folder, runtime) = runtime();
    let claim = Claim::take(&runtime, &record("one")).expect("claimed");
    let found = runtime.list();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].record, record("one"));
    let none_yet = found[0].connect(Duration::from_millis(1));
    assert!(none_yet.is_err(), "no socket yet");
    let _listener = thread::scope(|scope| {
        let connected = scope.spawn(|| found[0].connect(SOON));
        thread::sleep(Duration::from_millis(50));
        let listener = claim.listen().expect("a socket");
        connected.join().unwrap().expect("it has waited");
        listener
    });
    drop(claim);
    assert!(found[0].connect(SOON).is_err());
    assert!(inside(folder.path()).is_empty());
    assert!(runtime.list().is_empty());
    // The outer folder was removed, and is created again.
    let again = Claim::take(&runtime, &record("one")).expect("claimed again");
    assert_eq!(inside(folder.path()).len(), 1);
    drop(again);
    assert!(inside(folder.path()).is_empty());
}

#[test]
fn a_name_belongs_to_one_machine_at_a_time() {
    let (_folder, runtime) = runtime();
    let one = Claim::take(&runtime, &record("same")).expect("claimed");
    let error = Claim::take(&runtime, &record("same")).expect_err("in use");
    assert_eq!(
        error.to_string(),
        "the machine name \"same\" is already in use by process 4242; stop that machine, or choose another name"
    );
    let other = Claim::take(&runtime, &record("other")).expect("another name");
    drop(one);
    assert_eq!(names(&runtime), ["other"]);
    let again = Claim::take(&runtime, &record("same")).expect("free again");
    assert_eq!(names(&runtime), ["other", "same"]);
    drop((other, again));
}

#[test]
fn the_folder_of_a_killed_machine_is_removed_or_reused() {
    let (folder, runtime) = runtime();
    let stale = |name: &str| {
        let path = folder.path().join("hull").join(name);
        fs::create_dir_all(&path).expect("made");
        for file in ["lock", "socket", "record"] {
            fs::write(path.join(file), "old").expect("written");
        }
        path
    };
    let (left, taken) = (stale("left"), stale("taken"));
    // No control group, whatever its record says.
    let another = tempfile::tempdir().expect("a folder");
    let mut lying = record("left");
    lying.groups = vec![another.path().into()];
    let lying = serde_json::to_vec(&lying).expect("JSON");
    fs::write(left.join("record"), lying).expect("written");
    let empty = folder.path().join("hull/empty");
    fs::create_dir(&empty).expect("made");
    let claim = Claim::take(&runtime, &record("taken")).expect("taken over");
    let _listener = claim.listen().expect("a socket where one was");
    assert_eq!(names(&runtime), ["taken"]);
    assert!(!left.exists() && !empty.exists() && taken.exists());
    assert!(another.path().exists());
    drop(claim);
    assert!(inside(folder.path()).is_empty());
}

#[test]
fn a_link_or_a_folder_writable_by_others_is_not_used_for_records() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("target");
    fs::create_dir(&target).expect("made");
    let base = folder.path().join("base");
    fs::create_dir(&base).expect("made");
    symlink(&target, base.join("hull")).expect("a link");
    assert!(Runtime::inside(&base, true).is_err());
    fs::remove_file(base.join("hull")).expect("removed");
    let runtime = Runtime::inside(&base, true).expect("a private folder");
    symlink(&target, base.join("hull/name")).expect("a link");
    assert!(Claim::take(&runtime, &record("name")).is_err());
    assert!(runtime.list().is_empty());
    assert!(inside(&target).is_empty());
    fs::set_permissions(&base, fs::Permissions::from_mode(0o777)).expect("opened");
    assert!(Runtime::inside(&base, true).is_err());
}

#[test]
fn a_folder_with_a_path_too_long_for_a_socket_still_has_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let deep = folder.path().join("d".repeat(120));
    fs::create_dir(&deep).expect("made");
    let runtime = Runtime::inside(&deep, true).expect("a runtime folder");
    let claim = Claim::take(&runtime, &record("long")).expect("claimed");
    let _listener = claim.listen().expect("a socket");
    runtime.list()[0].connect(SOON).expect("it listens");
}

#[test]
fn racing_claims_do_not_disturb_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    std::thread::scope(|scope| {
        for number in 0..4 {
            let base = folder.path();
            scope.spawn(move || {
                for _ in 0..50 {
                    let runtime = Runtime::inside(base, true).expect("a runtime folder");
                    let claim = Claim::take(&runtime, &record(&format!("m{number}")));
                    let claim = claim.expect("no other machine has this name");
                    let runtime = Runtime::inside(base, true).expect("a runtime folder");
                    assert!(names(&runtime).contains(&format!("m{number}")));
                    drop(claim);
                }
            });
        }
    });
    assert!(inside(folder.path()).is_empty());
}

#[test]
fn the_error_of_an_unknown_machine_lists_those_that_run() {
    let there = vec![record("web"), record("4242")];
    let unknown = |there| FleetError::Unknown {
        wanted: "x".into(),
        there,
    };
    assert_eq!(
        unknown(vec![]).to_string(),
        "no such machine: x; none is running"
    );
    assert_eq!(
        unknown(there).to_string(),
        "no such machine: x; these are running: web (process 4242), 4242"
    );
}
