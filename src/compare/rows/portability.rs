//! What must be the same on another machine that a workload is taken to.

use super::sides::{Side, cannot_tell, ranked};
use crate::compare::figure::{Better, Cell, Figure, Unit};
use crate::compare::report::saved::{Row, Verdict};
use crate::compare::subject::{Kind, Part};
use crate::compare::turns::{Turns, words};

/// In the report.
pub const NAME: &str = "portability";

/// Look at what the workload sees of the machine it is on.
pub fn measure(turns: &mut Turns) -> Row {
    let host = flags(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let entrants = turns.entrants();
    let (mut needs, mut seen, mut images) = (Vec::new(), Vec::new(), Vec::new());
    for (done, index) in entrants.iter().copied().enumerate() {
        turns.step(done, entrants.len(), index, "processor features");
        let name = turns.name(index);
        let carried = turns.subject(index).parts();
        let carried: u64 = carried
            .iter()
            .filter(is_carried)
            .map(|part| part.bytes)
            .sum();
        images.push((name.clone(), vec![carried as f64]));
        needs.push(Cell::text(&name, what_it_needs(turns, index)));
        let cpuinfo = "cat /proc/cpuinfo || { mount -t proc proc /proc && cat /proc/cpuinfo; }";
        let words = words(&["/bin/busybox", "sh", "-c", cpuinfo]);
        seen.push(match turns.once(index, &words) {
            Ok(timed) => {
                let inside = flags(&String::from_utf8_lossy(&timed.output));
                let of_host = inside.iter().filter(|flag| host.contains(flag)).count();
                Cell::text(&name, format!("{of_host} of the host's {}", host.len()))
            }
            Err(error) => Cell::missing(&name, format!("it {error}")),
        });
    }
    let text = |name: &str, cells| Figure {
        name: name.into(),
        unit: Unit::Text,
        better: Better::Neither,
        cells,
    };
    let images = images
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.clone()));
    let figures = vec![
        Figure::of_samples("bytes to carry along", Unit::Bytes, Better::Less, images),
        text("must be the same there", needs),
        text("processor features that the workload sees", seen),
    ];
    let sides = turns.sides();
    Row {
        name: NAME.into(),
        claim_machine: "OS and applications, large".into(),
        claim_container: "application and its dependencies, small".into(),
        method: "Bytes of the image, and for a machine of its kernel and, with hull, of the program that \
                 carries both. Whether the kernel must be the same kind is what the row on the operating \
                 system has shown: who runs on the host's needs one with the same system calls there. \
                 Features are the flags of /proc/cpuinfo inside that the host's has, too."
            .into(),
        verdict: verdict(&figures[0], &sides),
        figures,
    }
}

/// Not a runtime or monitor that the other machine has its own of.
fn is_carried(part: &&Part) -> bool {
    part.what != "program"
}

fn what_it_needs(turns: &Turns, index: usize) -> &'static str {
    match (turns.kind(index), turns.name(index).as_str()) {
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
    let line = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    line.map_or(Vec::new(), |(_, flags)| {
        flags.split_whitespace().map(Into::into).collect()
    })
}

fn verdict(images: &Figure, sides: &[Side]) -> Verdict {
    let bytes = |subject: &str| images.median(subject);
    let (containers, machines) = (
        ranked(sides, Kind::Container, bytes),
        ranked(sides, Kind::Machine, bytes),
    );
    let (Some((container, small)), Some((machine, large))) = (containers.first(), machines.first())
    else {
        return cannot_tell(sides, "was counted");
    };
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let larger = large > small;
    Verdict {
        text: format!(
            "{}{machine} carries {:.1} MiB, its own kernel in it, and needs no kernel in particular \
             there, but KVM; {container} carries {:.1} MiB and needs the kernel.",
            if larger { "As they say, by size: " } else { "" },
            mib(*large),
            mib(*small)
        ),
        contradicts: !larger,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::rows::sides;

    fn told(machine: f64) -> Verdict {
        let sides = sides::of([("crun", Kind::Container), ("hull-cold", Kind::Machine)]);
        let samples = [("crun", vec![2e6]), ("hull-cold", vec![machine])];
        verdict(
            &Figure::of_samples("x", Unit::Bytes, Better::Less, samples),
            &sides,
        )
    }

    #[test]
    fn what_is_larger_is_said() {
        assert!(!told(1e7).contradicts);
        assert!(told(1e6).contradicts);
    }

    #[test]
    fn features_are_those_of_the_first_processor() {
        let text = "processor\t: 0\nflags\t\t: fpu sse\n\nprocessor\t: 1\nflags\t\t: fpu\n";
        assert_eq!(flags(text), ["fpu", "sse"]);
        assert!(flags("").is_empty());
    }
}
