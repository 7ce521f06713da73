//! Whose kernel the workload runs on.

use super::session::{Measured, Session, Subjects};
use super::verdict::{Ranking, Side, missing, ranked, sides};
use crate::compare::figure::{Cell, Figure};
use crate::compare::report::comparison::Verdict;
use crate::compare::subject::{Kind, Subject};
use crate::compare::turns::TEXT;

const UNAME: [&str; 3] = ["/bin/busybox", "uname", "-rv"];

pub fn measure(turns: &mut Subjects, session: &mut Session) -> Measured {
    let host = host_kernel();
    let kernels = turns.each("uname", |subject| {
        let timed = session.once(&mut **subject, &UNAME)?;
        Ok(String::from_utf8_lossy(&timed.output).trim().to_owned())
    });
    let second = turns.each("second kernel", |subject| {
        second_kernel(&mut **subject, session)
    });
    let owner = |kernel: &String| {
        let own = *kernel != host;
        Cell::probe(own, if own { "its own" } else { "the host's" })
    };
    let figures = vec![
        turns.results("kernel", TEXT, &kernels, owner),
        turns.results("its release and version", TEXT, &kernels, |kernel| {
            Cell::text(kernel)
        }),
        turns.figure(
            "another kernel at the same time",
            TEXT,
            &second,
            Cell::clone,
        ),
    ];
    let second_kernel = match &session.second_kernel {
        Some(kernel) => kernel.display().to_string(),
        None => "there is none here: see --second-kernel".into(),
    };
    Measured {
        method: format!(
            "`uname -rv` inside, compared with the host's: {host}. A kernel with the same release and \
             version counts as the host's own. A machine of hull with another kernel ({second_kernel}) \
             prints its name while an instance of the subject is up."
        ),
        verdict: verdict(&figures[0], &sides(turns)).into(),
        figures,
    }
}

/// Release and version of the host's kernel, as `uname -rv` prints them.
pub fn host_kernel() -> String {
    let system = rustix::system::uname();
    let [release, version] =
        [system.release(), system.version()].map(|text| text.to_string_lossy());
    format!("{release} {version}")
}

/// Boots a second kernel while an instance of `subject`, which is hull, runs the first. With other subjects
/// it would prove nothing more.
fn second_kernel(subject: &mut dyn Subject, session: &mut Session) -> Cell {
    if !subject.about().name.starts_with("hull-") {
        return Cell::missing("tried with hull only");
    }
    let first = match session.idle(subject) {
        Ok(first) => first,
        Err(error) => return Cell::missing(error),
    };
    let second = session.on_second_kernel(&UNAME);
    first.end(subject);
    match second {
        Some(Ok(timed)) => Cell::probe(true, String::from_utf8_lossy(&timed.output).trim()),
        Some(Err(error)) => Cell::missing(format!("the second kernel {error}")),
        None => Cell::missing("there is no second kernel"),
    }
}

/// `owners` is the figure that says whether the kernel is the subject's own.
fn verdict(owners: &Figure, sides: &[Side]) -> Result<Verdict, String> {
    let own = |subject: &str| Some(f64::from(u8::from(owners.cell(subject)?.passed?)));
    let containers = ranked(sides, Kind::Container, own);
    let machines = ranked(sides, Kind::Machine, own);
    if containers.is_empty() && machines.is_empty() {
        return Err(missing(sides, "printed its kernel's name"));
    }
    let names = |ranking: &Ranking, own: f64| {
        let names = ranking.iter().filter(|(_, its)| *its == own);
        names.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    };
    let (odd_containers, odd_machines) = (names(&containers, 1.0), names(&machines, 0.0));
    let mut text = Vec::new();
    if !odd_containers.is_empty() {
        text.push(format!(
            "The kernel under {odd_containers} is not the host's."
        ));
    }
    if !odd_machines.is_empty() {
        text.push(format!(
            "The kernel under {odd_machines} is the host's (or another of the same version)."
        ));
    }
    let contradicts = !text.is_empty();
    if !contradicts {
        let mut parts = Vec::new();
        if !machines.is_empty() {
            parts.push(format!("{} a kernel of its own", each_has(&machines)));
        }
        if !containers.is_empty() {
            parts.push(format!("{} the host's", each_has(&containers)));
        }
        text.push(format!("As claimed: {}.", parts.join(", ")));
    }
    Ok(Verdict {
        text: text.join(" "),
        contradicts,
    })
}

fn each_has(ranking: &Ranking) -> String {
    let names: Vec<&str> = ranking.iter().map(|(name, _)| *name).collect();
    match names[..] {
        [name] => format!("{name} has"),
        _ => format!("each of {} has", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::tests::sides;
    use super::*;

    fn verdict_with(container: Option<bool>, machine: Option<bool>) -> Verdict {
        let cell = |subject: &str, passed| Cell {
            passed,
            ..Cell::text("").of(subject)
        };
        let cells = vec![cell("runc", container), cell("hull-cold", machine)];
        verdict(&Figure::of_texts("kernel", cells), &sides()).into()
    }

    #[test]
    fn the_owner_of_the_kernel_decides() {
        let agrees = verdict_with(Some(false), Some(true));
        assert_eq!(
            agrees.text,
            "As claimed: hull-cold has a kernel of its own, runc has the host's."
        );
        assert!(!agrees.contradicts);
        let shared = verdict_with(Some(false), Some(false));
        assert!(
            shared.contradicts && shared.text.contains("hull-cold"),
            "{shared:?}"
        );
        let own = verdict_with(Some(true), Some(true));
        assert!(own.contradicts && own.text.contains("runc"), "{own:?}");
        let none = verdict_with(None, None);
        assert!(none.text.starts_with("This run cannot tell"));
        assert_eq!(
            verdict_with(None, Some(true)).text,
            "As claimed: hull-cold has a kernel of its own."
        );
    }
}
