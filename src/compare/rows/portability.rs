//! What another machine must have to run the workload.

use super::session::{Measured, Session, Subjects};
use super::verdict::{Side, missing, ranked, sides};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::report::comparison::Verdict;
use crate::compare::report::quantity::value;
use crate::compare::subject::{About, Kind, Subject};
use crate::compare::turns::TEXT;

pub fn measure(turns: &mut Subjects, session: &mut Session) -> Measured {
    let host = flags(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let cpuinfo = "cat /proc/cpuinfo || { mount -t proc proc /proc && cat /proc/cpuinfo; }";
    let seen = turns.each("processor features", |subject| {
        let timed = session.once(&mut **subject, &["/bin/busybox", "sh", "-c", cpuinfo])?;
        Ok::<_, String>(flags(&String::from_utf8_lossy(&timed.output)))
    });
    let images = turns.each("files", |subject| carried_bytes(&**subject) as f64);
    let needs = turns.each("needs", |subject| needs(subject.about()));
    let figures = vec![
        turns.figure(
            "bytes to carry",
            (Unit::Bytes, Better::Less),
            &images,
            |bytes| Cell::samples([*bytes]),
        ),
        turns.figure("must be the same there", TEXT, &needs, |needs| {
            Cell::text(*needs)
        }),
        turns.results(
            "processor features that the workload sees",
            TEXT,
            &seen,
            |seen| {
                let common = seen.iter().filter(|flag| host.contains(flag)).count();
                Cell::text(format!("{common} of the host's {}", host.len()))
            },
        ),
    ];
    Measured {
        method: "Bytes of the image, and for a machine of its kernel and, with hull, of the program that \
                 contains both. What runs on the host's kernel (see the row on the operating \
                 system) needs one with the same system calls there. Features are the flags of /proc/cpuinfo inside \
                 that the host has, too."
            .into(),
        verdict: verdict(&figures[0], &sides(turns)).into(),
        figures,
    }
}

/// Without a runtime or monitor, which the other machine has itself.
fn carried_bytes(subject: &dyn Subject) -> u64 {
    let parts = subject.parts();
    let carried = parts.iter().filter(|part| part.what != "program");
    carried.map(|part| part.bytes).sum()
}

fn needs(about: &About) -> &'static str {
    match (about.kind, about.name.as_str()) {
        (Kind::Process, _) => "a Linux kernel with the same system calls; the file",
        (Kind::Container, _) => "a Linux kernel with the same system calls; a runtime",
        (Kind::Machine, "hull-warm") => {
            "any Linux with KVM; for the template also the same features of the processor"
        }
        (Kind::Machine, "hull-cold") => "any Linux with KVM",
        (Kind::Machine, _) => "any Linux with KVM; the monitor",
    }
}

/// The features of the first processor (proc_cpuinfo(5)).
fn flags(cpuinfo: &str) -> Vec<String> {
    let mut lines = cpuinfo.lines();
    let line = lines.find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    let flags = line.map_or("", |(_, flags)| flags);
    flags.split_whitespace().map(Into::into).collect()
}

fn verdict(images: &Figure, sides: &[Side]) -> Result<Verdict, String> {
    let rank = |kind| ranked(sides, kind, |subject| images.median(subject));
    let (containers, machines) = (rank(Kind::Container), rank(Kind::Machine));
    let (Some((container, small)), Some((machine, large))) = (containers.first(), machines.first())
    else {
        return Err(missing(sides, "was counted"));
    };
    let larger = large > small;
    let [large, small] = [large, small].map(|bytes| value(Unit::Bytes, *bytes));
    Ok(Verdict {
        text: format!(
            "{}{machine} carries {large}, including its own kernel, and needs KVM there, but no particular \
             kernel; {container} carries {small} and needs the kernel.",
            if larger { "As claimed, by size: " } else { "" },
        ),
        contradicts: !larger,
    })
}

#[cfg(test)]
mod tests {
    use super::super::verdict::tests::sides;
    use super::*;

    #[test]
    fn the_larger_image_is_the_machines_as_claimed() {
        let contradicts = |machine: f64| {
            let samples: &[(&str, &[f64])] = &[("crun", &[2e6]), ("hull-cold", &[machine])];
            let figure = Figure::of_samples(Unit::Bytes, Better::Less, samples);
            Verdict::from(verdict(&figure, &sides())).contradicts
        };
        assert!(!contradicts(1e7) && contradicts(1e6));
    }

    #[test]
    fn features_are_those_of_the_first_processor() {
        let text = "processor\t: 0\nflags\t\t: fpu sse\n\nprocessor\t: 1\nflags\t\t: fpu\n";
        assert_eq!(flags(text), ["fpu", "sse"]);
        assert!(flags("").is_empty());
    }
}
