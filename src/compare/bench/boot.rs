//! `hull bench boot`: from exec to a guest's output and end.

use std::path::Path;

use super::Bench;
use super::hull;
use super::turns::{Contender, Kind, Made, Plan, Samples, Trouble, Who};
use crate::compare::figure::{Better, Unit};
use crate::compare::measure::timed::{RunError, Running, run};
use crate::compare::subject::{self, Subject};
use crate::kvm::probe;

/// What the guest of all monitors runs, and prints.
const COMMAND: [&str; 3] = ["/bin/busybox", "echo", "hi"];
const PRINTED: &str = "hi\n";
/// Points of a cold boot, in hull's own report.
const POINTS: [&str; 4] = [
    "first_instruction_ms",
    "kernel_output_ms",
    "init_ms",
    "end_ms",
];

pub const PLAN: Plan = Plan {
    method: "Same guest: hull's kernel, its initial RAM disk with an init that runs `/bin/busybox echo hi`, \
             1 vCPU, 128 MiB, a quiet serial console, under every monitor; the clock starts before exec and \
             stops at the command's output, and when the monitor has ended. Cold and warm: `hull run -- \
             /bin/true` with and without --cold; points in it are hull's own, by --json, since its main. \
             Bare calls: /dev/kvm, a machine, its interrupt controllers, a vCPU, and nothing else, in a \
             process that runs already.",
    figures: &[
        (
            "same guest: exec to its output",
            Unit::Milliseconds,
            Better::Less,
        ),
        (
            "same guest: exec to the end",
            Unit::Milliseconds,
            Better::Less,
        ),
        (
            "cold: to the first instruction",
            Unit::Milliseconds,
            Better::Less,
        ),
        (
            "cold: to the kernel's output",
            Unit::Milliseconds,
            Better::Less,
        ),
        ("cold: to init", Unit::Milliseconds, Better::Less),
        ("cold: to the guest's end", Unit::Milliseconds, Better::Less),
        ("cold: exec to the end", Unit::Milliseconds, Better::Less),
        (
            "warm: to the first instruction",
            Unit::Milliseconds,
            Better::Less,
        ),
        ("warm: exec to the end", Unit::Milliseconds, Better::Less),
        (
            "bare calls to KVM, to a vCPU",
            Unit::Milliseconds,
            Better::Less,
        ),
    ],
    warms_up: true,
    contender,
};

fn contender<'a>(bench: &'a Bench, who: &'a Who) -> Made<'a> {
    let name = match who.kind {
        Kind::Own | Kind::Hull => "hull",
        _ => who.name.as_str(),
    };
    let subject = subject::by_name(name, Some(&who.program), &bench.stage)
        .ok_or_else(|| Trouble::Other(format!("this hull cannot drive {name}")))?;
    Ok(Box::new(Boot {
        bench,
        who,
        subject,
        boots: 0,
    }))
}

struct Boot<'a> {
    bench: &'a Bench,
    who: &'a Who,
    subject: Box<dyn Subject + 'a>,
    boots: usize,
}

impl Contender for Boot<'_> {
    fn prepare(&mut self) -> Result<(), Trouble> {
        Ok(self.subject.prepare()?)
    }

    fn version(&self) -> Option<String> {
        self.subject.version()
    }

    fn turn(&mut self) -> Result<Samples, Trouble> {
        let mut samples = self.same_guest()?;
        match self.who.kind {
            Kind::Own | Kind::Hull => {
                samples.extend(self.cold()?);
                samples.extend(self.warm()?);
            }
            _ => samples.extend([None; 7]),
        }
        samples.push(match self.who.kind {
            Kind::Own => Some(bare()?),
            _ => None,
        });
        Ok(samples)
    }

    fn caveats(&self) -> Vec<String> {
        match self.who.kind {
            Kind::Own | Kind::Hull => Vec::new(),
            _ => self.subject.caveats(),
        }
    }
}

impl Boot<'_> {
    fn same_guest(&mut self) -> Result<Samples, Trouble> {
        self.boots += 1;
        let id = format!("boot-{}-{}", std::process::id(), self.boots);
        let words = COMMAND.map(String::from);
        let mut command = self.subject.command(&words, &id)?;
        let timed = Running::start(&mut command, self.bench.limits).and_then(|mut running| {
            let output = running.until(PRINTED)?;
            Ok((output, running.finish()?))
        });
        self.subject.clear(&id);
        let (output, mut timed) = timed?;
        let judged = self.subject.judge(&mut timed.output);
        judged.map_err(RunError::Judged)?;
        Ok([output, timed.end]
            .map(|time| Some(time.as_secs_f64() * 1e3))
            .into())
    }

    fn cold(&self) -> Result<Samples, Trouble> {
        let (report, end) = self.own(&["run", "--cold", "--json"])?;
        let mut samples = Samples::new();
        for point in POINTS {
            samples.push(Some(hull::ms(&report, point)?));
        }
        samples.push(Some(end));
        Ok(samples)
    }

    fn warm(&self) -> Result<Samples, Trouble> {
        let (report, end) = self.own(&["run", "--json"])?;
        Ok(vec![
            Some(hull::ms(&report, "first_instruction_ms")?),
            Some(end),
        ])
    }

    /// hull's own guest: its report, and milliseconds to the end.
    fn own(&self, words: &[&str]) -> Result<(serde_json::Value, f64), Trouble> {
        let path = self.bench.path("report");
        let program: &Path = &self.who.program;
        let mut hull = hull::command(self.bench, program, words);
        hull.arg(&path).args(["--", "/bin/true"]);
        let timed = run(&mut hull, self.bench.limits)?;
        Ok((hull::report(&path)?, timed.end.as_secs_f64() * 1e3))
    }
}

/// What no monitor can do without.
fn bare() -> Result<f64, Trouble> {
    let bare = probe::bare_machine().map_err(|error| Trouble::Other(error.to_string()))?;
    Ok(bare.as_secs_f64() * 1e3)
}
