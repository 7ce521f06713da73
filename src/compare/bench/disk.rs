//! `hull bench disk`: a raw image of the host's behind the guest's disk.

use std::io::Read;
use std::time::Instant;

use super::Bench;
use super::machines::{Devices, Machines};
use super::turns::{Contender, Kind, Made, Plan, Samples, Trouble, Who};
use crate::compare::figure::{Better, Unit};

/// As the guest has them.
const BYTES: f64 = (64 << 20) as f64;
const RANDOM: f64 = 3000.0;

pub const PLAN: Plan = Plan {
    method: "A raw image of 128 MiB in memory (/dev/shm), a new machine each turn, past all caches of the \
             guest's (O_DIRECT): 64 MiB in order by 256 KiB, 3000 times 4 KiB here and there, one at a time \
             or 16 at once. The host's clock, from an order to the guest to its answer.",
    // In the order in which a machine does it.
    figures: &[
        ("written in order", Unit::BytesPerSecond, Better::More),
        ("read in order", Unit::BytesPerSecond, Better::More),
        ("4 KiB written at random", Unit::PerSecond, Better::More),
        ("4 KiB read at random", Unit::PerSecond, Better::More),
        (
            "4 KiB read at random, 16 at once",
            Unit::PerSecond,
            Better::More,
        ),
    ],
    warms_up: false,
    contender,
};

fn contender<'a>(bench: &'a Bench, who: &'a Who) -> Made<'a> {
    match who.kind {
        Kind::Other => Err(Trouble::Other("its devices are not measured".into())),
        _ => Ok(Box::new(Disk(Machines::new(bench, who, Devices::Disk)))),
    }
}

struct Disk<'a>(Machines<'a>);

impl Contender for Disk<'_> {
    fn prepare(&mut self) -> Result<(), Trouble> {
        self.0.prepare()
    }

    fn turn(&mut self) -> Result<Samples, Trouble> {
        let mut machine = self.0.start()?;
        let mut samples = Samples::new();
        for order in *b"wryxd" {
            let mut stream = machine.order(order)?;
            let started = Instant::now();
            stream.read_exact(&mut [0])?;
            let amount = match order {
                b'w' | b'r' => BYTES,
                _ => RANDOM,
            };
            samples.push(Some(amount / started.elapsed().as_secs_f64()));
        }
        Ok(samples)
    }
    fn caveats(&self) -> Vec<String> {
        self.0.caveats()
    }
}
