//! `hull bench boot`: from exec to a guest's output and end.

use std::path::Path;

use super::error::BenchError;
use super::hull::{number, run_with_report};
use super::plan::{Bench, Contender, Kind, Made, Plan, Program, Samples};
use crate::compare::figure::Better::Less;
use crate::compare::figure::Unit::Milliseconds;
use crate::compare::subject::monitor::Monitored;
use crate::compare::subject::{self, Subject, words};
use crate::kvm::probe;

const COMMAND: [&str; 3] = ["/bin/busybox", "echo", "hi"];
const PRINTED: &str = "hi\n";
/// The points of a cold boot in hull's report.
const POINTS: [&str; 4] = [
    "first_instruction_ms",
    "kernel_output_ms",
    "init_ms",
    "end_ms",
];

pub static PLAN: Plan = Plan {
    topic: "boot",
    method: "Same guest: hull's kernel, its initial RAM disk with an init that runs `/bin/busybox echo hi`, \
             1 vCPU, 128 MiB and a quiet serial console, under every monitor; the clock starts before exec and \
             stops at the command's output, and when the monitor has ended. Cold and warm: `hull run -- \
             /bin/true` with and without --cold; the points in it are those of hull's --json, since its main. \
             Bare calls: /dev/kvm, a machine, its interrupt controllers and a vCPU only, in a process that is \
             already running.",
    figures: &[
        ("same guest: exec to its output", Milliseconds, Less),
        ("same guest: exec to the end", Milliseconds, Less),
        ("cold: to the first instruction", Milliseconds, Less),
        ("cold: to the kernel's output", Milliseconds, Less),
        ("cold: to init", Milliseconds, Less),
        ("cold: to the guest's end", Milliseconds, Less),
        ("cold: exec to the end", Milliseconds, Less),
        ("warm: to the first instruction", Milliseconds, Less),
        ("warm: exec to the end", Milliseconds, Less),
        ("bare calls to KVM, to a vCPU", Milliseconds, Less),
    ],
    warms_up: true,
    contender,
};

fn contender<'a>(bench: &'a Bench, program: &'a Program) -> Made<'a> {
    Ok(Box::new(Boot {
        bench,
        program,
        subject: bench.subject(program)?,
        boots: 0,
    }))
}

struct Boot<'a> {
    bench: &'a Bench,
    program: &'a Program,
    subject: Monitored<'a>,
    boots: usize,
}

impl Contender for Boot<'_> {
    fn prepare(&mut self) -> Result<(), BenchError> {
        Ok(self.subject.prepare()?)
    }

    fn subject(&self) -> Option<&dyn Subject> {
        Some(&self.subject)
    }

    fn turn(&mut self) -> Result<Samples, BenchError> {
        let mut samples = Samples::from(self.same_guest()?.map(Some));
        if self.program.is_hull() {
            samples.extend(self.cold()?.map(Some));
            samples.extend(self.warm()?.map(Some));
        } else {
            samples.extend([None; 7]);
        }
        let this_hull = self.program.kind == Kind::ThisHull;
        samples.push(this_hull.then(bare_calls).transpose()?);
        Ok(samples)
    }
}

impl Boot<'_> {
    fn same_guest(&mut self) -> Result<[f64; 2], BenchError> {
        self.boots += 1;
        let id = format!("boot-{}-{}", std::process::id(), self.boots);
        let (subject, timeout) = (&mut self.subject, self.bench.timeout);
        let instance = subject::start(subject, &words(&COMMAND), PRINTED, id, timeout)?;
        let output = instance.running.elapsed();
        let timed = instance.finish(subject)?;
        Ok([output, timed.end].map(|time| time.as_secs_f64() * 1e3))
    }

    fn cold(&self) -> Result<[f64; 5], BenchError> {
        let (report, end) = self.run_true(&["run", "--cold"])?;
        let mut samples = [end; 5];
        for (sample, point) in samples.iter_mut().zip(POINTS) {
            *sample = number(&report, point)?;
        }
        Ok(samples)
    }

    fn warm(&self) -> Result<[f64; 2], BenchError> {
        let (report, end) = self.run_true(&["run"])?;
        Ok([number(&report, "first_instruction_ms")?, end])
    }

    /// `/bin/true` in hull's own guest: its report, and milliseconds to the end.
    fn run_true(&self, run: &[&str]) -> Result<(serde_json::Value, f64), BenchError> {
        let command = ["--", "/bin/true"].map(Path::new);
        run_with_report(self.bench, self.program, run, &command)
    }
}

/// Milliseconds of the system calls that every monitor needs.
fn bare_calls() -> Result<f64, BenchError> {
    let time = probe::bare_machine().map_err(|error| BenchError::Other(error.to_string()))?;
    Ok(time.as_secs_f64() * 1e3)
}
