//! What an instance uses: memory, CPU time, and how much slower its work becomes.

use std::time::{Duration, Instant};

use super::session::{Measured, Session, Subjects};
use super::verdict::{Side, agreement, best_of_sides, ratio, sides};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::measure::stop::pause;
use crate::compare::measure::tree::{Usage, ticks, usage};
use crate::compare::report::comparison::Verdict;
use crate::compare::report::quantity::value;
use crate::compare::statistics::Ratio;
use crate::compare::subject::{Instance, Subject};
use crate::compare::turns::Each;

/// Between the start of an instance and the reading of its memory.
const SETTLE_TIME: Duration = Duration::from_millis(500);
/// How long the CPU time of idle instances is observed.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// A clock tick of proc_pid_stat(5), in seconds.
const TICK: f64 = 0.01;
/// The shortest time of a loop that can be measured, in seconds.
const MIN_LOOP_TIME: f64 = 0.2;
/// Upper bound; a subject that reports more did not run the loop.
const MAX_ITERATIONS: u64 = 1 << 32;
/// Time for the runs of one loop by one subject. There is at least one run.
const BUDGET: Duration = Duration::from_secs(20);

struct Loop {
    figure: &'static str,
    /// The script for a number of iterations. It prints before the first and after the last.
    script: fn(u64) -> String,
    /// Where the search for a measurable number of iterations begins.
    first: u64,
    operations: f64,
}

const LOOPS: [Loop; 2] = [
    Loop {
        figure: "CPU loop, an iteration",
        script: |count| {
            format!("echo go; i=0; while [ $i -lt {count} ]; do i=$((i+1)); done; echo done")
        },
        first: 20_000,
        operations: 1.0,
    },
    // A read and a write an iteration; dd is an applet of the shell, so exec starts no new program.
    Loop {
        figure: "system calls, a call",
        script: |count| {
            format!("echo go; exec dd if=/dev/zero of=/dev/null bs=1 count={count} 2>&1")
        },
        first: 500,
        operations: 2.0,
    },
];

pub fn measure(turns: &mut Subjects, session: &mut Session) -> Measured {
    let idle = turns.each("idle memory", |subject| idle_usage(&mut **subject, session));
    let of_idle = |name: &str, quantity, number: fn(&Usage) -> u64| {
        turns.results(name, quantity, &idle, |usage| {
            Cell::samples([number(usage) as f64])
        })
    };
    let bytes = (Unit::Bytes, Better::Less);
    let count = (Unit::Count, Better::Neither);
    let mut figures = vec![
        of_idle("idle, proportional memory", bytes, |all| all.proportional),
        of_idle("idle, resident memory", bytes, |all| all.resident),
        of_idle("idle, processes", count, |all| all.processes as u64),
        idle_cpu(turns, session),
        start_cpu(turns, session),
    ];
    figures.extend(LOOPS.map(|repeated| loop_time(turns, session, &repeated)));
    Measured {
        method: method(),
        verdict: verdict(&figures, &sides(turns)).into(),
        figures,
    }
}

fn method() -> String {
    format!(
        "Memory: one idle instance (a shell that has printed \"up\" and become a sleep), {} ms later, with all \
         processes that it needs on the host: the runtime, shim or monitor and its descendants. Resident \
         memory counts a page in each process that maps it, proportional memory (PSS of \
         /proc/PID/smaps_rollup) divides it among them. The memory of a virtual machine is a mapping of its \
         monitor, so both figures include the pages that the guest has touched. Neither includes memory of \
         the host's kernel or of an engine's daemon. Idle CPU: ticks of 10 ms of these processes in {} s, with \
         one instance of each subject up at the same time. CPU of a start: user and system time of the first \
         workload's process and of the children that it waited for; of an engine, only its client. Loops: the \
         time from the first to the last byte that a script prints around its iterations, minus the same for \
         a single iteration, which removes start and end; the number of iterations is chosen so that they \
         take {MIN_LOOP_TIME} s or more; all subjects take turns, for up to {} s each. A system call is a read \
         or a write of one byte (dd from /dev/zero to /dev/null).",
        SETTLE_TIME.as_millis(),
        IDLE_TIME.as_secs(),
        BUDGET.as_secs()
    )
}

fn idle_usage(subject: &mut dyn Subject, session: &mut Session) -> Result<Usage, String> {
    let instance = session.idle(subject)?;
    let settled = pause(SETTLE_TIME).map_err(|error| format!("it {error}"));
    let usage = usage(&instance.processes(subject));
    instance.end(subject);
    settled?;
    usage.map_err(|error| error.to_string())
}

fn idle_cpu(turns: &mut Subjects, session: &mut Session) -> Figure {
    let up = turns.each("idle CPU", |subject| session.idle(&mut **subject));
    let _ = pause(SETTLE_TIME);
    let all_ticks = |turns: &Subjects| -> Vec<u64> {
        let of = |(index, instance): &(usize, Result<Instance, String>)| match instance {
            Ok(instance) => ticks(&instance.processes(&**turns.driver(*index))),
            Err(_) => 0,
        };
        up.iter().map(of).collect()
    };
    let (start, before) = (Instant::now(), all_ticks(turns));
    let observed = pause(IDLE_TIME);
    let (after, seconds) = (all_ticks(turns), start.elapsed().as_secs_f64());
    let mut shares: Each<Result<f64, String>> = Vec::new();
    for (at, (index, instance)) in up.into_iter().enumerate() {
        let share = instance.and_then(|instance| {
            instance.end(&mut **turns.driver_mut(index));
            let observed = observed.as_ref().map_err(|error| format!("it {error}"));
            observed.map(|()| after[at].saturating_sub(before[at]) as f64 * TICK / seconds)
        });
        shares.push((index, share));
    }
    let name = format!("idle CPU over {} s", IDLE_TIME.as_secs());
    turns.results(name, (Unit::Share, Better::Less), &shares, |share| {
        Cell::samples([*share])
    })
}

fn start_cpu(turns: &mut Subjects, session: &mut Session) -> Figure {
    let workload = session.workloads[0].clone();
    let runs = session.in_turns(turns, &workload);
    let name = format!("{}, CPU time", workload.name);
    turns.figure(name, (Unit::Milliseconds, Better::Less), &runs, |runs| {
        let samples = runs.done.iter().map(|timed| timed.cpu.as_secs_f64() * 1e3);
        Cell::samples(samples.collect::<Vec<_>>()).with_note(runs.note())
    })
}

struct Calibrated {
    iterations: u64,
    /// What the script takes without iterations, in seconds.
    overhead: f64,
    spent: Duration,
    samples: Vec<f64>,
    error: Option<String>,
}

fn loop_time(turns: &mut Subjects, session: &mut Session, repeated: &Loop) -> Figure {
    let mut calibrated = turns.each(repeated.figure, |subject| {
        calibrate(&mut **subject, session, repeated)
    });
    turns.rounds(repeated.figure, |index, subject| {
        let mut all = calibrated.iter_mut();
        let Some((_, Ok(one))) = all.find(|(at, _)| *at == index) else {
            return;
        };
        if one.spent > BUDGET && !one.samples.is_empty() {
            return;
        }
        let start = Instant::now();
        match span(&mut **subject, session, repeated, one.iterations) {
            Ok(seconds) => {
                let operations = one.iterations as f64 * repeated.operations;
                one.samples
                    .push((seconds - one.overhead) / operations * 1e6);
            }
            Err(error) => one.error = Some(error),
        }
        one.spent += start.elapsed();
    });
    let runs = turns.runs;
    let unit = (Unit::Microseconds, Better::Less);
    turns.results(repeated.figure, unit, &calibrated, |one| {
        let done = one.samples.len();
        let fewer = (done < runs).then(|| format!("{done} of {runs} runs, for lack of time"));
        Cell::samples(one.samples.clone()).with_note(one.error.clone().or(fewer))
    })
}

fn calibrate(
    subject: &mut dyn Subject,
    session: &mut Session,
    repeated: &Loop,
) -> Result<Calibrated, String> {
    let start = Instant::now();
    let overhead = span(subject, session, repeated, 1)?;
    // The overhead has noise of its own.
    let enough = MIN_LOOP_TIME.max(overhead * 4.0);
    let mut iterations = repeated.first;
    while iterations < MAX_ITERATIONS {
        let took = span(subject, session, repeated, iterations)? - overhead;
        if took >= enough {
            return Ok(Calibrated {
                iterations,
                overhead,
                spent: start.elapsed(),
                samples: Vec::new(),
                error: None,
            });
        }
        let factor = (1.5 * enough / took.max(f64::MIN_POSITIVE)).clamp(2.0, 32.0);
        iterations = (iterations as f64 * factor) as u64;
    }
    Err("more iterations take no more time".into())
}

/// Seconds between the first and the last byte of the script.
fn span(
    subject: &mut dyn Subject,
    session: &mut Session,
    repeated: &Loop,
    iterations: u64,
) -> Result<f64, String> {
    let script = (repeated.script)(iterations);
    let timed = session.once(subject, &["/bin/busybox", "sh", "-c", &script])?;
    let bytes = timed.first_byte.zip(timed.last_byte);
    let span = bytes.map(|(first, last)| (last - first).as_secs_f64());
    span.ok_or_else(|| "it prints nothing".into())
}

/// The claims "high" and "low" are about memory; the loops are reported besides.
fn verdict(figures: &[Figure], sides: &[Side]) -> Result<Verdict, String> {
    let (container, machine) = best_of_sides(&figures[0], sides)?;
    let between = Ratio::of(&machine.samples, &container.samples);
    let between = between.ok_or_else(|| "a container uses no measurable memory".to_owned())?;
    let (one, other) = (&machine.subject, &container.subject);
    let more = between.low > 1.0;
    let [machine, container] =
        [machine, container].map(|cell| value(Unit::Bytes, cell.median().unwrap_or(0.0)));
    let mut text = format!(
        "An idle {one} uses {machine}, {other} {container}: {} times as much, which {} the standard answer.",
        ratio(&between),
        agreement(more),
    );
    for figure in &figures[figures.len() - LOOPS.len()..] {
        let samples = |name: &str| figure.cell(name).map_or(&[][..], |cell| &cell.samples);
        if let Some(between) = Ratio::of(samples(one), samples(other)) {
            let times = ratio(&between);
            let chance = if between.is_real() {
                ""
            } else {
                ", no difference beyond chance"
            };
            text += &format!(" {}: {times} of the time in {other}{chance}.", figure.name);
        }
    }
    Ok(Verdict {
        text,
        contradicts: !more,
    })
}

#[cfg(test)]
mod tests {
    use super::super::verdict::tests::sides;
    use super::*;

    type Samples<'a> = &'a [(&'a str, &'a [f64])];

    fn verdict_of(memory: Samples, loop_: Samples) -> Verdict {
        let of = |samples| Figure::of_samples(Unit::Bytes, Better::Less, samples);
        verdict(&[of(memory), of(loop_), of(&[])], &sides()).into()
    }

    #[test]
    fn more_memory_agrees_and_less_contradicts() {
        let mib = f64::from(1 << 20);
        let memory = |machine: f64| {
            let (runc, warm, cold) = (&[mib][..], &[machine * mib][..], &[90.0 * mib][..]);
            verdict_of(
                &[("runc", runc), ("hull-warm", warm), ("hull-cold", cold)],
                &[],
            )
        };
        let more = memory(8.0);
        assert_eq!(
            more.text,
            "An idle hull-warm uses 8.00 MiB, runc 1.00 MiB: 8.00 times as much, which agrees with the \
             standard answer."
        );
        assert!(!more.contradicts);
        assert!(memory(1.0).contradicts && memory(0.5).contradicts);
    }

    #[test]
    fn the_verdict_says_whether_a_loop_differs() {
        let text = |machine: &[f64]| {
            let loop_: Samples = &[("runc", &[1.0, 1.1, 1.2]), ("hull-warm", machine)];
            verdict_of(&[("runc", &[1.0]), ("hull-warm", &[2.0])], loop_).text
        };
        let slower = text(&[2.0, 2.2, 2.4]);
        assert!(slower.contains(" it: 2.00 (95 %") && !slower.contains("chance"));
        let same = text(&[1.0, 1.1, 1.3]);
        assert!(same.ends_with(" of the time in runc, no difference beyond chance."));
    }

    #[test]
    fn one_side_alone_tells_nothing() {
        let alone = verdict_of(&[("runc", &[1.0])], &[]);
        let text = "This run cannot tell: no virtual machine was measured.";
        assert_eq!((alone.text.as_str(), alone.contradicts), (text, false));
    }
}
