//! `hull bench net`: bytes between programs of the guest's and the host's, over a tap device and over the
//! machine's socket.

use std::io::{Read, Write};
use std::time::Instant;

use super::Bench;
use super::machines::{Devices, Machines};
use super::turns::{Contender, Kind, Made, Plan, Samples, Trouble, Who};
use crate::compare::figure::{Better, Unit};
use crate::compare::measure::stream::Stream;

/// As the guest has it.
const BYTES: usize = 64 << 20;
const ROUND_TRIPS: u32 = 500;

pub const PLAN: Plan = Plan {
    method: "A new machine each turn: 64 MiB each way and 500 round trips of a byte, between a program of \
             the guest's and this one, by TCP over a tap device (which takes root) and by the machine's \
             socket, where once the guest connects and once the host. The host's clock, from an order to \
             the guest, or the first byte, to its answer.",
    // In the order in which a machine does it.
    figures: &[
        ("TCP, guest to host", Unit::BytesPerSecond, Better::More),
        ("TCP, host to guest", Unit::BytesPerSecond, Better::More),
        (
            "TCP, round trip of a byte",
            Unit::Microseconds,
            Better::Less,
        ),
        ("socket, guest to host", Unit::BytesPerSecond, Better::More),
        ("socket, host to guest", Unit::BytesPerSecond, Better::More),
        (
            "socket, round trip of a byte",
            Unit::Microseconds,
            Better::Less,
        ),
        (
            "socket, host connects, guest to host",
            Unit::BytesPerSecond,
            Better::More,
        ),
        (
            "socket, host connects, host to guest",
            Unit::BytesPerSecond,
            Better::More,
        ),
        (
            "socket, host connects, round trip",
            Unit::Microseconds,
            Better::Less,
        ),
    ],
    warms_up: false,
    contender,
};

fn contender<'a>(bench: &'a Bench, who: &'a Who) -> Made<'a> {
    if who.kind == Kind::Other {
        return Err(Trouble::Other("its devices are not measured".into()));
    }
    let root = rustix::process::geteuid().is_root();
    Ok(Box::new(Net {
        tap: root.then(|| Machines::new(bench, who, Devices::Net)),
        socket: Machines::new(bench, who, Devices::Vsock),
    }))
}

struct Net<'a> {
    tap: Option<Machines<'a>>,
    socket: Machines<'a>,
}

impl Contender for Net<'_> {
    fn turn(&mut self) -> Result<Samples, Trouble> {
        let mut samples = match &mut self.tap {
            Some(machines) => {
                // Both kinds of machines have one configuration at a time.
                machines.prepare()?;
                let mut machine = machines.start()?;
                all(|order| machine.order(order))?.into()
            }
            None => vec![None; 3],
        };
        self.socket.prepare()?;
        let mut machine = self.socket.start()?;
        samples.extend(all(|order| machine.order(order))?);
        samples.extend(all(|order| machine.order_by_host(order))?);
        Ok(samples)
    }

    fn caveats(&self) -> Vec<String> {
        let mut caveats = self.socket.caveats();
        if self.tap.is_none() {
            caveats.push("no TCP: only root can make a tap device; run it as root".into());
        }
        caveats
    }
}

/// Up, down, to and fro, each on a connection of its own.
fn all(mut order: impl FnMut(u8) -> Result<Stream, Trouble>) -> Result<[Option<f64>; 3], Trouble> {
    let mut buffer = vec![0; 1 << 16];

    let mut stream = order(b'S')?;
    let started = Instant::now();
    let mut left = BYTES;
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => return Err(Trouble::Other("its guest hung up early".into())),
            length => left -= length.min(left),
        }
    }
    let up = BYTES as f64 / started.elapsed().as_secs_f64();
    drop(stream);

    let mut stream = order(b'R')?;
    let started = Instant::now();
    for _ in 0..BYTES / buffer.len() {
        stream.write_all(&buffer)?;
    }
    stream.read_exact(&mut buffer[..1])?;
    let down = BYTES as f64 / started.elapsed().as_secs_f64();
    drop(stream);

    let mut stream = order(b'P')?;
    let started = Instant::now();
    for _ in 0..ROUND_TRIPS {
        stream.write_all(b"p")?;
        stream.read_exact(&mut buffer[..1])?;
    }
    let round_trip = started.elapsed().as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS);
    Ok([up, down, round_trip].map(Some))
}
