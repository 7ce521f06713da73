//! `hull bench disk`: a raw image of the host behind the guest's disk.

use std::io::Read;
use std::time::Instant;

use super::error::BenchError;
use super::machines::{Equipment, Machines};
use super::plan::{Bench, Contender, Made, Plan, Program, Samples};
use crate::compare::figure::Better::More;
use crate::compare::figure::Unit::{BytesPerSecond, PerSecond};

/// As in guest/bench: bytes in order, and accesses at random.
const BYTES: f64 = (64 << 20) as f64;
const ACCESSES: f64 = 3000.0;

pub static PLAN: Plan = Plan {
    topic: "disk",
    method: "A raw image of 128 MiB in memory (/dev/shm), a new machine for each turn, without the guest's \
             caches (O_DIRECT): 64 MiB in order by 256 KiB, 3000 times 4 KiB at random, one at a time or 16 \
             at once. The clock is the host's, from a request to the guest to its answer.",
    // In the order in which the guest does it.
    figures: &[
        ("written in order", BytesPerSecond, More),
        ("read in order", BytesPerSecond, More),
        ("4 KiB written at random", PerSecond, More),
        ("4 KiB read at random", PerSecond, More),
        ("4 KiB read at random, 16 at once", PerSecond, More),
    ],
    warms_up: false,
    contender,
};

fn contender<'a>(bench: &'a Bench, program: &'a Program) -> Made<'a> {
    let machines = Machines::new(bench, program, Equipment::Disk)?;
    Ok(Box::new(Disk(machines)))
}

struct Disk<'a>(Machines<'a>);

impl Contender for Disk<'_> {
    fn prepare(&mut self) -> Result<(), BenchError> {
        self.0.prepare()
    }

    fn turn(&mut self) -> Result<Samples, BenchError> {
        let mut machine = self.0.start()?;
        let mut samples = Samples::new();
        for request in *b"wryxd" {
            let mut stream = machine.request(request)?;
            let started = Instant::now();
            stream.read_exact(&mut [0])?;
            let amount = match request {
                b'w' | b'r' => BYTES,
                _ => ACCESSES,
            };
            samples.push(Some(amount / started.elapsed().as_secs_f64()));
        }
        Ok(samples)
    }
}
