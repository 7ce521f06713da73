//! What a monitor needs beside the guest's memory.

use std::fs;
use std::io::Write;
use std::thread;
use std::time::Duration;

use super::machines::{Files, Machine};
use super::{Result, Table};

/// Mappings of this many KiB are the guest's memory, or nothing that is used.
const GUEST_KIB: f64 = 100.0 * 1024.0;
/// Until a monitor that has booted a guest has nothing to do any more.
const SETTLE: Duration = Duration::from_millis(500);

/// In the order in which a machine does it.
pub const TABLE: Table = Table {
    word: "resident",
    title: "resident beside the guest's memory, a device of each kind, idle",
    rows: &["all, KiB", "of it no pages of a file, KiB"],
    figures,
};

fn figures(_: &Files, machine: Machine) -> Result<Vec<f64>> {
    let mut stream = machine.wait()?;
    thread::sleep(SETTLE);
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", machine.id()))?;
    stream.write_all(b"Q")?;
    machine.finish()?;
    let (mut all, mut anonymous, mut size) = (0.0, 0.0, 0.0);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let value = value.parse().unwrap_or(0.0);
        match name {
            "Size:" => size = value,
            "Rss:" if size < GUEST_KIB => all += value,
            "Anonymous:" if size < GUEST_KIB => anonymous += value,
            _ => {}
        }
    }
    Ok(vec![all, anonymous])
}
