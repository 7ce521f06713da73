//! `hull bench density`: many machines from one snapshot at the same time.

use std::time::{Duration, Instant};

use super::Bench;
use super::restore::{Clone, Saved, saved};
use super::turns::{Contender, Made, Plan, Samples, Trouble, Who};
use crate::compare::figure::{Better, Unit};
use crate::compare::measure::host::memory_available;
use crate::compare::measure::timed;
use crate::compare::measure::tree;
use crate::compare::subject::guest::TYPED;

/// So many at once.
const CLONES: [usize; 3] = [10, 50, 100];
/// Until machines that have answered are idle.
const SETTLE: Duration = Duration::from_secs(1);

pub const PLAN: Plan = Plan {
    method: "A snapshot of an idle guest of 128 MiB goes on as 10, 50 and 100 machines at once, each started when \
             the one before has answered (its terminal has echoed what was typed). A second after the last: \
             resident memory of their monitors, shared pages divided among those that share them (PSS), a \
             machine; and how much less memory the host has available (MemAvailable) than before the first, \
             a machine. The time is from the first's exec to the last's answer.",
    figures: &[
        ("10 clones: PSS of each", Unit::Bytes, Better::Less),
        ("50 clones: PSS of each", Unit::Bytes, Better::Less),
        ("100 clones: PSS of each", Unit::Bytes, Better::Less),
        (
            "100 clones: less available, for each",
            Unit::Bytes,
            Better::Less,
        ),
        (
            "100 clones: until all have answered",
            Unit::Milliseconds,
            Better::Less,
        ),
    ],
    warms_up: false,
    contender,
};

fn contender<'a>(bench: &'a Bench, who: &'a Who) -> Made<'a> {
    Ok(Box::new(Density {
        saved: saved(bench, who)?,
        short: None,
    }))
}

struct Density<'a> {
    saved: Box<dyn Saved + 'a>,
    /// Why it did not come to all clones, if it did not.
    short: Option<String>,
}

impl Contender for Density<'_> {
    fn prepare(&mut self) -> Result<(), Trouble> {
        self.saved.save()
    }

    fn turn(&mut self) -> Result<Samples, Trouble> {
        let before = available()?;
        let mut clones: Vec<Clone> = Vec::new();
        let mut samples = Samples::new();
        let mut answering = Duration::ZERO;
        for wanted in CLONES {
            let started = Instant::now();
            match self.add(&mut clones, wanted) {
                Err(error) if !samples.is_empty() && !timed::is_stopped() => {
                    // What there is of fewer clones counts; the rest is not measured.
                    self.short = Some(format!("not measured with {wanted} clones: {error}"));
                    samples.resize(PLAN.figures.len(), None);
                    return Ok(samples);
                }
                done => done?,
            }
            answering += started.elapsed();
            timed::pause(SETTLE)?;
            let processes = clones.iter().map(|clone| clone.running.id());
            let processes: Vec<u32> = processes.flat_map(tree::descendants).collect();
            let held = tree::held(&processes).proportional as f64;
            samples.push(Some(held / wanted as f64));
        }
        let taken = before.saturating_sub(available()?) as f64;
        samples.push(Some(taken / clones.len() as f64));
        samples.push(Some(answering.as_secs_f64() * 1e3));
        Ok(samples)
    }

    fn caveats(&self) -> Vec<String> {
        let mut caveats = self.saved.caveats();
        caveats.extend(self.short.clone());
        caveats
    }
}

impl Density<'_> {
    /// Until there are `wanted`, each of which has answered.
    fn add(&mut self, clones: &mut Vec<Clone>, wanted: usize) -> Result<(), Trouble> {
        while clones.len() < wanted {
            let name = format!("clone-{}", clones.len());
            let mut clone = self.saved.go_on(&name)?;
            clone.running.until(TYPED)?;
            clones.push(clone);
        }
        Ok(())
    }
}

fn available() -> Result<u64, Trouble> {
    memory_available().ok_or_else(|| Trouble::Other("/proc/meminfo has no MemAvailable".into()))
}
