//! What a hostile workload can see and reach.
//!
//! [`inside`] is what the workload tries; [`outside`] reads what the host's kernel knows of its process. A
//! probe passes if the host was neither seen nor reached.

mod inside;
mod outside;

use super::session::{Measured, Session, Subjects};
use super::verdict::{Side, missing, ranked, sides};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::report::comparison::Verdict;
use crate::compare::subject::Kind;
use crate::compare::turns::{Each, TEXT};

pub fn measure(turns: &mut Subjects, session: &mut Session) -> Measured {
    let probed = turns.each("probes", |subject| {
        let mut probes = inside::probe(&mut **subject, session);
        probes.extend(outside::probe(&mut **subject, session));
        probes
    });
    let name = "probes that did not reach the host";
    let mut figures = vec![turns.figure(name, (Unit::Count, Better::More), &probed, count)];
    figures.extend(each_probe(turns, &probed));
    Measured {
        method: "A workload tries what a hostile one would try first, with the shell and applets of busybox, \
                 as root inside; nothing is exploited. A probe fails if the host was seen or reached: the \
                 kernel by its version; a process by its number and start time; a file outside the image by \
                 its path; a port of the host's loopback by connecting; entries of /proc/sys by opening them \
                 for writing; memory by taking 256 MiB. ptrace shows whether a system call that hardly any \
                 program makes (ioprio_get) reaches the host's kernel. Capabilities, namespaces, the root folder \
                 and the limits are read from /proc and the control groups, for the process that the host's \
                 kernel sees: of a virtual machine, its monitor, which a guest may have taken over. The \
                 seccomp filters of its threads are read by ptrace and run for each system call; one \
                 counts as allowed if some of its arguments are. hull runs as the user who started it, \
                 here with the rights that the capabilities show."
            .into(),
        verdict: verdict(&figures[1..], &sides(turns)).into(),
        figures,
    }
}

fn count(probes: &Vec<(&str, Cell)>) -> Cell {
    let outcomes = || probes.iter().map(|(_, outcome)| outcome);
    let untried = outcomes().filter(|outcome| outcome.note.is_some()).count();
    let note = (untried > 0).then(|| format!("{untried} could not be tried"));
    let passed = outcomes()
        .filter(|outcome| outcome.passed == Some(true))
        .count();
    Cell::samples([passed as f64]).with_note(note)
}

fn each_probe(turns: &Subjects, probed: &Each<Vec<(&str, Cell)>>) -> Vec<Figure> {
    let probes = probed.first().map_or(&[][..], |(_, probes)| probes);
    let figure = |(name, _): &(&str, Cell)| {
        turns.figure(*name, TEXT, probed, |probes| {
            let mut probes = probes.iter();
            let probe = probes.find(|(its_name, _)| its_name == name);
            probe.map_or_else(
                || Cell::missing("not tried"),
                |(_, outcome)| outcome.clone(),
            )
        })
    };
    probes.iter().map(figure).collect()
}

/// `probes` has a figure for each probe. Only those that were tried with all containers and machines count.
fn verdict(probes: &[Figure], sides: &[Side]) -> Result<Verdict, String> {
    let passed = |figure: &Figure, side: &Side| figure.cell(&side.name)?.passed;
    let judged = |side: &&Side| side.kind != Kind::Process;
    let common = probes.iter().filter(|figure| {
        let mut judged = sides.iter().filter(judged);
        judged.all(|side| passed(figure, side).is_some())
    });
    let common: Vec<&Figure> = common.collect();
    let failed = |subject: &str| -> Vec<&str> {
        let failed = |figure: &&&Figure| {
            let cell = figure.cell(subject);
            cell.is_some_and(|cell| cell.passed == Some(false))
        };
        let failed = common.iter().filter(failed);
        failed.map(|figure| figure.name.as_str()).collect()
    };
    let rank = |kind| ranked(sides, kind, |subject| Some(failed(subject).len() as f64));
    let (containers, machines) = (rank(Kind::Container), rank(Kind::Machine));
    let (Some((container, container_failed)), Some((machine, machine_failed))) =
        (containers.first(), machines.last())
    else {
        return Err(missing(sides, "probes were tried"));
    };
    if common.is_empty() {
        return Err(missing(sides, "probes were tried with all subjects"));
    }
    let stronger = machine_failed < container_failed;
    let of = |subject: &str| match &failed(subject)[..] {
        [] => format!("{subject} reached the host by none"),
        failed => format!("{subject} by {} ({})", failed.len(), failed.join("; ")),
    };
    Ok(Verdict {
        text: format!(
            "{}of {} probes that were tried with all subjects, the least isolated machine, {}; the best \
             isolated container, {}. Probes find what is open, not what is safe: faults of a monitor are not \
             among them.",
            if stronger { "As claimed: " } else { "" },
            common.len(),
            of(machine),
            of(container),
        ),
        contradicts: !stronger,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict_of(container: [bool; 2], machine: [bool; 2]) -> Verdict {
        let side = |name: &str, kind| Side {
            name: name.into(),
            kind,
        };
        let sides = [
            side("crun", Kind::Container),
            side("hull-warm", Kind::Machine),
        ];
        let figures = [0, 1].map(|probe| {
            let cell = |name, passed: [bool; 2]| Cell::probe(passed[probe], "").of(name);
            let cells = vec![cell("crun", container), cell("hull-warm", machine)];
            Figure::of_texts(["first", "second"][probe], cells)
        });
        verdict(&figures, &sides).into()
    }

    #[test]
    fn fewer_failed_probes_are_stronger() {
        let agrees = verdict_of([true, false], [true, true]);
        assert!(!agrees.contradicts);
        assert!(agrees.text.contains("crun by 1 (second)"), "{agrees:?}");
        assert!(verdict_of([true, true], [true, false]).contradicts);
        let equal = verdict_of([true, true], [true, true]);
        assert!(equal.contradicts, "equal is not stronger");
    }
}
