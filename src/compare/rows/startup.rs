//! How long a command takes to start, and to come back.

use super::sides::{Side, best, ratio, seconds};
use crate::compare::figure::{Better, Figure, Unit};
use crate::compare::measure::timed::Timed;
use crate::compare::report::saved::{Row, Verdict};
use crate::compare::statistics::Ratio;
use crate::compare::subject::Kind;
use crate::compare::turns::{Runs, Turns};

/// In the report.
pub const NAME: &str = "startup time";
/// The least that anybody calls "minutes", in milliseconds.
const MINUTE: f64 = 60_000.0;

/// Time to the first byte and to the end, of each workload.
pub fn measure(turns: &mut Turns) -> Row {
    let mut figures = Vec::new();
    for workload in turns.workloads.clone() {
        let runs = turns.in_turns(&workload.name, &workload.words);
        let mut figure = |what: &str, time: fn(&Timed) -> Option<f64>| {
            figures.push(of_times(turns, &workload.name, what, &runs, time));
        };
        figure("exec to exit", |timed| Some(timed.end.as_secs_f64()));
        figure("exec to first byte", |timed| {
            timed.first_byte.map(|time| time.as_secs_f64())
        });
    }
    let sides = turns.sides();
    let verdict = verdict(&figures[0], &sides);
    Row {
        name: NAME.into(),
        claim_machine: "slow, minutes".into(),
        claim_container: "fast, seconds".into(),
        method: format!(
            "The clock starts right before hull makes the child that runs the command (fork, and exec of \
             the runtime, engine or monitor). It stops when the first byte arrives from its standard \
             output; and again when that is closed and the child has ended, which of a virtual machine \
             includes its end. After two warm-up runs of each, all take turns {} times, in an order that \
             is reversed each time. Not counted: making the image, pulling it, starting an engine's daemon, \
             and the boot of the machine from which a warm start goes on.",
            turns.runs
        ),
        figures,
        verdict,
    }
}

fn of_times(
    turns: &Turns,
    workload: &str,
    what: &str,
    runs: &[Runs],
    time: fn(&Timed) -> Option<f64>,
) -> Figure {
    let name = format!("{workload}, {what}");
    turns.figure(name, (Unit::Milliseconds, Better::Less), |index| {
        let runs = &runs[index];
        let times = runs.timed.iter().filter_map(time);
        let samples: Vec<f64> = times.map(|seconds| seconds * 1e3).collect();
        let silent =
            (samples.is_empty() && !runs.timed.is_empty()).then(|| "it prints nothing".to_owned());
        (samples, runs.note().or(silent))
    })
}

/// From the first figure: the time to the exit of the shortest command.
fn verdict(figure: &Figure, sides: &[Side]) -> Verdict {
    let container = best(figure, sides, Kind::Container);
    let machine = best(figure, sides, Kind::Machine);
    let (Some(container), Some(machine)) = (container, machine) else {
        return Verdict::one_sided(container.is_some(), machine.is_some());
    };
    let Some(between) = Ratio::of(&machine.samples, &container.samples) else {
        return Verdict::unclear("a container takes no time that could be measured");
    };
    let (quick, slow) = (&container.subject, &machine.subject);
    let order = match (between.low > 1.0, between.high < 1.0) {
        (true, _) => format!("{slow} takes {} times as long as {quick}", ratio(&between)),
        (_, true) => format!(
            "{slow} is faster than {quick}: it takes {} of its time",
            ratio(&between)
        ),
        _ => format!(
            "{slow} is neither faster nor slower than {quick} by more than chance ({})",
            ratio(&between)
        ),
    };
    let median = |cell: &crate::compare::figure::Cell| {
        cell.summary.map_or(f64::NAN, |summary| summary.median)
    };
    let (machine_ms, container_ms) = (median(machine), median(container));
    let minutes = machine_ms >= MINUTE;
    let slower = between.low > 1.0;
    let claim = match (slower, minutes) {
        (true, true) => "which agrees with the standard answer",
        (true, false) => "the order agrees with the standard answer, \"minutes\" does not",
        (false, _) => "which contradicts the standard answer",
    };
    Verdict {
        text: format!(
            "{order}, {} and {}: {claim}.",
            seconds(machine_ms),
            seconds(container_ms)
        ),
        contradicts: !(slower && minutes),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sides::tests::{figure, sides};
    use super::*;

    fn of(cells: &[(&str, &[f64])]) -> Verdict {
        let figure = figure("echo", Unit::Milliseconds, Better::Less, cells);
        verdict(&figure, &sides())
    }

    const RUNC: (&str, &[f64]) = ("runc", &[50.0, 51.0, 52.0]);

    #[test]
    fn a_slower_machine_agrees_but_not_with_minutes() {
        let slower = of(&[
            RUNC,
            ("crun", &[99.0]),
            ("hull-warm", &[150.0, 153.0, 156.0]),
        ]);
        assert_eq!(
            slower.text,
            "hull-warm takes 3.00 (95 %: 2.88 to 3.12) times as long as runc, 153 ms and 51 ms: the \
             order agrees with the standard answer, \"minutes\" does not."
        );
        assert!(slower.contradicts);
        let minutes = of(&[RUNC, ("hull-cold", &[70e3, 71e3, 72e3])]);
        assert!(
            minutes
                .text
                .ends_with("which agrees with the standard answer.")
        );
        assert!(!minutes.contradicts);
    }

    #[test]
    fn a_machine_that_is_no_slower_contradicts() {
        let faster = of(&[
            RUNC,
            ("hull-warm", &[25.0, 25.5, 26.0]),
            ("hull-cold", &[90.0]),
        ]);
        assert!(
            faster
                .text
                .starts_with("hull-warm is faster than runc: it takes 0.50 (95 %")
        );
        let same = of(&[RUNC, ("hull-warm", &[50.0, 51.0, 53.0])]);
        assert!(
            same.text.contains("neither faster nor slower"),
            "{}",
            same.text
        );
        for verdict in [faster, same] {
            assert!(
                verdict
                    .text
                    .ends_with("which contradicts the standard answer.")
            );
            assert!(verdict.contradicts);
        }
    }

    #[test]
    fn a_missing_side_is_named() {
        let texts = [of(&[RUNC]), of(&[("hull-warm", &[1.0])]), of(&[])].map(|it| it.text);
        assert_eq!(
            texts,
            [
                "This run cannot tell: no virtual machine was measured.",
                "This run cannot tell: no container was measured.",
                "This run cannot tell: neither a container nor a virtual machine was measured."
            ]
        );
    }
}
