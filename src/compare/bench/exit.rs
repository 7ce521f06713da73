//! `hull bench exit`: the round trip from a guest to hull and back.

use std::fs;

use kvm_ioctls::Kvm;

use super::error::BenchError;
use super::hull::{number, run_with_report};
use super::plan::{Bench, Contender, Kind, Made, Plan, Program, Samples};
use crate::compare::figure::Better::Less;
use crate::compare::figure::Unit::Microseconds;
use crate::kvm::probe;

const EXITS: u32 = 5_000;
/// Marks at the debug port (see the report of `hull run --json`): init calls begin, init runs.
const BEGIN: u8 = 0x41;
const END: u8 = 0x60;

pub static PLAN: Plan = Plan {
    topic: "exit",
    method: "A flat guest writes to the serial port's scratch register 5000 times in a loop, between two \
             marks whose times hull reports: the mean of one OUT, from the guest through KVM to the device and \
             back; once with `hull run`, once with `hull run --trace`. KVM's part: the same with a loop of \
             hull that has no devices, the minimum of 3 times 32.",
    figures: &[
        ("round trip of an OUT", Microseconds, Less),
        ("the same under --trace", Microseconds, Less),
        ("of it KVM's part", Microseconds, Less),
    ],
    warms_up: true,
    contender,
};

fn contender<'a>(bench: &'a Bench, program: &'a Program) -> Made<'a> {
    if program.is_hull() {
        Ok(Box::new(Exit::new(bench, program)))
    } else {
        Err(BenchError::Other("it runs no flat guests".into()))
    }
}

pub struct Exit<'a> {
    bench: &'a Bench,
    program: &'a Program,
}

impl Contender for Exit<'_> {
    fn prepare(&mut self) -> Result<(), BenchError> {
        Ok(fs::write(self.bench.path("payload"), payload())?)
    }

    fn turn(&mut self) -> Result<Samples, BenchError> {
        let trace = self.bench.path("trace").display().to_string();
        let plain = self.round_trip(&["run", "--cold"])?;
        let traced = self.round_trip(&["run", "--cold", "--trace", &trace])?;
        let this_hull = self.program.kind == Kind::ThisHull;
        let part = this_hull.then(part_of_kvm).transpose()?;
        Ok(vec![Some(plain), Some(traced), part])
    }
}

impl<'a> Exit<'a> {
    pub fn new(bench: &'a Bench, program: &'a Program) -> Self {
        Self { bench, program }
    }

    /// Microseconds of one. The payload is there since [`Contender::prepare`].
    pub fn round_trip(&self, run: &[&str]) -> Result<f64, BenchError> {
        let payload = self.bench.path("payload");
        let (report, _) = run_with_report(self.bench, self.program, run, &[&payload])?;
        let all_ms = number(&report, "init_ms")? - number(&report, "initcalls_ms")?;
        Ok(all_ms * 1e3 / f64::from(EXITS))
    }
}

fn part_of_kvm() -> Result<f64, BenchError> {
    let other = |error: &dyn std::error::Error| BenchError::Other(error.to_string());
    let kvm = Kvm::new().map_err(|error| other(&error))?;
    let measured = probe::measure(kvm).map_err(|error| other(&error))?;
    Ok(measured.port_exit_us)
}

/// The guest, in real mode: the head of a flat payload, and a loop.
fn payload() -> Vec<u8> {
    let mut bytes = vec![0xeb, 0x0e];
    bytes.extend(b"HULLFLAT");
    bytes.extend([16, 0, 0, 0, 0, 0]);
    bytes.extend([0x66, 0xb9]); // mov ecx, EXITS
    bytes.extend(EXITS.to_le_bytes());
    bytes.extend([0xba, 0xff, 0x03]); // mov dx, 3ffh: the UART's scratch register
    bytes.extend([0xb0, BEGIN, 0xe6, 0x80]); // mov al, BEGIN; out 80h, al
    bytes.extend([0xee, 0x66, 0x49, 0x75, 0xfb]); // again: out dx, al; dec ecx; jnz again
    bytes.extend([0xb0, END, 0xe6, 0x80]); // mov al, END; out 80h, al
    bytes.extend([0xba, 0x04, 0x06, 0xb8, 0x00, 0x34, 0xef]); // ACPI S5: power off
    bytes.extend([0xf4, 0xeb, 0xfd]); // hlt; jump to it
    bytes
}
