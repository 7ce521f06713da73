//! `hull trace`: reads what hull run --trace wrote.

use std::path::PathBuf;

use anyhow::Context;

use super::lazy::Lazy;
use super::output::{print, print_json};
use crate::trace::summary::{self, Queue, Summary, Times};

/// `hull trace`.
#[derive(clap::Subcommand)]
pub enum Verb {
    /// Sum up a trace: exits by reason and device, the vCPUs' time, queues, interrupts.
    Summary(Lazy<Sums>),
}

/// `hull trace summary`.
#[derive(clap::Args)]
pub struct Sums {
    /// A file that hull run --trace wrote.
    file: PathBuf,
    /// Print JSON, for scripts.
    #[arg(long)]
    json: bool,
}

impl Sums {
    pub fn execute(self) -> anyhow::Result<()> {
        let Self { file, json } = self;
        let summary = summary::read(&file).with_context(|| file.display().to_string())?;
        if json {
            return print_json(&summary);
        }
        print(table(&summary).as_bytes())
    }
}

fn table(summary: &Summary) -> String {
    let mut rows = vec![row([
        "exits", "device", "count", "share", "total", "p50", "p90", "p99", "max",
    ])];
    for exits in &summary.exits {
        let [count, total, p50, p90, p99, max] = times(&exits.times);
        let share = format!("{:.1} %", exits.share * 100.0);
        let (reason, device) = (exits.reason.clone(), exits.device.clone());
        rows.push(vec![
            reason, device, count, share, total, p50, p90, p99, max,
        ]);
    }
    let mut text = align(&rows, 2);
    rows = vec![row(["vCPU", "exits", "in KVM_RUN", "in hull", "share"])];
    for vcpu in &summary.vcpus {
        let share = vcpu.hull_us * 100.0 / (vcpu.guest_us + vcpu.hull_us).max(f64::MIN_POSITIVE);
        rows.push(vec![
            vcpu.name.clone(),
            vcpu.exits.to_string(),
            time(vcpu.guest_us),
            time(vcpu.hull_us),
            format!("{share:.1} %"),
        ]);
    }
    text += &align(&rows, 1);
    rows = vec![row([
        "queue",
        "notified",
        "batches",
        "chains",
        "interrupts",
        "p50",
        "p90",
        "p99",
        "max",
    ])];
    rows.extend(summary.queues.iter().map(queue));
    text += &align(&rows, 1);
    rows = vec![row(["interrupts of", "count"])];
    for (device, count) in &summary.interrupts {
        rows.push(vec![device.clone(), count.to_string()]);
    }
    text += &align(&rows, 1);
    rows = vec![row(["phase of hull's", "from", "long"])];
    for phase in &summary.phases {
        rows.push(vec![phase.name.clone(), time(phase.at_us), time(phase.us)]);
    }
    text += &align(&rows, 1);
    text += &format!("{} lines on the console\n", summary.console_lines);
    if summary.dropped > 0 {
        text += &format!("{} events are missing, the oldest\n", summary.dropped);
    }
    text
}

fn queue(queue: &Queue) -> Vec<String> {
    let [batches, _, p50, p90, p99, max] = times(&queue.batches);
    let numbers = [queue.notifications, queue.chains, queue.interrupts];
    let [notified, chains, interrupts] = numbers.map(|number| number.to_string());
    let name = queue.name.clone();
    vec![
        name, notified, batches, chains, interrupts, p50, p90, p99, max,
    ]
}

fn times(times: &Times) -> [String; 6] {
    [
        times.count.to_string(),
        time(times.total_us),
        time(times.p50_us),
        time(times.p90_us),
        time(times.p99_us),
        time(times.max_us),
    ]
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}

/// Microseconds, with three digits or more.
fn time(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us:.1} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Rows in columns, the first `left` of them aligned to the left; nothing without a row below the
/// head.
fn align(rows: &[Vec<String>], left: usize) -> String {
    let [head, _, ..] = rows else {
        return String::new();
    };
    let cell = |row: &'_ [String], at: usize| row.get(at).map_or(0, |cell| cell.chars().count());
    let width = |at| rows.iter().map(|row| cell(row, at)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(at, (cell, &width))| match at < left {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text += "\n";
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [row(["name", "n"]), row(["a", "100"])];
        assert_eq!(align(&rows, 1), "name    n\na     100\n\n");
        assert_eq!(align(&rows[..1], 1), "");
    }
}
