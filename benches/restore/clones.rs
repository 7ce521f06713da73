//! Many machines from one snapshot at the same time.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::figures::{middle, row, sorted};
use super::files::{Files, MEMORY_MIB};
use super::process::Process;
use super::{Result, shell};

/// What the clones hold of memory, in KiB.
#[derive(Default)]
struct Memory {
    /// Of hull's program, heap and stacks: each clone's part of it.
    hull: Vec<f64>,
    /// Of guest memory, as far as only this clone has it, because its guest wrote to it.
    written: Vec<f64>,
    /// Of guest memory that clones share, this one's part.
    shared: Vec<f64>,
}

/// Start `clones`, have all answer, and see what they hold.
pub fn measure(files: &Files, clones: usize, print: bool) -> Result<Value> {
    let dir = shell::save(files)?;
    let before = available_kib()?;
    let started = Instant::now();
    let mut all = Vec::new();
    for number in 0..clones {
        let mut clone = shell::restore(files, &dir, &format!("clone-{number}"))?;
        clone.write(&format!("first-{number}\n"))?;
        all.push(clone);
    }
    let launched = started.elapsed().as_secs_f64() * 1e3;
    // In the order of their starts: a time may be longer than it was, by waiting for those before.
    let mut answers = Vec::new();
    for (number, clone) in all.iter_mut().enumerate() {
        answers.push(clone.until(&format!("got first-{number}\n"))?);
    }
    let answered = started.elapsed().as_secs_f64() * 1e3;
    // Asked when all of them are there: they still run, each for itself.
    for (number, clone) in all.iter_mut().enumerate() {
        shell::ask(clone, &format!("second-{number}"))?;
    }
    let listed = running(files)?;
    std::thread::sleep(Duration::from_secs(1));
    let mut memory = Memory::default();
    for clone in &all {
        memory.add(clone)?;
    }
    let taken = before.saturating_sub(available_kib()?) as f64 / clones as f64;
    for clone in &mut all {
        clone.close_input();
    }
    for clone in &mut all {
        clone.end("bye\n")?;
    }
    let rows = [
        ("exec to its answer, ms", &answers),
        ("PSS of hull itself, KiB", &memory.hull),
        ("PSS of guest memory it wrote, KiB", &memory.written),
        ("PSS of guest memory it shares, KiB", &memory.shared),
    ];
    if print {
        println!("\n{clones} clones of an idle machine of {MEMORY_MIB} MiB: least / middle / most");
        for (name, figures) in rows {
            row(name, figures, clones);
        }
        println!(
            "  {:<42} {taken:>9.1}",
            "less memory available, KiB a clone"
        );
        println!("  all started after {launched:.0} ms, all had answered after {answered:.0} ms");
        println!("  {listed} running by hull ps");
    }
    let mut told = json!({
        "clones": clones, "started_ms": launched, "answered_ms": answered, "running": listed,
        "available_kib_a_clone": taken,
    });
    for (name, figures) in rows {
        let sorted = sorted(figures);
        told[name] = json!([sorted.first(), middle(figures), sorted.last()]);
    }
    Ok(told)
}

impl Memory {
    /// By /proc/PID/smaps (proc(5)): guest memory is the mapping of the snapshot's file, or one that
    /// is as large.
    fn add(&mut self, clone: &Process) -> Result<()> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps", clone.id()))?;
        let (mut hull, mut written, mut shared) = (0.0, 0.0, 0.0);
        let (mut of_file, mut is_guest, mut pss) = (false, false, 0.0);
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let (Some(key), Some(value)) = (words.next(), words.next()) else {
                continue;
            };
            let kib = value.parse::<f64>().unwrap_or(0.0);
            match key {
                "Size:" => is_guest = of_file || kib >= (MEMORY_MIB << 9) as f64,
                "Pss:" => pss = kib,
                // Copies of what was written to; comes after the PSS.
                "Anonymous:" if is_guest => {
                    written += kib;
                    shared += pss - kib;
                }
                "Anonymous:" => hull += pss,
                _ if !key.ends_with(':') => of_file = line.contains("/memory-"),
                _ => {}
            }
        }
        self.hull.push(hull);
        self.written.push(written);
        self.shared.push(shared);
        Ok(())
    }
}

/// How many machines `hull ps` says are running.
fn running(files: &Files) -> Result<usize> {
    let output = files.hull(&["ps", "--json"]).output()?.stdout;
    let machines: Vec<Value> = serde_json::from_slice(&output)?;
    Ok(machines
        .iter()
        .filter(|one| one["state"] == "running")
        .count())
}

fn available_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.ok_or("/proc/meminfo has no MemAvailable")?.parse()?)
}
