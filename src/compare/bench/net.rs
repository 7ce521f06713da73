//! `hull bench net`: bytes between programs of the guest and the host, over a tap device and over the
//! machine's socket.

use std::io::{Read, Write};
use std::time::Instant;

use super::error::BenchError;
use super::machines::{Equipment, Machines};
use super::plan::{Bench, Contender, Made, Plan, Program, Samples};
use crate::compare::figure::Better::{Less, More};
use crate::compare::figure::Unit::{BytesPerSecond, Microseconds};
use crate::compare::measure::stream::Stream;

/// Amounts as guest/bench has them.
const BYTES: usize = 64 << 20;
const ROUND_TRIPS: u32 = 500;

pub static PLAN: Plan = Plan {
    topic: "net",
    method: "A new machine for each turn: 64 MiB each way and 500 round trips of a byte, between a program of \
             the guest and this one, by TCP over a tap device (which needs root) and by the machine's socket, \
             where once the guest connects and once the host. The clock is the host's, from a request to the \
             guest, or the first byte, to its answer.",
    // In the order in which the guest does it.
    figures: &[
        ("TCP, guest to host", BytesPerSecond, More),
        ("TCP, host to guest", BytesPerSecond, More),
        ("TCP, round trip of a byte", Microseconds, Less),
        ("socket, guest to host", BytesPerSecond, More),
        ("socket, host to guest", BytesPerSecond, More),
        ("socket, round trip of a byte", Microseconds, Less),
        ("socket, host connects, guest to host", BytesPerSecond, More),
        ("socket, host connects, host to guest", BytesPerSecond, More),
        ("socket, host connects, round trip", Microseconds, Less),
    ],
    warms_up: false,
    contender,
};

fn contender<'a>(bench: &'a Bench, program: &'a Program) -> Made<'a> {
    let is_root = rustix::process::geteuid().is_root();
    Ok(Box::new(Net {
        tap: is_root
            .then(|| Machines::new(bench, program, Equipment::Tap))
            .transpose()?,
        socket: Machines::new(bench, program, Equipment::Vsock)?,
    }))
}

struct Net<'a> {
    tap: Option<Machines<'a>>,
    socket: Machines<'a>,
}

impl Contender for Net<'_> {
    fn prepare(&mut self) -> Result<(), BenchError> {
        self.socket.prepare()
    }

    fn turn(&mut self) -> Result<Samples, BenchError> {
        let mut samples = match &mut self.tap {
            Some(machines) => {
                let mut machine = machines.start()?;
                all_transfers(|request| machine.request(request))?.into()
            }
            None => vec![None; 3],
        };
        let mut machine = self.socket.start()?;
        samples.extend(all_transfers(|request| machine.request(request))?);
        samples.extend(all_transfers(|request| machine.request_by_host(request))?);
        Ok(samples)
    }

    fn missing(&self) -> Option<String> {
        let text = "no TCP: only root can create a tap device; run it as root";
        self.tap.is_none().then(|| text.into())
    }
}

/// To the host, to the guest and round trips, each over a connection of its own.
fn all_transfers(
    mut request: impl FnMut(u8) -> Result<Stream, BenchError>,
) -> Result<[Option<f64>; 3], BenchError> {
    let mut buffer = vec![0; 1 << 16];

    let mut stream = request(b'S')?;
    let started = Instant::now();
    let mut left = BYTES;
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => {
                return Err(BenchError::Other(
                    "its guest closed the connection early".into(),
                ));
            }
            length => left -= length.min(left),
        }
    }
    let to_host = BYTES as f64 / started.elapsed().as_secs_f64();
    drop(stream);

    let mut stream = request(b'R')?;
    let started = Instant::now();
    for _ in 0..BYTES / buffer.len() {
        stream.write_all(&buffer)?;
    }
    stream.read_exact(&mut buffer[..1])?;
    let to_guest = BYTES as f64 / started.elapsed().as_secs_f64();
    drop(stream);

    let mut stream = request(b'P')?;
    let started = Instant::now();
    for _ in 0..ROUND_TRIPS {
        stream.write_all(b"p")?;
        stream.read_exact(&mut buffer[..1])?;
    }
    let round_trip = started.elapsed().as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS);
    Ok([to_host, to_guest, round_trip].map(Some))
}
