//! Whose kernel the workload runs on.

use super::sides::{Side, cannot_tell, ranked};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::report::saved::{Row, Verdict};
use crate::compare::subject::Kind;
use crate::compare::turns::{IDLE, Turns, UP, words};

/// In the report.
pub const NAME: &str = "operating system";

/// Ask each subject's kernel for its name.
pub fn measure(turns: &mut Turns) -> Row {
    let host = rustix::system::uname();
    let host = format!(
        "{} {}",
        host.release().to_string_lossy(),
        host.version().to_string_lossy()
    );
    let entrants = turns.entrants();
    let (mut names, mut owners) = (Vec::new(), Vec::new());
    for (done, index) in entrants.iter().copied().enumerate() {
        turns.step(done, entrants.len(), index, "uname");
        let subject = turns.name(index);
        match turns.once(index, &words(&["/bin/busybox", "uname", "-rv"])) {
            Ok(timed) => {
                let kernel = String::from_utf8_lossy(&timed.output).trim().to_owned();
                let own = kernel != host;
                owners.push(Cell {
                    passed: Some(own),
                    ..Cell::text(&subject, if own { "its own" } else { "the host's" })
                });
                names.push(Cell::text(&subject, kernel));
            }
            Err(error) => {
                let note = format!("it {error}");
                owners.push(Cell::missing(&subject, note.as_str()));
                names.push(Cell::missing(&subject, note));
            }
        }
    }
    let second = second_kernel(turns);
    let sides = turns.sides();
    let text = |name: &str, cells| Figure {
        name: name.into(),
        unit: Unit::Text,
        better: Better::Neither,
        cells,
    };
    let figures = vec![
        text("kernel", owners),
        text("its release and version", names),
        text("another kernel at the same time", second),
    ];
    Row {
        name: NAME.into(),
        claim_machine: "a full one of its own".into(),
        claim_container: "the host's kernel, shared".into(),
        method: format!(
            "`uname -rv` inside, beside the host's: {host}. A kernel of the same release and version is \
             taken for the host's own. A machine of hull's with another kernel ({}) says its name while an \
             instance of the subject is up.",
            match &turns.second_kernel {
                Some(kernel) => kernel.0.display().to_string(),
                None => "there is none here: --second-kernel names one".into(),
            }
        ),
        verdict: verdict(&figures[0], &sides),
        figures,
    }
}

/// Have a second kernel say its name while a machine of hull's runs the first; of others it would prove
/// nothing that hull's does not.
fn second_kernel(turns: &mut Turns) -> Vec<Cell> {
    let entrants = turns.entrants().into_iter();
    let cell = |index: usize| {
        let name = turns.name(index);
        if !name.starts_with("hull-") {
            return Cell::missing(&name, "tried with hull alone");
        }
        let first = match turns.start(index, &words(&IDLE), UP) {
            Ok(first) => first,
            Err(error) => return Cell::missing(&name, format!("it {error}")),
        };
        let second = turns.on_second_kernel(&words(&["/bin/busybox", "uname", "-rv"]));
        turns.end(first);
        match second {
            Some(Ok(timed)) => {
                let kernel = String::from_utf8_lossy(&timed.output).trim().to_owned();
                Cell {
                    passed: Some(true),
                    ..Cell::text(&name, kernel)
                }
            }
            Some(Err(error)) => Cell::missing(&name, format!("the second kernel {error}")),
            None => Cell::missing(&name, "there is no second kernel"),
        }
    };
    entrants.map(cell).collect()
}

/// Of the figure that says whether the kernel is its own.
fn verdict(owners: &Figure, sides: &[Side]) -> Verdict {
    let own = |subject: &str| {
        let cell = owners.cell(subject)?;
        cell.passed.map(|own| f64::from(u8::from(own)))
    };
    let (containers, machines) = (
        ranked(sides, Kind::Container, own),
        ranked(sides, Kind::Machine, own),
    );
    if containers.is_empty() && machines.is_empty() {
        return cannot_tell(sides, "said its kernel's name");
    }
    let named = |of: &[(&str, f64)], own: f64| {
        let names = of
            .iter()
            .filter(|(_, its)| *its == own)
            .map(|(name, _)| *name);
        names.collect::<Vec<_>>().join(", ")
    };
    let (odd_containers, odd_machines) = (named(&containers, 1.0), named(&machines, 0.0));
    if odd_containers.is_empty() && odd_machines.is_empty() {
        let mut text = String::from("As they say:");
        if !machines.is_empty() {
            text += &format!(" {} a kernel of its own", each(&machines));
        }
        if !containers.is_empty() {
            let joint = if machines.is_empty() { "" } else { "," };
            text += &format!("{joint} {} the host's", each(&containers));
        }
        return Verdict {
            text: text + ".",
            contradicts: false,
        };
    }
    let mut text = String::new();
    if !odd_containers.is_empty() {
        text += &format!(" There is a kernel of its own under {odd_containers}.");
    }
    if !odd_machines.is_empty() {
        text += &format!(
            " The kernel is the same inside and outside under {odd_machines} (or another of the same version)."
        );
    }
    Verdict {
        text: text.trim_start().into(),
        contradicts: true,
    }
}

fn each(subjects: &[(&str, f64)]) -> String {
    match subjects {
        [(name, _)] => format!("{name} has"),
        _ => {
            let names: Vec<&str> = subjects.iter().map(|(name, _)| *name).collect();
            format!("each of {} has", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::rows::sides;

    fn told(container: Option<bool>, machine: Option<bool>) -> Verdict {
        let sides = sides::of([("runc", Kind::Container), ("hull-cold", Kind::Machine)]);
        let cell = |subject: &str, passed| Cell {
            passed,
            ..Cell::text(subject, "")
        };
        let figure = Figure {
            name: "kernel".into(),
            unit: Unit::Text,
            better: Better::Neither,
            cells: vec![cell("runc", container), cell("hull-cold", machine)],
        };
        verdict(&figure, &sides)
    }

    #[test]
    fn whose_kernel_it_is_decides() {
        let agrees = told(Some(false), Some(true));
        assert_eq!(
            agrees.text,
            "As they say: hull-cold has a kernel of its own, runc has the host's."
        );
        assert!(!agrees.contradicts);
        let shared = told(Some(false), Some(false));
        assert!(
            shared.contradicts && shared.text.contains("hull-cold"),
            "{shared:?}"
        );
        let own = told(Some(true), Some(true));
        assert!(own.contradicts && own.text.contains("runc"), "{own:?}");
        assert!(told(None, None).text.starts_with("This run cannot tell"));
        assert_eq!(
            told(None, Some(true)).text,
            "As they say: hull-cold has a kernel of its own."
        );
    }
}
