//! `hull bench exit`: the way from a guest to hull and back.

use std::fs;
use std::path::Path;

use kvm_ioctls::Kvm;

use super::Bench;
use super::hull;
use super::turns::{Contender, Kind, Made, Plan, Samples, Trouble, Who};
use crate::compare::figure::{Better, Unit};
use crate::compare::measure::timed::run;
use crate::kvm::probe;

/// Round trips in one run.
const EXITS: u32 = 5_000;
/// Marks at the debug port (see the report of `hull run --json`): init calls begin, init runs.
const BEGIN: u8 = 0x41;
const END: u8 = 0x60;

pub const PLAN: Plan = Plan {
    method: "A flat guest writes to the serial port's scratch register 5000 times in a loop, between two \
             marks by which hull tells the time: the mean of one OUT, from the guest through KVM to the \
             device and back; once by `hull run`, once by `hull run --trace`. KVM's part of it: the same by \
             a loop of hull's that has no devices, the least of 3 times 32.",
    figures: &[
        ("round trip of an OUT", Unit::Microseconds, Better::Less),
        ("the same under --trace", Unit::Microseconds, Better::Less),
        ("of it KVM's part", Unit::Microseconds, Better::Less),
    ],
    warms_up: true,
    contender,
};

fn contender<'a>(bench: &'a Bench, who: &'a Who) -> Made<'a> {
    match who.kind {
        Kind::Own | Kind::Hull => Ok(Box::new(Exit { bench, who })),
        _ => Err(Trouble::Other("it runs no flat guests".into())),
    }
}

struct Exit<'a> {
    bench: &'a Bench,
    who: &'a Who,
}

impl Contender for Exit<'_> {
    fn prepare(&mut self) -> Result<(), Trouble> {
        Ok(fs::write(self.bench.path("payload"), payload())?)
    }

    fn turn(&mut self) -> Result<Samples, Trouble> {
        let off = self.round_trip(None)?;
        let on = self.round_trip(Some(&self.bench.path("trace")))?;
        let part = match self.who.kind {
            Kind::Own => Some(kvms_part()?),
            _ => None,
        };
        Ok(vec![Some(off), Some(on), part])
    }
}

impl Exit<'_> {
    fn round_trip(&self, trace: Option<&Path>) -> Result<f64, Trouble> {
        let path = self.bench.path("report");
        let words = ["run", "--cold", "--json"];
        let mut hull = hull::command(self.bench, &self.who.program, &words);
        hull.arg(&path);
        if let Some(trace) = trace {
            hull.arg("--trace").arg(trace);
        }
        run(hull.arg(self.bench.path("payload")), self.bench.limits)?;
        let report = hull::report(&path)?;
        let all = hull::ms(&report, "init_ms")? - hull::ms(&report, "initcalls_ms")?;
        Ok(all * 1e3 / f64::from(EXITS))
    }
}

fn kvms_part() -> Result<f64, Trouble> {
    let told = |error: &dyn std::error::Error| Trouble::Other(error.to_string());
    let kvm = Kvm::new().map_err(|error| told(&error))?;
    let measured = probe::measure(kvm).map_err(|error| told(&error))?;
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
    bytes.extend([0xba, 0x04, 0x06, 0xb8, 0x00, 0x34, 0xef]); // off: ACPI's S5
    bytes.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp to it
    bytes
}
