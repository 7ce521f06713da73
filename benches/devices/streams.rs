//! Bytes between programs of the guest's and the host's: over a tap device, over the socket.

use std::time::Instant;

use super::machines::{Files, Machine, Stream};
use super::{Result, Table, mib_a_second};

/// As the guest has it.
const BYTES: usize = 64 << 20;
const ROUND_TRIPS: u32 = 500;

/// TCP over a tap device.
pub const NET: Table = Table {
    word: "net",
    title: "TCP over a tap device",
    rows: &[
        "guest to host, MiB/s",
        "host to guest, MiB/s",
        "round trip, us",
    ],
    figures: net,
};

/// The machine's socket.
pub const VSOCK: Table = Table {
    word: "vsock",
    title: "vsock",
    rows: &[
        "guest to host, MiB/s",
        "host to guest, MiB/s",
        "round trip, us",
        "guest to host, host connects, MiB/s",
        "host to guest, host connects, MiB/s",
        "round trip, host connects, us",
    ],
    figures: vsock,
};

fn net(_: &Files, machine: Machine) -> Result<Vec<f64>> {
    let figures = all(|order| machine.order(order))?;
    drop(machine.order(b'Q')?);
    machine.finish()?;
    Ok(figures)
}

fn vsock(_: &Files, machine: Machine) -> Result<Vec<f64>> {
    let mut figures = all(|order| machine.order(order))?;
    figures.extend(all(|order| machine.order_by_host(order))?);
    drop(machine.order(b'Q')?);
    machine.finish()?;
    Ok(figures)
}

/// Up, down, to and fro, each on a connection of its own.
fn all(order: impl Fn(u8) -> Result<Box<dyn Stream>>) -> Result<Vec<f64>> {
    let mut buffer = vec![0; 1 << 16];

    let mut stream = order(b'S')?;
    let started = Instant::now();
    let mut left = BYTES;
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => return Err("the guest closed early".into()),
            len => left -= len.min(left),
        }
    }
    let up = mib_a_second(BYTES, started.elapsed());
    drop(stream);

    let mut stream = order(b'R')?;
    let started = Instant::now();
    for _ in 0..BYTES / buffer.len() {
        stream.write_all(&buffer)?;
    }
    stream.read_exact(&mut buffer[..1])?;
    let down = mib_a_second(BYTES, started.elapsed());
    drop(stream);

    let mut stream = order(b'P')?;
    let started = Instant::now();
    for _ in 0..ROUND_TRIPS {
        stream.write_all(b"p")?;
        stream.read_exact(&mut buffer[..1])?;
    }
    let round_trip = started.elapsed().as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS);
    Ok(vec![up, down, round_trip])
}
