//! What a snapshot costs, by what the guest has touched and by what it has.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::figures::middle;
use super::files::Files;
use super::{Result, SETTLE, count};

const TOUCHED_MIB: u64 = 40;
/// So many copies of the guest's busybox, of 1.9 MiB, are as much.
const COPIES: usize = 21;
/// A KVM that emulates the guest's kernel takes minutes for it.
const PATIENCE: Duration = Duration::from_secs(600);
const MACHINES_MIB: [u64; 2] = [128, 512];

/// Save machines of each size some times.
pub fn measure(files: &Files, print: bool) -> Result<Value> {
    let runs = count("HULL_BENCH_RUNS", 11)?;
    if print {
        println!("\na snapshot of a machine with {TOUCHED_MIB} MiB touched; middles of {runs}");
        println!("     memory   snapshot, ms   stood still, ms   written, KiB   on disk, KiB");
    }
    let mut told = Vec::new();
    for memory_mib in MACHINES_MIB {
        let [ms, still, written, on_disk] = of_machine(files, memory_mib, runs)?;
        if print {
            println!(
                "  {memory_mib:>5} MiB {ms:>14.1} {still:>17.1} {written:>14.0} {on_disk:>14.0}"
            );
        }
        told.push(json!({
            "memory_mib": memory_mib, "ms": ms, "stood_still_ms": still,
            "written_kib": written, "on_disk_kib": on_disk,
        }));
    }
    Ok(told.into())
}

fn of_machine(files: &Files, memory_mib: u64, runs: usize) -> Result<[f64; 4]> {
    let name = format!("sized-{memory_mib}");
    let memory = format!("{memory_mib}M");
    // Not of zeroes, which are left out. One program writes it all: each costs much on a slow KVM.
    let sources = "/bin/busybox ".repeat(COPIES);
    let script = format!("cat {sources} > /touched; echo up; read line; echo bye");
    let mut hull = files.hull(&["run", "--cold", "--name", &name, "--memory", &memory]);
    hull.args(["--", "/bin/sh", "-c", &script]);
    let mut process = files.start(&mut hull)?.patient(PATIENCE);
    process.until("up\n")?;
    std::thread::sleep(SETTLE);
    let mut figures = [const { Vec::new() }; 4];
    for _ in 0..runs {
        let (told, ms, dir) = files.snapshot(&name)?;
        let told = |key: &str| told[key].as_f64().ok_or(format!("no {key}"));
        let of_run = [
            ms,
            told("stood_still_us")? / 1e3,
            told("memory_bytes")? / 1024.0,
            on_disk_kib(&dir)?,
        ];
        figures
            .iter_mut()
            .zip(of_run)
            .for_each(|(all, one)| all.push(one));
    }
    process.close_input();
    process.end("bye\n")?;
    Ok(figures.map(|figures| middle(&figures).unwrap_or(f64::NAN)))
}

/// st_blocks is in units of 512 bytes (stat(2)).
fn on_disk_kib(dir: &Path) -> Result<f64> {
    let mut blocks = 0;
    for entry in fs::read_dir(dir)? {
        blocks += entry?.metadata()?.blocks();
    }
    Ok(blocks as f64 / 2.0)
}
