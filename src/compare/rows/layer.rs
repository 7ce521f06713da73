//! What the workload runs on, by the instruction that leaves it.

use super::sides::{Side, cannot_tell, ranked};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::measure::calls::Calls;
use crate::compare::report::saved::{Row, Verdict};
use crate::compare::subject::Kind;
use crate::compare::turns::Turns;

/// In the report.
pub const NAME: &str = "abstraction layer";

/// Count the system calls of the first workload, once for each subject.
pub fn measure(turns: &mut Turns) -> Row {
    let words = turns.workloads[0].words.clone();
    let entrants = turns.entrants();
    let mut counted = Vec::new();
    for (done, index) in entrants.iter().copied().enumerate() {
        turns.step(done, entrants.len(), index, "system calls");
        let calls = turns
            .traced(index, &words)
            .map_err(|error| error.to_string());
        counted.push((turns.name(index), calls));
    }
    let sides = turns.sides();
    let figure = |name: &str, better, number: fn(&Calls) -> f64| {
        let samples = counted.iter().map(|(subject, calls)| {
            let number = calls.as_ref().map(number);
            (subject.as_str(), number.into_iter().collect())
        });
        let mut figure = Figure::of_samples(name, Unit::Count, better, samples);
        for (cell, (_, calls)) in figure.cells.iter_mut().zip(&counted) {
            cell.note = calls.as_ref().err().cloned();
        }
        figure
    };
    let leaves = counted.iter().map(|(subject, calls)| match calls {
        Ok(calls) if calls.kvm_runs > 0 => Cell::text(
            subject,
            format!("VM exit: {} came to the monitor", calls.kvm_runs),
        ),
        Ok(calls) => Cell::text(subject, format!("SYSCALL: {} times", calls.total())),
        Err(error) => Cell::missing(subject, error.as_str()),
    });
    let figures = vec![
        figure("system calls of the host's kernel", Better::Less, |calls| {
            calls.total() as f64
        }),
        Figure {
            name: "what leaves the workload's world".into(),
            unit: Unit::Text,
            better: Better::Neither,
            cells: leaves.collect(),
        },
        figure("different ones", Better::Less, |calls| {
            calls.different() as f64
        }),
        figure("of them, KVM_RUN", Better::Neither, |calls| {
            calls.kvm_runs as f64
        }),
    ];
    Row {
        name: NAME.into(),
        claim_machine: "the hardware (a hypervisor)".into(),
        claim_container: "the operating system (an engine)".into(),
        method: format!(
            "`{}` and all that its subject starts for it, once, under ptrace(2): each system call is \
             counted when it is entered, from the subject's exec to its end. ioctl(KVM_RUN) is the one \
             by which a monitor hands the processor to a guest; it returns at each VM exit that the \
             host's kernel does not handle itself. What an engine's daemon does is not in it.",
            words.join(" ")
        ),
        verdict: verdict(&figures, &sides),
        figures,
    }
}

fn verdict(figures: &[Figure], sides: &[Side]) -> Verdict {
    let calls = |subject: &str| figures[0].median(subject);
    let runs = |subject: &str| figures[3].median(subject).unwrap_or(0.0);
    let (containers, machines) = (
        ranked(sides, Kind::Container, calls),
        ranked(sides, Kind::Machine, calls),
    );
    let entered = machines.iter().filter(|(name, _)| runs(name) > 0.0);
    let entered: Vec<_> = entered.collect();
    let process = calls("process");
    match (entered.first(), containers.first(), machines.is_empty()) {
        (Some((machine, _)), container, _) => {
            let runs = runs(machine);
            let beside = match (container, process) {
                (Some((name, calls)), Some(process)) => format!(
                    "; {name}'s workload leaves by SYSCALL into the host's kernel, as a process does \
                     ({calls:.0} calls with the runtime's own, {process:.0} without a container)"
                ),
                (Some((name, calls)), None) => {
                    format!(
                        "; {name}'s leaves by SYSCALL into the host's kernel ({calls:.0} calls)"
                    )
                }
                _ => String::new(),
            };
            Verdict {
                text: format!(
                    "As they say: {machine}'s workload leaves by VM exits, {runs:.0} of which came to its \
                     monitor{beside}."
                ),
                contradicts: false,
            }
        }
        (None, _, false) => Verdict {
            text: "No monitor was seen to enter a guest, which contradicts what a machine is."
                .into(),
            contradicts: true,
        },
        (None, ..) => cannot_tell(sides, "was traced"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::rows::sides;

    fn told(machine_runs: f64) -> Verdict {
        let sides = sides::of([
            ("process", Kind::Process),
            ("crun", Kind::Container),
            ("hull-warm", Kind::Machine),
        ]);
        let figure = |samples: [f64; 3]| {
            let names = ["process", "crun", "hull-warm"];
            let samples = names.into_iter().zip(samples.map(|sample| vec![sample]));
            Figure::of_samples("x", Unit::Count, Better::Less, samples)
        };
        let figures = [
            figure([20.0, 700.0, 300.0]),
            figure([0.0; 3]),
            figure([0.0; 3]),
            figure([0.0, 0.0, machine_runs]),
        ];
        verdict(&figures, &sides)
    }

    #[test]
    fn exits_are_what_makes_a_machine() {
        let verdict = told(40.0);
        assert!(!verdict.contradicts);
        assert!(verdict.text.contains("40 of which") && verdict.text.contains("700 calls"));
        assert!(told(0.0).contradicts);
    }
}
