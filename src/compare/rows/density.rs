//! How many instances fit into a machine.

use std::io;
use std::time::{Duration, Instant};

use super::session::{Measured, Session, Subjects};
use super::verdict::{Side, agreement, best_of_sides, ratio, sides};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::measure::host::memory_available;
use crate::compare::measure::stop::pause;
use crate::compare::measure::tree::usage;
use crate::compare::report::comparison::Verdict;
use crate::compare::statistics::Ratio;
use crate::compare::subject::{Instance, Subject};
use crate::compare::turns::Each;

/// Numbers of instances at which memory is read.
const FEW: usize = 10;
const MANY: usize = 50;
/// More than [`FEW`] instances are started only if one start takes less than this.
const MAX_START: Duration = Duration::from_secs(1);
/// Time for all starts of one subject.
const BUDGET: Duration = Duration::from_secs(60);
/// The memory that the host must have available for another start, in bytes.
const MIN_AVAILABLE: u64 = 512 << 20;
/// Between the last start and the reading of memory.
const SETTLE_TIME: Duration = Duration::from_millis(500);
const GIB: f64 = (1u64 << 30) as f64;

#[derive(Clone, Debug, Default, PartialEq)]
struct Crowd {
    /// Numbers of instances, and their proportional memory together, in bytes.
    points: Vec<(usize, f64)>,
    limited_by: Option<String>,
}

impl Crowd {
    fn add(&mut self, memory: io::Result<f64>, number: usize) {
        match memory {
            Ok(memory) => self.points.push((number, memory)),
            Err(error) => self.limited_by = Some(error.to_string()),
        }
    }
}

pub fn measure(turns: &mut Subjects, session: &mut Session) -> Measured {
    let crowds = turns.each("idle instances", |subject| crowd(&mut **subject, session));
    let figures = vec![
        fitting(turns, &crowds),
        each(turns, &crowds, FEW),
        each(turns, &crowds, MANY),
    ];
    Measured {
        method: format!(
            "Idle instances (a shell that has printed \"up\" and become a sleep) are started one after the \
             other and stay up. At {FEW} and at {MANY} instances, the proportional memory of all processes \
             that they need is added up and divided by their number: shared pages count once. More than {FEW} \
             are started only if a start takes less than {} s; no more are started after {} s, or when the \
             machine has less than {} MiB available. How many fit into 1 GiB is not measured but extrapolated: \
             from the line through both points if every subject has two, otherwise from the share of each at \
             the first. Memory of the host's kernel and of an engine's daemon is not counted.",
            MAX_START.as_secs(),
            BUDGET.as_secs(),
            MIN_AVAILABLE >> 20
        ),
        verdict: verdict(&figures[0], &sides(turns)).into(),
        figures,
    }
}

fn crowd(subject: &mut dyn Subject, session: &mut Session) -> Crowd {
    let mut up: Vec<Instance> = Vec::new();
    let mut crowd = Crowd::default();
    let start = Instant::now();
    while up.len() < MANY && crowd.limited_by.is_none() {
        if up.len() == FEW {
            crowd.add(memory(subject, &up), FEW);
        }
        crowd.limited_by = crowd
            .limited_by
            .or_else(|| limit(up.len(), start.elapsed()));
        if crowd.limited_by.is_none() {
            match session.idle(subject) {
                Ok(instance) => up.push(instance),
                Err(error) => crowd.limited_by = Some(format!("at the next one, {error}")),
            }
        }
    }
    if crowd.points.last().map_or(0, |(number, _)| *number) < up.len() {
        crowd.add(memory(subject, &up), up.len());
    }
    for instance in up {
        instance.end(subject);
    }
    crowd
}

fn memory(subject: &dyn Subject, up: &[Instance]) -> io::Result<f64> {
    let _ = pause(SETTLE_TIME);
    let mut processes: Vec<u32> = up.iter().flat_map(|one| one.processes(subject)).collect();
    // Instances may share a process.
    processes.sort_unstable();
    processes.dedup();
    Ok(usage(&processes)?.proportional as f64)
}

/// Why no more instances are started, with `up` instances after `elapsed`.
fn limit(up: usize, elapsed: Duration) -> Option<String> {
    if up == FEW && elapsed > MAX_START * FEW as u32 {
        let each = elapsed.as_secs_f64() / FEW as f64;
        return Some(format!("a start takes {each:.1} s"));
    }
    if elapsed > BUDGET {
        return Some(format!("{up} are up after {} s", elapsed.as_secs()));
    }
    let available = memory_available()?;
    let mib = available >> 20;
    (available < MIN_AVAILABLE)
        .then(|| format!("with {up} up, the machine has {mib} MiB available"))
}

/// Memory of each of `number` instances; of fewer, with a note.
fn each(turns: &Subjects, crowds: &Each<Crowd>, number: usize) -> Figure {
    let name = format!("{number} up at once, proportional memory each");
    turns.figure(name, (Unit::Bytes, Better::Less), crowds, |crowd| {
        at(crowd, number)
    })
}

fn at(crowd: &Crowd, number: usize) -> Cell {
    let share = |(up, bytes): &(usize, f64)| Cell::samples([bytes / *up as f64]);
    if let Some(point) = crowd.points.iter().find(|(up, _)| *up == number) {
        return share(point);
    }
    // The last point belongs to the figure of MANY if it lies above FEW.
    let belongs = |(up, _): &&(usize, f64)| *up < number && (number == FEW || *up > FEW);
    match crowd.points.last().filter(belongs) {
        Some(point) => {
            let reason = crowd.limited_by.iter().map(|reason| format!(": {reason}"));
            let note = format!("measured at {}{}", point.0, reason.collect::<String>());
            share(point).with_note(Some(note))
        }
        None => Cell::default().with_note(crowd.limited_by.clone()),
    }
}

fn fitting(turns: &Subjects, crowds: &Each<Crowd>) -> Figure {
    // One rule for all subjects, so that their numbers are comparable.
    let by_line = crowds.iter().all(|(_, crowd)| crowd.points.len() != 1);
    let used = if by_line { 2 } else { 1 };
    let count = (Unit::Count, Better::More);
    turns.figure("idle instances in 1 GiB", count, crowds, |crowd| {
        let points = &crowd.points[..used.min(crowd.points.len())];
        let mut cell = Cell::samples(in_a_gib(points).into_iter().collect::<Vec<_>>());
        cell.extrapolated = !cell.samples.is_empty();
        let missing = cell.samples.is_empty().then(|| crowd.limited_by.clone());
        cell.with_note(missing.flatten())
    })
}

/// From the line through two points if it rises, otherwise from the share at the last point.
fn in_a_gib(points: &[(usize, f64)]) -> Option<f64> {
    let (up, bytes) = points.last().copied()?;
    let (first, at_first) = points.first().copied()?;
    let slope = (up > first).then(|| (bytes - at_first) / (up - first) as f64);
    let number = match slope.filter(|each| *each > 0.0) {
        Some(each) => (GIB - (bytes - each * up as f64)) / each,
        None => GIB / (bytes / up as f64),
    };
    number.is_finite().then(|| number.max(0.0).floor())
}

fn verdict(figure: &Figure, sides: &[Side]) -> Result<Verdict, String> {
    let (container, machine) = best_of_sides(figure, sides)?;
    let between = Ratio::of(&container.samples, &machine.samples);
    let between = between.ok_or_else(|| "not one virtual machine fits into 1 GiB".to_owned())?;
    let agrees = between.low > 1.0;
    let number = |cell: &Cell| cell.median().unwrap_or(0.0);
    Ok(Verdict {
        text: format!(
            "By extrapolation, {} instances of {} and {} of {} fit into 1 GiB: {} times as many, which {} the \
             standard answer.",
            number(container),
            container.subject,
            number(machine),
            machine.subject,
            ratio(&between),
            agreement(agrees),
        ),
        contradicts: !agrees,
    })
}

#[cfg(test)]
mod tests {
    use super::super::verdict::tests::sides;
    use super::*;

    const MIB: f64 = (1u64 << 20) as f64;

    #[test]
    fn two_points_make_a_line_and_one_a_share() {
        // 24 MiB for all and 10 MiB for each: 100 instances use 1024 MiB.
        let line = [(10, 124.0 * MIB), (50, 524.0 * MIB)];
        assert_eq!(in_a_gib(&line), Some(100.0));
        assert_eq!(in_a_gib(&line[..1]), Some((1024.0f64 / 12.4).floor()));
        assert_eq!(in_a_gib(&[]), None);
        // Noise: fifty use no more than ten.
        let falling = [(10, 100.0 * MIB), (50, 100.0 * MIB)];
        assert_eq!(in_a_gib(&falling), Some(512.0));
    }

    #[test]
    fn a_point_at_another_number_is_noted() {
        let reason = "6 are up after 60 s".to_owned();
        let slow = Crowd {
            points: vec![(6, 60.0)],
            limited_by: Some(reason.clone()),
        };
        let note = Some(format!("measured at 6: {reason}"));
        assert_eq!(at(&slow, FEW), Cell::samples([10.0]).with_note(note));
        assert_eq!(at(&slow, MANY), Cell::missing(reason));
        let full = Crowd {
            points: vec![(10, 50.0), (50, 100.0)],
            limited_by: None,
        };
        assert_eq!(
            [FEW, MANY].map(|number| at(&full, number).samples),
            [[5.0], [2.0]]
        );
    }

    #[test]
    fn slow_starts_limit_the_number() {
        assert_eq!(limit(10, Duration::from_secs(1)), None);
        let slow = limit(10, Duration::from_secs(15));
        assert_eq!(slow.as_deref(), Some("a start takes 1.5 s"));
        assert!(limit(3, Duration::from_secs(61)).is_some());
    }

    #[test]
    fn more_containers_agree_and_fewer_contradict() {
        let verdict_of = |samples: &[(&str, &[f64])]| {
            let figure = Figure::of_samples(Unit::Count, Better::More, samples);
            Verdict::from(verdict(&figure, &sides()))
        };
        let warm: (&str, &[f64]) = ("hull-warm", &[200.0]);
        let agrees = verdict_of(&[("runc", &[800.0]), warm, ("hull-cold", &[50.0])]);
        assert_eq!(
            agrees.text,
            "By extrapolation, 800 instances of runc and 200 of hull-warm fit into 1 GiB: 4.00 times as \
             many, which agrees with the standard answer."
        );
        assert!(!agrees.contradicts);
        assert!(verdict_of(&[("runc", &[100.0]), warm]).contradicts);
        let alone = verdict_of(&[warm]).text;
        assert_eq!(alone, "This run cannot tell: no container was measured.");
    }
}
