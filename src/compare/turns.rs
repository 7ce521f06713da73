//! The scheduler of both verbs: participants take turns.
//!
//! A participant that fails at its warm-up is left out, with the reason. The others then run round after
//! round, in an order that is reversed after each round, so that none always follows the same other one.

use std::fmt::Display;

use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::measure::stop::is_stopped;

#[derive(Clone, Debug, PartialEq)]
pub struct Progress<'a> {
    /// The share of all work that is done, from 0 to 1.
    pub share: f64,
    pub part: &'a str,
    /// The current step: "startup time: echo, crun".
    pub step: &'a str,
}

pub type OnProgress<'a> = Box<dyn FnMut(Progress) + 'a>;

pub struct Turns<'a, D> {
    pub runs: usize,
    participants: Vec<Participant<D>>,
    on_progress: OnProgress<'a>,
    /// The row or the topic that is measured, its number, and the number of all.
    part: (String, usize, usize),
}

struct Participant<D> {
    name: String,
    driver: D,
    left_out: Option<String>,
}

/// What was measured of each participant, with the participant's number.
pub type Each<T> = Vec<(usize, T)>;

/// The unit and direction of figures of texts and probes.
pub const TEXT: (Unit, Better) = (Unit::Text, Better::Neither);

#[derive(Clone, Debug)]
pub struct Runs<T> {
    /// What each successful run gave, in their order.
    pub done: Vec<T>,
    errors: Vec<String>,
}

impl<T> Runs<T> {
    /// How many runs failed, and how the last of them did.
    pub fn note(&self) -> Option<String> {
        let error = self.errors.last()?;
        let (failed, all) = (self.errors.len(), self.errors.len() + self.done.len());
        Some(format!("{failed} of {all} runs failed: {error}"))
    }
}

impl<'a, D> Turns<'a, D> {
    /// `participants` are pairs of a name and a driver, in the order of the report.
    pub fn new(
        participants: impl IntoIterator<Item = (String, D)>,
        runs: usize,
        on_progress: OnProgress<'a>,
    ) -> Self {
        let participants = participants.into_iter().map(|(name, driver)| Participant {
            name,
            driver,
            left_out: None,
        });
        Self {
            runs,
            participants: participants.collect(),
            on_progress,
            part: Default::default(),
        }
    }

    pub fn begin(&mut self, name: &str, number: usize, count: usize) {
        self.part = (name.into(), number, count);
    }

    /// Reports that `done` of `of` steps of this part are done, and that participant `index` does `what`.
    pub fn step(&mut self, done: usize, of: usize, index: usize, what: &str) {
        let (name, number, count) = &self.part;
        let inside = done as f64 / of.max(1) as f64;
        (self.on_progress)(Progress {
            share: (*number as f64 + inside) / (*count).max(1) as f64,
            part: name,
            step: &format!("{name}: {what}, {}", self.participants[index].name),
        });
    }

    /// Calls `prepare` with each driver, and leaves out the participants for which it fails.
    pub fn warm_up<E: Display>(&mut self, prepare: impl FnMut(&mut D) -> Result<(), E>) {
        for (index, prepared) in self.each("prepared", prepare) {
            if let Err(reason) = prepared {
                self.leave_out(index, reason);
            }
        }
    }

    pub fn each<T>(&mut self, what: &str, mut measure: impl FnMut(&mut D) -> T) -> Each<T> {
        let indices = self.indices();
        let mut results = Vec::new();
        for (done, index) in indices.iter().enumerate() {
            self.step(done, indices.len(), *index, what);
            results.push((*index, measure(self.driver_mut(*index))));
        }
        results
    }

    /// Calls `turn` with each participant's number and driver in rounds.
    pub fn rounds(&mut self, what: &str, mut turn: impl FnMut(usize, &mut D)) {
        let mut order = self.indices();
        for round in 0..self.runs {
            for (done, index) in order.iter().enumerate() {
                if is_stopped() {
                    return;
                }
                let (done, of) = (round * order.len() + done, self.runs * order.len());
                self.step(done, of, *index, what);
                turn(*index, self.driver_mut(*index));
            }
            order.reverse();
        }
    }

    /// As [`rounds`](Self::rounds), collecting what each turn gives.
    pub fn runs<T, E: Display>(
        &mut self,
        what: &str,
        mut turn: impl FnMut(&mut D) -> Result<T, E>,
    ) -> Each<Runs<T>> {
        let none = |index| {
            let (done, errors) = Default::default();
            (index, Runs { done, errors })
        };
        let mut all: Each<Runs<T>> = self.indices().into_iter().map(none).collect();
        self.rounds(what, |index, driver| {
            let runs = all.iter_mut().find(|(at, _)| *at == index);
            match (runs, turn(driver)) {
                (Some((_, runs)), Ok(done)) => runs.done.push(done),
                (Some((_, runs)), Err(error)) => runs.errors.push(error.to_string()),
                (None, _) => {}
            }
        });
        all
    }

    pub fn figure<T>(
        &self,
        name: impl Into<String>,
        (unit, better): (Unit, Better),
        results: &[(usize, T)],
        cell: impl Fn(&T) -> Cell,
    ) -> Figure {
        let results = results.iter().filter(|(index, _)| self.takes_part(*index));
        let cells = results.map(|(index, result)| cell(result).of(self.name(*index)));
        Figure::new(name, unit, better, cells.collect())
    }

    /// As [`figure`](Self::figure), with the reasons where there are no results.
    pub fn results<T>(
        &self,
        name: impl Into<String>,
        quantity: (Unit, Better),
        results: &[(usize, Result<T, String>)],
        cell: impl Fn(&T) -> Cell,
    ) -> Figure {
        self.figure(name, quantity, results, |result| {
            let missing = |why: &String| Cell::missing(why.as_str());
            result.as_ref().map_or_else(missing, &cell)
        })
    }

    pub fn indices(&self) -> Vec<usize> {
        let all = 0..self.participants.len();
        all.filter(|index| self.takes_part(*index)).collect()
    }

    pub fn leave_out(&mut self, index: usize, reason: impl Display) {
        self.participants[index].left_out = Some(reason.to_string());
    }

    fn takes_part(&self, index: usize) -> bool {
        self.participants[index].left_out.is_none()
    }

    pub fn name(&self, index: usize) -> &str {
        &self.participants[index].name
    }

    pub fn driver(&self, index: usize) -> &D {
        &self.participants[index].driver
    }

    pub fn driver_mut(&mut self, index: usize) -> &mut D {
        &mut self.participants[index].driver
    }

    /// Name, driver, and the reason of each that is left out.
    pub fn all(&self) -> impl Iterator<Item = (&str, &D, Option<&str>)> {
        let all = self.participants.iter();
        all.map(|one| (&*one.name, &one.driver, one.left_out.as_deref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four runs of "a" and "b", each of which fails at the given turns, the warm-up being turn 0: the
    /// scheduler, the order of all turns, and the results.
    fn measured(
        failures: [&'static [usize]; 2],
    ) -> (Turns<'static, (usize, usize)>, String, Each<Runs<usize>>) {
        let drivers = [("a".to_owned(), (0, 0)), ("b".to_owned(), (1, 0))];
        let mut turns = Turns::new(drivers, 4, Box::new(|_| {}));
        let mut order = String::new();
        let mut turn = |(index, next): &mut (usize, usize)| {
            order += ["a", "b"][*index];
            let number = *next;
            *next += 1;
            if failures[*index].contains(&number) {
                return Err(format!("turn {number}"));
            }
            Ok(number)
        };
        turns.warm_up(|driver| turn(driver).map(drop));
        let results = turns.runs("run", turn);
        (turns, order, results)
    }

    #[test]
    fn the_order_is_reversed_after_each_round() {
        let (_, order, results) = measured([&[], &[]]);
        assert_eq!(order, "ababbaabba");
        let done = &results[0].1.done;
        assert_eq!(*done, [1, 2, 3, 4], "without the warm-up");
    }

    #[test]
    fn a_participant_that_fails_at_its_warm_up_is_left_out() {
        let (turns, order, _) = measured([&[], &[0]]);
        assert_eq!(order, "abaaaa");
        let left_out: Vec<_> = turns.all().map(|(_, _, left_out)| left_out).collect();
        assert_eq!(left_out, [None, Some("turn 0")]);
    }

    #[test]
    fn later_failures_are_noted() {
        let (turns, _, results) = measured([&[], &[2, 3]]);
        let figure = turns.figure("it", (Unit::Count, Better::Less), &results, |runs| {
            let samples: Vec<f64> = runs.done.iter().map(|number| *number as f64).collect();
            Cell::samples(samples).with_note(runs.note())
        });
        assert_eq!(figure.cells[1].samples, [1.0, 4.0]);
        let note = figure.cells[1].note.as_deref();
        assert_eq!(note, Some("2 of 4 runs failed: turn 3"));
        assert_eq!(figure.cells[0].note, None);
    }

    #[test]
    fn progress_is_a_share_of_all_parts() {
        let mut shares = Vec::new();
        let on_progress = Box::new(|progress: Progress| {
            shares.push((progress.share, progress.step.to_owned()));
        });
        let mut turns = Turns::new([("a".to_owned(), ())], 2, on_progress);
        turns.begin("part", 1, 2);
        turns.rounds("run", |_, ()| {});
        drop(turns);
        let step = "part: run, a".to_owned();
        assert_eq!(shares, [(0.5, step.clone()), (0.75, step)]);
    }
}
