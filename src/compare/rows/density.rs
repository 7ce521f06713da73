//! How many instances fit into a machine.

use std::time::{Duration, Instant};

use super::sides::{Side, best, ratio};
use crate::compare::figure::{Better, Figure, Unit};
use crate::compare::measure::host::memory_available;
use crate::compare::measure::timed;
use crate::compare::measure::tree::held;
use crate::compare::report::saved::{Row, Verdict};
use crate::compare::statistics::Ratio;
use crate::compare::subject::Kind;
use crate::compare::turns::{Instance, Turns};

/// In the report.
pub const NAME: &str = "density";
/// So many are up when their memory is looked at.
const FEW: usize = 10;
const MANY: usize = 50;
/// More than [`FEW`] are started if one takes less than this.
const QUICK: Duration = Duration::from_secs(1);
/// No more are started of one subject after this.
const BUDGET: Duration = Duration::from_secs(60);
/// No more are started when a machine has less memory left than this, in bytes.
const SPARE: u64 = 512 << 20;
/// From the last start until memory is looked at.
const SETTLED: Duration = Duration::from_millis(500);
const GIB: f64 = (1u64 << 30) as f64;

/// What came of one subject.
#[derive(Clone, Debug, Default, PartialEq)]
struct Crowd {
    /// How many were up, and what they held together (proportional memory, bytes).
    points: Vec<(usize, f64)>,
    /// Why there were not more.
    stopped: Option<String>,
}

/// Memory of many instances at once, and how many would fit.
pub fn measure(turns: &mut Turns) -> Row {
    let entrants = turns.entrants();
    let all = entrants.iter().max().map_or(0, |last| last + 1);
    let mut crowds = vec![Crowd::default(); all];
    for (done, index) in entrants.iter().enumerate() {
        let progress = (done * MANY, entrants.len() * MANY);
        crowds[*index] = crowd(turns, *index, progress);
    }
    // By the same rule for all, or who was measured once is not comparable to who was measured twice.
    let measured: Vec<&Crowd> = entrants.iter().map(|index| &crowds[*index]).collect();
    let by_line = measured.iter().all(|crowd| crowd.points.len() != 1);
    let figures = vec![
        fitting(turns, &crowds, by_line),
        each(turns, &crowds, FEW),
        each(turns, &crowds, MANY),
    ];
    Row {
        name: NAME.into(),
        claim_machine: "resource usage high: few".into(),
        claim_container: "resource usage low: many".into(),
        method: format!(
            "Idle instances (a shell that has said \"up\" and become a sleep) are started one after the \
             other and stay up. When {FEW} are, and again when {MANY} are, the proportional memory of all \
             processes that they need is added up and divided by their number: what they share counts once. \
             More than {FEW} only where a start takes less than {} s; no more after {} s, or when the \
             machine has less than {} MiB left. How many fit into 1 GiB is no measurement: it is \
             extrapolated from the line through both points if everyone has two, else from each one's share \
             at the first. Memory that \
             the host's kernel holds for them is not counted, nor is an engine's daemon.",
            QUICK.as_secs(),
            BUDGET.as_secs(),
            SPARE >> 20
        ),
        verdict: verdict(&figures[0], &turns.sides()),
        figures,
    }
}

/// Start as many as can be, look, and end all.
fn crowd(turns: &mut Turns, index: usize, (done, of): (usize, usize)) -> Crowd {
    let mut up: Vec<Instance> = Vec::new();
    let mut crowd = Crowd::default();
    let start = Instant::now();
    while up.len() < MANY {
        if up.len() == FEW {
            crowd.points.push((FEW, together(turns, &up)));
        }
        crowd.stopped = full(up.len(), start.elapsed());
        if crowd.stopped.is_some() {
            break;
        }
        turns.step(done + up.len(), of, index, "idle instances");
        match turns.idle(index) {
            Ok(instance) => up.push(instance),
            Err(error) => {
                crowd.stopped = Some(format!("the next one {error}"));
                break;
            }
        }
    }
    let looked_at = crowd.points.last().map_or(0, |(number, _)| *number);
    if up.len() > looked_at {
        crowd.points.push((up.len(), together(turns, &up)));
    }
    for instance in up {
        turns.end(instance);
    }
    crowd
}

fn together(turns: &Turns, up: &[Instance]) -> f64 {
    let _ = timed::pause(SETTLED);
    let mut processes: Vec<u32> = up.iter().flat_map(|one| turns.processes(one)).collect();
    // Instances may need a process in common.
    processes.sort_unstable();
    processes.dedup();
    held(&processes).proportional as f64
}

/// Why no more are to be started, with so many up after so long.
fn full(up: usize, elapsed: Duration) -> Option<String> {
    if up == FEW && elapsed > QUICK * FEW as u32 {
        let each = elapsed.as_secs_f64() / FEW as f64;
        return Some(format!("a start takes {each:.1} s"));
    }
    if elapsed > BUDGET {
        return Some(format!("{up} are up after {} s", elapsed.as_secs()));
    }
    let left = memory_available()?;
    (left < SPARE).then(|| format!("with {up} up, the machine has {} MiB left", left >> 20))
}

/// Memory of each when `number` are up; of fewer, in the figure of [`FEW`], with a note.
fn each(turns: &Turns, crowds: &[Crowd], number: usize) -> Figure {
    let name = format!("{number} up at once, proportional memory each");
    turns.figure(name, (Unit::Bytes, Better::Less), |index| {
        at(&crowds[index], number)
    })
}

fn at(crowd: &Crowd, number: usize) -> (Vec<f64>, Option<String>) {
    let stopped = crowd.stopped.clone();
    let exact = crowd.points.iter().find(|(up, _)| *up == number);
    if let Some((up, bytes)) = exact {
        return (vec![bytes / *up as f64], None);
    }
    // The last point: between the two numbers, or below both.
    let inside = |up: &usize| *up < number && (number == FEW || *up > FEW);
    match crowd.points.last().filter(|(up, _)| inside(up)) {
        Some((up, bytes)) => {
            let why = stopped.map_or(String::new(), |why| format!(": {why}"));
            (
                vec![bytes / *up as f64],
                Some(format!("measured at {up}{why}")),
            )
        }
        None => (Vec::new(), stopped),
    }
}

fn fitting(turns: &Turns, crowds: &[Crowd], by_line: bool) -> Figure {
    let name = "idle instances in 1 GiB";
    let mut figure = turns.figure(name, (Unit::Count, Better::More), |index| {
        let points = &crowds[index].points;
        match in_a_gib(if by_line {
            points
        } else {
            points.get(..1).unwrap_or_default()
        }) {
            Some(number) => (vec![number], None),
            None => (Vec::new(), crowds[index].stopped.clone()),
        }
    });
    for cell in &mut figure.cells {
        cell.extrapolated = cell.summary.is_some();
    }
    figure
}

/// From the line through two points, if it rises; else from the last point's share.
fn in_a_gib(points: &[(usize, f64)]) -> Option<f64> {
    let (up, bytes) = points.last().copied()?;
    let share = bytes / up as f64;
    let (first, at_first) = points.first().copied()?;
    let line = (up > first).then(|| (bytes - at_first) / (up - first) as f64);
    let number = match line.filter(|each| *each > 0.0) {
        Some(each) => (GIB - (bytes - each * up as f64)) / each,
        None => GIB / share,
    };
    number.is_finite().then(|| number.max(0.0).floor())
}

fn verdict(figure: &Figure, sides: &[Side]) -> Verdict {
    let container = best(figure, sides, Kind::Container);
    let machine = best(figure, sides, Kind::Machine);
    let (Some(container), Some(machine)) = (container, machine) else {
        return Verdict::one_sided(container.is_some(), machine.is_some());
    };
    let Some(between) = Ratio::of(&container.samples, &machine.samples) else {
        return Verdict::unclear("not one virtual machine fits into 1 GiB");
    };
    let (many, few) = (&container.subject, &machine.subject);
    let agrees = between.low > 1.0;
    let number = |samples: &[f64]| samples.first().copied().unwrap_or(0.0);
    Verdict {
        text: format!(
            "Into 1 GiB fit {} of {many} and {} of {few}, by extrapolation: {} times as many, which {} \
             the standard answer.",
            number(&container.samples),
            number(&machine.samples),
            ratio(&between),
            if agrees { "agrees with" } else { "contradicts" },
        ),
        contradicts: !agrees,
    }
}

#[cfg(test)]
mod tests {
    use super::super::sides::tests::{figure, sides};
    use super::*;

    const MIB: f64 = (1u64 << 20) as f64;

    #[test]
    fn two_points_make_a_line_and_one_a_share() {
        // 24 MiB for all and 10 for each: 100 are 1024.
        let line = [(10, 124.0 * MIB), (50, 524.0 * MIB)];
        assert_eq!(in_a_gib(&line), Some(100.0));
        assert_eq!(in_a_gib(&line[..1]), Some((1024.0f64 / 12.4).floor()));
        assert_eq!(in_a_gib(&[]), None);
        // Noise: fifty hold no more than ten did.
        let falling = [(10, 100.0 * MIB), (50, 100.0 * MIB)];
        assert_eq!(in_a_gib(&falling), Some(512.0));
    }

    #[test]
    fn a_point_stands_where_it_was_measured_or_says_where() {
        let slow = Crowd {
            points: vec![(6, 60.0)],
            stopped: Some("6 are up after 60 s".into()),
        };
        let note = "measured at 6: 6 are up after 60 s";
        assert_eq!(at(&slow, FEW), (vec![10.0], Some(note.into())));
        assert_eq!(
            at(&slow, MANY),
            (vec![], Some("6 are up after 60 s".into()))
        );
        let full = Crowd {
            points: vec![(10, 50.0), (50, 100.0)],
            stopped: None,
        };
        assert_eq!(
            (at(&full, FEW).0, at(&full, MANY).0),
            (vec![5.0], vec![2.0])
        );
    }

    #[test]
    fn no_more_are_started_when_it_takes_too_long() {
        assert_eq!(full(10, Duration::from_secs(1)), None);
        let slow = full(10, Duration::from_secs(15)).expect("is slow");
        assert_eq!(slow, "a start takes 1.5 s");
        assert!(full(3, Duration::from_secs(61)).is_some());
    }

    #[test]
    fn more_containers_agree_and_fewer_contradict() {
        let of = |cells: &[(&str, &[f64])]| {
            let figure = figure("fit", Unit::Count, Better::More, cells);
            verdict(&figure, &sides())
        };
        let agrees = of(&[
            ("runc", &[800.0]),
            ("hull-warm", &[200.0]),
            ("hull-cold", &[50.0]),
        ]);
        assert_eq!(
            agrees.text,
            "Into 1 GiB fit 800 of runc and 200 of hull-warm, by extrapolation: 4.00 times as many, which \
             agrees with the standard answer."
        );
        assert!(!agrees.contradicts);
        assert!(of(&[("runc", &[100.0]), ("hull-warm", &[200.0])]).contradicts);
        let alone = of(&[("hull-warm", &[200.0])]);
        assert_eq!(
            alone.text,
            "This run cannot tell: no container was measured."
        );
    }
}
