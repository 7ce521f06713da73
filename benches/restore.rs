//! What a start without a boot costs: `cargo bench --bench restore [-- ROWS.. --json]`.
//!
//! `start`: from exec to the end of `/bin/busybox echo hi`: by `hull run`, warm and cold, by crun and
//! runc (the bundle that their own `spec` makes, with a busybox in it), and by Firecracker, whose
//! guest has the same kernel and initial RAM disk and an init that runs the command and reboots.
//! `restore`: from exec to a guest that goes on from a snapshot, and has been idle: to hull's first
//! KVM_RUN, as hull tells it; to the answer of a control socket, of Firecracker's PUT
//! /snapshot/load with resume_vm and of hull's status; and to the echo of what was on
//! standard input. Both have the same kernel and guest, 1 vCPU and 128 MiB.
//!
//! All of the two, which are what is done without ROWS, take turns; the first turn is not counted.
//! HULL_PEER_FIRECRACKER=PATH names Firecracker; who is not there, or does not work here, is left
//! out with a word why. HULL_BENCH_RUNS=N sets how often (11). Figures are ms, least / middle / most,
//! and ratios of middles with the range that a bootstrap gives them. Files are in /dev/shm.
//!
//! `clones`: HULL_BENCH_CLONES=N machines (100) from one snapshot of an idle shell, started in a
//! loop: when each answers, and what each holds of memory (PSS, /proc/PID/smaps).
//! `leaks`: HULL_BENCH_RESTORES=N restores in a row (1000): what stays behind, and whether the last
//! take longer or hold more than the first.
//! `snapshot`: a machine of 128 MiB and one of 512 MiB with 40 MiB touched: time and bytes.
//!
//! Nothing is asserted. A KVM as hardware has it is in the lab: build with `cargo bench --no-run` and
//! give the program that it names to tests/lab/run; containers need root there and here.

#[path = "restore/clones.rs"]
mod clones;
mod figures;
#[path = "restore/files.rs"]
mod files;
#[path = "restore/firecracker.rs"]
mod firecracker;
#[path = "restore/guest.rs"]
mod guest;
#[path = "restore/leaks.rs"]
mod leaks;
#[path = "restore/process.rs"]
mod process;
#[path = "restore/shell.rs"]
mod shell;
#[path = "restore/sizes.rs"]
mod sizes;
#[path = "restore/subjects.rs"]
mod subjects;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use figures::{bounded_ratio, row, sorted};
use files::Files;
use firecracker::Firecracker;
use subjects::{
    ANSWERED, COLD, CRUN, ECHOED, FIRST, PEER_ANSWERED, PEER_COLD, PEER_ECHOED, RUNC, Subject, WARM,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Longest that one process may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a guest that is to be idle has for that, before it is saved.
const SETTLE: Duration = Duration::from_secs(2);
/// What all run.
const COMMAND: [&str; 3] = ["/bin/busybox", "echo", "hi"];
/// What is divided by what.
const RATIOS: [(&str, &str); 7] = [
    (WARM, CRUN),
    (WARM, RUNC),
    (WARM, PEER_COLD),
    (WARM, COLD),
    (FIRST, PEER_ANSWERED),
    (ANSWERED, PEER_ANSWERED),
    (ECHOED, PEER_ECHOED),
];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let json = words.iter().any(|word| word == "--json");
    let mut rows = words.iter().filter(|word| !word.starts_with('-'));
    let known = ["start", "restore", "clones", "leaks", "snapshot"];
    if let Some(other) = rows.find(|word| !known.contains(&word.as_str())) {
        return Err(format!("{other}: the rows are {}", known.join(", ")).into());
    }
    let none = !words.iter().any(|word| known.contains(&word.as_str()));
    let wants = |row: &str| words.iter().any(|word| word == row);
    let files = Files::new()?;
    let mut report = json!({});
    let start = none || wants("start");
    let restore = none || wants("restore");
    if start || restore {
        report["turns"] = turns(&files, start, restore, !json)?;
    }
    if wants("clones") {
        report["clones"] = clones::measure(&files, count("HULL_BENCH_CLONES", 100)?, !json)?;
    }
    if wants("leaks") {
        report["leaks"] = leaks::measure(&files, count("HULL_BENCH_RESTORES", 1000)?, !json)?;
    }
    if wants("snapshot") {
        report["snapshot"] = sizes::measure(&files, !json)?;
    }
    if json {
        println!("{report:#}");
    }
    Ok(())
}

fn count(variable: &str, otherwise: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => Ok(text
            .parse()
            .map_err(|_| format!("{variable}={text}: not a number"))?),
        Err(_) => Ok(otherwise),
    }
}

/// The comparisons.
fn turns(files: &Files, start: bool, restore: bool, print: bool) -> Result<Value> {
    let runs = count("HULL_BENCH_RUNS", 11)?;
    files.add_guests()?;
    let peer = std::env::var_os("HULL_PEER_FIRECRACKER");
    let peer = peer.map(|path| Firecracker::new(files, Path::new(&path)));
    let mut peer = peer.transpose()?;
    // Where it does not get to user space, that takes as long as it may: once, then.
    if let Some(Err(error)) = peer.as_ref().map(Firecracker::cold) {
        eprintln!("Firecracker is left out: {error}");
        peer = None;
    }
    let mut subjects = Vec::new();
    if start {
        subjects.extend(subjects::of_start(files, peer.as_ref()));
    }
    if restore {
        subjects.extend(subjects::of_restore(files, peer.as_ref()));
    }
    subjects.iter_mut().for_each(Subject::warm_up);
    for _ in 0..runs {
        subjects.iter_mut().for_each(Subject::turn);
    }
    if print {
        if peer.is_none() {
            println!("no Firecracker (HULL_PEER_FIRECRACKER): no comparison with it");
        }
        show(&subjects, runs);
    }
    Ok(tell(&subjects, runs))
}

/// The figures of a name.
fn of<'a>(subjects: &'a [Subject], name: &str) -> Option<&'a [f64]> {
    let times = |subject: &'a Subject| {
        let index = subject.figures.iter().position(|figure| *figure == name);
        subject.times.get(index?).map(Vec::as_slice)
    };
    subjects.iter().find_map(times)
}

fn ratios(subjects: &[Subject]) -> Vec<(String, figures::Ratio)> {
    let ratio = |(one, other): &(&str, &str)| {
        let ratio = bounded_ratio(of(subjects, one)?, of(subjects, other)?)?;
        Some((format!("{one} / {other}"), ratio))
    };
    RATIOS.iter().filter_map(ratio).collect()
}

fn show(subjects: &[Subject], runs: usize) {
    println!("{runs} runs each, in turns; ms since exec: least / middle / most");
    for subject in subjects {
        for (name, times) in subject.figures.iter().zip(&subject.times) {
            match &subject.skipped {
                Some(reason) => println!("  {name:<42} left out: {reason}"),
                None => row(name, times, runs),
            }
        }
        if let Some(trouble) = &subject.trouble {
            println!("    {} of these: {trouble}", subject.lost);
        }
    }
    println!("\nratios of the middles");
    for (name, ratio) in ratios(subjects) {
        println!("  {name:<82} {ratio}");
    }
}

fn tell(subjects: &[Subject], runs: usize) -> Value {
    let mut figures = json!({});
    for subject in subjects {
        for (name, times) in subject.figures.iter().zip(&subject.times) {
            let sorted = sorted(times);
            figures[*name] = match &subject.skipped {
                Some(reason) => json!({"left_out": reason}),
                None => json!({
                    "least_ms": sorted.first(),
                    "middle_ms": figures::middle(times),
                    "most_ms": sorted.last(),
                    "lost": subject.lost,
                    "trouble": subject.trouble,
                    "all_ms": times,
                }),
            };
        }
    }
    let mut told = json!({});
    for (name, ratio) in ratios(subjects) {
        told[name] = json!({"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high});
    }
    json!({"runs": runs, "figures": figures, "ratios": told})
}
