//! `hull bench restore`: from exec to a guest that goes on from a snapshot, and saving it.

use std::time::Duration;

use super::Bench;
use super::firecracker::Firecracker;
use super::hull::Snapshot;
use super::turns::{Contender, Kind, Made, Plan, Samples, Trouble, Who};
use crate::compare::figure::{Better, Unit};
use crate::compare::measure::timed::Running;
use crate::compare::subject::guest::TYPED;

pub const PLAN: Plan = Plan {
    method: "An idle guest (hull's kernel, 1 vCPU, 128 MiB, a quiet serial console) is saved once, after it \
             has been idle for 2 s. The clock starts before exec and stops at hull's first KVM_RUN, by its \
             --json; when a control socket has answered, of hull a request for its status, of Firecracker \
             PUT /snapshot/load with resume_vm; and when the guest's terminal has echoed what was on \
             standard input. Saving it again: from the order to its end, and how long the guest stood still.",
    figures: &[
        (
            "exec to the guest's answer",
            Unit::Milliseconds,
            Better::Less,
        ),
        (
            "exec to an answer at the socket",
            Unit::Milliseconds,
            Better::Less,
        ),
        (
            "exec to the first KVM_RUN",
            Unit::Milliseconds,
            Better::Less,
        ),
        ("saving it, order to end", Unit::Milliseconds, Better::Less),
        (
            "saving it, the guest stands still",
            Unit::Milliseconds,
            Better::Less,
        ),
    ],
    warms_up: true,
    contender,
};

/// An idle guest that was saved, and can go on any number of times.
pub trait Saved {
    /// Boot it, let it become idle, save it.
    fn save(&mut self) -> Result<(), Trouble>;

    /// Start a monitor named `name` that has it go on, with [`TYPED`] on its input. It is ended when what
    /// comes of it is dropped.
    fn go_on(&mut self, name: &str) -> Result<Clone, Trouble>;

    /// Save the running `name` once more, elsewhere: milliseconds that this took, and that the
    /// guest stood still.
    fn save_again(&mut self, name: &str) -> Result<[f64; 2], Trouble>;

    /// End it in good order; when it first ran the guest, in milliseconds since exec, if it tells.
    fn first_run(&mut self, name: &str, clone: Clone) -> Result<Option<f64>, Trouble>;

    /// What a reader has to know of how it was run.
    fn caveats(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A guest that goes on.
pub struct Clone {
    /// Its monitor.
    pub running: Running,
    /// When a socket of the monitor's had answered.
    pub answered: Duration,
}

/// What `who` saves and restores.
pub fn saved<'a>(bench: &'a Bench, who: &'a Who) -> Result<Box<dyn Saved + 'a>, Trouble> {
    Ok(match who.kind {
        Kind::Own | Kind::Hull => Box::new(Snapshot::new(bench, &who.program, &who.name)),
        Kind::Firecracker => Box::new(Firecracker::new(bench, &who.program)),
        Kind::Other => return Err(Trouble::Other("its snapshots are not measured".into())),
    })
}

fn contender<'a>(bench: &'a Bench, who: &'a Who) -> Made<'a> {
    Ok(Box::new(Restore(saved(bench, who)?)))
}

struct Restore<'a>(Box<dyn Saved + 'a>);

impl Contender for Restore<'_> {
    fn prepare(&mut self) -> Result<(), Trouble> {
        self.0.save()
    }

    fn turn(&mut self) -> Result<Samples, Trouble> {
        const NAME: &str = "again";
        let mut clone = self.0.go_on(NAME)?;
        let echoed = clone.running.until(TYPED)?;
        let answered = clone.answered;
        let [saving, still] = self.0.save_again(NAME)?;
        let first = self.0.first_run(NAME, clone)?;
        let ms = |time: Duration| Some(time.as_secs_f64() * 1e3);
        Ok(vec![
            ms(echoed),
            ms(answered),
            first,
            Some(saving),
            Some(still),
        ])
    }
    fn caveats(&self) -> Vec<String> {
        self.0.caveats()
    }
}
