//! What an instance takes of the machine: memory, CPU time, and how much slower its work becomes.

use std::time::{Duration, Instant};

use super::sides::{Side, best, bytes, ratio};
use crate::compare::figure::{Better, Figure, Unit};
use crate::compare::measure::timed::{self, Timed};
use crate::compare::measure::tree::{Held, held};
use crate::compare::report::saved::{Row, Verdict};
use crate::compare::statistics::{Ratio, Summary};
use crate::compare::subject::Kind;
use crate::compare::turns::{Instance, Turns, words};

/// In the report.
pub const NAME: &str = "resource usage";
/// From the moment when an instance is up until its memory is looked at.
const SETTLED: Duration = Duration::from_millis(500);
/// So long are idle instances watched.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// Of a clock tick of proc_pid_stat(5), in seconds.
const TICK: f64 = 0.01;
/// So long must a loop take, in seconds, that its turns can be told from the rest.
const LONG: f64 = 0.2;
/// Turns of a loop that nothing runs in this time: whoever does does not run the command.
const TURNS_MOST: u64 = 1 << 32;
/// So long may the runs of one loop take of each subject. There is one run at least.
const BUDGET: Duration = Duration::from_secs(20);

/// A command that does the same thing again and again.
struct Loop {
    figure: &'static str,
    /// For so many turns. It says something before the first and after the last.
    script: fn(u64) -> String,
    /// With how many the search for a measurable number begins.
    first: u64,
    /// What is counted, a turn.
    each: f64,
}

const LOOPS: [Loop; 2] = [
    Loop {
        figure: "CPU loop, a turn",
        script: |turns| {
            format!("echo go; i=0; while [ $i -lt {turns} ]; do i=$((i+1)); done; echo done")
        },
        first: 20_000,
        each: 1.0,
    },
    // A read and a write a turn. As the shell's own applet: without a new process.
    Loop {
        figure: "system calls, a call",
        script: |turns| {
            format!("echo go; exec dd if=/dev/zero of=/dev/null bs=1 count={turns} 2>&1")
        },
        first: 500,
        each: 2.0,
    },
];

/// Memory and CPU time of an idle instance, CPU time of a start, time of two loops.
pub fn measure(turns: &mut Turns) -> Row {
    let idle = memory(turns);
    let of_idle = |turns: &Turns, name: &str, unit, better, value: fn(&Held) -> u64| {
        turns.figure(name, (unit, better), |index| match &idle[index] {
            Ok(held) => (vec![value(held) as f64], None),
            Err(why) => (Vec::new(), Some(why.clone())),
        })
    };
    let (less, neither) = (Better::Less, Better::Neither);
    let mut figures = vec![
        of_idle(turns, "idle, proportional memory", Unit::Bytes, less, |h| {
            h.proportional
        }),
        of_idle(turns, "idle, resident memory", Unit::Bytes, less, |h| {
            h.resident
        }),
        of_idle(turns, "idle, processes", Unit::Count, neither, |h| {
            h.processes as u64
        }),
    ];
    figures.push(idle_cpu(turns));
    figures.push(start_cpu(turns));
    for repeated in &LOOPS {
        figures.push(time_of_turns(turns, repeated));
    }
    Row {
        name: NAME.into(),
        claim_machine: "high".into(),
        claim_container: "low".into(),
        method: method(),
        verdict: verdict(&figures, &turns.sides()),
        figures,
    }
}

fn method() -> String {
    format!(
        "Memory: of one idle instance (a shell that has said \"up\" and become a sleep), {} ms later, all \
         processes that it needs on the host: the runtime, shim or monitor and everything below it. \
         Resident memory counts a page in each process that has it, proportional memory (PSS of \
         /proc/PID/smaps_rollup) divides it among them. A virtual machine's own memory is a mapping of its \
         monitor's, so pages that the guest has touched are in both figures. What the host's kernel holds \
         for an instance is in neither, nor is an engine's daemon. Idle CPU: ticks of 10 ms that these \
         processes took in {} s, one instance of each subject up at the same time. CPU of a start: user \
         and system time of the first workload's process and of the children that it waited for; of an \
         engine that is its client alone. Loops: from the first to the last byte that a script prints \
         around its turns, less the same of a single turn, so neither start nor end is in it; so many \
         turns that they take {LONG} s or more; all take turns, within {} s of each for each loop. A system \
         call is a read or a write of one byte (dd from /dev/zero to /dev/null).",
        SETTLED.as_millis(),
        IDLE_TIME.as_secs(),
        BUDGET.as_secs()
    )
}

/// Of one instance of each, one after the other: they share pages. By number; nobody else's is looked at.
fn memory(turns: &mut Turns) -> Vec<Result<Held, String>> {
    let entrants = turns.entrants();
    let all = entrants.iter().max().map_or(0, |last| last + 1);
    let mut found = vec![Err("it was not measured".into()); all];
    for (done, index) in entrants.iter().enumerate() {
        turns.step(done, entrants.len() * 4, *index, "idle memory");
        let instance = turns.idle(*index);
        found[*index] = instance
            .map_err(|error| format!("it {error}"))
            .and_then(|instance| {
                let waited = timed::pause(SETTLED).map_err(|error| error.to_string());
                let held = held(&turns.processes(&instance));
                turns.end(instance);
                waited.map(|()| held)
            });
    }
    found
}

fn idle_cpu(turns: &mut Turns) -> Figure {
    let entrants = turns.entrants();
    let mut up: Vec<(usize, Result<Instance, String>)> = Vec::new();
    for (done, index) in entrants.iter().enumerate() {
        turns.step(
            entrants.len() + done,
            entrants.len() * 4,
            *index,
            "idle CPU",
        );
        let instance = turns.idle(*index).map_err(|error| format!("it {error}"));
        up.push((*index, instance));
    }
    // What starting them has set going is over.
    let _ = timed::pause(SETTLED);
    let ticks = |turns: &Turns| -> Vec<u64> {
        let of = |instance: &Result<Instance, String>| match instance {
            Ok(instance) => held(&turns.processes(instance)).ticks,
            Err(_) => 0,
        };
        up.iter().map(|(_, instance)| of(instance)).collect()
    };
    let (start, before) = (Instant::now(), ticks(turns));
    let waited = timed::pause(IDLE_TIME).is_ok();
    let (after, seconds) = (ticks(turns), start.elapsed().as_secs_f64());
    let mut shares = Vec::new();
    for (at, (index, instance)) in up.into_iter().enumerate() {
        let share = after[at].saturating_sub(before[at]) as f64 * TICK / seconds;
        shares.push((
            index,
            match instance {
                Ok(instance) => {
                    turns.end(instance);
                    if waited {
                        Ok(share)
                    } else {
                        Err(String::new())
                    }
                }
                Err(why) => Err(why),
            },
        ));
    }
    let name = format!("idle CPU over {} s", IDLE_TIME.as_secs());
    turns.figure(name, (Unit::Share, Better::Less), |index| {
        match shares.iter().find(|(one, _)| *one == index) {
            Some((_, Ok(share))) => (vec![*share], None),
            Some((_, Err(why))) => (Vec::new(), Some(why.clone())),
            None => (Vec::new(), None),
        }
    })
}

fn start_cpu(turns: &mut Turns) -> Figure {
    let workload = turns.workloads[0].clone();
    let runs = turns.in_turns(&workload.name, &workload.words);
    let name = format!("{}, CPU time", workload.name);
    turns.figure(name, (Unit::Milliseconds, Better::Less), |index| {
        let samples = runs[index].samples(|timed| timed.cpu.as_secs_f64() * 1e3);
        (samples, runs[index].note())
    })
}

/// How many turns one subject makes, and what it takes beside them, in seconds.
struct Calibrated {
    turns: u64,
    beside: f64,
    spent: Duration,
    samples: Vec<f64>,
}

fn time_of_turns(turns: &mut Turns, repeated: &Loop) -> Figure {
    let entrants = turns.entrants();
    let all = entrants.iter().max().map_or(0, |last| last + 1);
    let mut found: Vec<Result<Calibrated, String>> = Vec::new();
    found.resize_with(all, || Err("it was not measured".into()));
    for index in entrants {
        turns.step(1, 2, index, repeated.figure);
        found[index] = calibrate(turns, index, repeated);
    }
    let mut trouble = vec![None; all];
    turns.rounds(repeated.figure, |turns, index| {
        let Ok(one) = &mut found[index] else { return };
        if one.spent > BUDGET && !one.samples.is_empty() {
            return;
        }
        let start = Instant::now();
        match span(turns, index, repeated, one.turns) {
            Ok(seconds) => {
                let each = (seconds - one.beside) / (one.turns as f64 * repeated.each);
                one.samples.push(each * 1e6);
            }
            Err(why) => trouble[index] = Some(why),
        }
        one.spent += start.elapsed();
    });
    let runs = turns.runs;
    turns.figure(
        repeated.figure,
        (Unit::Microseconds, Better::Less),
        |index| match &found[index] {
            Ok(one) => {
                let fewer = one.samples.len() < runs;
                let note = trouble[index].clone().or(fewer
                    .then(|| format!("{} of {runs} runs: no more time for it", one.samples.len())));
                (one.samples.clone(), note)
            }
            Err(why) => (Vec::new(), Some(why.clone())),
        },
    )
}

/// Find a number of turns that takes long enough.
fn calibrate(turns: &mut Turns, index: usize, repeated: &Loop) -> Result<Calibrated, String> {
    let start = Instant::now();
    let beside = span(turns, index, repeated, 1)?;
    // Whatever is beside the turns has noise of its own.
    let enough = LONG.max(beside * 4.0);
    let mut number = repeated.first;
    while number < TURNS_MOST {
        let took = span(turns, index, repeated, number)? - beside;
        if took >= enough {
            return Ok(Calibrated {
                turns: number,
                beside,
                spent: start.elapsed(),
                samples: Vec::new(),
            });
        }
        let factor = (1.5 * enough / took.max(f64::MIN_POSITIVE)).clamp(2.0, 32.0);
        number = (number as f64 * factor) as u64;
    }
    Err("it takes no longer when it is asked for more turns".into())
}

/// Seconds from the first to the last byte of so many turns.
fn span(turns: &mut Turns, index: usize, repeated: &Loop, number: u64) -> Result<f64, String> {
    let script = (repeated.script)(number);
    let timed = turns.once(index, &words(&["/bin/busybox", "sh", "-c", &script]));
    let timed = timed.map_err(|error| format!("it {error}"))?;
    between_bytes(&timed).ok_or_else(|| "it prints nothing".into())
}

fn between_bytes(timed: &Timed) -> Option<f64> {
    Some((timed.last_byte? - timed.first_byte?).as_secs_f64())
}

/// From memory first: that is what "high" is said of. The loops say what the rest costs.
fn verdict(figures: &[Figure], sides: &[Side]) -> Verdict {
    let memory = &figures[0];
    let container = best(memory, sides, Kind::Container);
    let machine = best(memory, sides, Kind::Machine);
    let (Some(container), Some(machine)) = (container, machine) else {
        return Verdict::one_sided(container.is_some(), machine.is_some());
    };
    let Some(between) = Ratio::of(&machine.samples, &container.samples) else {
        return Verdict::unclear("a container holds no memory that could be measured");
    };
    let (one, other) = (&machine.subject, &container.subject);
    let more = between.low > 1.0;
    let held = |summary: Option<Summary>| bytes(summary.map_or(0.0, |summary| summary.median));
    let mut text = format!(
        "An idle {one} holds {}, {other} {}: {} times as much, which {} the standard answer.",
        held(machine.summary),
        held(container.summary),
        ratio(&between),
        if more { "agrees with" } else { "contradicts" },
    );
    for figure in &figures[figures.len() - LOOPS.len()..] {
        let samples = |name: &str| figure.cell(name).map_or(&[][..], |cell| &cell.samples);
        if let Some(between) = Ratio::of(samples(one), samples(other)) {
            let chance = match between.is_real() {
                true => "",
                false => ", no difference beyond chance",
            };
            text += &format!(
                " Its {}: {} of {other}'s time{chance}.",
                figure.name,
                ratio(&between)
            );
        }
    }
    Verdict {
        text,
        contradicts: !more,
    }
}

#[cfg(test)]
mod tests {
    use super::super::sides::tests::{figure, sides};
    use super::*;

    fn figures(memory: &[(&str, &[f64])], turn: &[(&str, &[f64])]) -> Vec<Figure> {
        let of = |name, cells| figure(name, Unit::Bytes, Better::Less, cells);
        vec![of("memory", memory), of("turn", turn), of("call", &[])]
    }

    #[test]
    fn more_memory_agrees_and_less_contradicts() {
        let mib = f64::from(1 << 20);
        let memory = |machine: f64| {
            let cells: &[(&str, &[f64])] = &[
                ("runc", &[mib]),
                ("hull-warm", &[machine * mib]),
                ("hull-cold", &[90.0 * mib]),
            ];
            verdict(&figures(cells, &[]), &sides())
        };
        let more = memory(8.0);
        assert_eq!(
            more.text,
            "An idle hull-warm holds 8.0 MiB, runc 1.0 MiB: 8.00 times as much, which agrees with the \
             standard answer."
        );
        assert!(!more.contradicts);
        assert!(memory(1.0).contradicts && memory(0.5).contradicts);
    }

    #[test]
    fn the_loops_are_told_with_what_chance_does() {
        let memory: &[(&str, &[f64])] = &[("runc", &[1.0]), ("hull-warm", &[2.0])];
        let text = |machine: &[f64]| {
            let turn: &[(&str, &[f64])] = &[("runc", &[1.0, 1.1, 1.2]), ("hull-warm", machine)];
            verdict(&figures(memory, turn), &sides()).text
        };
        assert!(text(&[2.0, 2.2, 2.4]).contains(" Its turn: 2.00 (95 %"));
        assert!(!text(&[2.0, 2.2, 2.4]).contains("chance"));
        assert!(text(&[1.0, 1.1, 1.3]).ends_with(" of runc's time, no difference beyond chance."));
    }

    #[test]
    fn one_side_alone_tells_nothing() {
        let alone = verdict(&figures(&[("runc", &[1.0])], &[]), &sides());
        assert_eq!(
            alone.text,
            "This run cannot tell: no virtual machine was measured."
        );
        assert!(!alone.contradicts);
    }
}
