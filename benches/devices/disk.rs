//! A raw image behind the guest's /dev/vda.

use std::time::Instant;

use super::machines::{Files, Machine};
use super::{Result, Table, mib_a_second};

/// As the guest has them.
const BYTES: usize = 64 << 20;
const RANDOM: f64 = 3000.0;

/// In the order in which a machine does it.
pub const TABLE: Table = Table {
    word: "disk",
    title: "a raw image in memory",
    rows: &[
        "write, MiB/s",
        "read, MiB/s",
        "write 4 KiB, random, 1/s",
        "read 4 KiB, random, 1/s",
        "read 4 KiB, random, 16 at once, 1/s",
    ],
    figures,
};

fn figures(_: &Files, machine: Machine) -> Result<Vec<f64>> {
    let mut figures = Vec::new();
    for order in *b"wryxd" {
        let mut stream = machine.order(order)?;
        let started = Instant::now();
        stream.read_exact(&mut [0])?;
        let time = started.elapsed();
        figures.push(match order {
            b'w' | b'r' => mib_a_second(BYTES, time),
            _ => RANDOM / time.as_secs_f64(),
        });
    }
    drop(machine.order(b'Q')?);
    machine.finish()?;
    Ok(figures)
}
