//! Nothing takes more instructions than at the commit that wrote benches/counts.json.
//!
//! `hull bench start --steady` runs in a lab whose clock counts instructions, so that its figures depend on
//! nothing but programs: hull as the tests build it, the lab's kernel, QEMU and the compiler. The last three
//! are the file's key: where they differ, the test writes the file anew and says so.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Figures of `hull bench start` that are compared.
const COUNTS: [&str; 5] = [
    "same guest: all tasks",
    "echo: all tasks",
    "restored guest: all tasks",
    "cold echo: all tasks",
    "round trip of an OUT",
];
/// A count may grow by this share; runs repeat within 0.5 %.
const MARGIN: f64 = 0.03;
/// How often it is measured before a count has grown, or a lab that hangs has failed.
const TRIES: usize = 3;
/// With this variable the file is written anew.
const RENEW: &str = "HULL_RENEW_COUNTS";

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Counts {
    key: BTreeMap<String, String>,
    /// In the unit of the figure.
    counts: BTreeMap<String, f64>,
}

#[test]
fn no_count_has_grown() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/counts.json");
    let text = fs::read_to_string(&file).expect("benches/counts.json");
    let recorded: Counts = serde_json::from_str(&text).expect("counts");
    let mut measured = measure().expect("a lab that does not hang");
    let renewed = recorded.key != measured.key;
    if renewed || std::env::var_os(RENEW).is_some() {
        println!("counts: {} is written anew", file.display());
        if renewed {
            println!(
                "counts: its key is {:?}, here {:?}",
                recorded.key, measured.key
            );
        }
        let text = serde_json::to_string_pretty(&measured).expect("JSON");
        fs::write(&file, text + "\n").expect("written");
        return;
    }
    for _ in 1..TRIES {
        if grown(&recorded, &measured).is_empty() {
            break;
        }
        for (name, again) in measure().expect("a lab that does not hang").counts {
            let count = measured.counts.entry(name).or_insert(again);
            *count = count.min(again);
        }
    }
    for (name, new) in &measured.counts {
        let old = recorded.counts.get(name).copied().unwrap_or(f64::NAN);
        println!("counts: {name}: {old} recorded, {new:.4} now");
    }
    let grown = grown(&recorded, &measured);
    assert!(
        grown.is_empty(),
        "more than {} % grown: {grown:?}; find out why, or renew the file with {RENEW}=1 cargo test --test steady",
        MARGIN * 100.0
    );
}

fn grown(recorded: &Counts, measured: &Counts) -> Vec<String> {
    let grown = measured.counts.iter().filter(|(name, new)| {
        let old = recorded.counts.get(*name);
        old.is_none_or(|old| **new > old * (1.0 + MARGIN))
    });
    grown.map(|(name, _)| name.clone()).collect()
}

fn measure() -> Option<Counts> {
    let report = (0..TRIES).find_map(|_| report())?;
    let counts = COUNTS.map(|name| (name.to_owned(), median(&report, name)));
    let kernel = report["host"]["kernel"].as_str().expect("a kernel");
    let key = [
        ("lab's kernel", kernel.to_owned()),
        ("QEMU", first_line("qemu-system-x86_64", "--version")),
        ("rustc", first_line("rustc", "--version")),
    ];
    Some(Counts {
        key: key.map(|(name, text)| (name.to_owned(), text)).into(),
        counts: counts.into(),
    })
}

fn median(report: &Value, name: &str) -> f64 {
    let figures = report["figures"].as_array().expect("figures");
    let figure = figures.iter().find(|figure| figure["name"] == name);
    let median = figure.expect(name)["cells"][0]["summary"]["median"].as_f64();
    // The clock's resolution does not matter, and a file that is read should be short.
    (median.expect(name) * 1e4).round() / 1e4
}

/// The report from a lab; nothing from one that hangs.
fn report() -> Option<Value> {
    let script = "cp \"$1\" /dev/shm/hull && cd /dev/shm \
         && ./hull bench start --steady --json report.json > text && cat report.json";
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/run");
    let mut command = Command::new(lab);
    command.args(["--steady", "--timeout", "600", "sh", "-c", script, "sh"]);
    command.arg(env!("CARGO_BIN_EXE_hull")).stdin(Stdio::null());
    let output = command.output().expect("tests/lab/run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(124) {
        println!("counts: the lab hung: {stderr}");
        return None;
    }
    assert!(output.status.success(), "{}: {stderr}", output.status);
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

fn first_line(program: &str, flag: &str) -> String {
    let output = Command::new(program).arg(flag).output().expect(program);
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().unwrap_or_default().to_owned()
}
