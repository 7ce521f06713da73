//! How long a command takes to start and to end.

use std::time::Duration;

use super::session::{Measured, Session, Subjects};
use super::verdict::{Side, best_of_sides, ratio, sides};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::measure::timed::Timed;
use crate::compare::report::comparison::Verdict;
use crate::compare::report::quantity::value;
use crate::compare::statistics::Ratio;

/// The least that counts as "minutes", in milliseconds.
const MINUTE: f64 = 60_000.0;

pub fn measure(turns: &mut Subjects, session: &mut Session) -> Measured {
    let mut figures = Vec::new();
    for workload in session.workloads.clone() {
        let runs = session.in_turns(turns, &workload);
        let mut figure = |what: &str, time: fn(&Timed) -> Option<Duration>| {
            let name = format!("{}, {what}", workload.name);
            let unit = (Unit::Milliseconds, Better::Less);
            figures.push(turns.figure(name, unit, &runs, |runs| {
                let times = runs.done.iter().filter_map(time);
                let samples: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
                let silent = samples.is_empty() && !runs.done.is_empty();
                let silent = silent.then(|| "it prints nothing".into());
                Cell::samples(samples).with_note(runs.note().or(silent))
            }));
        };
        figure("exec to exit", |timed| Some(timed.end));
        figure("exec to first byte", |timed| timed.first_byte);
    }
    Measured {
        method: format!(
            "The clock starts right before hull creates the child that runs the command (fork, and exec of \
             the runtime, engine or monitor). It stops when the first byte arrives from the child's standard \
             output; and when the output is closed and the child has ended, which includes the end of a \
             virtual machine. After two warm-up runs of each, all subjects take turns {} times, in an order \
             that is reversed each time. Not counted: making and pulling the image, starting an engine's \
             daemon, and the boot of the machine that became the template of a warm start.",
            turns.runs
        ),
        verdict: verdict(&figures[0], &sides(turns)).into(),
        figures,
    }
}

/// `figure` has the time to the exit of the shortest command.
fn verdict(figure: &Figure, sides: &[Side]) -> Result<Verdict, String> {
    let (container, machine) = best_of_sides(figure, sides)?;
    let between = Ratio::of(&machine.samples, &container.samples)
        .ok_or_else(|| "a container takes no measurable time".to_owned())?;
    let (one, other) = (&machine.subject, &container.subject);
    let times = ratio(&between);
    let slower = between.low > 1.0;
    let order = if slower {
        format!("{one} takes {times} times as long as {other}")
    } else if between.high < 1.0 {
        format!("{one} is faster than {other}: it takes {times} of its time")
    } else {
        format!("{one} and {other} differ by no more than chance ({times})")
    };
    let [machine, container] = [machine, container].map(|cell| cell.median().unwrap_or(f64::NAN));
    let minutes = machine >= MINUTE;
    let claim = match (slower, minutes) {
        (true, true) => "this agrees with the standard answer",
        (true, false) => "the order agrees with the standard answer, \"minutes\" does not",
        (false, _) => "this contradicts the standard answer",
    };
    let [machine, container] = [machine, container].map(|ms| value(Unit::Milliseconds, ms));
    Ok(Verdict {
        text: format!("{order}, {machine} and {container}: {claim}."),
        contradicts: !(slower && minutes),
    })
}

#[cfg(test)]
mod tests {
    use super::super::verdict::tests::sides;
    use super::*;

    fn verdict_of(samples: &[(&str, &[f64])]) -> Verdict {
        let figure = Figure::of_samples(Unit::Milliseconds, Better::Less, samples);
        verdict(&figure, &sides()).into()
    }

    const RUNC: (&str, &[f64]) = ("runc", &[50.0, 51.0, 52.0]);

    #[test]
    fn a_slower_machine_agrees_but_not_with_minutes() {
        let slower = verdict_of(&[
            RUNC,
            ("crun", &[99.0]),
            ("hull-warm", &[150.0, 153.0, 156.0]),
        ]);
        assert_eq!(
            slower.text,
            "hull-warm takes 3.00 (95 %: 2.88 to 3.12) times as long as runc, 153 ms and 51.0 ms: the \
             order agrees with the standard answer, \"minutes\" does not."
        );
        assert!(slower.contradicts);
        let minutes = verdict_of(&[RUNC, ("hull-cold", &[70e3, 71e3, 72e3])]);
        let end = "this agrees with the standard answer.";
        assert!(minutes.text.ends_with(end) && !minutes.contradicts);
    }

    #[test]
    fn a_machine_that_is_no_slower_contradicts() {
        let faster = verdict_of(&[
            RUNC,
            ("hull-warm", &[25.0, 25.5, 26.0]),
            ("hull-cold", &[90.0]),
        ]);
        let start = "hull-warm is faster than runc: it takes 0.50 (95 %";
        assert!(faster.text.starts_with(start));
        let same = verdict_of(&[RUNC, ("hull-warm", &[50.0, 51.0, 53.0])]);
        assert!(same.text.contains("no more than chance"), "{}", same.text);
        for verdict in [faster, same] {
            let end = "this contradicts the standard answer.";
            assert!(verdict.text.ends_with(end) && verdict.contradicts);
        }
    }

    #[test]
    fn a_missing_side_is_named() {
        let warm: (&str, &[f64]) = ("hull-warm", &[1.0]);
        for (samples, missing) in [
            (&[RUNC][..], "no virtual machine"),
            (&[warm], "no container"),
            (&[], "neither a container nor a virtual machine"),
        ] {
            let text = format!("This run cannot tell: {missing} was measured.");
            assert_eq!(verdict_of(samples).text, text);
        }
    }
}
