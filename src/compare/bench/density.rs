//! `hull bench density`: many machines from one snapshot at the same time.

use std::time::{Duration, Instant};

use super::error::BenchError;
use super::plan::{Bench, Contender, Made, Plan, Program, Samples};
use super::restore::saved_guest;
use super::resumed::{ResumedGuest, SavedGuest};
use crate::compare::figure::Better::Less;
use crate::compare::figure::Unit::{Bytes, Milliseconds};
use crate::compare::measure::host::memory_available;
use crate::compare::measure::stop::{is_stopped, pause};
use crate::compare::measure::tree;
use crate::compare::subject::guest::TYPED;

/// The numbers of machines at which memory is read.
const MACHINES: [usize; 3] = [10, 50, 100];
/// Time for machines to become idle after their answers.
const SETTLE_TIME: Duration = Duration::from_secs(1);

pub static PLAN: Plan = Plan {
    topic: "density",
    method: "A snapshot of an idle guest of 128 MiB is restored in 10, 50 and 100 machines, each started when \
             the one before has answered (its terminal has echoed the input). A second after the last: the \
             proportional memory (PSS) of all monitors, and how much less memory the host has available \
             (MemAvailable) than before the first, each divided by the number of machines. The time is from \
             the exec of the first to the answer of the last.",
    figures: &[
        ("10 clones: PSS of each", Bytes, Less),
        ("50 clones: PSS of each", Bytes, Less),
        ("100 clones: PSS of each", Bytes, Less),
        ("100 clones: less available, for each", Bytes, Less),
        ("100 clones: until all have answered", Milliseconds, Less),
    ],
    warms_up: false,
    contender,
};

fn contender<'a>(bench: &'a Bench, program: &'a Program) -> Made<'a> {
    Ok(Box::new(Density {
        saved: saved_guest(bench, program)?,
        limited_by: None,
    }))
}

struct Density<'a> {
    saved: Box<dyn SavedGuest + 'a>,
    /// Why the last turn had fewer machines.
    limited_by: Option<String>,
}

impl Contender for Density<'_> {
    fn prepare(&mut self) -> Result<(), BenchError> {
        self.saved.save()
    }

    fn turn(&mut self) -> Result<Samples, BenchError> {
        let before = available()?;
        let mut guests = Vec::new();
        let mut samples = Samples::new();
        let mut answering = Duration::ZERO;
        for wanted in MACHINES {
            let started = Instant::now();
            match self.restore_up_to(wanted, &mut guests) {
                Err(error) if !samples.is_empty() && !is_stopped() => {
                    self.limited_by = Some(format!("not measured with {wanted} clones: {error}"));
                    samples.resize(PLAN.figures.len(), None);
                    return Ok(samples);
                }
                done => done?,
            }
            answering += started.elapsed();
            pause(SETTLE_TIME)?;
            let monitors = guests.iter().map(|guest| guest.running.id());
            let processes: Vec<u32> = monitors.flat_map(tree::descendants).collect();
            let all = tree::usage(&processes)?.proportional as f64;
            samples.push(Some(all / wanted as f64));
        }
        let taken = before.saturating_sub(available()?) as f64;
        samples.push(Some(taken / guests.len() as f64));
        samples.push(Some(answering.as_secs_f64() * 1e3));
        Ok(samples)
    }

    fn missing(&self) -> Option<String> {
        self.limited_by.clone()
    }
}

impl Density<'_> {
    /// Restores until there are `wanted` guests, each of which has answered.
    fn restore_up_to(
        &mut self,
        wanted: usize,
        guests: &mut Vec<ResumedGuest>,
    ) -> Result<(), BenchError> {
        while guests.len() < wanted {
            let mut guest = self.saved.restore(&format!("clone-{}", guests.len()))?;
            guest.running.until(TYPED)?;
            guests.push(guest);
        }
        Ok(())
    }
}

fn available() -> Result<u64, BenchError> {
    let missing = || BenchError::Other("/proc/meminfo has no MemAvailable".into());
    memory_available().ok_or_else(missing)
}
