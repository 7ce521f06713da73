//! One comparison: who takes part, and how they take turns.
//!
//! A row asks the [`Turns`] for runs of a command or for idle instances and never starts anything itself:
//! here is the one place where instances get names, limits and an end.

use std::time::Duration;

use super::report::saved::{Participant, Workload};
use super::rows::sides::Side;
use crate::compare::figure::{Better, Figure, Unit};
use crate::compare::measure::calls::{self, Calls, CallsError};
use crate::compare::measure::timed::{self, Limits, RunError, Running, Timed};
use crate::compare::subject::second::SecondKernel;
use crate::compare::subject::{self, Kind, Stage, Subject};

/// The command of an idle instance, and what it says when it is up.
pub const IDLE: [&str; 4] = ["/bin/busybox", "sh", "-c", "echo up; exec sleep 100000"];
/// What [`IDLE`] prints.
pub const UP: &str = "up\n";

/// To what the workload counts that only computes.
const COUNTED: u32 = 20_000;

/// How far a comparison is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress<'a> {
    /// Of all, from 0 to 1.
    pub share: f64,
    /// The row that is measured.
    pub row: &'a str,
    /// What is being done: "startup time: echo, crun".
    pub what: &'a str,
}

/// The subjects, and who is told how far it is.
pub struct Turns<'a> {
    /// What all start from.
    pub stage: &'a Stage,
    /// How many runs a figure of times has.
    pub runs: usize,
    /// Of one run.
    pub limits: Limits,
    /// The commands whose start is measured; the first is the warm-up too.
    pub workloads: Vec<Workload>,
    /// What proves that two machines run two kernels.
    pub second_kernel: Option<SecondKernel>,
    subjects: Vec<Entrant<'a>>,
    /// Commands that all have run, and what came of it.
    ran: Vec<(Vec<String>, Vec<Runs>)>,
    progress: Box<dyn FnMut(Progress) + 'a>,
    /// Of the row that is measured: its name, its number, how many there are.
    row: (String, usize, usize),
    instances: usize,
}

struct Entrant<'a> {
    subject: Box<dyn Subject + 'a>,
    left_out: Option<String>,
}

/// What came of the runs of one subject.
#[derive(Clone, Debug, Default)]
pub struct Runs {
    /// Those that ended well, in their order.
    pub timed: Vec<Timed>,
    /// How many did not.
    pub failed: usize,
    /// How the last of them failed.
    pub trouble: Option<String>,
}

impl Runs {
    /// What speaks against them.
    pub fn note(&self) -> Option<String> {
        let trouble = self.trouble.as_ref()?;
        let all = self.failed + self.timed.len();
        Some(format!(
            "{} of {all} runs failed: it {trouble}",
            self.failed
        ))
    }

    /// One more, that ended well or not.
    pub fn add(&mut self, outcome: Result<Timed, RunError>) {
        match outcome {
            Ok(timed) => self.timed.push(timed),
            Err(error) => {
                self.failed += 1;
                self.trouble = Some(error.to_string());
            }
        }
    }

    /// A figure of each.
    pub fn samples(&self, figure: impl Fn(&Timed) -> f64) -> Vec<f64> {
        self.timed.iter().map(figure).collect()
    }
}

/// An instance that is up. Ended by [`Turns::end`].
pub struct Instance {
    subject: usize,
    id: String,
    running: Running,
}

impl Instance {
    /// Since its start.
    pub fn elapsed(&self) -> Duration {
        self.running.elapsed()
    }
}

impl<'a> Turns<'a> {
    /// With `subjects` in the order of the columns; `progress` hears of each step.
    pub fn new(
        stage: &'a Stage,
        subjects: Vec<Box<dyn Subject + 'a>>,
        runs: usize,
        limits: Limits,
        progress: Box<dyn FnMut(Progress) + 'a>,
    ) -> Self {
        let entrants = subjects.into_iter().map(|subject| Entrant {
            subject,
            left_out: None,
        });
        Self {
            stage,
            runs,
            limits,
            workloads: default_workloads(),
            second_kernel: None,
            subjects: entrants.collect(),
            ran: Vec::new(),
            progress,
            row: (String::new(), 0, 1),
            instances: 0,
        }
    }

    /// Prepare all, and have each run the first workload twice: what is read is in memory afterwards, hull's
    /// template is made, and who cannot take part is known.
    pub fn warm_up(&mut self) {
        let all = self.subjects.len();
        let words = self.workloads[0].words.clone();
        for index in 0..all {
            self.step(index, all, index, "prepared");
            let prepared = self.subjects[index].subject.prepare();
            let outcome = prepared.map_err(|error| error.to_string());
            let outcome = outcome.and_then(|()| {
                (0..2).try_for_each(|_| match self.once(index, &words) {
                    Ok(_) => Ok(()),
                    Err(error) => Err(format!("it {error}")),
                })
            });
            self.subjects[index].left_out = outcome.err();
        }
    }

    /// What follows is row `number` of `of`.
    pub fn begin(&mut self, row: &str, number: usize, of: usize) {
        self.row = (row.into(), number, of);
    }

    /// Say that `done` of `of` parts of this row are done, and that `subject` does `what` now.
    pub fn step(&mut self, done: usize, of: usize, subject: usize, what: &str) {
        let (row, number, rows) = &self.row;
        let inside = done as f64 / of.max(1) as f64;
        let name = self.subjects[subject].subject.name();
        (self.progress)(Progress {
            share: (*number as f64 + inside) / *rows as f64,
            row,
            what: &format!("{row}: {what}, {name}"),
        });
    }

    /// The numbers of those that take part.
    pub fn entrants(&self) -> Vec<usize> {
        let takes_part = |index: &usize| self.subjects[*index].left_out.is_none();
        (0..self.subjects.len()).filter(takes_part).collect()
    }

    /// Those that do not take part, each with its reason.
    pub fn left_out(&self) -> Vec<String> {
        let reason = |entrant: &Entrant| {
            let reason = entrant.left_out.as_ref()?;
            Some(format!("{}: {reason}", entrant.subject.name()))
        };
        self.subjects.iter().filter_map(reason).collect()
    }

    /// A subject's name.
    pub fn name(&self, index: usize) -> String {
        self.subjects[index].subject.name().into()
    }

    /// On which side it stands.
    pub fn kind(&self, index: usize) -> Kind {
        self.subjects[index].subject.kind()
    }

    /// Those that take part, and where they stand.
    pub fn sides(&self) -> Vec<Side> {
        let side = |index| Side {
            name: self.name(index),
            kind: self.kind(index),
        };
        self.entrants().into_iter().map(side).collect()
    }

    /// The subject itself.
    pub fn subject(&mut self, index: usize) -> &mut (dyn Subject + 'a) {
        &mut *self.subjects[index].subject
    }

    /// Run `words` once to the end.
    ///
    /// # Errors
    /// As of [`subject::run`].
    pub fn once(&mut self, index: usize, words: &[String]) -> Result<Timed, RunError> {
        let id = self.id();
        let subject = &mut *self.subjects[index].subject;
        subject::run(subject, words, &id, self.limits)
    }

    /// Have all that take part run `words`, one after the other, again and again. What they have run
    /// before, they do not run again.
    pub fn in_turns(&mut self, what: &str, words: &[String]) -> Vec<Runs> {
        if let Some((_, runs)) = self.ran.iter().find(|(ran, _)| ran == words) {
            return runs.clone();
        }
        let mut all = vec![Runs::default(); self.subjects.len()];
        self.rounds(what, |turns, index| {
            let outcome = turns.once(index, words);
            all[index].add(outcome);
        });
        self.ran.push((words.to_vec(), all.clone()));
        all
    }

    /// Call `turn` with each that takes part, one after the other, as often as there are runs. The order
    /// is reversed each time, so that nobody is always behind the same one.
    pub fn rounds(&mut self, what: &str, mut turn: impl FnMut(&mut Self, usize)) {
        let mut order = self.entrants();
        for round in 0..self.runs {
            for (done, index) in order.iter().enumerate() {
                if timed::is_stopped() {
                    return;
                }
                let (done, of) = (round * order.len() + done, self.runs * order.len());
                self.step(done, of, *index, what);
                turn(self, *index);
            }
            order.reverse();
        }
    }

    /// A figure with a cell for each that takes part: samples, and what speaks against them.
    pub fn figure(
        &self,
        name: impl Into<String>,
        (unit, better): (Unit, Better),
        mut cell: impl FnMut(usize) -> (Vec<f64>, Option<String>),
    ) -> Figure {
        let (names, cells): (Vec<String>, Vec<_>) = self
            .entrants()
            .into_iter()
            .map(|index| (self.name(index), cell(index)))
            .unzip();
        let samples = names.iter().map(String::as_str);
        let samples = samples.zip(cells.iter().map(|(samples, _)| samples.clone()));
        let mut figure = Figure::of_samples(name, unit, better, samples);
        for (cell, (_, note)) in figure.cells.iter_mut().zip(cells) {
            cell.note = note;
        }
        figure
    }

    /// Start an instance that runs `words`, and wait until it has said `text`.
    ///
    /// # Errors
    /// It ends or hangs before.
    pub fn start(
        &mut self,
        index: usize,
        words: &[String],
        text: &str,
    ) -> Result<Instance, RunError> {
        let id = self.id();
        let limits = self.limits;
        let subject = &mut self.subjects[index].subject;
        let command = subject.command(words, &id).map_err(RunError::Start);
        let up = command.and_then(|mut command| {
            let mut running = Running::start(&mut command, limits)?;
            running.until(text)?;
            Ok(running)
        });
        match up {
            Ok(running) => Ok(Instance {
                subject: index,
                id,
                running,
            }),
            Err(error) => {
                subject.clear(&id);
                Err(error)
            }
        }
    }

    /// Start an [`IDLE`] instance.
    ///
    /// # Errors
    /// What it did instead of coming up.
    pub fn idle(&mut self, index: usize) -> Result<Instance, String> {
        let instance = self.start(index, &words(&IDLE), UP);
        instance.map_err(|error| match error {
            RunError::Hung { limit, .. } => format!("was not up within {} s", limit.as_secs()),
            error => error.to_string(),
        })
    }

    /// Run `words` once under ptrace, and count its system calls.
    ///
    /// # Errors
    /// As of [`calls::count`].
    pub fn traced(&mut self, index: usize, words: &[String]) -> Result<Calls, CallsError> {
        let id = self.id();
        let limit = self.limits.time;
        let subject = &mut self.subjects[index].subject;
        let command = subject.command(words, &id).map_err(CallsError::Trace);
        let calls = command.and_then(|command| calls::count(&command, limit));
        subject.clear(&id);
        calls
    }

    /// Run `words` on the second kernel; `None` if there is none.
    pub fn on_second_kernel(&mut self, words: &[String]) -> Option<Result<Timed, RunError>> {
        let kernel = self.second_kernel.clone()?;
        let id = self.id();
        let command = kernel
            .command(self.stage, words, &id)
            .map_err(RunError::Start);
        Some(command.and_then(|mut command| timed::run(&mut command, self.limits)))
    }

    /// All processes of an instance.
    pub fn processes(&self, instance: &Instance) -> Vec<u32> {
        let subject = &self.subjects[instance.subject].subject;
        subject.processes(instance.running.id(), &instance.id)
    }

    /// End an instance.
    pub fn end(&mut self, instance: Instance) {
        drop(instance.running);
        self.subjects[instance.subject].subject.clear(&instance.id);
    }

    /// Everyone, as the report has them.
    pub fn participants(&self) -> Vec<Participant> {
        let participant = |entrant: &Entrant| {
            let (subject, left_out) = (&entrant.subject, entrant.left_out.clone());
            let takes_part = left_out.is_none();
            Participant {
                name: subject.name().into(),
                kind: subject.kind(),
                version: takes_part.then(|| subject.version()).flatten(),
                parts: match takes_part {
                    true => subject.parts(),
                    false => Vec::new(),
                },
                caveats: match takes_part {
                    true => subject.caveats(),
                    false => Vec::new(),
                },
                left_out,
            }
        };
        self.subjects.iter().map(participant).collect()
    }

    /// A name that no other instance has.
    fn id(&mut self) -> String {
        self.instances += 1;
        format!("hull-{}-{}", std::process::id(), self.instances)
    }
}

/// The words of a command.
pub fn words<S: AsRef<str>>(words: &[S]) -> Vec<String> {
    words.iter().map(|word| word.as_ref().to_owned()).collect()
}

/// What is run when the user names no command.
fn default_workloads() -> Vec<Workload> {
    let workload = |name: &str, command: &[&str]| Workload {
        name: name.into(),
        words: words(command),
    };
    let counting = format!("i=0; while [ $i -lt {COUNTED} ]; do i=$((i+1)); done; echo done");
    // Not more: a software KVM takes milliseconds for each page of a guest.
    let touching = "dd if=/dev/zero of=/dev/null bs=2M count=1 2>&1";
    vec![
        workload("echo", &["/bin/busybox", "echo", "hi"]),
        workload("CPU loop", &["/bin/busybox", "sh", "-c", &counting]),
        workload("2 MiB touched", &["/bin/busybox", "sh", "-c", touching]),
    ]
}
