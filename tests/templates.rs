//! `hull templates`: lists the cache and removes from it.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use serde_json::Value;

const KEYS: [&str; 3] = [
    "ab10000000000000000000000000000f",
    "ab20000000000000000000000000000f",
    "c000000000000000000000000000000f",
];

fn hull(cache: &Path, arguments: &[&str]) -> Output {
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
    hull.arg("templates").args(arguments);
    hull.env("HULL_CACHE", cache).env_remove("HULL_CACHE_SIZE");
    hull.output().expect("hull starts")
}

#[track_caller]
fn assert(output: &Output, status: i32, stdout: &str, stderr: &str) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr)
        ),
        (Some(status), stdout.into(), stderr.into())
    );
}

/// A cache with three templates, the last of which has no description.
fn cache() -> tempfile::TempDir {
    let cache = tempfile::tempdir().expect("a folder");
    for (index, key) in KEYS.iter().enumerate() {
        let dir = cache.path().join(key);
        fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
        fs::write(dir.join("lock"), "").unwrap();
        fs::write(dir.join(format!("memory-{key}")), "memory").unwrap();
        let about = format!(
            r#"{{"kernel": "/boot/k{index}", "cpus": {}, "memory_bytes": 134217728,
            "version": "0", "created": 7}}"#,
            index + 1
        );
        if index < 2 {
            fs::write(dir.join("about"), about).unwrap();
        }
        let state = fs::File::create(dir.join("state")).unwrap();
        let age = Duration::from_secs(125 + 3_600 * index as u64);
        state.set_modified(SystemTime::now() - age).unwrap();
    }
    cache
}

fn left(cache: &Path) -> Vec<String> {
    let output = hull(cache, &["--json"]);
    assert_eq!(output.status.code(), Some(0));
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let listed = listed.as_array().expect("a list");
    let key = |line: &Value| line["key"].as_str().expect("a key").into();
    listed.iter().map(key).collect()
}

#[test]
fn templates_are_listed_by_their_last_use() {
    let cache = cache();
    let output = hull(cache.path(), &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).expect("text");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0],
        ["KEY", "KERNEL", "CPUS", "MEMORY", "DISK", "LAST", "USED"]
    );
    assert_eq!(
        rows[1][..5],
        ["ab1000000000", "/boot/k0", "1", "128", "MiB"]
    );
    assert!(text.lines().nth(1).unwrap().ends_with("  2 minutes ago"));
    assert_eq!(rows[2][..2], ["ab2000000000", "/boot/k1"]);
    assert!(text.lines().nth(2).unwrap().ends_with("  1 hour ago"));
    assert_eq!(rows[3][..4], ["c00000000000", "-", "-", "-"]);
    assert_eq!(rows.len(), 4);
}

#[test]
fn json_has_the_same_list() {
    let cache = cache();
    let output = hull(cache.path(), &["--json"]);
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(listed[1]["key"], KEYS[1]);
    assert_eq!(listed[1]["kernel"], "/boot/k1");
    assert_eq!(listed[1]["cpus"], 2);
    assert_eq!(listed[1]["memory_bytes"], 128 << 20);
    assert_eq!(listed[1]["created"], 7);
    assert!(listed[1]["disk_bytes"].as_u64() > Some(0), "{listed}");
    assert!(listed[1]["last_used"].as_u64() > Some(1_600_000_000));
    assert!(listed[2]["kernel"].is_null());
}

#[test]
fn templates_are_removed_by_a_prefix_of_their_key() {
    let cache = cache();
    let dir = cache.path();
    assert(
        &hull(dir, &["--rm", "c", "ab"]),
        125,
        "",
        "error: --rm ab: 2 templates' keys begin so; write more of the key's digits\n",
    );
    assert(
        &hull(dir, &["--rm", "c", "e"]),
        125,
        "",
        "error: --rm e: no template's key begins so; hull templates lists them\n",
    );
    assert_eq!(left(dir).len(), 3, "none was removed");
    assert(&hull(dir, &["--rm", "c", "ab2"]), 0, "", "");
    assert_eq!(left(dir), [KEYS[0]]);
    assert!(!dir.join(KEYS[2]).exists());
    assert(&hull(dir, &["--rm", "all"]), 0, "", "");
    assert_eq!(left(dir), [""; 0]);
    let names: Vec<_> = fs::read_dir(dir).unwrap().map(|it| it.unwrap()).collect();
    assert_eq!(names.len(), 1, "only the lock: {names:?}");
}

#[test]
fn an_empty_cache_is_no_error() {
    let scratch = tempfile::tempdir().expect("a folder");
    let missing = scratch.path().join("cache");
    for cache in [scratch.path(), &missing] {
        assert(&hull(cache, &[]), 0, "", "hull: no templates yet\n");
        assert(&hull(cache, &["--json"]), 0, "[]\n", "");
        assert(&hull(cache, &["--rm", "all"]), 0, "", "");
    }
    assert!(!missing.exists(), "listing creates nothing");
}

#[test]
fn an_impossible_cache_is_refused_with_the_reason() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let refused = |hull: &mut Command, part: &str| {
        let output = hull.arg("templates").output().expect("hull starts");
        assert_eq!(output.status.code(), Some(125));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(part), "{text}");
    };
    let program = || Command::new(env!("CARGO_BIN_EXE_hull"));
    refused(program().env("HULL_CACHE", "off"), "HULL_CACHE=off");
    refused(program().env("HULL_CACHE_SIZE", "2X"), "HULL_CACHE_SIZE=2X");
    let path = file.path();
    refused(
        program().env("HULL_CACHE", path),
        &path.display().to_string(),
    );
    let homeless = [("HULL_CACHE", ""), ("HOME", ""), ("XDG_CACHE_HOME", "")];
    let mut nowhere = program();
    for (name, _) in homeless {
        nowhere.env_remove(name);
    }
    refused(&mut nowhere, "HOME is an absolute path");
}
