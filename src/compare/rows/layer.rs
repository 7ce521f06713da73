//! What the workload runs on: the instruction by which it leaves its own code.

use super::session::{Measured, Session, Subjects};
use super::verdict::{Side, missing, ranked, sides};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::measure::calls::Calls;
use crate::compare::report::comparison::Verdict;
use crate::compare::subject::Kind;
use crate::compare::turns::TEXT;

pub fn measure(turns: &mut Subjects, session: &mut Session) -> Measured {
    let words = session.workloads[0].words.clone();
    let counted = turns.each("system calls", |subject| {
        let calls = session.count_calls(&mut **subject, &words);
        calls.map_err(|error| format!("it {error}"))
    });
    let count = |name: &str, better, number: fn(&Calls) -> u64| {
        turns.results(name, (Unit::Count, better), &counted, |calls| {
            Cell::samples([number(calls) as f64])
        })
    };
    let (less, neither) = (Better::Less, Better::Neither);
    let figures = vec![
        count("system calls of the host's kernel", less, Calls::total),
        turns.results(
            "instruction that leaves the workload",
            TEXT,
            &counted,
            |calls| {
                Cell::text(match calls.kvm_runs {
                    0 => format!("SYSCALL: {} times", calls.total()),
                    runs => format!("VM exit: {runs} reached the monitor"),
                })
            },
        ),
        count("distinct ones", less, |calls| calls.distinct() as u64),
        count("KVM_RUN among them", neither, |calls| calls.kvm_runs),
    ];
    Measured {
        method: format!(
            "`{}` runs once under ptrace(2), with all processes that the subject starts for it: each system \
             call is counted at its entry, from the subject's exec to its end. ioctl(KVM_RUN) is the system \
             call by which a monitor enters a guest; it returns at each VM exit that the host's kernel does \
             not handle itself. The system calls of an engine's daemon are not counted.",
            words.join(" ")
        ),
        verdict: verdict(&figures, &sides(turns)).into(),
        figures,
    }
}

fn verdict(figures: &[Figure], sides: &[Side]) -> Result<Verdict, String> {
    let calls = |subject: &str| figures[0].median(subject);
    let runs = |subject: &str| figures[3].median(subject).unwrap_or(0.0);
    let machines = ranked(sides, Kind::Machine, calls);
    if machines.is_empty() {
        return Err(missing(sides, "was traced"));
    }
    let Some((machine, _)) = machines.iter().find(|(name, _)| runs(name) > 0.0) else {
        return Ok(Verdict {
            text: "No monitor entered a guest, which contradicts what a virtual machine is.".into(),
            contradicts: true,
        });
    };
    let containers = ranked(sides, Kind::Container, calls);
    let container = match (containers.first(), calls("process")) {
        (Some((name, calls)), Some(process)) => format!(
            "; the workload in {name} leaves by SYSCALL into the host's kernel, as a process does \
             ({calls:.0} calls including the runtime's own, {process:.0} without a container)"
        ),
        (Some((name, calls)), None) => format!(
            "; the workload in {name} leaves by SYSCALL into the host's kernel ({calls:.0} calls)"
        ),
        (None, _) => String::new(),
    };
    Ok(Verdict {
        text: format!(
            "As claimed: the workload in {machine} leaves by VM exits, {:.0} of which reached its \
             monitor{container}.",
            runs(machine)
        ),
        contradicts: false,
    })
}

#[cfg(test)]
mod tests {
    use super::super::verdict::tests::sides;
    use super::*;

    fn verdict_with(machine_runs: f64) -> Verdict {
        let figure = |[process, crun, warm]: [f64; 3]| {
            let samples: &[(&str, &[f64])] = &[
                ("process", &[process]),
                ("crun", &[crun]),
                ("hull-warm", &[warm]),
            ];
            Figure::of_samples(Unit::Count, Better::Less, samples)
        };
        let figures = [
            figure([20.0, 700.0, 300.0]),
            figure([0.0; 3]),
            figure([0.0; 3]),
            figure([0.0, 0.0, machine_runs]),
        ];
        verdict(&figures, &sides()).into()
    }

    #[test]
    fn a_machine_is_one_by_its_exits() {
        let verdict = verdict_with(40.0);
        assert!(!verdict.contradicts);
        assert!(verdict.text.contains("40 of which") && verdict.text.contains("700 calls"));
        assert!(verdict_with(0.0).contradicts);
    }
}
