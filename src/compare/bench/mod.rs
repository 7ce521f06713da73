//! hull's own figures, beside those of other monitors and of another hull.
//!
//! Each topic is a file with a [`Plan`]: the figures, and a contender for each program that can have them.

mod boot;
mod density;
mod disk;
mod error;
mod exit;
mod firecracker;
mod hull;
mod machines;
mod memory;
mod net;
mod plan;
mod restore;
mod resumed;
mod start;

use std::time::Duration;

pub use error::BenchError;
use plan::{Bench, Kind, Made, Plan, Program, Samples};

use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::measure::error::RunError;
use crate::compare::measure::host::Host;
use crate::compare::measure::stop::is_stopped;
use crate::compare::report::bench::{FORMAT, RIVALS, Report, Rival, Settings};
use crate::compare::report::participant::Participant;
use crate::compare::subject::monitor::Monitor;
use crate::compare::subject::{Stage, first_line};
use crate::compare::turns::{Each, OnProgress, Runs, Turns};
use crate::compare::warning;
use crate::kvm::steady::counts_instructions;

static PLANS: [&Plan; 8] = [
    &start::PLAN,
    &boot::PLAN,
    &restore::PLAN,
    &exit::PLAN,
    &memory::PLAN,
    &density::PLAN,
    &disk::PLAN,
    &net::PLAN,
];
const OTHER_HULL: &str = "other hull";
/// How often a program may take a turn in a steady lab before it has failed: QEMU 7.2 with `-icount` deadlocks a
/// nested guest now and then, when its timer's interrupt comes while it keeps time with interrupts off.
const STEADY_ATTEMPTS: usize = 5;

pub fn topics() -> [&'static str; 8] {
    PLANS.map(|plan| plan.topic)
}

/// Measures `topic`. `command` is the command line for the report.
pub fn measure(
    topic: &str,
    settings: &Settings,
    command: Vec<String>,
    on_progress: OnProgress,
) -> Result<Report, BenchError> {
    let unknown = || BenchError::UnknownTopic(topic.into());
    let plan = PLANS.into_iter().find(|plan| plan.topic == topic);
    let plan = plan.ok_or_else(unknown)?;
    if settings.steady && !counts_instructions() {
        return Err(BenchError::NotSteady);
    }
    let programs = participants(settings)?;
    let bench = Bench {
        // In memory, so that disks have no part in the figures.
        stage: Stage::within("/dev/shm".as_ref(), settings.bzimage.clone())?,
        timeout: Duration::from_secs(settings.timeout),
        steady: settings.steady,
    };
    let host = Host::examine();
    let entrants = programs.iter().map(|program| {
        let entrant = Entrant::new(&bench, plan, program);
        (program.name.clone(), entrant)
    });
    let mut turns = Turns::new(entrants, settings.runs, on_progress);
    let figures = take_turns(&mut turns, plan)?;
    let subjects = turns
        .all()
        .map(|(_, entrant, left_out)| entrant.participant(left_out));
    let subjects: Vec<Participant> = subjects.collect();
    let mut cells = figures.iter().flat_map(|figure| &figure.cells);
    if cells.all(|cell| cell.samples.is_empty()) {
        let reason = subjects.iter().find_map(|one| one.left_out.clone());
        return Err(BenchError::Nothing(reason.unwrap_or_default()));
    }
    Ok(Report {
        format: FORMAT,
        topic: topic.into(),
        command,
        warnings: warnings(&host, settings, &figures),
        host,
        settings: settings.clone(),
        method: plan.method.into(),
        subjects,
        figures,
    })
}

fn participants(settings: &Settings) -> Result<Vec<Program>, BenchError> {
    let mut programs = vec![Program {
        name: "hull".into(),
        kind: Kind::ThisHull,
        path: std::env::current_exe().map_err(BenchError::OwnPath)?,
    }];
    for Rival { name, program } in &settings.rivals {
        let (column, kind) = match name.as_str() {
            "hull" => (OTHER_HULL, Kind::OtherHull),
            "firecracker" => ("firecracker", Kind::Firecracker),
            name @ ("crun" | "runc") => (name, Kind::Container),
            known if RIVALS.contains(&known) => (known, Kind::Other),
            unknown => return Err(BenchError::UnknownRival(unknown.into())),
        };
        if programs.iter().any(|one| one.name == column) {
            return Err(BenchError::GivenTwice(name.clone()));
        }
        programs.push(Program {
            name: column.into(),
            kind,
            // Some run in folders of their own.
            path: std::path::absolute(program).map_err(BenchError::Io)?,
        });
    }
    Ok(programs)
}

fn take_turns(turns: &mut Turns<Entrant>, plan: &Plan) -> Result<Vec<Figure>, BenchError> {
    turns.begin(plan.topic, 0, 2);
    turns.warm_up(|entrant| entrant.prepare(plan.warms_up));
    turns.begin(plan.topic, 1, 2);
    let runs = turns.runs("measured", Entrant::turn);
    if is_stopped() {
        return Err(BenchError::Stopped);
    }
    for (index, _) in &runs {
        if let Some(reason) = turns.driver(*index).hopeless.clone() {
            turns.leave_out(*index, reason);
        }
    }
    Ok(figures(turns, plan, &runs))
}

fn figures(turns: &Turns<Entrant>, plan: &Plan, runs: &Each<Runs<Samples>>) -> Vec<Figure> {
    let figure = |(at, &(name, unit, better)): (usize, &(&str, Unit, Better))| {
        turns.figure(name, (unit, better), runs, |runs| {
            let samples = runs.done.iter().filter_map(|samples| *samples.get(at)?);
            let samples: Vec<f64> = samples.collect();
            if samples.is_empty() {
                Cell::missing("it does not have this figure")
            } else {
                Cell::samples(samples).with_note(runs.note())
            }
        })
    };
    plan.figures.iter().enumerate().map(figure).collect()
}

fn warnings(host: &Host, settings: &Settings, figures: &[Figure]) -> Vec<String> {
    if settings.steady {
        // Its runs repeat.
        return warning::of_host(host);
    }
    let mut warnings: Vec<String> = warning::of_runs(settings.runs).into_iter().collect();
    warnings.extend(warning::of_host(host));
    for figure in figures {
        warnings.extend(figure.cells.iter().filter_map(|cell| {
            let name = format!("{}, {}", figure.name, cell.subject);
            warning::of_figure(&name, &cell.summary?)
        }));
    }
    warnings
}

struct Entrant<'a> {
    program: &'a Program,
    contender: Made<'a>,
    attempts: usize,
    has_succeeded: bool,
    /// The error of its first turn. It has no more turns, since each may take as long as the timeout allows.
    hopeless: Option<String>,
}

impl<'a> Entrant<'a> {
    fn new(bench: &'a Bench, plan: &Plan, program: &'a Program) -> Self {
        Self {
            program,
            contender: (plan.contender)(bench, program),
            attempts: if bench.steady { STEADY_ATTEMPTS } else { 1 },
            has_succeeded: false,
            hopeless: None,
        }
    }

    fn prepare(&mut self, warms_up: bool) -> Result<(), String> {
        let contender = self.contender.as_mut().map_err(|error| error.to_string())?;
        contender.prepare().map_err(|error| error.to_string())?;
        match warms_up {
            true => self.attempt().map(drop),
            false => Ok(()),
        }
    }

    fn turn(&mut self) -> Result<Samples, String> {
        if let Some(reason) = &self.hopeless {
            return Err(reason.clone());
        }
        let turn = self.attempt();
        match &turn {
            Ok(_) => self.has_succeeded = true,
            Err(reason) if !self.has_succeeded => self.hopeless = Some(reason.clone()),
            Err(_) => {}
        }
        turn
    }

    fn attempt(&mut self) -> Result<Samples, String> {
        let contender = self.contender.as_mut().map_err(|error| error.to_string())?;
        let mut turn = contender.turn();
        for _ in 1..self.attempts {
            if !matches!(turn, Err(BenchError::Run(RunError::Hung(..)))) {
                break;
            }
            turn = contender.turn();
        }
        turn.map_err(|error| error.to_string())
    }

    fn participant(&self, left_out: Option<&str>) -> Participant {
        let monitor = self.program.monitor().ok().filter(|_| left_out.is_none());
        let path = &self.program.path;
        let contender = self.contender.as_deref().ok();
        let container = contender.filter(|_| self.program.kind == Kind::Container);
        let container = container
            .and_then(|one| one.subject())
            .filter(|_| left_out.is_none());
        Participant {
            name: self.program.name.clone(),
            program: Some(path.clone()),
            version: match container {
                Some(subject) => subject.version(),
                None => monitor.and_then(|one| first_line(path, one.version_flag)),
            },
            caveats: match container {
                Some(subject) => subject.caveats(),
                None => monitor.map_or(Vec::new(), |one| self.caveats(one)),
            },
            left_out: left_out.map(Into::into),
            ..Participant::default()
        }
    }

    fn caveats(&self, monitor: &Monitor) -> Vec<String> {
        let contender = self.contender.as_deref().ok();
        let mut caveats = match contender.and_then(|one| one.subject()) {
            Some(subject) if !self.program.is_hull() => subject.caveats(),
            _ => monitor.caveat.into_iter().map(Into::into).collect(),
        };
        caveats.extend(contender.and_then(|one| one.missing()));
        caveats
    }
}
