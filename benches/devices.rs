//! What devices do for a guest, beside Firecracker's: `cargo bench --bench devices [-- ROWS..]`.
//!
//! One kernel and one init (benches/devices/guest.rs) under both monitors, turn by turn, 1 vCPU,
//! 128 MiB. ROWS, all when there are none:
//!
//! `net`: TCP over a tap device in both directions, and the round trip of a byte.
//! `disk`: a raw image of 128 MiB in /dev/shm, read and written past the guest's caches: 64 MiB in
//! order by 256 KiB, and 4 KiB here and there, one at a time or 16 at once.
//! `vsock`: as `net`, over the machine's socket, each once on a connection of the guest's and once
//! on one of the host's.
//! `resident`: what of a monitor is in memory beside the guest's memory (RSS of all mappings that
//! are smaller, /proc/PID/smaps) while it has a device of each kind and the guest uses none of
//! them. That is more devices for hull than for Firecracker, which has no share and no virtio
//! console; its second drive is as large as hull's scratch disk.
//!
//! All times are taken on the host: from an order to the guest (or the first byte) to its answer.
//!
//! HULL_PEER_FIRECRACKER=PATH names the peer, without which there is no comparison;
//! HULL_BENCH_RUNS=N how many machines of each kind (5). Figures are least / middle / most.
//! Nothing is asserted. It needs root, for the tap device, and a KVM as hardware has it: one that
//! emulates the guest's kernel takes minutes a megabyte (but `resident` works there too). There is
//! one in the lab: `cargo bench --no-run`, run the program that it names once with the word
//! `build`, and give it to tests/lab/run.

#[path = "devices/disk.rs"]
mod disk;
#[path = "devices/machines.rs"]
mod machines;
#[path = "devices/resident.rs"]
mod resident;
#[path = "devices/streams.rs"]
mod streams;

use std::error::Error;
use std::time::Duration;

use machines::{Files, Kind, Machine, monitors};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Longest that one machine may take.
const LIMIT: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words = words.iter().map(String::as_str);
    let wanted: Vec<&str> = words.filter(|word| !word.starts_with('-')).collect();
    let guest = machines::guest_program()?;
    if wanted == ["build"] {
        return Ok(());
    }
    let runs = std::env::var("HULL_BENCH_RUNS").map_or(Ok(5), |runs| runs.parse())?;
    let files = Files::new(&guest)?;
    println!("{runs} machines of each kind; least / middle / most");
    let kinds = [
        (&streams::NET, Kind::Net),
        (&disk::TABLE, Kind::Disk),
        (&streams::VSOCK, Kind::Vsock),
        (&resident::TABLE, Kind::All),
    ];
    for (table, kind) in kinds {
        if wanted.is_empty() || wanted.contains(&table.word) {
            table.measure(&files, kind, runs)?;
        }
    }
    Ok(())
}

/// What is measured of one machine.
struct Table {
    /// Of the command line.
    word: &'static str,
    title: &'static str,
    /// Names of the figures.
    rows: &'static [&'static str],
    /// The figures of one machine, of those rows.
    figures: fn(&Files, Machine) -> Result<Vec<f64>>,
}

impl Table {
    fn measure(&self, files: &Files, kind: Kind, runs: usize) -> Result<()> {
        let mut monitors = monitors(files, kind)?;
        let mut figures = vec![vec![Vec::new(); monitors.len()]; self.rows.len()];
        for _ in 0..runs {
            for (index, monitor) in monitors.iter_mut().enumerate() {
                match (self.figures)(files, monitor.start(files)?) {
                    Ok(measured) => {
                        for (row, figure) in figures.iter_mut().zip(measured) {
                            row[index].push(figure);
                        }
                    }
                    Err(error) => println!("  {}: {error}", monitor.name),
                }
            }
        }
        println!("\n{}", self.title);
        for (name, figures) in self.rows.iter().zip(&figures) {
            for (monitor, figures) in monitors.iter().zip(figures) {
                row(&format!("{name}: {}", monitor.name), figures);
            }
            if let [own, peer] = figures.as_slice() {
                // More is better, but of time and memory.
                match name.ends_with("us") || name.ends_with("KiB") {
                    true => ratio(peer, own),
                    false => ratio(own, peer),
                }
            }
        }
        Ok(())
    }
}

fn mib_a_second(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

fn row(name: &str, figures: &[f64]) {
    let sorted = sorted(figures);
    match (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) {
        (Some(least), Some(middle), Some(most)) => {
            println!("  {name:<44} {least:>9.1} / {middle:>9.1} / {most:>9.1}");
        }
        _ => println!("  {name:<44} never"),
    }
}

/// How much better hull is, by the middles.
fn ratio(up: &[f64], down: &[f64]) {
    let middle = |figures: &[f64]| sorted(figures).get(figures.len() / 2).copied();
    if let (Some(up), Some(down)) = (middle(up), middle(down)) {
        println!("  {:<44} {:.2}", "times as good as Firecracker", up / down);
    }
}

fn sorted(figures: &[f64]) -> Vec<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}
