//! How subjects take turns, and what becomes of their samples.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::report::Participant;
use super::{Bench, BenchError, Progress};
use crate::compare::figure::{Better, Figure, Unit};
use crate::compare::measure::timed::{self, RunError};
use crate::compare::subject::{self, LeftOut, StageError};

/// A figure before it is measured: its name, its unit, which way is good.
pub type Wanted = (&'static str, Unit, Better);

/// What [`Contender::turn`] measured: a sample of each figure that the topic has, or none of one that its
/// subject does not have.
pub type Samples = Vec<Option<f64>>;

/// A contender, or why there is none.
pub type Made<'a> = Result<Box<dyn Contender + 'a>, Trouble>;

/// What a topic measures, and of whom.
pub struct Plan {
    /// What starts and stops a clock, what is counted.
    pub method: &'static str,
    /// The figures, in the order of the samples.
    pub figures: &'static [Wanted],
    /// Whether there is a turn before the first that counts: what is read is in memory then.
    pub warms_up: bool,
    /// A subject, ready to be prepared; an error if it has no figures of this topic.
    pub contender: for<'a> fn(&'a Bench, &'a Who) -> Made<'a>,
}

/// hull, or one that takes turns with it.
pub struct Who {
    /// As the figures have it.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub program: PathBuf,
}

/// What a subject is, which is how it is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The program that measures.
    Own,
    /// Another hull.
    Hull,
    /// Firecracker.
    Firecracker,
    /// One of the monitors that [`subjects`](crate::compare::subject) can run a command under.
    Other,
}

/// One that takes turns. Whatever it starts is gone when a turn is over, or when it is dropped.
pub trait Contender {
    /// Make what its turns start from.
    fn prepare(&mut self) -> Result<(), Trouble> {
        Ok(())
    }

    /// Do once what is measured.
    fn turn(&mut self) -> Result<Samples, Trouble>;

    /// What it says its version is, if not to the flag --version.
    fn version(&self) -> Option<String> {
        None
    }

    /// What a reader has to know of how it was run. Asked when all turns are over.
    fn caveats(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Why a turn gave nothing.
#[derive(Debug, Error)]
pub enum Trouble {
    /// The process.
    #[error("it {0}")]
    Run(#[from] RunError),
    /// It is not there, or does not do.
    #[error(transparent)]
    LeftOut(#[from] LeftOut),
    /// What it starts from.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A file, a folder, a socket.
    #[error("cannot measure it: {0}")]
    Io(#[from] io::Error),
    /// It does not have what is measured, or something else than expected came of it.
    #[error("{0}")]
    Other(String),
}

/// A contender and what came of its turns.
struct Entrant<'a> {
    who: &'a Who,
    contender: Option<Box<dyn Contender + 'a>>,
    samples: Vec<Vec<f64>>,
    failed: usize,
    turns: usize,
    trouble: Option<String>,
}

/// Have all of `who` do what `plan` measures, `runs` times, one after the other. The order is reversed each
/// time, so that nobody is always behind the same one.
///
/// # Errors
/// This process was told to stop.
pub fn take(
    bench: &Bench,
    plan: &Plan,
    who: &[Who],
    runs: usize,
    progress: &mut Progress,
) -> Result<(Vec<Participant>, Vec<Figure>), BenchError> {
    let of = |who| Entrant::new(who, plan, (plan.contender)(bench, who));
    rounds(who.iter().map(of).collect(), plan, runs, progress)
}

fn rounds(
    mut entrants: Vec<Entrant>,
    plan: &Plan,
    runs: usize,
    progress: &mut Progress,
) -> Result<(Vec<Participant>, Vec<Figure>), BenchError> {
    let rounds = runs + 1;
    for round in 0..rounds {
        let mut order: Vec<&mut Entrant> = entrants.iter_mut().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        let all = order.len();
        for (turn, entrant) in order.into_iter().enumerate() {
            progress(round * all + turn, rounds * all, &entrant.who.name);
            match round {
                0 => entrant.prepare(plan.warms_up),
                _ => entrant.turn(),
            }
            if timed::is_stopped() {
                return Err(BenchError::Stopped);
            }
        }
    }
    let figures = (0..plan.figures.len()).map(|index| figure(plan, &entrants, index));
    let figures = figures.collect();
    Ok((entrants.iter().map(Entrant::participant).collect(), figures))
}

/// Of all that have any.
fn figure(plan: &Plan, entrants: &[Entrant], index: usize) -> Figure {
    let (name, unit, better) = plan.figures[index];
    let columns = entrants.iter().filter(|one| one.contender.is_some());
    let of = |one: &Entrant| -> Vec<f64> { one.samples.get(index).cloned().unwrap_or_default() };
    let samples = columns.clone().map(|one| (one.who.name.as_str(), of(one)));
    let mut figure = Figure::of_samples(name, unit, better, samples);
    for (cell, entrant) in figure.cells.iter_mut().zip(columns) {
        cell.note = match cell.samples.is_empty() {
            true => Some("not measured of it".into()),
            false => entrant.note(),
        };
    }
    figure
}

impl<'a> Entrant<'a> {
    fn new(who: &'a Who, plan: &Plan, contender: Made<'a>) -> Self {
        let trouble = contender.as_ref().err().map(ToString::to_string);
        Self {
            who,
            contender: contender.ok(),
            samples: vec![Vec::new(); plan.figures.len()],
            failed: 0,
            turns: 0,
            trouble,
        }
    }

    /// Whoever fails here takes part no more: that takes as long as it may, once.
    fn prepare(&mut self, warms_up: bool) {
        let Some(contender) = &mut self.contender else {
            return;
        };
        let prepared = contender.prepare();
        let outcome = prepared.and_then(|()| match warms_up {
            true => contender.turn().map(drop),
            false => Ok(()),
        });
        if let Err(error) = outcome {
            self.trouble = Some(error.to_string());
            self.contender = None;
        }
    }

    fn turn(&mut self) {
        let Some(contender) = &mut self.contender else {
            return;
        };
        self.turns += 1;
        match contender.turn() {
            Ok(samples) => {
                for (all, sample) in self.samples.iter_mut().zip(samples) {
                    all.extend(sample);
                }
            }
            Err(error) => {
                self.failed += 1;
                self.trouble = Some(error.to_string());
                if self.failed == self.turns {
                    // Not once did it work.
                    self.contender = None;
                }
            }
        }
    }

    fn note(&self) -> Option<String> {
        let trouble = self.trouble.as_ref()?;
        let (failed, turns) = (self.failed, self.turns);
        Some(format!("{failed} of {turns} turns failed: {trouble}"))
    }

    fn participant(&self) -> Participant {
        let contender = self.contender.as_ref();
        let caveats = contender.map(|contender| contender.caveats());
        Participant {
            name: self.who.name.clone(),
            program: self.who.program.clone(),
            version: contender.and_then(|one| one.version().or_else(|| self.who.version())),
            caveats: caveats.unwrap_or_default(),
            left_out: match contender {
                Some(_) => None,
                None => self.trouble.clone(),
            },
        }
    }
}

impl Who {
    fn version(&self) -> Option<String> {
        subject::first_line(&self.program, "--version")
    }
}

#[cfg(test)]
mod tests;
